"""Fixtures of the tests that run under Numba's CUDA simulator: tests/test_cuda_simulator.py starts them."""

import os

import numpy as np
import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

# Numba decides while it is imported whether it simulates, so these tests need a process of their own.
collect_ignore_glob = [] if SIMULATED else ["*.py"]


def pytest_configure(config):
    # A kernel runs as plain Python on NumPy's scalars, which tell of what overflows on purpose.
    for told in ("(overflow|invalid value|divide by zero) encountered in scalar", "overflow encountered in cast"):
        config.addinivalue_line("filterwarnings", f"ignore:{told}:RuntimeWarning")


@pytest.fixture(autouse=True)
def counters_end_at_0():
    """Each launch leaves the counter of its stream as the next one expects it."""
    yield
    from nbbce import _cuda

    for array, _, blocks in _cuda._rooms.values():
        room = array.copy_to_host()
        assert room.size == 1 + blocks
        assert room[:1].view(np.uint32).tolist() == [0, 0]
