"""The two adapters: signatures, documented examples, results and errors."""

import inspect
import re

import numpy as np
import pytest
import reference

import nbbce
from nbbce.compat import mindspore, paddle

ADAPTERS = {"mindspore": mindspore.binary_cross_entropy, "paddle": paddle.binary_cross_entropy}
DTYPES = {"mindspore": ["float16", "float32"], "paddle": ["float16", "float32", "float64"]}
TARGETS = {"mindspore": "target", "paddle": "label"}
# Where `longdouble` is float64 there is none.
WIDER = ["longdouble"] if np.dtype(np.longdouble).itemsize > 8 else []
both = pytest.mark.parametrize("library", list(ADAPTERS))
each_dtype = pytest.mark.parametrize(("library", "dtype"), [(lib, d) for lib, dtypes in DTYPES.items() for d in dtypes])


def pair(dtype="float32"):
    return np.array([0.2, 0.7, 0.1], dtype), np.array([0, 1, 0], dtype)


def raises(error, library, message, *arguments, **named):
    """The call fails with this message, after the function's name."""
    text = f"nbbce.compat.{library}.binary_cross_entropy: {message.replace('TARGET', TARGETS[library])}"
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        ADAPTERS[library](*arguments, **named)


def test_mindspore_signature_is_theirs():
    parameters = inspect.signature(mindspore.binary_cross_entropy).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("input", inspect.Parameter.empty),
        ("target", inspect.Parameter.empty),
        ("weight", None),
        ("reduction", "mean"),
    ]
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_paddle_signature_is_theirs():
    parameters = inspect.signature(paddle.binary_cross_entropy).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("input", inspect.Parameter.empty),
        ("label", inspect.Parameter.empty),
        ("weight", None),
        ("reduction", "mean"),
        ("name", None),
    ]
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_mindspore_example_is_the_exact_value_rounded_which_is_one_float32_below_what_they_print():
    x, y, w = np.float32([0.2, 0.7, 0.1]), np.float32([0, 1, 0]), np.float32([1, 2, 2])
    loss = mindspore.binary_cross_entropy(x, y, w)
    exact = reference.total(reference.losses(x, y, w)) / 3
    assert loss.dtype == np.float32
    assert loss == reference.nearest(exact, np.float32) == np.float32(0.38240483)
    theirs = np.float32(0.38240486)  # printed in the documentation of mint.nn.functional.binary_cross_entropy
    assert np.nextafter(loss, np.float32(1)) == theirs
    assert reference.ulps(theirs, exact, np.float32) < 1


def test_paddle_example_is_what_they_print():
    x, y = np.float32([0.5, 0.6, 0.7]), np.float32([1, 0, 1])
    loss = paddle.binary_cross_entropy(x, y)
    exact = reference.total(reference.losses(x, y)) / 3
    assert loss.dtype == np.float32
    # Printed in the documentation of paddle.nn.functional.binary_cross_entropy.
    assert loss == reference.nearest(exact, np.float32) == np.float32(0.65537095)


@each_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_result_has_the_dtype_of_the_input_and_its_shape_or_none(library, dtype, reduction):
    x, y = (a.reshape(3, 1) for a in pair(dtype))
    result = ADAPTERS[library](x, y, None, reduction)
    assert result.dtype == dtype
    assert result.shape == (x.shape if reduction == "none" else ())
    assert isinstance(result, np.ndarray if reduction == "none" else np.generic)


@each_dtype
def test_values_are_those_of_nbbce(library, dtype):
    x, y = pair(dtype)
    w = np.array([1, 2, 2], dtype)
    for reduction in ("mean", "sum", "none"):
        expected = nbbce.binary_cross_entropy(x, y, w, reduction)
        np.testing.assert_array_equal(ADAPTERS[library](x, y, w, reduction), expected, strict=True)


@both
def test_fully_wrong_answer_costs_100(library):
    x, y = np.float32([0, 1]), np.float32([1, 0])
    np.testing.assert_array_equal(ADAPTERS[library](x, y, reduction="none"), np.float32([100, 100]))


@both
def test_one_element_costs_its_loss(library):
    # Not twice that, as in MindSpore 2.10 on the CPU.
    assert ADAPTERS[library](np.float32([0.5]), np.float32([1])) == np.float32(np.log(2))


@both
def test_zero_dimensional_arrays_are_arrays(library):
    assert ADAPTERS[library](np.array(0.5, "f4"), np.array(1, "f4"), np.array(2, "f4")) == np.float32(2 * np.log(2))


@both
def test_no_element_has_sum_zero_and_mean_nan_with_a_warning_at_the_caller(library):
    x, y = (a[:0] for a in pair())
    assert ADAPTERS[library](x, y, reduction="sum") == 0
    assert ADAPTERS[library](x, y, reduction="none").shape == (0,)
    with pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$") as caught:
        assert np.isnan(ADAPTERS[library](x, y))
    assert caught[0].filename == __file__


