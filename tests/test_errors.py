"""What a wrong argument is told: function, argument, rule and what was got; and `out` stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import nbbce
from nbbce import _cpu

FUNCTIONS = ("binary_cross_entropy", "binary_cross_entropy_grad", "binary_cross_entropy_value_and_grad")
GRADIENT_FUNCTIONS = FUNCTIONS[1:]
REDUCTIONS = ("mean", "sum", "none")
FLOATS = "float16, bfloat16, float32, float64"
SHAPE = (2, 3)
PATTERN = 7.25  # exact in every float dtype, and no loss or gradient of these tests
PARALLEL = 200_000  # elements: enough for several blocks on each of several threads


class OnDevice:
    """Offers itself as a CUDA array, as CuPy and Numba do."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": SHAPE, "typestr": "<f4", "data": (0, False), "version": 3}


class OnDeviceWithGradient:
    """A PyTorch tensor on a device that requires its gradient: it refuses the interface with a RuntimeError."""

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")


class HasArray:
    """An array of a library that NumPy can read: `__array__` and nothing else."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array


class RefusesArray:
    """A PyTorch tensor that NumPy cannot read, as one that requires its gradient."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.\nMore about it.")


def inputs() -> np.ndarray:
    return np.array([[0.25, 0.5, 0.75], [0.125, 0.0, 1.0]], np.float32)


def targets() -> np.ndarray:
    return np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 1.0]], np.float32)


def call(function: str, **changes: Any) -> Any:
    """Call `function` on good arguments but for `changes`."""
    arguments = {"input": inputs(), "target": targets()} | changes
    return getattr(nbbce, function)(**arguments)


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def is_raised(error: type[Exception], function: str, message: str) -> Any:
    """The error, whose whole message is `function: message`."""
    return pytest.raises(error, match=rf"\A{re.escape(f'{function}: {message}')}\Z")


class Wrong(NamedTuple):
    """One wrong argument: a name for it, what is passed, the error, and its message after the function's name."""

    name: str
    change: Callable[[], dict[str, Any]]
    error: type[Exception]
    message: str


def wrong(name: str, error: type[Exception], message: str, **change: Any) -> Wrong:
    return Wrong(name, lambda: change, error, message)


def each(cases: tuple[Wrong, ...] | list[Wrong]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name.replace(" ", "-"))


def of_functions(names: tuple[str, ...] = FUNCTIONS) -> Any:
    return pytest.mark.parametrize("function", names)


# What an array on a device is told on a machine without one.
ON_DEVICE = "{!r} is on a device, which needs a CUDA driver; Numba found no usable one"

KINDS = (
    [
        wrong(
            f"{name} {label}",
            TypeError,
            f"{name!r} must be an array (see numpy.asarray); got {described}",
            **{name: value},
        )
        for name in ("input", "target")
        for label, value, described in (
            ("list", [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], "list"),
            ("tuple", (0.5, 0.5), "tuple"),
            ("float", 0.5, "0.5"),
            ("int", 1, "1"),
            ("bool", True, "True"),
            ("numpy scalar", np.float32(0.5), "np.float32(0.5)"),
            ("none", None, "NoneType"),
            ("str", "half", "'half'"),
            ("long str", "x" * 50, "str"),
            ("object", SimpleNamespace(shape=SHAPE), "SimpleNamespace"),
            ("class", np.ndarray, "type"),
        )
    ]
    + [
        wrong(
            f"{name} masked",
            TypeError,
            f"{name!r} must have no mask of its own (see 'where'); got a masked array",
            **{name: np.ma.masked_array(np.ones(SHAPE, dtype), mask=False)},
        )
        for name, dtype in (("input", np.float32), ("target", np.float32), ("weight", np.float32), ("where", bool))
    ]
    + [
        wrong(
            f"{name} refused",
            TypeError,
            f"{name!r} must be an array that NumPy reads; "
            "got RefusesArray, Can't call numpy() on Tensor that requires grad.",
            **{name: RefusesArray()},
        )
        for name in ("input", "target", "weight", "where")
    ]
)

ARRAYS_ON_DEVICE = [
    wrong(f"{name} {label}", RuntimeError, ON_DEVICE.format(name), **{name: value})
    for name in ("input", "target", "weight", "where")
    for label, value in (("on device", OnDevice()), ("on device with gradient", OnDeviceWithGradient()))
]

