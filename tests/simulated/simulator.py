"""Arrays of the simulator's device, and calls on it beside those of the CPU."""

import devices
import numpy as np
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray


def place(array):
    """The array, as it lies in memory, as one on the simulated device."""
    return FakeCUDAArray(array)


def to_host(array):
    """A result as a NumPy array; it must be one of the library that the arguments are of."""
    assert isinstance(array, FakeCUDAArray)
    return array.copy_to_host()


def aligned(array, offset=0):
    """A dense copy whose memory starts `offset` elements behind a multiple of 64 bytes."""
    array = np.ascontiguousarray(array)
    memory = np.zeros(array.nbytes + 64 + offset * array.itemsize, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + offset * array.itemsize
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def both(function, *arrays, **options):
    """What a function gives on the simulated device, and on the CPU."""
    return devices.called_on_both(place, to_host, function, *arrays, **options)


def agree(function, *arrays, **options):
    """Assert that the bits are those of the CPU, and that the arguments are as they were."""
    given = [a for a in (*arrays, *options.values()) if isinstance(a, np.ndarray)]
    before = [a.copy() for a in given]
    got, expected = both(function, *arrays, **options)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        devices.assert_same_bits(one, other)
    for array, copy in zip(given, before, strict=True):
        devices.assert_same_bits(array, copy)