@both
def test_weight_broadcasts_to_the_input(library):
    x, y = np.full((2, 3), 0.5, np.float32), np.ones((2, 3), np.float32)
    w = np.float32([1, 2, 3])
    result = ADAPTERS[library](x, y, w, "none")
    np.testing.assert_array_equal(result, np.float32(np.log(2)) * np.broadcast_to(w, (2, 3)), strict=True)


def test_paddle_result_has_the_dtype_of_a_wider_weight():
    x, y = pair("float32")
    assert paddle.binary_cross_entropy(x, y, np.ones(3), "none").dtype == np.float64
    assert paddle.binary_cross_entropy(x, y, np.ones(3, np.float16)).dtype == np.float32


def test_mindspore_result_has_the_dtype_of_the_input_whatever_the_weight():
    x, y = pair("float16")
    assert mindspore.binary_cross_entropy(x, y, np.ones(3, np.float32)).dtype == np.float16


def test_paddle_name_changes_nothing():
    x, y = pair()
    assert paddle.binary_cross_entropy(x, y, name="loss") == paddle.binary_cross_entropy(x, y)


def test_pandas_series_is_an_array():
    import pandas

    x, y = pair()
    assert paddle.binary_cross_entropy(pandas.Series(x), label=pandas.Series(y)) == paddle.binary_cross_entropy(x, y)


# Errors: one test a message.


@both
def test_input_that_is_no_array_is_a_type_error(library):
    raises(TypeError, library, "'input' must be an array (see numpy.asarray); got list", [0.5], pair()[1])


@both
def test_target_that_is_no_array_is_a_type_error(library):
    raises(TypeError, library, "'TARGET' must be an array (see numpy.asarray); got 1.0", pair()[0], 1.0)


@both
@pytest.mark.parametrize("weight", [2.0, np.float32(2)], ids=["float", "scalar"])
def test_weight_that_is_no_array_is_a_type_error(library, weight):
    raises(TypeError, library, f"'weight' must be an array (see numpy.asarray); got {weight!r}", *pair(), weight)


@both
@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", *WIDER])
@pytest.mark.parametrize("name", ["input", "TARGET", "weight"])
def test_other_dtype_is_a_type_error(library, name, dtype):
    arguments = dict(zip(("input", "TARGET", "weight"), (*pair(), np.ones(3, np.float32)), strict=True))
    arguments[name] = arguments[name].astype(dtype)
    allowed = ", ".join(DTYPES[library])
    message = f"{name!r} must have dtype {allowed}; got {np.dtype(dtype)}"
    raises(TypeError, library, message, *arguments.values())


@pytest.mark.parametrize("name", ["input", "target", "weight"])
def test_mindspore_takes_no_float64(name):
    arguments = dict(zip(("input", "target", "weight"), (*pair(), np.ones(3, np.float32)), strict=True))
    arguments[name] = arguments[name].astype(np.float64)
    raises(TypeError, "mindspore", f"{name!r} must have dtype float16, float32; got float64", *arguments.values())


def test_mindspore_wants_one_dtype_of_input_and_target():
    x, y = pair()
    message = "'target' must have the dtype of 'input', float32; got float16"
    raises(TypeError, "mindspore", message, x, y.astype(np.float16))


@both
@pytest.mark.parametrize("reduction", ["avg", "Mean", None])
def test_unknown_reduction_is_a_value_error(library, reduction):
    message = f"'reduction' must be one of 'mean', 'sum', 'none'; got {reduction!r}"
    raises(ValueError, library, message, *pair(), reduction=reduction)


@both
def test_target_of_another_shape_is_a_value_error(library):
    x, y = pair()
    raises(ValueError, library, "'TARGET' must have the shape of 'input', (3,); got (3, 1)", x, y[:, None])


@both
@pytest.mark.parametrize("shape", [(2,), (2, 3)], ids=["misfit", "larger"])
def test_weight_that_does_not_broadcast_to_the_input_is_a_value_error(library, shape):
    message = f"'weight' must broadcast to the shape of 'input', (3,); got {shape}"
    raises(ValueError, library, message, *pair(), np.ones(shape, np.float32))


@both
@pytest.mark.parametrize("value", ["1.5", "-0.25", "nan"])
def test_input_outside_0_to_1_is_a_value_error(library, value):
    x, y = pair()
    x[1] = float(value)
    raises(ValueError, library, f"values must be in [0, 1]; got input[1] = {value}", x, y)


@both
def test_target_outside_0_to_1_is_a_value_error(library):
    x, y = pair()
    y[2] = 1.5
    raises(ValueError, library, "values must be in [0, 1]; got TARGET[2] = 1.5", x, y)
