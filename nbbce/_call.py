"""One call, checked: every rule about arguments, and every message, is here.

A message reads `function: what must hold; got what`.  TypeError is for the wrong kind, ValueError for a wrong value;
both are raised before any work, so that `out` is as it was.
"""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from nbbce._arrays import (
    DEVICE_KINDS,
    FLOATS,
    Array,
    broadcast_strides,
    computed_in,
    is_array,
    is_dask,
    is_float,
    is_on_device,
    is_real,
    kind_of,
    readable,
)
from nbbce._host_arrays import HostLibrary, in_kind, library_of

if TYPE_CHECKING:
    from nbbce._device_arrays import DeviceArray

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
    """On a device, what `again_on_device` is asked for calls like this one; None if there are none like it."""
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
# Of arrays elsewhere: what is asked for, operands that are arrays, numbers or None, and `out`.
Asked = tuple[Hashable, tuple[Any, ...], Any]
again_on_device: Callable[[Asked], Results | None] | None = None


def _describe(value: object) -> str:
    """Name a value that is no array as a user would."""
    text = repr(value)
    return (
        type(value).__name__ if len(text) > 40 or "\n" in text or not isinstance(value, (str, numbers.Number)) else text
    )


_device_module: Any = None  # nbbce._device_arrays, once it is imported: to do so again takes 0.5 us


def _import_device_arrays(function: str, name: str) -> Any:
    """The module of device arrays; an error that says what is missing, if something is."""
    global _device_module
    try:
        from nbbce import _device_arrays
    except ImportError as error:
        raise ImportError(
            f"{function}: {name!r} is on a device, which needs nbbce[cuda12] or nbbce[cuda13]; got no {error.name}"
        ) from None
    if not _device_arrays.is_available():
        raise RuntimeError(f"{function}: {name!r} is on a device, which needs a CUDA driver; Numba found no usable one")
    _device_module = _device_arrays
    return _device_arrays


def _device_array(function: str, name: str, value: Any) -> Array:
    """An array on a device as a `DeviceArray`, which has what is asked of an array here."""
    module = _device_module
    if module is None or not module.is_available():
        module = _import_device_arrays(function, name)
    try:
        array = module.view(value)
    except (TypeError, BufferError) as error:
        raise TypeError(f"{function}: {name!r} must be an array that can be read in place; got {error}") from None
    if kind_of(array.dtype) not in DEVICE_KINDS and is_real(array.dtype):
        raise TypeError(f"{function}: {name!r} must have a dtype that a device reads; got {array.dtype}")
    _check_aligned(function, name, array)
    return cast(Array, array)


def _check_aligned(function: str, name: str, array: DeviceArray) -> None:
    if not array.is_aligned:
        raise TypeError(f"{function}: {name!r} must start at a multiple of its elements' size; got {array.address:#x}")


def _array(function: str, name: str, value: Any) -> Array:
    """`value` as a NumPy array over its own memory, or as one on a device; anything but an array is a TypeError."""
    if type(value) is np.ndarray:
        if value.dtype in readable:  # nearly always, and it counts at one element
            return value
    library = library_of(value)
    if library is None:
        if is_on_device(value):
            return _device_array(function, name, value)
        if not is_array(value):
            raise TypeError(f"{function}: {name!r} must be an array (see numpy.asarray); got {_describe(value)}")
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{function}: {name!r} must have no mask of its own (see 'where'); got a masked array")
    try:
        if library is not None:
            return library.view(value)
        return np.asarray(value)  # also of subclasses, whose indexing may be another, as that of numpy.matrix
    except (TypeError, ValueError, RuntimeError) as error:  # as of a sparse tensor of PyTorch, or of a traced array
        reason = str(error).partition("\n")[0]
        got = f"{type(value).__name__}, {reason}"
        raise TypeError(f"{function}: {name!r} must be an array that NumPy reads; got {got}") from error


def _real(function: str, name: str, value: Any, computed: Any = np.float64) -> Array:
    """The same for an array of a real dtype; one that no loop reads (some ``longdouble``) becomes `computed`."""
    array = _array(function, name, value)
    if kind_of(array.dtype) is not None:
        return array
    if not is_real(array.dtype):
        raise TypeError(f"{function}: {name!r} must have a real dtype; got {array.dtype}")
    return array.astype(computed)


def _flag(function: str, name: str, value: Any) -> bool:
    """`value` as a bool if it is one, or 0 or 1."""
    if isinstance(value, (bool, np.bool_, int, np.integer)) and _number(value) in (0.0, 1.0):
        return bool(value)
    raise TypeError(f"{function}: {name!r} must be True or False; got {_describe(value)}")


