"""How a process starts: what an import brings in, and how kernels are kept on disk, by one process or by many."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import llvmlite
import numba
import numpy as np
import pytest

import nbbce
from nbbce import _compile

PACKAGE = Path(nbbce.__file__).parent
PROCESSES = 16
TIMEOUT = 120  # seconds; nothing here takes a quarter of it unless it hangs

# x and y of every process here, and what they must give: -log(1/2), -log(3/4) and so on.
X, Y = [0.5, 0.25, 0.75, 0.75], [1.0, 0.0, 1.0, 0.0]
LOSSES = [math.log(2), -math.log(0.75), -math.log(0.75), math.log(4)]

# A process that says what it computed, and which functions Numba compiled for that: every function goes through
# Numba's passes when it is compiled, and none that comes from the cache does.
START = f"""
import json
import numba.core.event as event
import numpy as np
import nbbce

x, y = np.array({X}, np.float32), np.array({Y}, np.float32)

def say(**answers):
    compiled = sorted({{happening.data["qualname"] for _, happening in recorder.buffer}})
    print(json.dumps({{"compiled": compiled, **answers}}))
"""
RECORDED = 'with event.install_recorder("numba:run_pass") as recorder:\n    '
# Two kernels: the loss of each element, and the serial walk that calls it.
LOSS = 'losses = nbbce.binary_cross_entropy(x, y, reduction="none").tolist()\n'
CALL = START + RECORDED + LOSS + "say(losses=losses)\n"
LOSS_KERNELS = {"each_loss_float32", "run_serial"}
# Two more: a sum, and the parallel walk.
MEAN = "    mean = float(nbbce.binary_cross_entropy(np.tile(x, 25_000), np.tile(y, 25_000)))\n"
TWO_CALLS = START + RECORDED + LOSS + MEAN + "say(losses=losses, mean=mean)\n"


# Takes and releases every lock there is, at once or with an error.
FREE_LOCKS = """
import filelock, glob, os
locks = glob.glob(os.path.join(os.environ["NBBCE_CACHE"], "*", "*.lock"))
assert len(locks) >= 2
for lock in locks:
    with filelock.FileLock(lock, timeout=0):
        pass
"""


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a process whose home, and all that it may write to unasked, is `folder`."""
    names = ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "NUMBA_CACHE_DIR", "TMPDIR")
    clean = {name: value for name, value in os.environ.items() if name != "NBBCE_CACHE"}
    # Two threads, so that a large array is walked in parallel on a machine with one core too.
    clean["NUMBA_NUM_THREADS"] = "2"
    return clean | dict.fromkeys(names, str(folder)) | {"PYTHONPATH": str(PACKAGE.parent)} | settings


def run(code: str, folder: Path, **settings: str) -> str:
    """Standard output of `code` in a new process, which must end well and say nothing else."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(folder, **settings),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def check_answers(said: dict[str, Any]) -> None:
    np.testing.assert_allclose(said["losses"], LOSSES, rtol=2e-7)
    if "mean" in said:
        assert said["mean"] == pytest.approx(math.fsum(LOSSES) / 4, rel=1e-7)


def compiled_by(code: str, folder: Path, **settings: str) -> set[str]:
    """Names of the functions that `code` compiles in a new process, whose answers must be right."""
    said: dict[str, Any] = json.loads(run(code, folder, **settings))
    check_answers(said)
    return set(said["compiled"])


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below `folder`: when it was last written, and its content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def kernels_below(folder: Path, name: str = "") -> list[Path]:
    """The index (.nbi) and code (.nbc) files of the kernels whose name contains `name`."""
    return sorted(path for path in folder.rglob("*.nb[ci]") if name in path.name)


@pytest.fixture(scope="module")
def full_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that one process has filled; tests copy it."""
    folder = tmp_path_factory.mktemp("full")
    assert compiled_by(TWO_CALLS, folder, NBBCE_CACHE=str(folder / "kernels")) >= {*LOSS_KERNELS, "run_parallel"}
    return folder / "kernels"


@pytest.fixture
def cache(full_cache: Path, tmp_path: Path) -> Path:
    """A filled cache folder of the test's own."""
    return Path(shutil.copytree(full_cache, tmp_path / "kernels"))


