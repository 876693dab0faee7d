"""The two adapters: signatures, documented examples, results and errors."""

import inspect
import math
import re

import ml_dtypes
import numpy as np
import pytest
import reference

import nbbce
from nbbce.compat import mindspore, paddle


def test_adapters_are_where_the_readme_says():
    assert nbbce.compat.mindspore is mindspore
    assert nbbce.compat.paddle is paddle


ADAPTERS = {"mindspore": mindspore.binary_cross_entropy, "paddle": paddle.binary_cross_entropy}
DTYPES = {"mindspore": ["float16", "float32"], "paddle": ["float16", "float32", "float64"]}
TARGETS = {"mindspore": "target", "paddle": "label"}
# Where `longdouble` is float64 there is none.
WIDER = ["longdouble"] if np.dtype(np.longdouble).itemsize > 8 else []
both = pytest.mark.parametrize("library", list(ADAPTERS))
WITH_LOGITS = {
    "mindspore": mindspore.binary_cross_entropy_with_logits,
    "paddle": paddle.binary_cross_entropy_with_logits,
}
LOGITS_DTYPES = DTYPES | {"mindspore": ["float16", "bfloat16", "float32"]}
INPUTS = {"mindspore": "input", "paddle": "logit"}
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


# The same of logits.

each_logits_dtype = pytest.mark.parametrize(
    ("library", "dtype"), [(lib, d) for lib, dtypes in LOGITS_DTYPES.items() for d in dtypes]
)
# MindSpore's example; its targets are [[0.3, 0.8, 1.2], [-0.6, 0.1, 2.2]], here held in [0, 1].
MINDSPORE = np.float32([[-0.8, 1.2, 0.7], [-0.1, -0.4, 0.7]]), np.float32([[0.3, 0.8, 1], [0, 0.1, 1]])


def logits_pair(dtype="float32"):
    return np.array([5, 1, -3], dtype), np.array([1, 0, 0.25], dtype)


def logits_raise(error, library, message, *arguments, **named):
    """The call fails with this message, after the function's name."""
    message = message.replace("INPUT", INPUTS[library]).replace("TARGET", TARGETS[library])
    text = f"nbbce.compat.{library}.binary_cross_entropy_with_logits: {message}"
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        WITH_LOGITS[library](*arguments, **named)


@pytest.mark.parametrize(
    ("library", "names"),
    [
        ("mindspore", ["input", "target", "weight", "reduction", "pos_weight"]),
        ("paddle", ["logit", "label", "weight", "reduction", "pos_weight", "name"]),
    ],
)
def test_signature_of_logits_is_theirs(library, names):
    parameters = inspect.signature(WITH_LOGITS[library]).parameters.values()
    defaults = {"weight": None, "reduction": "mean", "pos_weight": None, "name": None}
    assert [(p.name, p.default) for p in parameters] == [(n, defaults.get(n, inspect.Parameter.empty)) for n in names]
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_paddle_example_of_logits_is_the_exact_value_rounded_which_is_two_float32_above_what_they_print():
    z, y = np.float32([5, 1, 3]), np.float32([1, 0, 1])
    loss = paddle.binary_cross_entropy_with_logits(z, y)
    exact = reference.total(reference.logits_losses(z, y)) / 3
    assert loss.dtype == np.float32
    assert loss == reference.nearest(exact, np.float32) == np.float32(0.45618814)
    # Printed in the documentation of paddle.nn.functional.binary_cross_entropy_with_logits.
    theirs = np.float32(0.45618808)
    assert np.nextafter(np.nextafter(theirs, np.float32(1)), np.float32(1)) == loss
    assert 1 < reference.ulps(theirs, exact, np.float32) < 2


def test_mindspore_example_of_logits_has_targets_outside_0_to_1_which_are_a_value_error():
    y = np.float32([[0.3, 0.8, 1.2], [-0.6, 0.1, 2.2]])
    logits_raise(ValueError, "mindspore", "values must be in [0, 1]; got target[0, 2] = 1.2", MINDSPORE[0], y)


def test_mindspore_example_with_targets_in_0_to_1_is_the_exact_value_rounded():
    z, y = MINDSPORE
    w, p = np.float32([1, 1, 1]), np.float32([1, 2, 1])
    loss = mindspore.binary_cross_entropy_with_logits(z, y, w, "mean", p)
    exact = reference.total(reference.logits_losses(z, y, w, p)) / 6
    assert loss.dtype == np.float32
    assert loss == reference.nearest(exact, np.float32) == np.float32(0.5700158)
    # Printed by MindSpore 2.10 on the CPU.
    assert np.nextafter(loss, np.float32(0)) == np.float32(0.5700157)


