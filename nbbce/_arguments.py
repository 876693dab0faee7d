"""What an argument of a call must be: each check and its message.  What passes comes back as calls need it.

A message reads `function: what must hold; got what`.  TypeError is for the wrong kind, ValueError for a wrong value.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nbbce._arrays import (
    DEVICE_KINDS,
    FLOATS,
    Array,
    bfloat16,
    broadcast_strides,
    is_array,
    is_on_device,
    is_real,
    kind_of,
    readable,
)
from nbbce._host_arrays import HostLibrary, library_of

if TYPE_CHECKING:
    from nbbce._device_arrays import DeviceArray

_device_module: Any = None  # nbbce._device_arrays, once it is imported: to do so again takes 0.5 us


def described(value: object) -> str:
    """Name a value that is no array as a user would."""
    text = repr(value)
    return (
        type(value).__name__ if len(text) > 40 or "\n" in text or not isinstance(value, (str, numbers.Number)) else text
    )


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


def checked_array(function: str, name: str, value: Any) -> Array:
    """`value` as a NumPy array over its own memory, or as one on a device; anything but an array is a TypeError."""
    if type(value) is np.ndarray:
        if value.dtype in readable:  # nearly always, and it counts at one element
            return value
    library = library_of(value)
    if library is not None:
        return seen_by_numpy(function, name, value, library.view)
    if is_on_device(value):
        return _device_array(function, name, value)
    if not is_array(value):
        raise TypeError(f"{function}: {name!r} must be an array (see numpy.asarray); got {described(value)}")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{function}: {name!r} must have no mask of its own (see 'where'); got a masked array")
    # Also of subclasses, whose indexing may be another, as that of numpy.matrix.
    return seen_by_numpy(function, name, value, np.asarray)


def seen_by_numpy(function: str, name: str, value: Any, view: Callable[[Any], Array]) -> Array:
    """The memory of an array of whatever kind, by what shows it; a TypeError that says why not, if that raises."""
    try:
        return view(value)
    except (TypeError, ValueError, RuntimeError) as error:  # as of a sparse tensor of PyTorch, or of a traced array
        reason = str(error).partition("\n")[0]
        got = f"{type(value).__name__}, {reason}"
        raise TypeError(f"{function}: {name!r} must be an array that NumPy reads; got {got}") from error


def checked_real(function: str, name: str, value: Any, computed: Any = np.float64) -> Array:
    """The same for an array of a real dtype; one that no loop reads (some ``longdouble``) becomes `computed`."""
    array = checked_array(function, name, value)
    if kind_of(array.dtype) is not None:
        return array
    if not is_real(array.dtype):
        raise TypeError(f"{function}: {name!r} must have a real dtype; got {array.dtype}")
    return array.astype(computed)


def checked_flag(function: str, name: str, value: Any) -> bool:
    """`value` as a bool if it is one, or 0 or 1."""
    if isinstance(value, (bool, np.bool_, int, np.integer)) and _number(value) in (0.0, 1.0):
        return bool(value)
    raise TypeError(f"{function}: {name!r} must be True or False; got {described(value)}")


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


def checked_number(function: str, name: str, value: object) -> float | None:
    """The same; a ValueError for an integer that no float64 holds."""
    try:
        return _number(value)
    except OverflowError:
        raise ValueError(f"{function}: {name!r} must fit a float64; got a larger number") from None


def checked_factor(
    function: str, name: str, value: Any, shape: tuple[int, ...], whose: str = "'input'"
) -> tuple[Array | None, float]:
    """A weight, as (array of `shape`, 1.0) or (None, number).  Broadcasting makes a view, not a copy."""
    if value is None:
        return None, 1.0
    if type(value) is not np.ndarray or value.ndim == 0:  # to tell that it is no number takes 0.9 us
        number = checked_number(function, name, value)
        if number is not None:
            return None, number
        if not is_array(value) and not is_on_device(value):
            raise TypeError(f"{function}: {name!r} must be a real number or an array; got {described(value)}")
    array = checked_real(function, name, value)
    if array.shape != shape:
        try:
            array = broadcast(array, shape)
        except ValueError:
            raise ValueError(
                f"{function}: {name!r} must broadcast to the shape of {whose}, {shape}; got {array.shape}"
            ) from None
    return array, 1.0


def is_on_host(array: object) -> bool:
    """Whether an array that was checked is one of NumPy."""
    return isinstance(array, np.ndarray)


def broadcast(array: Array, shape: tuple[int, ...]) -> Array:
    """The array seen in another shape; a ValueError if it does not fit."""
    if not is_on_host(array):
        return cast(Array, cast(Any, array).broadcast_to(shape))
    if array.flags.c_contiguous:  # 0.4 us, where NumPy's broadcast_to takes 1.9
        return np.ndarray(shape, array.dtype, array, 0, broadcast_strides(array.shape, array.strides, shape))
    return np.broadcast_to(array, shape)


def checked_mask(function: str, value: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The mask as it is, and as an array of `shape`."""
    if isinstance(value, (bool, np.bool_)):
        value = np.asarray(value)
    mask = checked_array(function, "where", value)
    if mask.dtype != np.bool_:
        raise TypeError(f"{function}: 'where' must be an array of bool; got {mask.dtype}")
    try:
        return mask, broadcast(mask, shape)
    except ValueError:
        raise ValueError(
            f"{function}: 'where' must broadcast to the shape of 'input', {shape}; got {mask.shape}"
        ) from None


