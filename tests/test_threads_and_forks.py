"""Forked children, threads, and Numba's settings of them: the right answer each time, no crash and no hang.

Everything runs in new processes, since a threading layer is chosen once in a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbbce

PACKAGE = Path(nbbce.__file__).parent
TIMEOUT = 100  # seconds; nothing here takes a tenth of it unless it hangs
LAYERS = ("omp", "workqueue")
HANGS = 20  # seconds after which a child is taken to hang
SIZE = 300_000  # elements: 74 blocks, so enough for several threads

# `check` computes a mean of hard labels, losses of soft ones and a gradient, of parallel size unless told otherwise,
# and says whether they are what NumPy gives in float64.  A child that hangs says where, and ends.
PRELUDE = f"""
import faulthandler, json, os, sys, threading
import numpy as np
import nbbce

SIZE = {SIZE}

def check(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.01, 0.99, size).astype(np.float32)
    hard, soft = rng.integers(0, 2, size, dtype=np.uint8), rng.uniform(0, 1, size).astype(np.float32)
    wide, wide_soft = x.astype(np.float64), soft.astype(np.float64)
    expected = -(hard * np.log(wide) + (1 - hard) * np.log1p(-wide)).mean()
    each = -(wide_soft * np.log(wide) + (1 - wide_soft) * np.log1p(-wide))
    slope = (wide - wide_soft) / (wide * (1 - wide))
    mean = nbbce.binary_cross_entropy(x, hard)
    losses, gradient = nbbce.binary_cross_entropy_value_and_grad(x, soft, reduction="none")
    return bool(
        np.isclose(mean, expected, rtol=2e-7, atol=0)
        and np.allclose(losses, each, rtol=3e-7, atol=0)
        and np.allclose(gradient, slope, rtol=3e-7, atol=1e-12)
    )

def layer():
    import numba
    return numba.threading_layer()

def exit_code_of_fork(function):
    sys.stdout.flush()
    faulthandler.cancel_dump_traceback_later()  # in a child: its own child could not cancel it
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later({HANGS}, exit=True)
        code = 99
        try:
            code = 0 if function() else 98
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that all processes here share, filled before the first of them is forked."""
    folder = tmp_path_factory.mktemp("cache")
    assert said(folder, "workqueue", "say(check() and check(size=100))") is True
    return folder


def said(cache: Path, layer: str, code: str, **settings: str) -> Any:
    """What `code` says in a new process with two threads of `layer`; it must end well and in time."""
    environment = os.environ | {
        "NBBCE_CACHE": str(cache),
        "NUMBA_THREADING_LAYER": layer,
        "NUMBA_NUM_THREADS": "2",
        "JOBLIB_START_METHOD": "fork",
        "PYTHONPATH": str(PACKAGE.parent),
        # From Python 3.12 on, a fork beside threads warns; here that is the subject.
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }
    result = subprocess.run(
        [sys.executable, "-c", f"{PRELUDE}\ndef say(value):\n    print(json.dumps(value))\n\n{code}"],
        env=environment | settings,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


layers = pytest.mark.parametrize("layer", LAYERS)


# ----------------------------------------------------------------------------------------------------------- forks
@layers
def test_child_of_os_fork_answers_after_a_parallel_call_of_its_parent(cache, layer):
    code = """
before = check()
code = exit_code_of_fork(check)
grandchild = exit_code_of_fork(lambda: check() and exit_code_of_fork(check) == 0)
say([before, code, grandchild, check(), layer()])
"""
    assert said(cache, layer, code) == [True, 0, 0, True, layer]


@layers
def test_pool_of_forked_processes_answers_after_a_parallel_call_of_its_parent(cache, layer):
    code = """
import multiprocessing
before = check()
with multiprocessing.get_context("fork").Pool(3) as pool:
    children = pool.map_async(check, range(6)).get(60)
say([before, children, check(), layer()])
"""
    assert said(cache, layer, code) == [True, [True] * 6, True, layer]


@layers
@pytest.mark.parametrize("backend", ["multiprocessing", "loky"])
def test_joblib_workers_answer_after_a_parallel_call_of_their_parent(cache, layer, backend):
    code = f"""
