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
