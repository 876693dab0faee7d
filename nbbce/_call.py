"""One call, checked: what its arguments, each of which `_arguments.py` looks at, must be to one another.

Errors are raised before any work, so that `out` is as it was.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from nbbce._arguments import (
    broadcast,
    checked_array,
    checked_dtype,
    checked_factor,
    checked_flag,
    checked_number,
    checked_out,
    checked_real,
    checked_smoothing,
    checked_stream,
    checked_where,
    described,
    is_on_host,
    seen_by_numpy,
    view_of,
    view_of_out,
)
from nbbce._arrays import (
    FLOATS,
    Array,
    computed_in,
    is_dask,
    is_float,
    kind_of,
)
from nbbce._host_arrays import HostLibrary, in_kind, library_of

REDUCTIONS = ("mean", "sum", "none")
ON_HOST = (np.ndarray, type(None))  # what an operand of a call on NumPy arrays is
NUMBERS = frozenset((float, int, type(None)))  # what a number of a plain call is


class Wants(NamedTuple):
    """What a function returns."""

    value: bool
    gradient: bool
    hessian: bool


PROBABILITIES, LOGITS, FOCAL = "", "logits_", "focal_"  # families, by the prefix of their generated loops
VALUE, GRADIENT = Wants(True, False, False), Wants(False, True, False)
VALUE_AND_GRADIENT, GRADIENT_AND_HESSIAN = Wants(True, True, False), Wants(False, True, True)


@dataclass(eq=False)
class Call:
    """What a call asks for: arrays whose dtypes and shapes fit, and numbers.

    What few calls have is set after the making, which keeps that of a plain call short (it counts at one element).
    """

    function: str
    input: Array
    target: Array
    reduction: str
    count: int
    """Elements that count: those that `where` keeps."""
    dtype: np.dtype[Any]
    validate: bool
    wants_value: bool
    wants_gradient: bool
    family: str = field(default=PROBABILITIES, init=False)
    focal: tuple[float, float, float] = field(default=(0.0, 1.0, 1.0), init=False)
    """For the focal loss: gamma, and alpha and 1 - alpha or both 1."""
    is_plain: bool = field(default=False, init=False)
    """Whether the arrays, the reduction, `validate` and numbers are all there is to it; on a device, without these."""
    what: Hashable = field(default=None, init=False)
    """Of a plain call the function, and its numbers if there are any."""
    asked: Asked | None = field(default=None, init=False)
    """What calls like this one ask for, if they are no plain ones of NumPy arrays; None if there are none like it."""
    ran: tuple[Any, ...] | None = field(default=None, init=False)
    """On the host, what the last pass over the arrays was made by."""
    input_name: str = field(default="input", init=False)
    """What the function calls its input, and its target."""
    target_name: str = field(default="target", init=False)
    weight: Array | None = field(default=None, init=False)
    weight_number: float = field(default=1.0, init=False)
    pos_weight: Array | None = field(default=None, init=False)
    pos_weight_number: float = field(default=1.0, init=False)
    label_smoothing: float = field(default=0.0, init=False)
    where: Array | None = field(default=None, init=False)
    axes: tuple[int, ...] | None = field(default=None, init=False)
    """Axes to reduce, if some but not all."""
    result_shape: tuple[int, ...] = field(default=(), init=False)
    """Shape of a sum or mean."""
    counts: Array | None = field(default=None, init=False)
    """Elements that count in each result, where `where` makes them differ; in the shape that broadcasts to `input`."""
    grad_output: Array | None = field(default=None, init=False)
    grad_output_number: float = field(default=1.0, init=False)
    value_out: Array | None = field(default=None, init=False)
    gradient_out: Array | None = field(default=None, init=False)
    wants_hessian: bool = field(default=False, init=False)
    hessian_out: Array | None = field(default=None, init=False)
    on_device: bool = field(default=False, init=False)
    """Whether the arrays are on a CUDA device; each is then a `DeviceArray`, whatever it is said to be here."""
    stream: int | None = field(default=None, init=False)
    """Handle of the stream that the caller names."""
    origin: tuple[int, ...] | None = field(default=None, init=False)
    """Where in an array of which these are chunks they begin."""
    library: HostLibrary | None = field(default=None, init=False)
    """Of tensors in the memory of the host: who the results are for."""
    given: Any = field(default=None, init=False)
    """Of these the input, as it was given."""
    own: Any = field(default=None, init=False)
    """Of these `out`, as it was given."""


# Run a call at once if one like it was made before, of which nothing is left to check.  What comes back is what `run`
# gives; None if there was none like it, or if there is an error to be named.  nbbce._cpu and nbbce._cuda put them here.
Results = tuple[Any, Any]
# A plain call of NumPy arrays, by function and numbers, reduction, arrays, whether values are looked at, and `out`.
again_on_host: Callable[[Hashable, str, Any, Any, bool, Any], Results | None] | None = None
# A small one of them with options, or any call of arrays elsewhere: what is asked for, operands that are arrays,
# numbers or None, and `out`.
Asked = tuple[Hashable, tuple[Any, ...], Any]
again_with_options: Callable[[Asked], Results | None] | None = None
again_on_device: Callable[[Asked], Results | None] | None = None


def _take_place(call: Call, stream: Any) -> None:
    """Check that all arrays are in one place, and put the place into the call."""
    x, y = cast(Any, call.input), cast(Any, call.target)
    if call.is_plain and stream is None and not is_on_host(x) and not is_on_host(y) and x.device == y.device:
        call.on_device = True
        return
    if (
        stream is None
        and isinstance(x, np.ndarray)
        and isinstance(y, np.ndarray)
        and isinstance(call.weight, ON_HOST)
        and isinstance(call.pos_weight, ON_HOST)
        and isinstance(call.where, ON_HOST)
        and isinstance(call.grad_output, ON_HOST)
    ):
        return  # nearly always, and the rest takes 2 us
    function, operands = call.function, ("weight", "pos_weight", "where", "grad_output")
    operands_of_call = {name: getattr(call, name) for name in operands}
    arrays = {call.input_name: call.input, call.target_name: call.target, **operands_of_call}
    places = {
        name: "the host" if is_on_host(array) else f"device {cast(Any, array).device}"
        for name, array in arrays.items()
        if array is not None
    }
    own = places[call.input_name]
    for name, place in places.items():
        if place != own:
            raise TypeError(
                f"{function}: arrays must be in one place; got {call.input_name!r} on {own} and {name!r} on {place}"
            )
    call.on_device = own != "the host"
    if stream is not None:
        if not call.on_device:
            raise TypeError(f"{function}: 'stream' must be None for arrays on the host; got {described(stream)}")
        call.stream = checked_stream(function, stream)


def _take_focal(call: Call, alpha: Any, gamma: Any) -> None:
    """Check `alpha` and `gamma` of the focal loss, and put them into the call."""
    function = call.function
    exponent = checked_number(function, "gamma", gamma)
    if exponent is None:
        raise TypeError(f"{function}: 'gamma' must be a real number; got {described(gamma)}")
    if not 0.0 <= exponent < math.inf:
        raise ValueError(f"{function}: 'gamma' must be finite and at least 0; got {exponent}")
    share = -1.0 if alpha is None else checked_number(function, "alpha", alpha)
    if share is None:
        raise TypeError(f"{function}: 'alpha' must be a real number or None; got {described(alpha)}")
    if not share <= 1.0:
        raise ValueError(f"{function}: 'alpha' must be at most 1; got {share}")
    call.focal = (exponent, 1.0, 1.0) if share < 0.0 else (exponent, share, 1.0 - share)


def _take_axes(call: Call, axis: Any, keepdims: Any) -> None:
    """Check `axis` and `keepdims`, and put into the call what they ask for."""
    function, shape = call.function, call.input.shape
    keepdims = checked_flag(function, "keepdims", keepdims)
    if call.reduction == "none":
        if axis is None and not keepdims:
            return
        name, value, wanted = ("keepdims", keepdims, False) if axis is None else ("axis", axis, None)
        raise ValueError(f"{function}: {name!r} must be {wanted} with reduction 'none'; got {value!r}")
    if type(axis) is int and -len(shape) <= axis < len(shape):
        axes: tuple[int, ...] = (axis % len(shape),)
    elif axis is not None:
        for item in axis if isinstance(axis, tuple) else (axis,):
            if isinstance(item, (bool, np.bool_)) or not hasattr(item, "__index__"):
                raise TypeError(f"{function}: 'axis' must be None, an integer or a tuple of integers; got {axis!r}")
        try:
            axes = normalize_axis_tuple(axis, len(shape), allow_duplicate=True)
        except (np.exceptions.AxisError, OverflowError) as error:
            raise np.exceptions.AxisError(f"{function}: 'axis' must be an axis of 'input'; got {error}") from None
        if len(set(axes)) < len(axes):
            raise ValueError(f"{function}: 'axis' must name each axis once; got {axis!r}")
    else:
        axes = tuple(range(len(shape)))
    if keepdims:
        call.result_shape = tuple([1 if d in axes else n for d, n in enumerate(shape)])
    else:
        call.result_shape = tuple([n for d, n in enumerate(shape) if d not in axes])
    if len(axes) == len(shape):
        return
    call.axes = tuple(sorted(axes))
    elements = math.prod(shape[d] for d in axes)
    if call.where is None:
        call.count = elements
    elif is_on_host(call.where):
        call.counts = np.count_nonzero(call.where, axis=call.axes, keepdims=True)
        call.count = int(call.counts.min()) if call.counts.size else 0


def _are_comparable(label_smoothing: Any, alpha: Any, gamma: Any, axis: Any, keepdims: Any, dtype: Any) -> bool:
    """Whether a call that asks for the same is one with equal arguments: 1 is equal to True, which is no axis."""
    return (
        type(label_smoothing) in NUMBERS
        and type(alpha) in NUMBERS
        and type(gamma) in NUMBERS
        and (axis is None or type(axis) is int)
        and type(keepdims) is bool
        and (dtype is None or isinstance(dtype, (np.dtype, type, str)))
    )


# Pairs of dtypes that NumPy arrays had in calls before, and the dtype of their results.
_seen: dict[tuple[np.dtype[Any], np.dtype[Any]], np.dtype[Any]] = {}


def _readable(
    function: str, input: Any, target: Any, target_name: str, input_name: str
) -> tuple[Array, Array, np.dtype[Any]]:
    """Input and target as arrays that the loops read, and the dtype of results."""
    x = checked_array(function, input_name, input)
    if not is_float(kind_of(x.dtype)):
        raise TypeError(f"{function}: {input_name!r} must have dtype {', '.join(FLOATS)}; got {x.dtype}")
    y = checked_real(function, target_name, target, computed_in(x.dtype))
    # Without the byte order and the metadata of the input: a dtype with metadata is equal to one without.
    result = np.dtype(x.dtype.type) if type(x) is np.ndarray else x.dtype
    if type(input) is type(target) is np.ndarray and y is target:
        _seen[x.dtype, y.dtype] = result
    return x, y, result


def checked(
    function: str,
    input: Any,
    target: Any,
    weight: Any,
    reduction: Any,
    pos_weight: Any = None,
    label_smoothing: Any = 0.0,
    axis: Any = None,
    keepdims: Any = False,
    where: Any = None,
    dtype: Any = None,
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
    wants: Wants = VALUE,
    family: str = PROBABILITIES,
    grad_output: Any = None,
    target_name: str = "target",
    input_name: str = "input",
    alpha: Any = None,
    gamma: Any = None,
) -> Call | Results:
    """Check the arguments of a public function and gather them in a `Call`; or its results, if it was known.

    What the functions take comes in the order of their signatures, then what they want: by keyword it would take 0.2 us
    more.
    """
    library: HostLibrary | None = None
    of_numpy = type(input) is type(target) is np.ndarray
    if not of_numpy and type(input) is not np.ndarray:
        library = library_of(input)
        if library is not None:
            given, own = input, out
            input = seen_by_numpy(function, input_name, input, library.view)
            target = view_of(function, target_name, target)
            weight, pos_weight = view_of(function, "weight", weight), view_of(function, "pos_weight", pos_weight)
            grad_output, where = view_of(function, "grad_output", grad_output), view_of(function, "where", where)
            out = view_of_out(function, "out", out, library)
            of_numpy = type(target) is np.ndarray
    is_plain = where is None and axis is None and dtype is None and grad_output is None and keepdims is False
    is_bare = weight is None and pos_weight is None and type(label_smoothing) is float and label_smoothing == 0.0
    what: Hashable = function
    if family == FOCAL or not is_bare:
        is_bare, what = False, (function, weight, pos_weight, label_smoothing, alpha, gamma)
        is_plain = (
            is_plain
            and of_numpy
            and type(weight) in NUMBERS
            and type(pos_weight) in NUMBERS
            and type(label_smoothing) in NUMBERS
            and type(alpha) in NUMBERS
            and type(gamma) in NUMBERS
            and weight != 0  # whose sign is in the results' bits, and not in what is remembered
            and pos_weight != 0
        )
    asked: Asked | None = None
    options: Hashable
    if of_numpy:
        if (
            type(reduction) is str
            and stream is None
            and (validate is None or type(validate) is bool)
            and (library is None or library.takes_all)
        ):
            check, results = validate is not False, None
            if is_plain and again_on_host is not None:
                results = again_on_host(what, reduction, input, target, check, out)
            if (
                results is None
                and out is None
                and not (is_plain and input.flags.c_contiguous)
                and _are_comparable(label_smoothing, alpha, gamma, axis, keepdims, dtype)
            ):
                # Of chunks of Dask arrays a function wants now one of its results, now the other.
                options = (function, wants, reduction, check, label_smoothing, alpha, gamma, axis, keepdims, dtype)
                asked = (options, (input, target, weight, pos_weight, grad_output, where), None)
                results = None if again_with_options is None else again_with_options(asked)
            if results is not None:
                return results if library is None else in_kind(library, given, own, results)
    elif type(reduction) is str and stream is None and (validate is None or validate is False):
        if is_plain and is_bare:
            asked = ((function, wants, reduction), (input, target), out)
        elif _are_comparable(label_smoothing, alpha, gamma, axis, keepdims, dtype):
            options = (function, wants, reduction, label_smoothing, alpha, gamma, axis, keepdims, dtype)
            asked = (options, (input, target, weight, pos_weight, grad_output, where), out)
        if asked is not None and again_on_device is not None:
            results = again_on_device(asked)
            if results is not None:
                return results
    if "dask.array" in sys.modules and any(map(is_dask, (input, target, weight, pos_weight, where, grad_output))):
        from nbbce import _dask

        return _dask.run(
            {
                "input": input,
                "target": target,
                "weight": weight,
                "pos_weight": pos_weight,
                "where": where,
                "grad_output": grad_output,
            },
            out,
            wants,
            {"reduction": reduction, "axis": axis, "keepdims": keepdims, "dtype": dtype, "stream": stream},
            {
                "function": function,
                "label_smoothing": label_smoothing,
                "validate": validate,
                "family": family,
                "target_name": target_name,
                "input_name": input_name,
                "alpha": alpha,
                "gamma": gamma,
            },
        )
    # Nearly always both are known, which saves 0.5 us.
    result = _seen.get((input.dtype, target.dtype)) if of_numpy else None
    if result is None:
        x, y, result = _readable(function, input, target, target_name, input_name)
    else:
        x, y = input, target
    shape = x.shape
    if y.shape != shape:
        raise ValueError(f"{function}: {target_name!r} must have the shape of {input_name!r}, {shape}; got {y.shape}")
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{function}: 'reduction' must be one of 'mean', 'sum', 'none'; got {reduction!r}")
    on_host = isinstance(x, np.ndarray)
    # On a device the look would wait for it.
    check = on_host if validate is None else checked_flag(function, "validate", validate)
    call = Call(function, x, y, reduction, x.size, result, check, wants.value, wants.gradient)
    if target_name != "target":
        call.input_name, call.target_name = input_name, target_name
    if family:
        call.family, call.wants_hessian = family, wants.hessian
    if library is not None:
        call.library, call.given, call.own = library, given, own
    call.is_plain, call.what = is_plain and (out is None or of_numpy), what
    if of_numpy or not on_host:
        call.asked = asked
    if is_plain and is_bare and out is None:
        if stream is not None or not (on_host and isinstance(y, np.ndarray)):
            _take_place(call, stream)
        if x.size or reduction != "mean":
            return call
    whose = repr(input_name)
    if weight is not None:
        call.weight, call.weight_number = checked_factor(function, "weight", weight, shape, whose)
    if pos_weight is not None:
        call.pos_weight, call.pos_weight_number = checked_factor(function, "pos_weight", pos_weight, shape, whose)
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        call.label_smoothing = checked_smoothing(function, label_smoothing)
    if where is not None and not (isinstance(where, (bool, np.bool_)) and where):
        call.where, call.count = checked_where(function, where, shape)
    if family == FOCAL:
        _take_focal(call, alpha, gamma)
    if axis is not None or keepdims is not False:
        _take_axes(call, axis, keepdims)
    if dtype is not None:
        call.dtype = checked_dtype(function, dtype)
    if grad_output is not None:
        _take_grad_output(call, grad_output)
    _take_place(call, stream)
    if out is not None:
        _take_out(call, out)
    if call.count == 0 and reduction == "mean" and (wants.value and 0 not in call.result_shape):
        # NumPy's own words for its own case.
        warnings.warn("Mean of empty slice.", RuntimeWarning, stacklevel=3)
    return call


def _take_grad_output(call: Call, grad_output: Any) -> None:
    """Check `grad_output` and put it into the call; one of the result's shape is seen along the reduced axes."""
    function, shape = call.function, call.input.shape
    inner, whose = (shape, "'input'") if call.reduction == "none" else (call.result_shape, "the loss")
    call.grad_output, call.grad_output_number = checked_factor(function, "grad_output", grad_output, inner, whose)
    if call.axes is not None and call.grad_output is not None:
        kept = tuple(1 if d in call.axes else n for d, n in enumerate(shape))
        call.grad_output = call.grad_output.reshape(kept)
    if call.grad_output is not None and call.grad_output.shape != shape:
        call.grad_output = broadcast(call.grad_output, shape)


