"""Arrays in the memory of a CUDA device: where each lies, and new ones of the same library.

Imported when the first device array is seen.  A library is met through an array of it, so it is there already; none is
imported for its own sake.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any, NamedTuple

import array_api_compat
import numba_cuda  # noqa: F401  (without it `numba.cuda` is Numba's own target, which is not ours)
import numpy as np
from numba import cuda
from numba.core import config

from nbbce._arrays import bfloat16, broadcast_strides, device_types


class Footprint(NamedTuple):
    """What a shape, strides in bytes and the size of an element say about an array."""

    size: int
    """Number of elements."""
    is_c_contiguous: bool
    """Whether its elements lie side by side, in order."""
    low: int
    """Bytes from the first element to the first address that is used; 0 or less."""
    high: int
    """Bytes from the first element to the address behind the last; 0 if there is no element."""
    in_step: bool
    """Whether elements are multiples of their size apart: a device cannot read them otherwise."""


@lru_cache(maxsize=1000)
def _footprint(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Footprint:
    expected, contiguous = itemsize, True
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        contiguous = contiguous and (extent == 1 or stride == expected)
        expected *= extent
    size = math.prod(shape)
    if size == 0:
        return Footprint(0, contiguous, 0, 0, True)
    ends = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    low, high = sum(end for end in ends if end < 0), sum(end for end in ends if end > 0)
    in_step = not any(stride % itemsize for n, stride in zip(shape, strides, strict=True) if n > 1)
    return Footprint(size, contiguous, low, high + itemsize, in_step)


@lru_cache(maxsize=1000)
def _in_bytes(strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(n * itemsize for n in strides)


class DeviceArray:
    """An array on a device, as a place in its memory; what asks for shapes and dtypes can take it for a NumPy array.

    `strides` are in bytes; `owner` is the array of the library, which keeps the memory.
    """

    __slots__ = ("address", "device", "dtype", "footprint", "library", "owner", "readonly", "shape", "strides")

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype[Any],
        device: int,
        library: Library,
        owner: Any,
        readonly: bool = False,
    ) -> None:
        self.address, self.shape, self.strides, self.dtype = address, shape, strides, dtype
        self.device, self.library, self.owner, self.readonly = device, library, owner, readonly
        self.footprint = _footprint(shape, strides, dtype.itemsize)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.footprint.size

    @property
    def is_c_contiguous(self) -> bool:
        """Whether its elements lie side by side, in order."""
        return self.footprint.is_c_contiguous

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def __getitem__(self, index: tuple[int, ...]) -> Any:
        """An element, brought to the host: for messages, when what writes it has been waited for."""
        from nbbce._cuda import compiler

        place = self.address + sum(i * stride for i, stride in zip(index, self.strides, strict=True))
        return compiler.fetch(place, (), self.dtype, 0).item()

    def broadcast_to(self, shape: tuple[int, ...]) -> DeviceArray:
        """The same memory seen in another shape, as `numpy.broadcast_to` means it; a ValueError if it does not fit."""
        strides = broadcast_strides(self.shape, self.strides, shape)
        return DeviceArray(
            self.address, shape, strides, self.dtype, self.device, self.library, self.owner, self.readonly
        )

    def transpose(self, axes: Iterable[int]) -> DeviceArray:
        """The same memory with its axes in another order."""
        order = tuple(axes)
        shape, strides = tuple(self.shape[d] for d in order), tuple(self.strides[d] for d in order)
        return DeviceArray(
            self.address, shape, strides, self.dtype, self.device, self.library, self.owner, self.readonly
        )

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        """The same memory with dimensions of one element put in or left out."""
        kept = iter([stride for n, stride in zip(self.shape, self.strides, strict=True) if n != 1])
        strides = tuple(0 if n == 1 else next(kept) for n in shape)
        return DeviceArray(
            self.address, shape, strides, self.dtype, self.device, self.library, self.owner, self.readonly
        )

    def moved(self, address: int, owner: Any) -> DeviceArray:
        """An array elsewhere that lies as this one does."""
        moved = DeviceArray.__new__(DeviceArray)  # what it is made from, and a look for the footprint, take 0.4 us more
        moved.address, moved.shape, moved.strides, moved.dtype = address, self.shape, self.strides, self.dtype
        moved.device, moved.library, moved.owner, moved.readonly = self.device, self.library, owner, self.readonly
        moved.footprint = self.footprint
        return moved

    @property
    def is_aligned(self) -> bool:
        """Whether each element starts at a multiple of its size: a device cannot read it otherwise."""
        return self.footprint.size == 0 or (self.footprint.in_step and self.address % self.dtype.itemsize == 0)

    def extent(self) -> tuple[int, int]:
        """The first address that it uses, and the one behind the last."""
        return self.address + self.footprint.low, self.address + self.footprint.high


class Library:
    """What nbbce asks of an array library."""

    name = ""
    exchanges = False
    """Whether its arrays come and go by an exchange, which orders the streams of both sides."""

    def view(self, array: Any) -> DeviceArray:
        """The array as a place in memory."""
        raise NotImplementedError

    def address(self, array: Any) -> int:
        """Where the array begins."""
        return self.view(array).address

    def place(self, array: Any) -> tuple[int, tuple[Any, ...]] | None:
        """Where the array begins, and all else that decides what is launched for it; None if that takes a view."""
        return None

    def stream(self, device: int) -> int:
        """Handle of the stream that the caller works on."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        """A new array on the device of `like`; of its order in memory if it has its shape."""
        raise NotImplementedError

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        """The same filled with a value."""
        raise NotImplementedError

    def on_stream(self, stream: int, device: int) -> AbstractContextManager[Any]:
        """Take new memory from what belongs to a stream, so that none is used again while work on it is under way."""
        return nullcontext()

    def finished(self, array: Any, stream: int) -> Any:
        """What the caller gets, once the kernel that writes it is launched."""
        return array

    def note_written(self, array: Any) -> None:
        """Let the library know that an array of the caller's is written to."""