# ----------------------------------------------------------------------------------------------------------- start
def test_import_brings_in_nothing_but_numpy(tmp_path):
    code = """
import sys, numpy
before = set(sys.modules)
import nbbce
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    assert set(run(code, tmp_path).split()) <= {"nbbce", "numpy"}


def test_numba_comes_in_with_the_first_call_and_array_libraries_never(tmp_path, cache):
    code = """
import sys, numpy as np, nbbce
assert "numba" not in sys.modules
nbbce.binary_cross_entropy(np.array([0.5], np.float32), np.array([1], np.float32), reduction="none")
assert "numba" in sys.modules
libraries = ["torch", "jax", "cupy", "dask", "pandas", "ml_dtypes", "numba_cuda", "numba.cuda.cudadrv.driver"]
print(*(name for name in libraries if name in sys.modules))
"""
    assert run(code, tmp_path, NBBCE_CACHE=str(cache)).split() == []


def test_wrong_argument_is_told_without_numba(tmp_path):
    code = """
import sys, numpy as np, nbbce
try:
    nbbce.binary_cross_entropy([0.5], np.array([1.0]))
except TypeError:
    print("numba" in sys.modules)
"""
    assert run(code, tmp_path).split() == ["False"]


# ----------------------------------------------------------------------------------------------------------- cache
def test_first_process_fills_the_folder_and_a_second_compiles_nothing(tmp_path, cache):
    assert len(list(cache.iterdir())) == 1, "one set of sources, one folder"
    for kernel in (*LOSS_KERNELS, "run_parallel"):
        assert [path.suffix for path in kernels_below(cache, kernel)] == [".nbc", ".nbi"]
    before = files_below(cache)
    assert compiled_by(TWO_CALLS, tmp_path, NBBCE_CACHE=str(cache)) == set()
    assert files_below(cache) == before


def test_another_dtype_adds_its_kernels_and_leaves_the_others(tmp_path, cache):
    before = {path: path.read_bytes() for path in kernels_below(cache)}
    compiled = compiled_by(CALL.replace("np.float32", "np.float64"), tmp_path, NBBCE_CACHE=str(cache))
    assert "each_loss_float64" in compiled
    assert not compiled & LOSS_KERNELS
    assert {path: path.read_bytes() for path in before} == before
    assert kernels_below(cache, "each_loss_float64")


def test_default_folder_is_the_users_cache_folder(tmp_path):
    code = """