def _take_out(call: Call, out: Any) -> None:
    """Check the caller's own result arrays, and put them into the call."""
    function, dtype = call.function, call.dtype
    inputs = {
        "input": call.input,
        call.target_name: call.target,
        "weight": call.weight,
        "pos_weight": call.pos_weight,
        "where": call.where,
        "grad_output": call.grad_output,
    }
    shape = call.input.shape
    wanted = {
        "value": (call.wants_value, shape if call.reduction == "none" else call.result_shape),
        "gradient": (call.wants_gradient, shape),
        "hessian": (call.wants_hessian, shape),
    }
    names = [name for name, (wants, _) in wanted.items() if wants]
    if len(names) == 1:
        setattr(call, f"{names[0]}_out", checked_out(function, "out", out, wanted[names[0]][1], dtype, inputs))
        return
    if not isinstance(out, tuple) or len(out) != len(names):
        raise TypeError(f"{function}: 'out' must be a tuple of two, ({', '.join(names)}); got {described(out)}")
    for k, (name, array) in enumerate(zip(names, out, strict=True)):
        if array is not None:
            inputs[f"out[{k}]"] = own = checked_out(function, f"out[{k}]", array, wanted[name][1], dtype, inputs)
            setattr(call, f"{name}_out", own)


def remember(known: dict[tuple[Any, ...], Any], key: tuple[Any, ...], made: Any, most: int) -> Any:
    """Keep what was made for calls of a key, of which there are `most` at most; returns it."""
    if len(known) >= most:
        known.clear()
    known[key] = made
    return made


def has_shares(call: Call) -> bool:
    """Whether a label is more than 1-y and y."""
    return call.pos_weight is not None or call.pos_weight_number != 1.0 or call.label_smoothing != 0.0


def gradient_scale(call: Call) -> float:
    """What every element's gradient is multiplied by: the numbers among the weights, over the count for a mean."""
    scale = call.weight_number * call.grad_output_number
    if call.reduction == "mean" and call.counts is None:
        return scale / call.count if call.count else 0.0  # of what is left out, as all is, the gradient is 0
    return scale


def out_of_domain(call: Call, flat_index: int) -> ValueError:
    """The error for the first element outside [0, 1]: which array, where, and its value."""
    index = tuple(int(i) for i in np.unravel_index(flat_index, call.input.shape))
    name, value = call.input_name, call.input[index]
    if call.family or 0 <= value <= 1:
        name, value = call.target_name, call.target[index]
    if call.origin is not None:
        index = tuple(i + start for i, start in zip(index, call.origin, strict=True))
    place = f"[{', '.join(map(str, index))}]" if index else ""
    return ValueError(f"{call.function}: values must be in [0, 1]; got {name}{place} = {value!s}")