class Torch(Library):
    """PyTorch.  Results do not require a gradient."""

    name = "torch"

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self._numpy_dtypes: dict[Any, np.dtype[Any]] = {}
        self._dtypes: dict[np.dtype[Any], Any] = {}
        self._scalars: dict[tuple[np.dtype[Any], int], Any] = {}
        # A handle, without an object for it that takes 2 us; it is not for the public, and may go.
        self._handle = getattr(getattr(torch, "_C", None), "_cuda_getCurrentRawStream", None)

    def _numpy_dtype(self, dtype: Any) -> np.dtype[Any]:
        known = self._numpy_dtypes.get(dtype)
        if known is None:
            name = str(dtype).removeprefix("torch.")
            try:
                known = bfloat16() if name == "bfloat16" else np.dtype(name)
            except TypeError:
                raise TypeError(f"arrays must have a dtype that NumPy has; got {dtype}") from None
            self._numpy_dtypes[dtype] = known
        return known

    def view(self, array: Any) -> DeviceArray:
        if array.is_neg():  # as the imaginary part of a conjugate
            raise TypeError("one whose sign is not yet in memory (see torch.Tensor.resolve_neg)")
        dtype = self._numpy_dtype(array.dtype)
        try:
            strides, address = _in_bytes(array.stride(), dtype.itemsize), array.data_ptr()
        except RuntimeError:
            raise TypeError("one that has no memory of its own, as sparse tensors") from None
        if address == 0 and array.numel():
            raise TypeError("one that has no memory of its own, as zeros of PyTorch's gradients")
        return DeviceArray(address, tuple(array.shape), strides, dtype, array.device.index, self, array)

    def address(self, array: Any) -> int:
        return int(array.data_ptr())

    def place(self, array: Any) -> tuple[int, tuple[Any, ...]] | None:
        try:
            address = array.data_ptr()
            if address == 0 or array.is_neg():
                return None
            return address, (array.dtype, array.shape, array.stride(), array.get_device(), address & 15)
        except RuntimeError:  # of a sparse tensor
            return None

    def stream(self, device: int) -> int:
        if self._handle is not None:
            return int(self._handle(device))
        return int(self.torch.cuda.current_stream(device).cuda_stream)

    def on_stream(self, stream: int, device: int) -> AbstractContextManager[Any]:
        if stream == self.stream(device):
            return nullcontext()
        if stream in (0, 1):  # an ExternalStream of these would be one of PyTorch's pool
            wanted = self.torch.cuda.default_stream(device)
        else:
            wanted = self.torch.cuda.ExternalStream(stream, device)
        other: AbstractContextManager[Any] = self.torch.cuda.stream(wanted)
        return other

    def _dtype(self, dtype: np.dtype[Any]) -> Any:
        known = self._dtypes.get(dtype)  # to ask NumPy for a name takes 1 us
        if known is None:
            known = self._dtypes[dtype] = getattr(self.torch, dtype.name)
        return known

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        owner = like.owner
        if shape == like.shape:
            own = owner if type(owner) is self.torch.Tensor else owner.detach()
            if dtype is like.dtype:  # to name it takes 0.13 us
                return self.torch.empty_like(own)
            return self.torch.empty_like(own, dtype=self._dtype(dtype))
        if shape == ():
            scalar = self._scalars.get((dtype, like.device))
            if scalar is not None:  # 2.4 us on an H100's host, and 4.3 for what follows
                return self.torch.empty_like(scalar)
        array = self.torch.empty(shape, dtype=self._dtype(dtype), device=owner.device)
        # Neither what is of a graph, whose memory goes with it, nor of another kind, as under a mode of PyTorch's.
        if shape == () and type(array) is self.torch.Tensor and not self.torch.cuda.is_current_stream_capturing():
            self._scalars[dtype, like.device] = self.torch.empty_like(array)
        return array

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        return self.torch.full(shape, value, dtype=self._dtype(dtype), device=like.owner.device)

    def note_written(self, array: Any) -> None:
        self.torch.autograd.graph.increment_version(array)  # or a gradient that needs what was there would be wrong