@each_logits_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_result_of_logits_has_the_dtype_of_the_input_and_its_shape_or_none(library, dtype, reduction):
    z, y = (a.reshape(3, 1) for a in logits_pair(dtype))
    result = WITH_LOGITS[library](z, y, None, reduction)
    assert result.dtype == dtype
    assert result.shape == (z.shape if reduction == "none" else ())
    assert isinstance(result, np.ndarray if reduction == "none" else np.generic)


@each_logits_dtype
def test_losses_of_logits_are_the_exact_values_rounded_or_nearly(library, dtype):
    z, y = logits_pair(dtype)
    w, p = np.array([1, 2, 3], dtype), np.array([0.5, 1, 4], dtype)
    for weights in ({}, {"weight": w}, {"pos_weight": p}, {"weight": w, "pos_weight": p}):
        losses = WITH_LOGITS[library](z, y, reduction="none", **weights)
        exact = reference.logits_losses(z, y, weights.get("weight", 1), weights.get("pos_weight", 1))
        distance, limit = (reference.steps, 1) if dtype in ("float16", "bfloat16") else (reference.ulps, 3)
        found, message = reference.worst(distance, losses, exact, dtype, z, y)
        assert found <= limit, message


@each_logits_dtype
def test_values_of_logits_are_those_of_nbbce(library, dtype):
    z, y = logits_pair(dtype)
    w, p = np.array([1, 2, 3], dtype), np.array([0.5, 1, 4], dtype)
    for reduction in ("mean", "sum", "none"):
        for weights in ({}, {"weight": w}, {"pos_weight": p}, {"weight": w, "pos_weight": p}):
            expected = nbbce.binary_cross_entropy_with_logits(z, y, reduction=reduction, **weights)
            result = WITH_LOGITS[library](z, y, reduction=reduction, **weights)
            np.testing.assert_array_equal(result, expected, strict=True)


@both
def test_right_answer_costs_something_from_logits_of_17_on(library):
    # Nothing in float32 in both libraries.
    z, y = np.float32([17, -17, 30]), np.float32([1, 0, 1])
    losses = WITH_LOGITS[library](z, y, reduction="none")
    np.testing.assert_allclose(losses, np.log1p(np.exp(-np.abs(z.astype(np.float64)))), rtol=2**-22)


@both
def test_infinite_logit_costs_nothing_or_infinity(library):
    # NaN in both libraries.
    z, y = np.float32([np.inf, -np.inf, np.inf, -np.inf]), np.float32([1, 0, 0, 1])
    np.testing.assert_array_equal(WITH_LOGITS[library](z, y, reduction="none"), np.float32([0, 0, np.inf, np.inf]))


@both
def test_logit_that_is_nan_costs_nan(library):
    z, y = logits_pair()
    z[1] = np.nan
    np.testing.assert_array_equal(np.isnan(WITH_LOGITS[library](z, y, reduction="none")), [False, True, False])


@both
def test_one_logit_costs_its_loss(library):
    assert WITH_LOGITS[library](np.float32([0]), np.float32([1])) == np.float32(math.log(2))
    one = np.array(2, "f4")
    assert WITH_LOGITS[library](np.array(0, "f4"), np.array(1, "f4"), one, "sum", one) == np.float32(4 * math.log(2))


@both
def test_no_logit_has_sum_zero_and_mean_nan_with_a_warning_at_the_caller(library):
    z, y = (a[:0] for a in logits_pair())
    assert WITH_LOGITS[library](z, y, reduction="sum") == 0
    assert WITH_LOGITS[library](z, y, reduction="none").shape == (0,)
    with pytest.warns(RuntimeWarning, match=r"^Mean of empty slice\.$") as caught:
        assert np.isnan(WITH_LOGITS[library](z, y))
    assert caught[0].filename == __file__


@both
def test_weights_of_logits_broadcast_to_the_input(library):
    z, y = np.zeros((2, 3), np.float32), np.float32([[1, 1, 1], [0, 0, 0]])
    w, p = np.float32([[1], [2]]), np.float32([1, 2, 3])
    result = WITH_LOGITS[library](z, y, w, "none", p)
    np.testing.assert_array_equal(result, np.float32(math.log(2)) * np.float32([[1, 2, 3], [2, 2, 2]]), strict=True)