import platformdirs
from nbbce import _compile
print(platformdirs.user_cache_dir("nbbce", appauthor=False))
print(_compile.FOLDER)
"""
    users, folder = map(Path, run(code, tmp_path).split())
    assert folder.parent == users
    assert folder.is_dir()
    assert tmp_path in folder.parents


def test_cache_setting_of_0_writes_nothing_at_all(tmp_path):
    assert compiled_by(CALL, tmp_path, NBBCE_CACHE="0") >= LOSS_KERNELS
    assert files_below(tmp_path) == {}
    assert kernels_below(PACKAGE) == []


def test_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = files_below(tmp_path)
    assert compiled_by(CALL, tmp_path, NBBCE_CACHE=str(tmp_path / "file" / "kernels")) >= LOSS_KERNELS
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("place", ["below-a-file", "a-file", "a-file-where-the-digest-goes", "too-long-a-name"])
def test_impossible_folder_means_no_cache(monkeypatch, tmp_path, place):
    file, digest = tmp_path / "file", tmp_path / _compile._digest()
    file.write_text("in the way")
    digest.write_text("in the way")
    folder = {
        "below-a-file": file / "kernels",
        "a-file": file,
        "a-file-where-the-digest-goes": tmp_path,
        "too-long-a-name": tmp_path / ("n" * 300),
    }[place]
    monkeypatch.setenv("NBBCE_CACHE", str(folder))
    assert _compile.cache_folder() is None


def test_relative_folder_stays_where_it_was_when_the_process_goes_elsewhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = START + LOSS + f"import os\nos.chdir({str(elsewhere)!r})\nx = x.astype(np.float64)\n"
    code += RECORDED + LOSS + "say(losses=losses)\n"
    assert "each_loss_float64" in compiled_by(code, tmp_path, NBBCE_CACHE="kernels")
    assert kernels_below(tmp_path / "kernels", "each_loss_float64")
    assert files_below(elsewhere) == {}


def test_user_without_a_home_has_no_cache_and_no_error(monkeypatch):
    pwd = pytest.importorskip("pwd")

    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("NBBCE_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert _compile.cache_folder() is None


def test_folder_that_is_removed_while_a_process_runs_is_no_error(tmp_path, cache):
    code = START + LOSS + "import os, shutil\nshutil.rmtree(os.environ['NBBCE_CACHE'])\nx = x.astype(np.float64)\n"
    code += RECORDED + LOSS + "say(losses=losses)\n"
    assert "each_loss_float64" in compiled_by(code, tmp_path, NBBCE_CACHE=str(cache))


def test_file_that_cannot_be_written_is_no_error(tmp_path, cache):
    # A folder where the file goes stands for a full or read-only disk, which root would not be refused.
    for path in kernels_below(cache, "each_loss_float32"):
        path.unlink()
        path.mkdir()
    assert "each_loss_float32" in compiled_by(CALL, tmp_path, NBBCE_CACHE=str(cache))


def test_lock_that_cannot_be_had_is_no_error(tmp_path, cache):
    for path in kernels_below(cache, "each_loss_float32"):
        path.unlink()
    (lock,) = cache.rglob("each_loss_float32.lock")
    lock.unlink()
    lock.mkdir()
    assert "each_loss_float32" in compiled_by(CALL, tmp_path, NBBCE_CACHE=str(cache))


@pytest.mark.parametrize(
    "damage",
    [lambda old: b"", lambda old: old[:-1], lambda old: b"\x80garbage" * 100],
    ids=["emptied", "cut-short", "garbage"],
)
@pytest.mark.parametrize("suffix", [".nbc", ".nbi"])
def test_broken_file_costs_a_compilation_and_is_mended(tmp_path, cache, suffix, damage):
    # Of a function that compiled code calls, and of one that Python calls.
    for kernel in LOSS_KERNELS:
        (broken,) = (path for path in kernels_below(cache, kernel) if path.suffix == suffix)
        broken.write_bytes(damage(broken.read_bytes()))
    assert compiled_by(CALL, tmp_path, NBBCE_CACHE=str(cache)) >= LOSS_KERNELS
    assert compiled_by(CALL, tmp_path, NBBCE_CACHE=str(cache)) == set()


# ---------------------------------------------------------------------------------------------------------- digest
def test_changed_source_gets_a_folder_of_its_own_and_the_new_answer(tmp_path, cache):
    (old_folder,) = cache.iterdir()
    before = files_below(old_folder)
    shutil.copytree(PACKAGE, tmp_path / "changed" / "nbbce", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "changed" / "nbbce" / "_generated_cpu.py"
    # The lowest coefficient of near_end: -log(1-t) = t + t^2 (C0 + C1 t + ...).  C0 is 1/2 and becomes 1/4.
    text, count = re.subn(r"(?m)^NEAR_32_0 = F32\(0\.5\d*\)$", "NEAR_32_0 = F32(0.25)", source.read_text())
    assert count == 1
    source.write_text(text)
    said = json.loads(run(CALL, tmp_path, NBBCE_CACHE=str(cache), PYTHONPATH=str(tmp_path / "changed")))
    # So -log(1-t) loses t^2/4: at t = x = 1/4 with y = 0, and at t = 1-x = 1/4 with y = 1.
    lost = 0.25 / 16
    assert said["losses"] == pytest.approx([LOSSES[0], LOSSES[1] - lost, LOSSES[2] - lost, LOSSES[3]], abs=1e-6)
    assert set(said["compiled"]) >= LOSS_KERNELS
    (new_folder,) = set(cache.iterdir()) - {old_folder}
    assert kernels_below(new_folder)
    assert files_below(old_folder) == before


@pytest.mark.parametrize(
    "name", ["_axes.py", "_blocks_cpu.py", "_columns_cpu.py", "_compile.py", "_generated_cpu.py", "_primitives_cpu.py"]
)
def test_digest_changes_with_every_source_of_a_kernel(monkeypatch, tmp_path, name):
    shutil.copytree(PACKAGE, tmp_path / "nbbce", ignore=shutil.ignore_patterns("__pycache__"))
    plain = _compile._digest()
    monkeypatch.setattr(_compile, "__file__", str(tmp_path / "nbbce" / "_compile.py"))
    assert _compile._digest() == plain, "the digest is of what the files hold, not of where they are"
    with (tmp_path / "nbbce" / name).open("a") as file:
        file.write("# changed\n")
    assert _compile._digest() != plain


def test_every_module_that_jits_is_in_the_digest():
    jits = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"\b(njit|intrinsic|entry\()", path.read_text())}
    jits -= {"_bench.py"}  # its floors are compiled anew in each process
    jits -= {"_primitives_cuda.py"}  # that of devices, which has a digest of its own
    assert jits
    assert jits <= set(_compile.SOURCES)


@pytest.mark.parametrize("package", [numba, llvmlite, np], ids=lambda package: package.__name__)
def test_digest_changes_with_the_version_of_what_compiles(monkeypatch, package):
    plain = _compile._digest()
    monkeypatch.setattr(package, "__version__", "99.0")
    assert _compile._digest() != plain


@pytest.mark.parametrize("setting", ["BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "OPT"])
def test_digest_changes_with_the_settings_that_change_code(monkeypatch, setting):
    plain = _compile._digest()
    monkeypatch.setattr(numba.config, setting, "another")
    assert _compile._digest() != plain


# ----------------------------------------------------------------------------------------------------- many at once
def test_processes_that_start_at_once_on_an_empty_cache_all_answer_and_one_compiles(tmp_path):
    cache, go = tmp_path / "kernels", tmp_path / "go"
    # Each waits until all have Numba in memory, so that they come to the cache together.
    wait = f"import os, time\nopen(os.path.join({str(tmp_path)!r}, f'ready-{{os.getpid()}}'), 'w').close()\n"
    wait += f"while not os.path.exists({str(go)!r}):\n    time.sleep(0.001)\n"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_CALLS.replace(RECORDED, wait + RECORDED)],
            env=environment(tmp_path, NBBCE_CACHE=str(cache)),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    try:
        while len(list(tmp_path.glob("ready-*"))) < PROCESSES:
            assert all(process.poll() is None for process in processes)
        assert not cache.exists()
        go.touch()
        said = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = [(process.returncode, error) for process, (_, error) in zip(processes, said, strict=True)]
    assert ends == [(0, "")] * PROCESSES
    answers = [json.loads(output) for output, _ in said]
    for answer in answers:
        check_answers(answer)
        assert (answer["losses"], answer["mean"]) == (answers[0]["losses"], answers[0]["mean"])
    for kernel in (*LOSS_KERNELS, "run_parallel"):
        assert sum(kernel in answer["compiled"] for answer in answers) == 1, kernel
    # What they leave behind is whole and free: no lock is held, and the next process finds every kernel.
    locks = list(cache.rglob("*.lock"))
    assert len(locks) >= 3
    for path in locks:
        with filelock.FileLock(path, timeout=0):
            pass
    assert compiled_by(TWO_CALLS, tmp_path, NBBCE_CACHE=str(cache)) == set()


@pytest.mark.parametrize(
    "labels, wanted, unwanted",
    [
        ("np.tile([0.0, 1.0], 1024)", {"hard_sum_float64_float"}, {"sum_float64", "mark_bad_float64", "load"}),
        ("np.tile([0.3, 1.0], 1024)", {"sum_float64"}, {"hard_sum_float64_float", "mark_bad_float64", "load"}),
        ("np.tile([0.0, 0.5], 1024)", {"sum_float64"}, {"hard_sum_float64_float", "mark_bad_float64", "load"}),
        # Too few for products.
        ("np.tile([0.0, 1.0], 100)", {"sum_float64"}, {"hard_sum_float64_float", "mark_bad_float64", "add_wave"}),
    ],
)
def test_sums_that_the_labels_do_not_need_are_not_compiled(labels, wanted, unwanted, tmp_path):
    code = START + f"y = {labels}\nx = np.full(y.size, 0.5)\n"
    code += RECORDED + "nbbce.binary_cross_entropy(x, y)\nsay()\n"
    compiled = set(json.loads(run(code, tmp_path, NBBCE_CACHE=str(tmp_path / "kernels")))["compiled"])
    assert wanted <= compiled
    assert not unwanted & compiled


def test_what_other_values_need_is_compiled_when_they_come(tmp_path):
    # At x = 1/2 each loss is log 2, whatever the label; 8192 elements are two blocks, and 3 is out of the domain.
    code = (
        START
        + """