class Cupy(Library):
    """CuPy."""

    name = "cupy"

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy

    def view(self, array: Any) -> DeviceArray:
        return DeviceArray(array.data.ptr, array.shape, array.strides, array.dtype, array.device.id, self, array)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def place(self, array: Any) -> tuple[int, tuple[Any, ...]] | None:
        address = int(array.data.ptr)
        return address, (array.dtype, array.shape, array.strides, array.device.id, address & 15)

    def stream(self, device: int) -> int:
        with self.cupy.cuda.Device(device):
            return int(self.cupy.cuda.get_current_stream().ptr)

    def on_stream(self, stream: int, device: int) -> AbstractContextManager[Any]:
        if stream == self.stream(device):
            return nullcontext()
        other: AbstractContextManager[Any] = self.cupy.cuda.ExternalStream(stream, device)
        return other

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        with self.cupy.cuda.Device(like.device):
            return self.cupy.empty_like(like.owner, dtype) if shape == like.shape else self.cupy.empty(shape, dtype)

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        with self.cupy.cuda.Device(like.device):
            return self.cupy.full(shape, value, dtype)


class Numba(Library):
    """Numba's own device arrays, and those of its simulator."""

    name = "numba"

    def view(self, array: Any) -> DeviceArray:
        if config.ENABLE_CUDASIM:
            address, device = array.__array_interface__["data"][0], 0
        else:
            address, device = array.device_ctypes_pointer.value or 0, array.gpu_data.context.device.id
        return DeviceArray(address, array.shape, array.strides, array.dtype, device, self, array)

    def place(self, array: Any) -> tuple[int, tuple[Any, ...]] | None:
        seen = self.view(array)
        return seen.address, (seen.dtype, seen.shape, seen.strides, seen.device, seen.address & 15)

    def stream(self, device: int) -> int:
        return 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        with cuda.gpus[like.device]:
            return cuda.device_array(shape, dtype)

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        values = np.full(shape, value, dtype)
        if config.ENABLE_CUDASIM:
            return cuda.to_device(values)
        from nbbce._compile_cuda import fill

        array = self.empty(shape, dtype, like, stream)
        fill(array.device_ctypes_pointer.value, values, stream)
        return array


