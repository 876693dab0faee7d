"""Whole calls and commands on a driver made of tests/ptx.py, which decides for a process, so in processes of their own.

To run tests of devices there: NBBCE_TESTS_ON=ptx python -m pytest -m gpu -k "(numba or offered) and ..."
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("numba_cuda", "array_api_compat", "cuda")

pytestmark = [
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED), reason="not what nbbce[cuda13] installs"
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]


def output_of(*arguments):
    """What a Python prints that has the driver."""
    environment = os.environ | {"NBBCE_TESTS_ON": "ptx", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, process.stdout[-20_000:] + process.stderr[-5_000:]
    return process.stdout


def test_arrays_of_numba_and_those_that_offer_themselves_pass_their_tests():
    chosen = "(numba or offered) and (out_of or again or validation_names or mean_over or (view_of and row-none))"
    text = output_of("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu", "-k", chosen)
    assert re.search(r"^12 passed", text, re.MULTILINE), text


EXCHANGED = """
import os

import ptx_driver

ptx_driver.install()
import cuda.bindings.driver as driver
import numpy as np

import nbbce

driver.cuInit(0)
_, context = driver.cuDevicePrimaryCtxRetain(0)
driver.cuCtxSetCurrent(context)


class Array:
    def __init__(self, values):
        _, self.memory = driver.cuMemAlloc(values.nbytes)
        driver.cuMemcpyHtoD(self.memory, values.ctypes.data, values.nbytes)
        self.__cuda_array_interface__ = {
            "shape": values.shape, "typestr": values.dtype.str, "data": (int(self.memory), False), "version": 3
        }


x, y = np.linspace(0, 1, 5000, dtype="f4"), np.ones(5000, "f4")
for reduction in ("none", "mean"):
    got = nbbce.binary_cross_entropy(Array(x), Array(y), reduction=reduction).fetched()
    print(np.array_equal(got, nbbce.binary_cross_entropy(x, y, reduction=reduction)), flush=True)
os._exit(0)  # what is freed later would ask functions of Python that are gone
"""


def test_memory_is_found_where_a_library_has_made_the_device_current_and_told_nobody():
    # As JAX does; cuda.core refused then to allocate on a device that it had not been asked for.
    assert output_of("-c", EXCHANGED).split() == ["True", "True"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("info", r"^device 0 +tests/ptx\.py, compute capability 9\.0, 64\.0 GiB$"),
        ("bench --target cuda --size 4096 --repeats 2 --dtype float32", r"^float32, mean, soft labels +0 +0 +1\.00 "),
    ],
)
def test_command_finds_the_device(command, says):
    code = f"import ptx_driver; ptx_driver.install(); from nbbce import cli; cli.main({command.split()!r})"
    assert re.search(says, output_of("-c", code), re.MULTILINE)