DTYPES = [
    wrong(
        f"input {dtype}",
        TypeError,
        f"'input' must have dtype {FLOATS}; got {np.dtype(dtype)}",
        input=np.zeros(SHAPE, dtype),
    )
    for dtype in (
        "int8",
        "int64",
        "uint8",
        "bool",
        "complex64",
        "complex128",
        "object",
        "longdouble",
        "U3",
        "datetime64[D]",
        ml_dtypes.float8_e5m2,
    )
] + [
    wrong(
        f"target {dtype}",
        TypeError,
        f"'target' must have a real dtype; got {np.dtype(dtype)}",
        target=np.zeros(SHAPE, dtype),
    )
    for dtype in ("complex64", "complex128", "object", "U3", "S3", "datetime64[D]", "timedelta64[s]", "i4,f4")
]

SHAPES = [
    wrong(
        f"target {shape}",
        ValueError,
        f"'target' must have the shape of 'input', (2, 3); got {shape}",
        target=np.zeros(shape, np.float32),
    )
    for shape in ((3, 2), (6,), (3,), (1, 3), (2, 3, 1), (), (2, 0))
] + [
    wrong("input 0-d", ValueError, "'target' must have the shape of 'input', (); got (2, 3)", input=np.array(0.5)),
    wrong(
        "input empty",
        ValueError,
        "'target' must have the shape of 'input', (0, 3); got (2, 3)",
        input=np.zeros((0, 3)),
    ),
]

WEIGHTS = [
    wrong(
        f"weight {label}",
        TypeError,
        f"'weight' must be a real number or an array; got {described}",
        weight=value,
    )
    for label, value, described in (
        ("list", [1.0, 2.0, 3.0], "list"),
        ("str", "balanced", "'balanced'"),
        ("complex", 1j, "1j"),
        ("numpy complex", np.complex64(2), "np.complex64(2+0j)"),
        ("dict", {0: 1.0}, "dict"),
        ("duration", np.timedelta64(3, "s"), "np.timedelta64(3,'s')"),
    )
] + [
    wrong(
        f"weight {dtype}",
        TypeError,
        f"'weight' must have a real dtype; got {np.dtype(dtype)}",
        weight=np.ones(shape, dtype),
    )
    for dtype, shape in (("complex128", SHAPE), ("object", SHAPE), ("U3", SHAPE), ("complex64", ()))
]

HUGE_WEIGHT = wrong("weight huge", ValueError, "'weight' must fit a float64; got a larger number", weight=10**400)

LARGE_WEIGHTS = [
    wrong(
        f"weight {shape}",
        ValueError,
        f"'weight' must broadcast to the shape of 'input', (2, 3); got {shape}",
        weight=np.ones(shape),
    )
    for shape in ((4, 2, 3), (1, 2, 3), (3, 3), (2, 2), (2,), (6,), (0,))
]

REDUCTION = [
    wrong(
        f"reduction {label}",
        ValueError,
        f"'reduction' must be one of 'mean', 'sum', 'none'; got {value!r}",
        reduction=value,
    )
    for label, value in (
        ("unknown", "average"),
        ("None", None),
        ("upper case", "MEAN"),
        ("title case", "None"),
        ("empty", ""),
        ("bool", True),
        ("number", 1),
        ("bytes", b"mean"),
        ("list", ["mean"]),
        ("array", np.array(["mean", "sum"])),
    )
]

WHERE = [
    wrong("where list", TypeError, "'where' must be an array (see numpy.asarray); got list", where=[True, False, True]),
    wrong("where int", TypeError, "'where' must be an array (see numpy.asarray); got 1", where=1),
    wrong("where str", TypeError, "'where' must be an array (see numpy.asarray); got 'all'", where="all"),
    *(
        wrong(
            f"where {dtype}",
            TypeError,
            f"'where' must be an array of bool; got {np.dtype(dtype)}",
            where=np.ones(SHAPE, dtype),
        )
        for dtype in ("int64", "uint8", "float32", "object")
    ),
    *(
        wrong(
            f"where {shape}",
            ValueError,
            f"'where' must broadcast to the shape of 'input', (2, 3); got {shape}",
            where=np.ones(shape, bool),
        )
        for shape in ((4, 2, 3), (3, 2), (2,), (0, 3))
    ),
]

FLAGS = [
    wrong(f"{name} {label}", TypeError, f"{name!r} must be True or False; got {got}", **{name: value})
    for name in ("validate", "keepdims")
    for label, value, got in (
        ("str", "no", "'no'"),
        ("number", 2, "2"),
        ("float", 1.0, "1.0"),
        ("array", np.array([True, False]), "ndarray"),
        ("duration", np.timedelta64(1, "D"), "np.timedelta64(1,'D')"),
    )
] + [wrong("keepdims none", TypeError, "'keepdims' must be True or False; got NoneType", keepdims=None)]