x, hard, soft = np.full(8192, 0.5), np.tile([0.0, 1.0], 4096), np.full(8192, 0.25)
half = np.where(np.arange(8192) < 4096, hard, soft)
bad = x.copy()
bad[5000] = 3.0
"""
        + RECORDED
        + """means = [float(nbbce.binary_cross_entropy(x, y)) for y in (hard, soft, hard, half)]
means += [float(nbbce.binary_cross_entropy(bad, y, validate=False)) for y in (hard, soft)]
try:
    nbbce.binary_cross_entropy(bad, hard)
except ValueError as error:
    message = str(error)
say(means=means, message=message)
"""
    )
    answers = json.loads(run(code, tmp_path, NBBCE_CACHE=str(tmp_path / "kernels")))
    assert answers["means"][:4] == pytest.approx([math.log(2)] * 4, rel=1e-15)
    assert all(math.isnan(mean) for mean in answers["means"][4:])
    assert "5000" in answers["message"]


@pytest.mark.parametrize("labels", ["r.random(9000)", "r.choice([0.25, 0.5], 9000)", "r.integers(0, 2, 9000) * 1.0"])
@pytest.mark.parametrize("function", ["", "_with_logits", "_with_logits_value_and_grad"])
def test_bits_do_not_depend_on_the_calls_before(function, labels, tmp_path):
    # The sum of float32 in float64 shows by which loop it was made.
    code = (
        START
        + f"""