def _number(value: object) -> float | None:
    """`value` as a float if it is a real number (or a 0-d array of one), else None."""
    if isinstance(value, np.timedelta64):  # to NumPy a kind of integer
        return None
    if isinstance(value, (int, float, np.integer, np.floating, np.bool_, numbers.Real)):
        return float(value)
    if isinstance(value, np.generic) and is_real(value.dtype):
        return float(value)
    if isinstance(value, np.ndarray) and value.ndim == 0 and is_real(value.dtype):
        return float(value)
    return None


def _fitting(function: str, name: str, value: object) -> float | None:
    """The same; a ValueError for an integer that no float64 holds."""
    try:
        return _number(value)
    except OverflowError:
        raise ValueError(f"{function}: {name!r} must fit a float64; got a larger number") from None


def _factor(
    function: str, name: str, value: Any, shape: tuple[int, ...], whose: str = "'input'"
) -> tuple[Array | None, float]:
    """A weight, as (array of `shape`, 1.0) or (None, number).  Broadcasting makes a view, not a copy."""
    if value is None:
        return None, 1.0
    if type(value) is not np.ndarray or value.ndim == 0:  # to tell that it is no number takes 0.9 us
        number = _fitting(function, name, value)
        if number is not None:
            return None, number
        if not is_array(value) and not is_on_device(value):
            raise TypeError(f"{function}: {name!r} must be a real number or an array; got {_describe(value)}")
    array = _real(function, name, value)
    if array.shape != shape:
        try:
            array = _broadcast(array, shape)
        except ValueError:
            raise ValueError(
                f"{function}: {name!r} must broadcast to the shape of {whose}, {shape}; got {array.shape}"
            ) from None
    return array, 1.0


def _is_on_host(array: object) -> bool:
    """Whether an array that was checked is one of NumPy."""
    return isinstance(array, np.ndarray)


def _broadcast(array: Array, shape: tuple[int, ...]) -> Array:
    """The array seen in another shape; a ValueError if it does not fit."""
    if not _is_on_host(array):
        return cast(Array, cast(Any, array).broadcast_to(shape))
    if array.flags.c_contiguous:  # 0.4 us, where NumPy's broadcast_to takes 1.9
        return np.ndarray(shape, array.dtype, array, 0, broadcast_strides(array.shape, array.strides, shape))
    return np.broadcast_to(array, shape)


def checked_mask(function: str, value: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The mask as it is, and as an array of `shape`."""
    if isinstance(value, (bool, np.bool_)):
        value = np.asarray(value)
    mask = _array(function, "where", value)
    if mask.dtype != np.bool_:
        raise TypeError(f"{function}: 'where' must be an array of bool; got {mask.dtype}")
    try:
        return mask, _broadcast(mask, shape)
    except ValueError:
        raise ValueError(
            f"{function}: 'where' must broadcast to the shape of 'input', {shape}; got {mask.shape}"
        ) from None


def _where(function: str, value: Any, shape: tuple[int, ...]) -> tuple[Array, int]:
    """The mask as an array of `shape`, and how many elements it keeps.

    On a device they are counted by the kernel, which divides by them too: 1 stands for them here.
    """
    mask, wide = checked_mask(function, value, shape)
    if not _is_on_host(mask):
        return wide, min(1, wide.size)
    kept = int(np.count_nonzero(mask))
    return wide, kept * (wide.size // mask.size) if mask.size else 0


def _dtype(function: str, value: Any) -> np.dtype[Any]:
    """The result dtype that the caller names."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except (TypeError, ValueError):
        raise TypeError(f"{function}: 'dtype' must be one of {', '.join(FLOATS)}; got {value!r}") from None
    if kind_of(dtype) not in FLOATS:
        raise TypeError(f"{function}: 'dtype' must be one of {', '.join(FLOATS)}; got {dtype}")
    return dtype


def _out(
    function: str, name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: dict[str, Array | None]
) -> Array:
    """The caller's own result array, fit to be written."""
    if not _is_on_host(inputs["input"]):
        return cast(Array, _device_out(function, name, out, shape, dtype, inputs))
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{function}: {name!r} must be a NumPy array; got {_describe(out)}")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{function}: {name!r} must have no mask of its own; got a masked array")
    if out.dtype != dtype:
        raise TypeError(f"{function}: {name!r} must have dtype {dtype}; got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{function}: {name!r} must have shape {shape}; got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{function}: {name!r} must be writeable; got a read-only array")
    _check_repeats(function, name, out)
    for other, array in inputs.items():
        if array is not None and np.may_share_memory(out, array) and _overlap(out, array):
            raise ValueError(f"{function}: {name!r} must not overlap {other!r} in memory; got arrays that share it")
    return out