def test_paddle_result_of_logits_has_the_dtype_of_a_wider_weight_and_not_of_a_wider_pos_weight():
    z, y = logits_pair("float32")
    assert paddle.binary_cross_entropy_with_logits(z, y, np.ones(3)).dtype == np.float64
    assert paddle.binary_cross_entropy_with_logits(z, y, np.ones(3, np.float16)).dtype == np.float32
    assert paddle.binary_cross_entropy_with_logits(z, y, pos_weight=np.ones(3)).dtype == np.float32


def test_mindspore_result_of_logits_has_the_dtype_of_the_input_whatever_the_others():
    z, y = logits_pair("float32")
    half, brain = z.astype(np.float16), z.astype(ml_dtypes.bfloat16)
    ones = np.ones(3, np.float32)
    assert mindspore.binary_cross_entropy_with_logits(half, y, ones, "mean", ones).dtype == np.float16
    assert mindspore.binary_cross_entropy_with_logits(brain, y, ones, "mean", ones).dtype == ml_dtypes.bfloat16
    assert mindspore.binary_cross_entropy_with_logits(z, y.astype(np.float16)).dtype == np.float32


def test_paddle_name_changes_nothing_for_logits():
    z, y = logits_pair()
    found = paddle.binary_cross_entropy_with_logits(logit=z, label=y, name="loss")
    assert found == paddle.binary_cross_entropy_with_logits(z, y)


@both
def test_logits_that_are_no_array_are_a_type_error(library):
    logits_raise(TypeError, library, "'INPUT' must be an array (see numpy.asarray); got list", [0.5], logits_pair()[1])


@both
def test_target_of_logits_that_is_no_array_is_a_type_error(library):
    logits_raise(TypeError, library, "'TARGET' must be an array (see numpy.asarray); got 1.0", logits_pair()[0], 1.0)


@both
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_weight_of_logits_that_is_no_array_is_a_type_error(library, name):
    message = f"{name!r} must be an array (see numpy.asarray); got 2.0"
    logits_raise(TypeError, library, message, *logits_pair(), **{name: 2.0})


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        (library, dtype)
        for library, theirs in LOGITS_DTYPES.items()
        for dtype in ["int64", "bool", "complex64", "float64", "bfloat16", *WIDER]
        if dtype not in theirs
    ],
)
@pytest.mark.parametrize("position", range(4), ids=["input", "target", "weight", "pos_weight"])
def test_other_dtype_with_logits_is_a_type_error(library, position, dtype):
    arrays = [*logits_pair(), np.ones(3, np.float32), np.ones(3, np.float32)]
    arrays[position] = arrays[position].astype(dtype)
    name = (INPUTS[library], TARGETS[library], "weight", "pos_weight")[position]
    message = f"{name!r} must have dtype {', '.join(LOGITS_DTYPES[library])}; got {np.dtype(dtype)}"
    logits_raise(TypeError, library, message, *arrays[:3], "mean", arrays[3])


@both
@pytest.mark.parametrize("reduction", ["avg", "Mean", None])
def test_unknown_reduction_of_logits_is_a_value_error(library, reduction):
    message = f"'reduction' must be one of 'mean', 'sum', 'none'; got {reduction!r}"
    logits_raise(ValueError, library, message, *logits_pair(), reduction=reduction)


@both
def test_target_of_another_shape_than_the_logits_is_a_value_error(library):
    z, y = logits_pair()
    logits_raise(ValueError, library, "'TARGET' must have the shape of 'INPUT', (3,); got (3, 1)", z, y[:, None])


@both
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize("shape", [(2,), (2, 3)], ids=["misfit", "larger"])
def test_weight_that_does_not_broadcast_to_the_logits_is_a_value_error(library, shape, name):
    message = f"{name!r} must broadcast to the shape of 'INPUT', (3,); got {shape}"
    logits_raise(ValueError, library, message, *logits_pair(), **{name: np.ones(shape, np.float32)})


@both
@pytest.mark.parametrize("value", ["1.5", "-0.25", "nan", "-100.0"])
def test_target_of_logits_outside_0_to_1_is_a_value_error(library, value):
    # -100 too, which Paddle leaves out without saying so.
    z, y = logits_pair()
    y[2] = float(value)
    logits_raise(ValueError, library, f"values must be in [0, 1]; got TARGET[2] = {value}", z, y)
