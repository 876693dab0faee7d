"""The device's kernels under Numba's simulator, which decides for a whole process: tests/simulated/ in some of theirs.

To run one of them alone: NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/simulated -k ...
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("simulated")
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None or importlib.util.find_spec("array_api_compat") is None,
    reason="the simulator is part of numba-cuda, which is not installed with array-api-compat",
)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A process for each file, all at once, and what it prints."""
    root, folder = FOLDER.parents[1], tmp_path_factory.mktemp("simulated")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(root)}
    processes = {}
    for name in FILES:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / name)]
        with (folder / name).open("w") as output:
            processes[name] = subprocess.Popen(
                command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
    yield {name: (process, folder / name) for name, process in processes.items()}
    for process in processes.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", FILES)
def test_simulated_kernels_pass_their_tests(started, name):
    process, output = started[name]
    code = process.wait(timeout=900)
    text = output.read_text()
    assert code == 0, text[-20_000:]
    assert re.search(r"^\d{2,} passed", text, re.MULTILINE), text
    assert "skipped" not in text.splitlines()[-1]


def test_this_process_collects_no_simulated_test(request):
    assert len(FILES) == 3
    if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
        assert not [item for item in request.session.items if item.path.parent == FOLDER]