def _check_repeats(function: str, name: str, array: Array | DeviceArray) -> None:
    """Refuse an array of which two elements share memory, as a broadcast one or a sliding window."""
    reach = array.dtype.itemsize if 0 not in array.shape else 0
    for stride, n in sorted((abs(stride), n) for n, stride in zip(array.shape, array.strides, strict=True) if n > 1):
        if stride < reach:
            raise ValueError(f"{function}: {name!r} must have memory for each element; got one that repeats some")
        reach += stride * (n - 1)


def _device_out(
    function: str, name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: dict[str, Any]
) -> DeviceArray:
    """The same on a device."""
    from nbbce._device_arrays import overlap

    if not is_on_device(out):
        raise TypeError(f"{function}: {name!r} must be an array on the device of 'input'; got {_describe(out)}")
    array, x = cast(Any, _device_array(function, name, out)), inputs["input"]
    if array.library is not x.library or array.device != x.device:
        raise TypeError(
            f"{function}: {name!r} must be an array of {x.library.name} on device {x.device}; "
            f"got one of {array.library.name} on device {array.device}"
        )
    if array.dtype != dtype:
        raise TypeError(f"{function}: {name!r} must have dtype {dtype}; got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{function}: {name!r} must have shape {shape}; got {array.shape}")
    if array.readonly:
        raise ValueError(f"{function}: {name!r} must be writeable; got a read-only array")
    _check_repeats(function, name, array)
    for other, operand in inputs.items():
        if operand is not None and overlap(array, operand):
            raise ValueError(f"{function}: {name!r} must not overlap {other!r} in memory; got arrays that share it")
    return cast("DeviceArray", array)


