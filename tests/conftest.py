"""Fixtures of all tests."""

import hypothesis
import numba
import numpy as np
import pytest

# The same examples in every run, as many as each test says, and no folder of past failures in the tree.
hypothesis.settings.register_profile("nbbce", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("nbbce")


@pytest.fixture
def rng():
    """Random numbers, the same in every run."""
    return np.random.default_rng(20240607)


@pytest.fixture
def restored_threads():
    """Sets the number of Numba's threads back after the test."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.fixture
def no_driver(monkeypatch):
    """A machine without a CUDA driver, whatever this one has."""
    needed = "what nbbce[cuda12] and nbbce[cuda13] install is not here"
    arrays = pytest.importorskip("nbbce._device_arrays", reason=needed, exc_type=ImportError)
    monkeypatch.setattr(arrays, "is_available", lambda: False)