import joblib
before = check()
children = joblib.Parallel(2, backend={backend!r}, timeout=60)(joblib.delayed(check)(seed) for seed in range(4))
say([before, children, check(), layer()])
"""
    assert said(cache, layer, code) == [True, [True] * 4, True, layer]


@layers
def test_child_of_a_parent_that_has_not_called_answers_in_parallel(cache, layer):
    code = """
def parallel_in_child():
    return check() and layer() == os.environ["NUMBA_THREADING_LAYER"]

imported = exit_code_of_fork(parallel_in_child)
small = check(size=100)
called_serially = exit_code_of_fork(parallel_in_child)
say([imported, small, called_serially, check(), layer()])
"""
    assert said(cache, layer, code) == [0, True, 0, True, layer]


@layers
def test_child_answers_after_a_parallel_kernel_of_the_users_own(cache, layer):
    code = """
import numba

@numba.njit(parallel=True)
def double(a):
    for i in numba.prange(a.size):
        a[i] *= 2

double(np.ones(10))
small = check(size=100)
say([small, exit_code_of_fork(check), check(), layer()])
"""
    assert said(cache, layer, code) == [True, 0, True, layer]


@layers
def test_child_that_is_forked_during_a_parallel_call_of_another_thread_answers(cache, layer):
    code = """
x = np.full(1 << 21, 0.5)
stop = False

def keep_calling():
    while not stop:
        nbbce.binary_cross_entropy_grad(x, x)

ready = [check(), check(size=100), nbbce.binary_cross_entropy_grad(x, x).any()]
caller = threading.Thread(target=keep_calling)
caller.start()
codes = [exit_code_of_fork(check) for _ in range(5)]
stop = True
caller.join()
say([codes, check()])
"""
    assert said(cache, layer, code) == [[0] * 5, True]


def test_child_that_is_forked_while_another_thread_compiles_answers(tmp_path):
    # Numba compiles, and loads from its cache, under a lock that a child would find held for ever.  The child needs the
    # kernels that the other thread is about to compile.
    code = """
import numba.core.event as event

class Compiling(event.Listener):
    def on_start(self, happening):
        compiling.set()

    def on_end(self, happening):
        pass

compiling = threading.Event()
check()
event.register("numba:run_pass", Compiling())
halves = np.full(SIZE, 0.5)
caller = threading.Thread(target=lambda: nbbce.binary_cross_entropy_with_logits_value_and_grad(halves, halves))
caller.start()
compiling.wait()

def check_child():
    _, gradient = nbbce.binary_cross_entropy_with_logits_value_and_grad(np.zeros(100), np.ones(100), reduction="sum")
    return check(size=100) and bool(np.all(gradient == -0.5))

code = exit_code_of_fork(check_child)
caller.join()
say([code, check()])
"""
    assert said(tmp_path, "workqueue", code) == [0, True]


# --------------------------------------------------------------------------------------------------------- threads
@layers
def test_eight_threads_that_call_at_once_all_get_the_right_answer(cache, layer):
    code = """
barrier = threading.Barrier(8)
answers = {}

def several(seed):
    barrier.wait()
    answers[seed] = [check(seed + 8 * turn) for turn in range(4)]