class Exchanged(Library):
    """JAX, and whatever else exchanges arrays by DLPack or offers `__cuda_array_interface__`.

    What comes in is ordered before our stream by the exchange, and what goes out before that of the library: no host
    waits.
    """

    exchanges = True

    def __init__(self, name: str) -> None:
        self.name = name

    def view(self, array: Any) -> DeviceArray:
        from cuda.core.utils import StridedMemoryView

        view = StridedMemoryView.from_any_interface(array, stream_ptr=self.stream(0))
        dtype = np.dtype(view.dtype)
        strides = view.strides
        if strides is None:
            strides = tuple(math.prod(view.shape[d + 1 :]) for d in range(len(view.shape)))
        strides = _in_bytes(tuple(strides), dtype.itemsize)
        # The view holds the exchanged memory, so both it and the array are kept.
        return DeviceArray(
            view.ptr, tuple(view.shape), strides, dtype, view.device_id, self, (array, view), view.readonly
        )

    def stream(self, device: int) -> int:
        return 1  # the default stream, by the name that DLPack has for it

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        from nbbce._compile_cuda import allocate

        # cuda.core takes bfloat16 by DLPack and does not give it, so it goes out as uint16.
        seen = np.dtype(np.uint16) if dtype.name == "bfloat16" else dtype
        return _Exported(allocate(shape, seen, like.device, stream), dtype, like, stream)

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        from nbbce._compile_cuda import fill

        array = self.empty(shape, dtype, like, stream)
        fill(array.memory.ptr, np.full(shape, value, dtype), stream)
        return array

    def finished(self, array: Any, stream: int) -> Any:
        if not isinstance(array, _Exported):
            return array[0]  # the caller's own, which is kept with its view
        owner = array.like.owner[0]
        namespace = owner.__array_namespace__() if hasattr(owner, "__array_namespace__") else None
        if namespace is None:
            return array
        taken = namespace.from_dlpack(array)
        return taken.view(array.dtype) if array.dtype.name == "bfloat16" else taken


class _Exported:
    """Memory of our own that a library takes by DLPack; its stream then waits for ours."""

    def __init__(self, memory: Any, dtype: np.dtype[Any], like: DeviceArray, stream: int) -> None:
        self.memory, self.dtype, self.like, self._stream = memory, dtype, like, stream

    def fetched(self) -> np.ndarray[Any, Any]:
        """Its values on the host, which waits for them."""
        from nbbce._compile_cuda import fetch

        return fetch(self.memory.ptr, self.memory.shape, self.dtype, self._stream)

    def __dlpack_device__(self) -> Any:
        return self.memory.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        from nbbce._compile_cuda import let_wait

        if stream != -1:  # None stands for the default stream
            let_wait(1 if stream is None else stream, self._stream, self.like.device)
        return self.memory.__dlpack__(stream=-1, **options)


@cache
def is_available() -> bool:
    """Whether there is a driver and a device to compute on."""
    return bool(cuda.is_available())


_libraries: dict[str, Library] = {}
library_of_type: dict[type, Library] = {}
"""Of the types that were met so far."""


def library_of(array: Any) -> Library:
    """The library that an array on a device belongs to."""
    kind = type(array)
    known = library_of_type.get(kind)
    if known is not None:
        return known
    if array_api_compat.is_torch_array(array):
        found = _libraries.get("torch") or _libraries.setdefault("torch", Torch())
        device_types[kind] = lambda tensor: bool(tensor.is_cuda)
    elif array_api_compat.is_cupy_array(array):
        found = _libraries.get("cupy") or _libraries.setdefault("cupy", Cupy())
        device_types[kind] = lambda array: True
    elif getattr(kind, "__cuda_ndarray__", False):
        found = _libraries.get("numba") or _libraries.setdefault("numba", Numba())
        device_types[kind] = lambda array: True
    else:
        name = kind.__module__.split(".")[0]
        found = _libraries.get(name) or _libraries.setdefault(name, Exchanged(name))
    library_of_type[kind] = found
    return found


def view(array: Any) -> DeviceArray:
    """An array on a device as a place in its memory."""
    return library_of(array).view(array)


def view_of_result(array: Any, like: DeviceArray) -> DeviceArray:
    """The same for what `Library.empty` or `Library.full` gave."""
    if isinstance(array, _Exported):
        memory = array.memory
        itemsize = memory.dtype.itemsize
        strides = tuple(itemsize * math.prod(memory.shape[d + 1 :]) for d in range(len(memory.shape)))
        return DeviceArray(memory.ptr, tuple(memory.shape), strides, array.dtype, like.device, like.library, array)
    return like.library.view(array)


def overlap(a: DeviceArray, b: DeviceArray) -> bool:
    """Whether the memory from the first to the last element of each has something in common."""
    (a_low, a_high), (b_low, b_high) = a.extent(), b.extent()
    return a.device == b.device and a_low < b_high and b_low < a_high