def _stream(function: str, value: Any) -> int:
    """The handle of a stream, given as an integer or as an object of an array library."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if hasattr(value, "__cuda_stream__"):  # cuda.core, CuPy: (version, handle)
        return int(value.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, Numba
        if hasattr(value, name):
            handle = getattr(value, name)
            return int(getattr(handle, "value", handle) or 0)
    raise TypeError(f"{function}: 'stream' must be a stream or its handle; got {_describe(value)}")


def _take_place(call: Call, stream: Any) -> None:
    """Check that all arrays are in one place, and put the place into the call."""
    x, y = cast(Any, call.input), cast(Any, call.target)
    if call.is_plain and stream is None and not _is_on_host(x) and not _is_on_host(y) and x.device == y.device:
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
        name: "the host" if _is_on_host(array) else f"device {cast(Any, array).device}"
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
            raise TypeError(f"{function}: 'stream' must be None for arrays on the host; got {_describe(stream)}")
        call.stream = _stream(function, stream)


def _overlap(a: Array, b: Array) -> bool:
    """Whether two arrays share an element; if that is too hard to tell, they do."""
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _smoothing(function: str, value: Any) -> float:
    """The share of a label that label smoothing gives away."""
    number = _fitting(function, "label_smoothing", value)
    if number is None:
        raise TypeError(f"{function}: 'label_smoothing' must be a real number; got {_describe(value)}")
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{function}: 'label_smoothing' must be in [0, 1]; got {number}")
    return number


def _take_focal(call: Call, alpha: Any, gamma: Any) -> None:
    """Check `alpha` and `gamma` of the focal loss, and put them into the call."""
    function = call.function
    exponent = _fitting(function, "gamma", gamma)
    if exponent is None:
        raise TypeError(f"{function}: 'gamma' must be a real number; got {_describe(gamma)}")
    if not 0.0 <= exponent < math.inf:
        raise ValueError(f"{function}: 'gamma' must be finite and at least 0; got {exponent}")
    share = -1.0 if alpha is None else _fitting(function, "alpha", alpha)
    if share is None:
        raise TypeError(f"{function}: 'alpha' must be a real number or None; got {_describe(alpha)}")
    if not share <= 1.0:
        raise ValueError(f"{function}: 'alpha' must be at most 1; got {share}")
    call.focal = (exponent, 1.0, 1.0) if share < 0.0 else (exponent, share, 1.0 - share)


def _take_axes(call: Call, axis: Any, keepdims: Any) -> None:
    """Check `axis` and `keepdims`, and put into the call what they ask for."""
    function, shape = call.function, call.input.shape
    keepdims = _flag(function, "keepdims", keepdims)
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
    elif _is_on_host(call.where):
        call.counts = np.count_nonzero(call.where, axis=call.axes, keepdims=True)
        call.count = int(call.counts.min()) if call.counts.size else 0


def _are_comparable(numbers: tuple[Any, ...], axis: Any, keepdims: Any, dtype: Any) -> bool:
    """Whether a call that asks for the same is one with equal arguments: 1 is equal to True, which is no axis."""
    return (
        all([type(number) in NUMBERS for number in numbers])
        and type(axis) in (int, type(None))
        and type(keepdims) is bool
        and (dtype is None or isinstance(dtype, (np.dtype, type, str)))
    )


# Pairs of dtypes that NumPy arrays had in calls before, and the dtype of their results.
_seen: dict[tuple[np.dtype[Any], np.dtype[Any]], np.dtype[Any]] = {}


def _readable(
    function: str, input: Any, target: Any, target_name: str, input_name: str
) -> tuple[Array, Array, np.dtype[Any]]:
    """Input and target as arrays that the loops read, and the dtype of results."""
    x = _array(function, input_name, input)
    if not is_float(kind_of(x.dtype)):
        raise TypeError(f"{function}: {input_name!r} must have dtype {', '.join(FLOATS)}; got {x.dtype}")
    y = _real(function, target_name, target, computed_in(x.dtype))
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
    library = None if type(input) is np.ndarray else library_of(input)
    given, own = input, out
    if library is not None:
        input = _array(function, input_name, input)
        if library_of(target) is not None:
            target = _array(function, target_name, target)
        out = _view_of_out(function, "out", out, library)
    of_numpy = type(input) is type(target) is np.ndarray
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
    if of_numpy:
        is_known = is_plain and type(reduction) is str and stream is None and (library is None or library.takes_all)
        if is_known and (validate is None or type(validate) is bool) and again_on_host is not None:
            results = again_on_host(what, reduction, input, target, validate is not False, out)
            if results is not None:
                return results if library is None else in_kind(library, given, own, results)
    elif type(reduction) is str and stream is None and (validate is None or validate is False):
        if is_plain and is_bare:
            asked = ((function, reduction), (input, target), out)
        elif _are_comparable((label_smoothing, alpha, gamma), axis, keepdims, dtype):
            what = (function, reduction, label_smoothing, alpha, gamma, axis, keepdims, dtype)
            asked = (what, (input, target, weight, pos_weight, grad_output, where), out)
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
    check = on_host if validate is None else _flag(function, "validate", validate)
    call = Call(function, x, y, reduction, x.size, result, check, wants.value, wants.gradient)
    if target_name != "target":
        call.input_name, call.target_name = input_name, target_name
    if family:
        call.family, call.wants_hessian = family, wants.hessian
    if library is not None:
        call.library, call.given, call.own = library, given, own
    call.is_plain, call.what, call.asked = is_plain and (out is None or of_numpy), what, asked
    if is_plain and is_bare and out is None:
        if stream is not None or not (on_host and isinstance(y, np.ndarray)):
            _take_place(call, stream)
        if x.size or reduction != "mean":
            return call
    if weight is not None:
        call.weight, call.weight_number = _factor(function, "weight", weight, shape, repr(input_name))
    if pos_weight is not None:
        call.pos_weight, call.pos_weight_number = _factor(function, "pos_weight", pos_weight, shape, repr(input_name))
    if type(label_smoothing) is not float or label_smoothing != 0.0:
        call.label_smoothing = _smoothing(function, label_smoothing)
    if where is not None and not (isinstance(where, (bool, np.bool_)) and where):
        call.where, call.count = _where(function, where, shape)
    if family == FOCAL:
        _take_focal(call, alpha, gamma)
    if axis is not None or keepdims is not False:
        _take_axes(call, axis, keepdims)
    if dtype is not None:
        call.dtype = _dtype(function, dtype)
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
    call.grad_output, call.grad_output_number = _factor(function, "grad_output", grad_output, inner, whose)
    if call.axes is not None and call.grad_output is not None:
        kept = tuple(1 if d in call.axes else n for d, n in enumerate(shape))
        call.grad_output = call.grad_output.reshape(kept)
    if call.grad_output is not None and call.grad_output.shape != shape:
        call.grad_output = _broadcast(call.grad_output, shape)


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
        setattr(call, f"{names[0]}_out", _out(function, "out", out, wanted[names[0]][1], dtype, inputs))
        return
    if not isinstance(out, tuple) or len(out) != len(names):
        raise TypeError(f"{function}: 'out' must be a tuple of two, ({', '.join(names)}); got {_describe(out)}")
    for k, (name, array) in enumerate(zip(names, out, strict=True)):
        if array is not None:
            inputs[f"out[{k}]"] = own = _out(function, f"out[{k}]", array, wanted[name][1], dtype, inputs)
            setattr(call, f"{name}_out", own)


def _view_of_out(function: str, name: str, out: Any, library: HostLibrary) -> Any:
    """The memory of the caller's own result arrays, which are of the library of the input."""
    if out is None:
        return None
    if type(out) is tuple:
        return tuple([_view_of_out(function, f"out[{k}]", each, library) for k, each in enumerate(out)])
    if not library.writes:
        raise TypeError(f"{function}: {name!r} must be None for arrays of {library.name}; got {_describe(out)}")
    found = library_of(out)
    if found is None or found.name != library.name:
        raise TypeError(f"{function}: {name!r} must be an array of {library.name}; got {_describe(out)}")
    return _array(function, name, out)


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