threads = [threading.Thread(target=several, args=(seed,)) for seed in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say([[answers[seed] for seed in range(8)], layer()])
"""
    # The first call of each is the first of the process, so this is a race to compile or load as well.
    assert said(cache, layer, code) == [[[True] * 4] * 8, layer]


@layers
def test_eight_threads_get_the_same_bits_as_one(cache, layer):
    code = """
rng = np.random.default_rng(1)
x, y = rng.uniform(0, 1, SIZE).astype(np.float32), rng.uniform(0, 1, SIZE).astype(np.float32)
alone = nbbce.binary_cross_entropy_value_and_grad(x, y)
same = []
barrier = threading.Barrier(8)

def several():
    barrier.wait()
    for _ in range(20):
        value, gradient = nbbce.binary_cross_entropy_value_and_grad(x, y)
        same.append(value.tobytes() == alone[0].tobytes() and gradient.tobytes() == alone[1].tobytes())

threads = [threading.Thread(target=several) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say([len(same), all(same)])
"""
    assert said(cache, layer, code) == [160, True]


def test_eight_threads_compile_at_once_into_an_empty_cache(tmp_path):
    code = """
barrier = threading.Barrier(8)
answers = []

def once(seed):
    barrier.wait()
    x = np.full(SIZE if seed % 2 else 100, 0.5, np.float32)
    answers.append(float(nbbce.binary_cross_entropy(x, x)))

threads = [threading.Thread(target=once, args=(seed,)) for seed in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say(answers)
"""
    # Every element costs log 2.
    assert said(tmp_path, "workqueue", code) == [float(np.float32(np.log(2)))] * 8


# --------------------------------------------------------------------------------------- how many threads, and the GIL
# Counts launches in place of the parallel walk, and the number of chunks that it is asked for: its last argument.  One
# that found a kernel missing is begun anew.
RECORD = """
import numba
from nbbce import _cpu

launches = []
run_parallel = _cpu.run_parallel.compile()

def recorded(*arguments):
    total, found = run_parallel(*arguments)
    if found >= _cpu.NONE_BAD:
        launches.append(arguments[-1])
    return total, found

_cpu.run_parallel.run = recorded
x = np.full(SIZE, 0.25, np.float32)

def mean():
    return nbbce.binary_cross_entropy(x, x).tobytes().hex()
"""


def test_number_of_threads_is_that_of_the_environment_until_it_is_set(cache):
    code = f"""{RECORD}
means = [mean()]
for threads in (3, 1, 2, 4):
    numba.set_num_threads(threads)
    means.append(mean())
say([launches, len(set(means))])
"""
    # One thread launches nothing; the bits are the same for all.
    assert said(cache, "workqueue", code, NUMBA_NUM_THREADS="4") == [[4, 3, 2, 4], 1]


def test_one_thread_by_the_environment_never_launches(cache):
    assert said(cache, "workqueue", f"{RECORD}\nright = check()\nsay([launches, right])", NUMBA_NUM_THREADS="1") == [
        [],
        True,
    ]


def test_number_of_threads_is_each_python_threads_own(cache):
    code = f"""{RECORD}
def in_thread():
    numba.set_num_threads(2)
    mean()

thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
mean()
say(launches)
"""
    assert said(cache, "workqueue", code, NUMBA_NUM_THREADS="4") == [2, 4]


def test_small_array_never_launches(cache):
    code = f"""{RECORD}
nbbce.binary_cross_entropy(x[:1000], x[:1000])
small = list(launches)
mean()
say([small, launches])
"""
    assert said(cache, "workqueue", code) == [[], [2]]


def test_forked_child_of_a_parallel_parent_never_launches(cache):
    code = f"""{RECORD}
mean()
del launches[:]
say(exit_code_of_fork(lambda: check() and not launches))
"""
    assert said(cache, "omp", code) == 0


@pytest.mark.parametrize("walk", ["run_serial", "run_parallel"])
def test_other_python_threads_run_during_a_call(cache, walk):
    # With a switch interval of hours a thread keeps the GIL until it lets go of it.  The main thread wakes the other
    # right before compiled code and looks right after it: what the other has done by then, it did during the call.
    # A call takes some 10 ms, and one of a hundred must do, since the machine may be busy.
    code = f"""
from nbbce import _cpu
import numba

numba.set_num_threads({1 if walk == "run_serial" else 2})
x = np.full(1 << 22, 0.25)
nbbce.binary_cross_entropy_grad(x, x)
compiled = _cpu.{walk}.compile()
woken, done, during = threading.Lock(), 0, []
woken.acquire()

def other():
    global done
    while woken.acquire() and done >= 0:
        done += 1

def watched(*arguments):
    if woken.locked():
        woken.release()
    before = done
    result = compiled(*arguments)
    during.append(done - before)
    return result

_cpu.{walk}.run = watched
thread = threading.Thread(target=other)
thread.start()
sys.setswitchinterval(10_000)
while len(during) < 100 and not any(during):
    nbbce.binary_cross_entropy_grad(x, x)
sys.setswitchinterval(0.005)
done = -10
if woken.locked():
    woken.release()
thread.join()
say(any(during))
"""
    assert said(cache, "workqueue", code) is True