def checked_where(function: str, value: Any, shape: tuple[int, ...]) -> tuple[Array, int]:
    """The mask as an array of `shape`, and how many elements it keeps.

    On a device they are counted by the kernel, which divides by them too: 1 stands for them here.
    """
    mask, wide = checked_mask(function, value, shape)
    if not is_on_host(mask):
        return wide, min(1, wide.size)
    kept = int(np.count_nonzero(mask))
    return wide, kept * (wide.size // mask.size) if mask.size else 0


def checked_dtype(function: str, value: Any) -> np.dtype[Any]:
    """The result dtype that the caller names."""
    named = str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value
    try:
        dtype: np.dtype[Any] = bfloat16() if type(named) is str and named == "bfloat16" else np.dtype(named)
    except (TypeError, ValueError):
        raise TypeError(f"{function}: 'dtype' must be one of {', '.join(FLOATS)}; got {value!r}") from None
    if kind_of(dtype) not in FLOATS:
        raise TypeError(f"{function}: 'dtype' must be one of {', '.join(FLOATS)}; got {dtype}")
    return dtype


def checked_out(
    function: str, name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: dict[str, Array | None]
) -> Array:
    """The caller's own result array, fit to be written."""
    if not is_on_host(inputs["input"]):
        return cast(Array, _device_out(function, name, out, shape, dtype, inputs))
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{function}: {name!r} must be a NumPy array; got {described(out)}")
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


def _check_history(function: str, name: str, out: Any) -> None:
    """Refuse a tensor of PyTorch whose gradient would not know what was written to it."""
    if getattr(out, "requires_grad", False):
        raise TypeError(f"{function}: {name!r} must not require a gradient; got a tensor that does")


def _device_out(
    function: str, name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: dict[str, Any]
) -> DeviceArray:
    """The same on a device."""
    from nbbce._device_arrays import overlap

    if not is_on_device(out):
        raise TypeError(f"{function}: {name!r} must be an array on the device of 'input'; got {described(out)}")
    _check_history(function, name, out)
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


def checked_stream(function: str, value: Any) -> int:
    """The handle of a stream, given as an integer or as an object of an array library."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    if hasattr(value, "__cuda_stream__"):  # cuda.core, CuPy: (version, handle)
        return int(value.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, Numba
        if hasattr(value, name):
            handle = getattr(value, name)
            return int(getattr(handle, "value", handle) or 0)
    raise TypeError(f"{function}: 'stream' must be a stream or its handle; got {described(value)}")


def _overlap(a: Array, b: Array) -> bool:
    """Whether two arrays share an element; if that is too hard to tell, they do."""
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def checked_smoothing(function: str, value: Any) -> float:
    """The share of a label that label smoothing gives away."""
    number = checked_number(function, "label_smoothing", value)
    if number is None:
        raise TypeError(f"{function}: 'label_smoothing' must be a real number; got {described(value)}")
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{function}: 'label_smoothing' must be in [0, 1]; got {number}")
    return number


def view_of(function: str, name: str, value: Any) -> Any:
    """The memory of a tensor of the host; what is none, as a number, is as it was."""
    library = None if value is None else library_of(value)
    return value if library is None else seen_by_numpy(function, name, value, library.view)


def view_of_out(function: str, name: str, out: Any, library: HostLibrary) -> Any:
    """The memory of the caller's own result arrays, which are of the library of the input."""
    if out is None:
        return None
    if type(out) is tuple:
        return tuple([view_of_out(function, f"out[{k}]", each, library) for k, each in enumerate(out)])
    if not library.writes:
        raise TypeError(f"{function}: {name!r} must be None for arrays of {library.name}; got {described(out)}")
    _check_history(function, name, out)
    found = library_of(out)
    if found is None or found.name != library.name:
        raise TypeError(f"{function}: {name!r} must be an array of {library.name}; got {described(out)}")
    return seen_by_numpy(function, name, out, library.view)
