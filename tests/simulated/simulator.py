"""Arrays of a device that is simulated, and calls on it beside those of the CPU.

It is Numba's simulator, which runs the kernels' source, or, if NBBCE_TESTS_ON is "ptx", tests/ptx.py, which runs what
they are compiled to.
"""

import os

import devices
import numpy as np

ON_PTX = os.environ.get("NBBCE_TESTS_ON") == "ptx"

if ON_PTX:
    from ptx_device import Array, place, task_of
else:
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray as Array

    def place(array):
        """The array, as it lies in memory, as one on the simulated device."""
        return Array(array)

    def task_of(kernel):
        """The task of a kernel."""
        return kernel.fn.__name__.rstrip("_")


def to_host(array):
    """A result as a NumPy array; it must be one of the library that the arguments are of."""
    assert isinstance(array, Array)
    return array.copy_to_host()


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