r = np.random.default_rng(0)
x, labels = r.random(9000, np.float32), np.float32({labels})

def value_of(y):
    result = nbbce.binary_cross_entropy{function}(x, y, reduction="sum", dtype=np.float64)
    return float(result[0] if type(result) is tuple else result).hex()
"""
        + RECORDED
        + """values = [value_of(y) for y in (labels, np.ones_like(x), np.full_like(x, 0.3), labels)]
say(values=values)
"""
    )
    first, *_, last = json.loads(run(code, tmp_path, NBBCE_CACHE=str(tmp_path / "kernels")))["values"]
    assert first == last


def test_no_lock_is_held_once_a_call_has_returned(tmp_path, cache):
    for path in kernels_below(cache, "each_loss_float32"):
        path.unlink()
    assert "each_loss_float32" in compiled_by(CALL + FREE_LOCKS, tmp_path, NBBCE_CACHE=str(cache))


def test_no_lock_is_held_after_a_compilation_that_was_broken_off(tmp_path, cache):
    for path in [*kernels_below(cache, "each_loss_float32"), *kernels_below(cache, "run_serial")]:
        path.unlink()
    broken_off = """
class Interrupt(event.Listener):
    def on_start(self, happening):
        if happening.data["qualname"] == name:
            raise KeyboardInterrupt

    def on_end(self, happening):
        pass

for name in ("each_loss_float32", "run_serial"):
    with event.install_listener("numba:run_pass", Interrupt()):
        try:
            nbbce.binary_cross_entropy(x, y, reduction="none")
            raise SystemExit("not broken off")
        except KeyboardInterrupt:
            pass
"""
    code = CALL.replace(RECORDED, broken_off + FREE_LOCKS + RECORDED)
    # The loss was compiled on the way to the second interruption.
    assert "run_serial" in compiled_by(code, tmp_path, NBBCE_CACHE=str(cache))


def test_lock_of_a_process_that_is_killed_while_it_compiles_is_free(tmp_path, cache):
    for path in [*kernels_below(cache, "each_loss_float32"), *cache.rglob("each_loss_float32.lock")]:
        path.unlink()
    killer = """
import os, signal

class Killer(event.Listener):
    def on_start(self, happening):
        os.kill(os.getpid(), signal.SIGKILL)

    def on_end(self, happening):
        pass

event.register("numba:run_pass", Killer())
"""
    killed = subprocess.run(
        [sys.executable, "-c", CALL.replace(RECORDED, killer + RECORDED)],
        env=environment(tmp_path, NBBCE_CACHE=str(cache)),
        cwd=tmp_path,
        timeout=TIMEOUT,
    )
    assert killed.returncode != 0
    (lock,) = cache.rglob("each_loss_float32.lock")
    with filelock.FileLock(lock, timeout=0):
        pass
    assert "each_loss_float32" in compiled_by(CALL, tmp_path, NBBCE_CACHE=str(cache))
