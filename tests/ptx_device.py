"""A device made of tests/ptx.py: what nbbce asks of arrays and of a driver, where the host runs the PTX of kernels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import device_code
import numpy as np
import ptx
import pytest

from nbbce import _arrays, _cuda, _device_arrays

memory = ptx.Memory()


class Array:
    """An array on the device."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values  # a view of the device's memory
        self.shape, self.dtype, self.strides, self.size = values.shape, values.dtype, values.strides, values.size

    def __getitem__(self, index: Any) -> Array:
        return Array(self.values[index])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise NotImplementedError  # that there is one says where the array is; what it says, `Library` does

    def copy_to_host(self) -> np.ndarray[Any, Any]:
        """Its values."""
        return self.values.copy()


def place(array: Any) -> Array:
    """A copy on the device that lies as the array does, to the strides and to where it begins."""
    array = np.asarray(array)
    low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
    offset = low % ptx.Memory.GAP
    found = memory.allocate(high - low, offset)
    start = array.ctypes.data - low if array.size else 0
    values = np.ndarray(array.shape, array.dtype, found, start, array.strides)
    values[...] = array
    return Array(values)


class Loaded(NamedTuple):
    """A kernel as the machine takes it, and what it was made for."""

    kernel: ptx.Kernel
    spec: Any


def task_of(kernel: Loaded) -> str:
    """The task of a kernel."""
    task: str = kernel.spec.task
    return task


class Driver:
    """What nbbce/_cuda.py asks of a driver."""

    on_device = staticmethod(contextlib.nullcontext)

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability = capability
        self.kernels: dict[Any, Loaded] = {}
        """By spec."""
        self.launched: list[Any] = []
        """Specs of what ran."""
        self.tally: ptx.Tally | None = None

    def loaded(self, spec: Any, device: int) -> Loaded:
        """The kernel, compiled if need be."""
        if spec not in self.kernels:
            self.kernels[spec] = Loaded(ptx.parse(device_code.ptx_of(spec, self.capability)), spec)
        return self.kernels[spec]

    def run(self, kernel: Loaded, device: int, stream: int, grid: int, threads: int, arguments: Any) -> None:
        """Run a kernel to its end."""
        self.launched.append(kernel.spec)
        ptx.run(kernel.kernel, memory, grid, threads, arguments, tally=self.tally)

    def resident(self, kernel: Loaded, threads: int) -> int:
        """Thread blocks of a kernel that a multiprocessor runs at once."""
        return 2

    def multiprocessors(self, device: int) -> int:
        """Few, so that small arrays are walked as large ones are."""
        return 1

    def converts_pairs(self, device: int) -> bool:
        """Whether a device converts two floats to 16 bits in one instruction."""
        return self.capability >= (8, 0)

    def is_capturing(self, stream: int) -> bool:
        """Whether what is launched on a stream is being recorded to a graph."""
        return False

    def fetch(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], stream: int) -> np.ndarray[Any, Any]:
        """Values from the memory of the device."""
        start = address - memory.base
        return memory.bytes[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape).copy()

    def keep_until_done(self, device: int, stream: int, arrays: Any) -> None:
        """Keep arrays until what is on a stream so far is done: here it is."""


class Ours(_device_arrays.Library):
    """The library of `Array`."""

    name = "ptx_device"

    def view(self, array: Any) -> _device_arrays.DeviceArray:
        address = array.values.ctypes.data
        return _device_arrays.DeviceArray(address, array.shape, array.strides, array.dtype, 0, self, array)

    def place(self, array: Any) -> tuple[int, tuple[Any, ...]]:
        address = array.values.ctypes.data
        return address, (array.dtype, array.shape, array.values.strides, address & 15)

    def stream(self, device: int) -> int:
        return 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: Any, stream: int) -> Array:
        values = memory.allocate(math.prod(shape) * dtype.itemsize, unwritten=True)
        return Array(values.view(dtype).reshape(shape))

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any], like: Any, stream: int) -> Array:
        return place(np.full(shape, value, dtype))


@contextlib.contextmanager
def installed(capability: tuple[int, int] = (9, 0)) -> Iterator[Driver]:
    """Let this device be the one that nbbce finds."""
    with pytest.MonkeyPatch.context() as patch:
        driver = Driver(capability)
        patch.setattr(_cuda, "compiler", driver)
        for name in ("_kernels", "_known", "_rooms"):
            patch.setattr(_cuda, name, {})
        patch.setattr(_device_arrays, "is_available", lambda: True)
        patch.setitem(_device_arrays.library_of_type, Array, Ours())
        patch.setitem(_arrays.device_types, Array, lambda array: True)
        yield driver


def forget_arrays() -> None:
    """Free what arrays have that were made since the last test."""
    _cuda._rooms.clear()
    memory.free()
