"""Fixtures of the tests that run under Numba's CUDA simulator: tests/test_cuda_simulator.py starts them.

NBBCE_TESTS_ON=ptx python -m pytest tests/simulated       the same tests on the machine of tests/ptx.py: some
                                                          20 minutes, nearly all of it to compile 600 kernels
"""

import os
import sys
import threading

import numpy as np
import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

# Numba decides while it is imported whether it simulates, so these tests need a process of their own.
ON_PTX = os.environ.get("NBBCE_TESTS_ON") == "ptx"
collect_ignore_glob = [] if SIMULATED or ON_PTX else ["*.py"]


def pytest_configure(config):
    # A kernel runs as plain Python on NumPy's scalars, which tell of what overflows on purpose.
    for told in ("(overflow|invalid value|divide by zero) encountered in scalar", "overflow encountered in cast"):
        config.addinivalue_line("filterwarnings", f"ignore:{told}:RuntimeWarning")


@pytest.fixture(autouse=True, scope="session")
def machine():
    """The machine that runs PTX, in the place of the device."""
    if not ON_PTX:
        yield
        return
    import ptx_device

    with ptx_device.installed():
        yield


@pytest.fixture(autouse=True)
def counters_end_at_0():
    """Each launch leaves the counter of its stream as the next one expects it."""
    yield
    from nbbce import _cuda

    for array, _, blocks in _cuda._rooms.values():
        room = array.copy_to_host()
        assert room.size == 1 + blocks
        assert room[:1].view(np.uint32).tolist() == [0, 0]
    if ON_PTX:
        import ptx_device

        ptx_device.forget_arrays()


class Allocations(dict):
    """The simulator's shared arrays: of threads that ask at once, the first makes one and the others wait for it."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def get(self, key):
        self.lock.acquire()
        found = super().get(key)
        if found is not None:
            self.lock.release()
        return found

    def __setitem__(self, key, array):
        super().__setitem__(key, array)
        self.lock.release()


@pytest.fixture(autouse=True, scope="session")
def quick_switches():
    """The simulator's threads poll each other, so that most of the time goes by until Python switches them.

    If it does so often, two of them get an array each where they are to share one, now and then: hence `Allocations`.
    """
    if ON_PTX:
        yield
        return
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    before, make = sys.getswitchinterval(), FakeCUDAShared.__init__

    def with_lock(self, size):
        make(self, size)
        self._allocations = Allocations()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCUDAShared, "__init__", with_lock)
        sys.setswitchinterval(1e-4)
        yield
        sys.setswitchinterval(before)