DTYPE = [
    wrong(f"dtype {label}", TypeError, f"'dtype' must be one of {FLOATS}; got {got}", dtype=value)
    for label, value, got in (
        ("int", "int32", "int32"),
        ("bool", bool, "bool"),
        ("complex", complex, "complex128"),
        ("object", object, "object"),
        ("longdouble", np.longdouble, str(np.dtype(np.longdouble))),
        ("byte-swapped", ">f4", ">f4"),
        ("unknown name", "single precision", "'single precision'"),
        ("number", 32, "32"),
        ("array", SimpleNamespace, "object"),
        ("bad fields", {"names": ["a"]}, "{'names': ['a']}"),
    )
]


@each(KINDS)
@of_functions()
def test_argument_that_is_no_array_is_a_type_error(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@each(ARRAYS_ON_DEVICE)
@of_functions()
@pytest.mark.usefixtures("no_driver")
def test_array_on_a_device_without_a_driver_is_a_runtime_error_and_out_is_as_it_was(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())
    for reduction in REDUCTIONS:
        results = Results(function, reduction)
        with is_raised(case.error, function, case.message):
            call(function, **({"reduction": reduction, "out": results.out} | case.change()))
        assert results.are_untouched()


@each(FLAGS)
@of_functions()
def test_flag_that_is_not_true_or_false_is_a_type_error(function, case):
    for reduction in REDUCTIONS:
        with is_raised(case.error, function, case.message):
            call(function, reduction=reduction, **case.change())


def test_flags_may_be_bools_of_numpy_and_0_or_1():
    for yes in (True, np.True_, 1, np.int64(1)):
        assert call("binary_cross_entropy", keepdims=yes, validate=yes).shape == (1, 1)
    for no in (False, np.False_, 0):
        assert np.isnan(call("binary_cross_entropy", input=-inputs(), keepdims=no, validate=no))


@each(DTYPES)
@of_functions()
def test_wrong_dtype_is_a_type_error_that_names_it(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@each(SHAPES)
@of_functions()
def test_target_of_another_shape_is_a_value_error_that_names_both(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@each(WEIGHTS)
@of_functions()
def test_weight_that_is_not_real_is_a_type_error(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@each([HUGE_WEIGHT])
@of_functions()
def test_weight_that_no_float_holds_is_a_value_error(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@each(LARGE_WEIGHTS)
@of_functions()
def test_weight_that_does_not_broadcast_to_input_is_a_value_error(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@each(REDUCTION)
@of_functions()
def test_unknown_reduction_is_a_value_error_that_lists_the_known(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@each(WHERE)
@of_functions()
def test_where_must_be_a_mask_that_broadcasts_to_input(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@each(DTYPE)
@of_functions()
def test_result_dtype_must_be_a_float_dtype(function, case):
    with is_raised(case.error, function, case.message):
        call(function, **case.change())


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1), (2, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", ["float64", "int32", "bool"])
@of_functions()
def test_weight_and_where_that_broadcast_are_no_error(function, shape, dtype):
    call(function, weight=np.ones(shape, dtype), where=np.ones(shape, bool))


def test_object_with_an_array_method_is_an_array():
    wrapped = nbbce.binary_cross_entropy(HasArray(inputs()), HasArray(targets()), weight=HasArray(np.ones(3)))
    assert wrapped == nbbce.binary_cross_entropy(inputs(), targets())


# ------------------------------------------------------------------------------------------------- grad_output
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "'grad_output' must be a real number or an array; got list"),
        (1j, "'grad_output' must be a real number or an array; got 1j"),
        (np.ones(SHAPE, complex), "'grad_output' must have a real dtype; got complex128"),
    ],
    ids=["list", "complex", "complex-array"],
)
@of_functions(GRADIENT_FUNCTIONS)
def test_grad_output_that_is_not_real_is_a_type_error(function, value, message):
    with is_raised(TypeError, function, message):
        call(function, grad_output=value, reduction="none")


@of_functions(GRADIENT_FUNCTIONS)
@pytest.mark.usefixtures("no_driver")
def test_grad_output_on_a_device_without_a_driver_is_a_runtime_error(function):
    with is_raised(RuntimeError, function, ON_DEVICE.format("grad_output")):
        call(function, grad_output=OnDevice(), reduction="none")


@pytest.mark.parametrize("shape", [(4, 2, 3), (2,), (3, 2)], ids=str)
@of_functions(GRADIENT_FUNCTIONS)
def test_grad_output_that_does_not_broadcast_to_input_is_a_value_error(function, shape):
    message = f"'grad_output' must broadcast to the shape of 'input', (2, 3); got {shape}"
    with is_raised(ValueError, function, message):
        call(function, grad_output=np.ones(shape), reduction="none")


@pytest.mark.parametrize("shape", [(2, 3), (3,), (1,), (0,)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@of_functions(GRADIENT_FUNCTIONS)
def test_grad_output_of_a_reduced_loss_must_be_a_number(function, reduction, shape):
    message = f"'grad_output' must broadcast to the shape of the loss, (); got {shape}"
    with is_raised(ValueError, function, message):
        call(function, grad_output=np.ones(shape), reduction=reduction)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2), np.array(2.0, np.float16)], ids=repr)
@of_functions(GRADIENT_FUNCTIONS)
def test_grad_output_may_be_any_real_number(function, value):
    once, twice = call(function, reduction="sum"), call(function, reduction="sum", grad_output=value)
    *value, gradient = as_tuple(once)
    *same_value, doubled = as_tuple(twice)
    assert value == same_value
    np.testing.assert_array_equal(doubled, 2 * gradient)


def test_grad_output_is_not_taken_where_there_is_no_gradient():
    with pytest.raises(TypeError, match="grad_output"):
        nbbce.binary_cross_entropy(inputs(), targets(), grad_output=1.0)


# --------------------------------------------------------------------------------------------------------- out
class Results:
    """The result arrays of a call, filled with a pattern, and the `out` that they make."""

    def __init__(self, function: str, reduction: str, shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32):
        value_shape = shape if reduction == "none" else ()
        shapes = {FUNCTIONS[0]: (value_shape,), FUNCTIONS[1]: (shape,), FUNCTIONS[2]: (value_shape, shape)}
        self.arrays = tuple(np.full(s, PATTERN, dtype) for s in shapes[function])
        self.out = self.arrays[0] if len(self.arrays) == 1 else self.arrays

    def are_untouched(self) -> bool:
        return all(np.array_equal(array, np.full_like(array, PATTERN)) for array in self.arrays)


# For each function: the name of its array `out` that takes the gradient or else the losses, and how to pass it.
PLACES = {
    "binary_cross_entropy": ("out", lambda array: array),
    "binary_cross_entropy_grad": ("out", lambda array: array),
    "binary_cross_entropy_value_and_grad": ("out[1]", lambda array: (None, array)),
}


def read_only() -> np.ndarray:
    array = np.full(SHAPE, PATTERN, np.float32)
    array.flags.writeable = False
    return array


def repeated() -> np.ndarray:
    return np.lib.stride_tricks.as_strided(np.full(3, PATTERN, np.float32), SHAPE, (0, 4))


def sliding() -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(np.full(4, PATTERN, np.float32), 3, writeable=True)


OUT = [
    Wrong("list", lambda: [[0.0] * 3] * 2, TypeError, "must be a NumPy array; got list"),
    Wrong("number", lambda: 0.0, TypeError, "must be a NumPy array; got 0.0"),
    Wrong("object with array", lambda: HasArray(inputs()), TypeError, "must be a NumPy array; got HasArray"),
    Wrong("on device", OnDevice, TypeError, "must be a NumPy array; got OnDevice"),
    Wrong("float64", lambda: np.zeros(SHAPE), TypeError, "must have dtype float32; got float64"),
    Wrong("float16", lambda: np.zeros(SHAPE, "f2"), TypeError, "must have dtype float32; got float16"),
    Wrong("int", lambda: np.zeros(SHAPE, int), TypeError, "must have dtype float32; got int64"),
    Wrong("byte-swapped", lambda: np.zeros(SHAPE, ">f4"), TypeError, "must have dtype float32; got >f4"),
    Wrong("transposed", lambda: np.zeros((3, 2), "f4"), ValueError, "must have shape (2, 3); got (3, 2)"),
    Wrong("broadcastable", lambda: np.zeros((1, 3), "f4"), ValueError, "must have shape (2, 3); got (1, 3)"),
    Wrong("larger", lambda: np.zeros((4, 2, 3), "f4"), ValueError, "must have shape (2, 3); got (4, 2, 3)"),
    Wrong("0-d", lambda: np.zeros((), "f4"), ValueError, "must have shape (2, 3); got ()"),
    Wrong("read-only", read_only, ValueError, "must be writeable; got a read-only array"),
    Wrong("masked", lambda: np.ma.zeros(SHAPE, "f4"), TypeError, "must have no mask of its own; got a masked array"),
    Wrong("repeated", repeated, ValueError, "must have memory for each element; got one that repeats some"),
    Wrong("sliding", sliding, ValueError, "must have memory for each element; got one that repeats some"),
]


@each(OUT)
@of_functions()
def test_out_must_fit_the_result(function, case):
    name, place = PLACES[function]
    out = case.change()
    before = np.array(out) if isinstance(out, np.ndarray) else None
    with is_raised(case.error, function, f"{name!r} {case.message}"):
        call(function, out=place(out), reduction="none")
    assert before is None or np.array_equal(out, before)


@of_functions()
def test_misaligned_out_is_no_error(function):
    _, place = PLACES[function]
    out = np.zeros(4 * 6 + 1, np.uint8)[1:].view(np.float32).reshape(SHAPE)
    assert not out.flags.aligned
    expected = as_tuple(call(function, reduction="none"))[-1]
    assert as_tuple(call(function, out=place(out), reduction="none"))[-1] is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@of_functions(("binary_cross_entropy", "binary_cross_entropy_value_and_grad"))
def test_out_of_a_reduced_loss_has_no_dimensions(function, reduction):
    name, out = "out", np.full(1, PATTERN, np.float32)
    if function == "binary_cross_entropy_value_and_grad":
        name = "out[0]"
    with is_raised(ValueError, function, f"{name!r} must have shape (); got (1,)"):
        call(function, out=(out, None) if name == "out[0]" else out, reduction=reduction)
    assert out[0] == np.float32(PATTERN)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_out_of_a_gradient_has_the_shape_of_input_whatever_the_reduction(reduction):
    function = "binary_cross_entropy_grad"
    with is_raised(ValueError, function, "'out' must have shape (2, 3); got ()"):
        call(function, out=np.zeros((), np.float32), reduction=reduction)


@of_functions()
def test_out_must_have_the_dtype_that_dtype_names(function):
    name, place = PLACES[function]
    out = np.full(SHAPE, PATTERN, np.float32)
    with is_raised(TypeError, function, f"{name!r} must have dtype float64; got float32"):
        call(function, out=place(out), reduction="none", dtype=np.float64)
    assert np.all(out == PATTERN)


@pytest.mark.parametrize(
    ("out", "got"),
    [
        (np.zeros(SHAPE, np.float32), "ndarray"),
        ([None, None], "list"),
        ((None,), "tuple"),
        ((None, None, None), "tuple"),
        (0.0, "0.0"),
    ],
    ids=["array", "list", "one", "three", "number"],
)
def test_out_of_value_and_grad_is_a_tuple_of_two(out, got):
    function = "binary_cross_entropy_value_and_grad"
    with is_raised(TypeError, function, f"'out' must be a tuple of two, (value, gradient); got {got}"):
        call(function, out=out)


@of_functions(("binary_cross_entropy", "binary_cross_entropy_grad"))
def test_tuple_is_no_out_where_there_is_one_result(function):
    with is_raised(TypeError, function, "'out' must be a NumPy array; got tuple"):
        call(function, out=(np.zeros(SHAPE, np.float32),), reduction="none")


def test_good_out_stays_as_it_was_when_the_other_does_not_fit():
    function = "binary_cross_entropy_value_and_grad"
    good, bad = np.full(SHAPE, PATTERN, np.float32), np.zeros(SHAPE, np.float64)
    with is_raised(TypeError, function, "'out[0]' must have dtype float32; got float64"):
        call(function, out=(bad, good), reduction="none")
    with is_raised(TypeError, function, "'out[1]' must have dtype float32; got float64"):
        call(function, out=(good, bad), reduction="none")
    assert np.all(good == PATTERN)


def overlapping(other: str, partly: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """A result array of 12 float64, and the arguments one of which shares memory with all or one of its elements."""
    memory = np.full(24, 0.5)
    out = memory[:12]
    shared = memory[11:23] if partly else out
    if other == "where":
        memory[:] = 0.0  # whose bytes are booleans
        shared = out.view(bool)[-12:] if partly else out.view(bool)[::8]
    return out, {"input": np.full(12, 0.5), "target": np.full(12, 0.5), other: shared}


OVERLAP = "{!r} must not overlap {!r} in memory; got arrays that share it"


@pytest.mark.parametrize("partly", [False, True], ids=["fully", "partly"])
@pytest.mark.parametrize("other", ["input", "target", "weight", "where"])
@of_functions()
def test_out_must_not_overlap_an_input(function, other, partly):
    name, place = PLACES[function]
    out, arguments = overlapping(other, partly)
    before = out.copy()
    with is_raised(ValueError, function, OVERLAP.format(name, other)):
        call(function, **arguments, out=place(out), reduction="none")
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("partly", [False, True], ids=["fully", "partly"])
@of_functions(GRADIENT_FUNCTIONS)
def test_out_must_not_overlap_grad_output(function, partly):
    name, place = PLACES[function]
    out, arguments = overlapping("grad_output", partly)
    before = out.copy()
    with is_raised(ValueError, function, OVERLAP.format(name, "grad_output")):
        call(function, **arguments, out=place(out), reduction="none")
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("weight_shape", [(3,), (2, 1), (1, 1)], ids=str)
def test_out_must_not_overlap_a_weight_that_is_broadcast(weight_shape):
    function = "binary_cross_entropy"
    out = np.full(SHAPE, PATTERN, np.float32)
    weight = out[: weight_shape[0], : weight_shape[1]] if len(weight_shape) == 2 else out[1]
    with is_raised(ValueError, function, OVERLAP.format("out", "weight")):
        call(function, weight=weight, out=out, reduction="none")
    assert np.all(out == PATTERN)


def test_out_must_not_overlap_an_input_that_runs_backwards():
    function = "binary_cross_entropy"
    memory = np.full(6, 0.5)
    with is_raised(ValueError, function, OVERLAP.format("out", "input")):
        call(function, input=memory[::-1], target=np.zeros(6), out=memory, reduction="none")
    assert np.all(memory == 0.5)


@pytest.mark.parametrize("other", ["input", "target"])
def test_number_out_must_not_overlap_an_input(other):
    function = "binary_cross_entropy"
    memory = np.full(6, 0.5)
    arguments = {"input": np.full(6, 0.5), "target": np.full(6, 0.5)} | {other: memory}
    with is_raised(ValueError, function, OVERLAP.format("out", other)):
        call(function, **arguments, out=memory[3:4].reshape(()), reduction="mean")
    assert np.all(memory == 0.5)


def test_two_outs_must_not_overlap_each_other():
    function = "binary_cross_entropy_value_and_grad"
    out = np.full(SHAPE, PATTERN, np.float32)
    with is_raised(ValueError, function, OVERLAP.format("out[1]", "out[0]")):
        call(function, out=(out, out), reduction="none")
    assert np.all(out == PATTERN)


@pytest.mark.parametrize("size", [6, PARALLEL])
@of_functions()
def test_interleaved_out_shares_no_element_and_is_no_error(function, size):
    _, place = PLACES[function]
    memory = np.full(2 * size, 0.25)
    target = np.zeros(size)
    separate = call(function, input=memory[::2].copy(), target=target, reduction="none")
    result = call(function, input=memory[::2], target=target, out=place(memory[1::2]), reduction="none")
    np.testing.assert_array_equal(result, separate)
    assert np.all(memory[::2] == 0.25)
    # -log(3/4), or the gradient (1/4) / (1/4 * 3/4).
    expected = -np.log(0.75) if function == "binary_cross_entropy" else 4 / 3
    np.testing.assert_allclose(memory[1::2], expected, rtol=1e-15)


def test_out_beside_an_input_in_one_array_is_no_error():
    memory = np.full((3, 4), 0.5)
    nbbce.binary_cross_entropy(memory[:, :2], np.zeros((3, 2)), reduction="none", out=memory[:, 2:])
    np.testing.assert_allclose(memory, [[0.5, 0.5, np.log(2), np.log(2)]] * 3, rtol=1e-15)


# ------------------------------------------------------------------------------------------- values out of domain
BAD_VALUES = {
    "below": (-0.25, "-0.25"),
    "just below": (-1e-45, "-1e-45"),
    "above": (1.5, "1.5"),
    "just above": (1 + 2**-23, "1.0000001"),
    "nan": (np.nan, "nan"),
    "inf": (np.inf, "inf"),
    "minus inf": (-np.inf, "-inf"),
}
bad_values = pytest.mark.parametrize(
    ("value", "text"), BAD_VALUES.values(), ids=[n.replace(" ", "-") for n in BAD_VALUES]
)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
either = pytest.mark.parametrize("name", ["input", "target"])


def outside(place: str, text: str) -> str:
    return f"values must be in [0, 1]; got {place} = {text}"


@bad_values
@either
@reductions
@of_functions()
def test_value_outside_the_domain_is_named_with_its_place(function, reduction, name, value, text):
    arrays = {"input": inputs(), "target": targets()}
    arrays[name][1, 2] = value
    with is_raised(ValueError, function, outside(f"{name}[1, 2]", text)):
        call(function, **arrays, reduction=reduction)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@either
@of_functions()
def test_value_outside_the_domain_is_found_in_every_float_dtype(function, name, dtype):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays = {"input": inputs().astype(dtype), "target": targets().astype(dtype)}
    arrays[name][0, 1] = 1.5
    with is_raised(ValueError, function, outside(f"{name}[0, 1]", "1.5")):
        call(function, **arrays, reduction="none")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int8", -1),
        ("int8", 2),
        ("uint8", 2),
        ("uint8", 255),
        ("int16", -1),
        ("int32", -(2**31)),
        ("int64", 2),
        ("uint64", 2**63),
        ("float16", -0.5),
        ("float32", np.nan),
        ("float64", 1.0000001),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [5, 5000], ids=["short", "hard-labels"])
@reductions
@of_functions()
def test_label_that_is_not_a_probability_is_named(function, reduction, size, dtype, value):
    target = np.zeros(size, dtype)
    target[size - 2] = value
    with is_raised(ValueError, function, outside(f"target[{size - 2}]", str(target[size - 2]))):
        call(function, input=np.full(size, 0.5, np.float32), target=target, reduction=reduction)


@pytest.mark.parametrize("size", [1, 5, 256, 4096, 4097, PARALLEL])
@pytest.mark.parametrize("end", ["first", "last"])
@either
@reductions
@of_functions()
def test_bad_value_at_an_end_is_found(function, reduction, name, end, size):
    arrays = {"input": np.full(size, 0.5, np.float32), "target": np.zeros(size, np.float32)}
    index = 0 if end == "first" else size - 1
    arrays[name][index] = 1.5
    with is_raised(ValueError, function, outside(f"{name}[{index}]", "1.5")):
        call(function, **arrays, reduction=reduction)


@either
@of_functions()
def test_bad_value_without_dimensions_is_named_without_an_index(function, name):
    arrays = {"input": np.array(0.5), "target": np.array(0.5)}
    arrays[name] = np.array(2.0)
    with is_raised(ValueError, function, outside(name, "2.0")):
        call(function, **arrays)


@pytest.mark.parametrize(
    ("view", "place"),
    [
        (lambda a: a[::3], "200"),
        (lambda a: a[::-1], "599"),
        (lambda a: a.reshape(30, 40).T, "0, 15"),
        (lambda a: a.reshape(30, 40)[:, :7], "15, 0"),
        (lambda a: np.asfortranarray(a.reshape(30, 40)), "15, 0"),
        (lambda a: a.reshape(5, 6, 40)[::2, ::3], "1, 1, 0"),
        (lambda a: np.broadcast_to(a, (2, 1200)), "0, 600"),
    ],
    ids=["step", "backwards", "transposed", "part-of-rows", "fortran", "three-dimensions", "broadcast"],
)
@either
@reductions
@of_functions()
def test_index_in_a_strided_view_is_that_of_the_view(function, reduction, name, view, place):
    memory = np.full(1200, 0.5)
    memory[600] = -3.0
    array = view(memory)
    arrays = {"input": np.full(array.shape, 0.5), "target": np.full(array.shape, 0.5)} | {name: array}
    with is_raised(ValueError, function, outside(f"{name}[{place}]", "-3.0")):
        call(function, **arrays, reduction=reduction)


@pytest.mark.parametrize(
    ("first", "second"), [(3, 4), (10, 4095), (4095, 4096), (50_000, 150_000), (0, PARALLEL - 1)], ids=str
)
@pytest.mark.parametrize(
    "names", [("input", "input"), ("input", "target"), ("target", "input"), ("target", "target")], ids=str
)
@reductions
@of_functions()
def test_first_of_two_bad_values_is_named(function, reduction, names, first, second):
    arrays = {"input": np.full(PARALLEL, 0.5, np.float32), "target": np.full(PARALLEL, 0.5, np.float32)}
    arrays[names[0]][first] = 1.5
    arrays[names[1]][second] = -2.5
    with is_raised(ValueError, function, outside(f"{names[0]}[{first}]", "1.5")):
        call(function, **arrays, reduction=reduction)


@reductions
@of_functions()
def test_bad_input_is_named_before_the_bad_target_at_its_side(function, reduction):
    with is_raised(ValueError, function, outside("input[1]", "nan")):
        call(function, input=np.array([0.5, np.nan]), target=np.array([0.0, 7.0]), reduction=reduction)


@reductions
@of_functions()
def test_bad_value_that_where_drops_is_no_error_and_the_next_is_named(function, reduction):
    x = np.array([2.0, 0.5, np.nan, 3.0])
    y = np.array([0.0, -1.0, 1.0, 1.0])
    where = np.array([False, False, True, True])
    with is_raised(ValueError, function, outside("input[2]", "nan")):
        call(function, input=x, target=y, where=where, reduction=reduction)
    x[2:] = 0.5
    call(function, input=x, target=y, where=where, reduction=reduction)


@reductions
@of_functions()
def test_weight_of_zero_does_not_excuse_a_bad_value(function, reduction):
    with is_raised(ValueError, function, outside("input[1]", "1.5")):
        call(function, input=np.array([0.5, 1.5]), target=np.zeros(2), weight=np.array([1.0, 0.0]), reduction=reduction)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("size", [3, 5000])
@either
@reductions
@of_functions()
def test_negative_zero_is_zero_and_no_error(function, reduction, name, size, dtype):
    arrays = {"input": np.full(size, 0.5, dtype), "target": np.zeros(size, dtype)}
    arrays[name][:] = 0.0
    plain = call(function, **arrays, reduction=reduction)
    arrays[name][:] = -0.0
    signed = call(function, **arrays, reduction=reduction)
    for a, b in zip(as_tuple(plain), as_tuple(signed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("validate", [False, np.False_, 0], ids=repr)
@reductions
@of_functions()
def test_without_validation_a_bad_value_is_no_error_and_gives_nan(function, reduction, validate):
    x = np.array([0.25, 1.5, 0.75])
    result = call(function, input=x, target=np.zeros(3), reduction=reduction, validate=validate)
    for array in as_tuple(result):
        np.testing.assert_array_equal(np.isnan(array), [False, True, False] if np.ndim(array) else True)


# ------------------------------------------------------------------------------------- out stays as it was
@each([*KINDS, *DTYPES, *SHAPES, *WEIGHTS, HUGE_WEIGHT, *LARGE_WEIGHTS, *REDUCTION, *WHERE, *DTYPE])
@of_functions()
def test_out_is_as_it_was_after_a_wrong_argument(function, case):
    for reduction in REDUCTIONS:
        results = Results(function, reduction)
        with pytest.raises(case.error):
            call(function, **({"reduction": reduction, "out": results.out} | case.change()))
        assert results.are_untouched()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [7, 4097, PARALLEL])
@either
@reductions
@of_functions()
def test_out_is_as_it_was_after_a_value_outside_the_domain(function, reduction, name, size, dtype):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays = {"input": np.full(size, 0.5, dtype), "target": np.ones(size, dtype)}
    arrays[name][size - 1] = 1.5  # the last, when all before it could have been written
    results = Results(function, reduction, (size,), dtype)
    with is_raised(ValueError, function, outside(f"{name}[{size - 1}]", "1.5")):
        call(function, **arrays, out=results.out, reduction=reduction)
    assert results.are_untouched()


@pytest.mark.parametrize("options", [{"weight": 2.0}, {"weight": np.ones((1, 5))}, {"where": np.ones((50, 1), bool)}])
@reductions
@of_functions()
def test_strided_out_is_as_it_was_after_a_value_outside_the_domain(function, reduction, options):
    x = np.full((50, 5), 0.5, np.float32)
    x[49, 4] = np.nan
    results = Results(function, reduction, (50, 10))
    out = tuple(array[:, ::2] if array.ndim else array for array in results.arrays)
    with is_raised(ValueError, function, outside("input[49, 4]", "nan")):
        call(
            function,
            input=x,
            target=np.zeros((50, 5)),
            out=out if len(out) == 2 else out[0],
            reduction=reduction,
            **options,
        )
    assert results.are_untouched()


@pytest.mark.parametrize("which", [0, 1], ids=["value", "gradient"])
@reductions
def test_one_of_two_outs_is_as_it_was_after_a_value_outside_the_domain(reduction, which):
    function = "binary_cross_entropy_value_and_grad"
    results = Results(function, reduction)
    out = (results.arrays[0], None) if which == 0 else (None, results.arrays[1])
    x = inputs()
    x[1, 2] = 1.5
    with is_raised(ValueError, function, outside("input[1, 2]", "1.5")):
        call(function, input=x, out=out, reduction=reduction)
    assert results.are_untouched()


@reductions
@of_functions()
def test_out_is_what_is_returned_when_nothing_is_wrong(function, reduction):
    results = Results(function, reduction)
    returned = call(function, out=results.out, reduction=reduction)
    assert not results.are_untouched()
    for given, got in zip(results.arrays, as_tuple(returned), strict=True):
        assert got is given


@of_functions()
def test_arguments_are_checked_before_values_are_read(function):
    # Both the reduction and a value are wrong: the argument is what is named.
    with is_raised(ValueError, function, "'reduction' must be one of 'mean', 'sum', 'none'; got 'Sum'"):
        call(function, input=np.array([1.5]), target=np.array([0.0]), reduction="Sum")


def test_an_array_that_another_thread_reshapes_during_a_call_is_a_runtime_error(monkeypatch):
    # The compiled side looks at shapes too, and does nothing if they differ from those that were checked.
    monkeypatch.setattr(_cpu, "_run", lambda *arguments: (0.0, _cpu.NOT_ALIKE))
    with pytest.raises(RuntimeError, match="binary_cross_entropy: an array was given another shape by another thread"):
        nbbce.binary_cross_entropy(inputs(), inputs(), label_smoothing=0.125)
