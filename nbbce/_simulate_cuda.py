"""Kernels under Numba's CUDA simulator: what _compile_cuda.py offers, without a device, a driver or a compiler."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from nbbce._blocks_cuda import kernel
from nbbce._elements_cuda import ADDRESSES, NUMBERS, SIZES, WARP, Spec

on_device = contextlib.nullcontext


def loaded(spec: Spec, device: int) -> Any:
    """The kernel as the simulator takes it."""
    return cuda.jit(kernel(spec))


def run(kernel: Any, device: int, stream: int, grid: int, threads: int, arguments: Sequence[Any]) -> None:
    """Run a kernel.  A thread block has one warp, since the simulator's barriers are all that stands for warps."""
    fixed = ADDRESSES + SIZES + NUMBERS
    kernel[min(grid, 3), WARP](*arguments[:fixed], tuple(arguments[fixed:]))


def resident(kernel: Any, threads: int) -> int:
    """Thread blocks of a kernel that a multiprocessor runs at once."""
    return 2


def fetch(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], stream: int) -> np.ndarray[Any, Any]:
    """Values from the memory of a device, which here is that of the host."""
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(ctypes.string_at(int(address), size), dtype).reshape(shape)


def multiprocessors(device: int) -> int:
    """Few, so that small arrays are walked as large ones are."""
    return 1


def converts_pairs(device: int) -> bool:
    """Whether a device converts two floats to 16 bits in one instruction: it makes no difference here."""
    return True


def is_capturing(stream: int) -> bool:
    """Whether what is launched on a stream is being recorded to a graph: the simulator has none."""
    return False


def keep_until_done(device: int, stream: int, arrays: Any) -> None:
    """Keep arrays until what is on a stream so far is done: here it is."""
