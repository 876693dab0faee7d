"""`nbbce bench` and `nbbce warmup`: what is compared, what is printed and drawn, and what a later process compiles."""

import io
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from tqdm import tqdm

import nbbce
from nbbce import _bench, _bench_plots, _devices, cli

ROOT = Path(__file__).parents[1]
SIZE = 2048  # on one thread, so that no other process keeps it waiting


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nbbce_command(capsys):
    """The command line in this process: from arguments to exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def figures(nbbce_command):
    """What `nbbce bench ... --json` prints, as a dictionary."""

    def run(*arguments):
        code, out, err = nbbce_command("bench", "--size", SIZE, "--repeats", 2, *arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def nothing_measured(monkeypatch):
    """Makes measuring an error of the test."""

    def measure(*_):
        raise AssertionError("measured before the arguments were looked at")

    monkeypatch.setattr(_bench, "measure", measure)


def clock(monkeypatch, steps):
    """Lets each reading of the clock be later by the next of `steps`."""
    readings = iter(np.cumsum(steps).tolist())
    monkeypatch.setattr(_bench.time, "perf_counter", lambda: next(readings))


# What is compared.


def test_base_and_work_are_timed_in_turn():
    seen = []
    _bench.best(_bench.Row("q", lambda: seen.append("base"), lambda: seen.append("work"), loops=2), 3)
    assert seen == ["base", "work"] + ["base", "base", "work", "work"] * 3


def test_least_time_of_one_call_counts(monkeypatch):
    # Every second reading ends a timing: of base after 6 and 4 seconds, of work after 10 and 8, of two calls each.
    clock(monkeypatch, [0, 6, 0, 10, 0, 4, 0, 8])
    assert _bench.best(_bench.Row("q", lambda: 0, lambda: 0, loops=2), 2) == (2, 4)


def test_slow_works_have_fewer_turns(monkeypatch):
    seen = []
    row = _bench.Row("q", lambda: 0, lambda: seen.append("work"))
    clock(monkeypatch, [0, 0.3] * 100)  # 0.6 s a turn: 1 s is over after two
    _bench.best(row, 10, 1)
    assert len(seen) == 1 + 2
    _bench.best(row, 10, 4)
    assert len(seen) == 1 + 2 + 1 + 4
    _bench.best(row, 10)
    assert len(seen) == 1 + 2 + 1 + 4 + 1 + 10


@pytest.mark.parametrize("floors", [_bench.SERIAL, _bench.PARALLEL], ids=["serial", "parallel"])
def test_floors_read_and_write_everything(floors, rng):
    dot, add, add_and_subtract = floors
    x, y = rng.random(1001), rng.random(1001)
    first, second = np.empty_like(x), np.empty_like(x)
    assert dot(x, y) == pytest.approx(np.dot(x, y))
    add(x, y, first)
    np.testing.assert_array_equal(first, x + y)
    add_and_subtract(x, y, second, first)
    np.testing.assert_array_equal(second, x + y)
    np.testing.assert_array_equal(first, x - y)


def what_users_write(a):
    """The calls of `nbbce bench`, by question."""
    x, hard, soft, z, z_hard = a
    logits = nbbce.binary_cross_entropy_with_logits
    return {
        "mean, labels 0/1": lambda: nbbce.binary_cross_entropy(x, hard),
        "mean, soft labels": lambda: nbbce.binary_cross_entropy(x, soft),
        "none, soft labels": lambda: nbbce.binary_cross_entropy(x, soft, reduction="none"),
        "value_and_grad, labels 0/1": lambda: nbbce.binary_cross_entropy_value_and_grad(x, hard),
        "value_and_grad, soft labels": lambda: nbbce.binary_cross_entropy_value_and_grad(x, soft),
        "logits: mean, labels 0/1": lambda: logits(z, z_hard),
        "logits: mean, soft labels": lambda: logits(z, soft),
        "logits: none, labels 0/1": lambda: logits(z, z_hard, reduction="none"),
        "logits: value_and_grad, labels 0/1": lambda: nbbce.binary_cross_entropy_with_logits_value_and_grad(z, z_hard),
        "logits: grad_and_hess, labels 0/1": lambda: nbbce.binary_cross_entropy_with_logits_grad_and_hess(z, z_hard),
        "logits: value_and_grad, pos_weight": lambda: nbbce.binary_cross_entropy_with_logits_value_and_grad(
            z, z_hard, pos_weight=3.0
        ),
        "focal: mean, labels 0/1": lambda: nbbce.sigmoid_focal_loss(z, z_hard, reduction="mean"),
        "focal: value_and_grad, labels 0/1": lambda: nbbce.sigmoid_focal_loss_value_and_grad(
            z, z_hard, reduction="mean"
        ),
    }


@pytest.mark.parametrize("dtype", cli.FLOATS)
def test_work_against_memory_is_the_work_that_users_do(dtype):
    a = _bench.inputs(SIZE, dtype)
    plain = what_users_write(a)
    rows = _bench.memory_rows(a)
    assert [row.question for row in rows] == list(plain)
    for row in rows:
        row.base()
        for found, wanted in zip(as_tuple(row.work()), as_tuple(plain[row.question]()), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_results_go_into_arrays_that_are_there():
    for row in [*_bench.memory_rows(a := _bench.inputs(SIZE, "float32")), *_bench.rival_rows(a, False, {})]:
        first, second = as_tuple(row.work()), as_tuple(row.work())
        assert all(x is y for x, y in zip(first, second, strict=True) if isinstance(x, np.ndarray)), row.question


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
def test_memory_that_is_freed_is_kept_while_rivals_are_measured():
    code = """
import resource, numpy as np
from nbbce import _bench
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.full(40_000_000, 1, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with _bench.kept_memory():
    np.full(40_000_000, 1, np.uint8)
    kept = faults()
np.full(40_000_000, 1, np.uint8)
print(kept, faults())
"""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("its C library does not keep memory")
    kept, fresh_pages = map(int, fresh("-c", code).stdout.split())
    assert kept < 100
    assert fresh_pages >= 10 * kept


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def test_bytes_are_those_of_inputs_and_results():
    found = {row.question: row.nbytes / (4 * SIZE) for row in _bench.memory_rows(_bench.inputs(SIZE, "float32"))}
    assert found["mean, labels 0/1"] == found["logits: mean, soft labels"] == 2
    assert found["none, soft labels"] == found["logits: value_and_grad, labels 0/1"] == 3
    assert found["logits: grad_and_hess, labels 0/1"] == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a rival's own code
@pytest.mark.parametrize("name", ["numpy", *_bench.ANSWERS])
def test_rivals_answer_the_same_question(name):
    a = _bench.inputs(SIZE, "float64")
    answers = _bench.numpy_answers if name == "numpy" else _bench.ANSWERS[name]
    if name != "numpy":
        pytest.importorskip(name)
    mine, compared = what_users_write(a), 0
    for question, against, work in answers(a):
        assert against in _bench.RIVAL_NAMES
        # That torch.compile gives what torch gives is not looked at: it would take minutes.
        theirs = None if against == "torch.compile" else work()
        if theirs is not None:  # a backward pass returns nothing
            for found, wanted in zip(as_tuple(theirs), as_tuple(mine[question]()), strict=True):
                found = np.asarray(found)
                if against == "scikit-learn" and "grad" in question:  # it leaves the mean to its models
                    found = found.mean() if wanted.ndim == 0 else found / SIZE
                elif question == "logits: grad_and_hess, labels 0/1":  # as boosting wants them, of the sum
                    found = found / SIZE
                np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
                compared += 1
    assert compared >= 3


# What is printed.


def test_bench_measures_every_function_against_memory_and_numpy(figures):
    found = figures("--dtype", "float32", "float64")
    for dtype in ("float32", "float64"):
        rows = [row for row in found["rows"] if row["dtype"] == dtype]
        near = [row["question"] for row in rows if row["group"] == _bench.MEMORY]
        assert near == list(what_users_write(_bench.inputs(8, dtype)))
        against = {row["question"] for row in rows if row["group"] == _bench.RIVALS}
        without = {"logits: value_and_grad, labels 0/1", "logits: value_and_grad, pos_weight"}
        assert against == set(near) - without - {"focal: value_and_grad, labels 0/1"}
    assert all(row["base_s"] > 0 and row["nbbce_s"] > 0 and row["size"] == SIZE for row in found["rows"])
    assert {row["against"] for row in found["rows"]} == {_bench.READS, _bench.WRITE, _bench.WRITES, _bench.NUMPY}
    assert found["left_out"] == {}
    assert found["machine"]["nbbce"] == nbbce.__version__


def test_numbers_of_16_bits_are_measured_against_memory_alone(figures):
    found = figures("--dtype", "float16", "bfloat16")["rows"]
    assert {row["dtype"] for row in found} == {"float16", "bfloat16"}
    assert {row["group"] for row in found} == {_bench.MEMORY}


def row(group, question, against, base_s, nbbce_s, size=SIZE, nbytes=8 * SIZE):
    found = {"group": group, "dtype": "float32", "size": size, "question": question, "against": against}
    return found | {"base_s": base_s, "nbbce_s": nbbce_s, "bytes": nbytes}


def test_table_is_sorted_by_question_and_ratio():
    rows = [
        row(_bench.RIVALS, "mean, labels 0/1", "torch eager", 2e-3, 1e-3, nbytes=0),
        row(_bench.RIVALS, "mean, labels 0/1", "NumPy one-liner", 3e-3, 1e-3, nbytes=0),
        row(_bench.MEMORY, "mean, soft labels", _bench.READS, 1e-6, 4e-6),
        row(_bench.MEMORY, "mean, labels 0/1", _bench.READS, 1e-6, 2e-6),
        row(_bench.MEMORY, "mean, labels 0/1", _bench.READS, 1e-6, 2e-6, size=1024),
    ]
    facts = {"threads": 2, "processor": "some"}
    text = _bench.table({"machine": facts, "repeats": 20, "rows": rows, "left_out": {"jax": "not installed"}})
    assert [re.sub(" {2,}", " | ", line) for line in text.splitlines()] == [
        "2048 elements, 2 threads, some; minima of 20 turns, against slow others of 5 or more",
        "",
        "how near to memory speed | reference | nbbce | ratio | GB/s",
        "float32, mean, labels 0/1 | dot product of the same bytes | 1.00 us | 2.00 us | 0.50 | 8.2",
        "float32, mean, soft labels | dot product of the same bytes | 1.00 us | 4.00 us | 0.25 | 4.1",
        "",
        "against whom | rival | nbbce | ratio",
        "float32, mean, labels 0/1 | NumPy one-liner | 3.00 ms | 1.00 ms | 3.00",
        "float32, mean, labels 0/1 | torch eager | 2.00 ms | 1.00 ms | 2.00",
        "",
        "left out: jax: not installed",
    ]


def test_bench_prints_its_table(nbbce_command):
    code, out, err = nbbce_command("bench", "--size", SIZE, "--repeats", 1)
    assert (code, err) == (0, "")
    assert out.startswith(f"{SIZE} elements, {numba.get_num_threads()} threads, ")
    assert re.search(r"^float32, none, soft labels +NumPy one-liner +[0-9.]+ [mu]s +[0-9.]+ us +[0-9.]+$", out, re.M)


def test_rival_that_is_missing_or_fails_is_left_out(figures, monkeypatch):
    def answering(a):
        yield "mean, labels 0/1", "torch eager", lambda: None
        yield "mean, soft labels", "torch eager", lambda: 1 / 0

    def missing(a):
        raise ModuleNotFoundError("no such thing")
        yield

    monkeypatch.setattr(_bench, "ANSWERS", {"torch": answering, "jax": missing})
    found = figures("--rivals")
    assert [r["question"] for r in found["rows"] if r["against"] == "torch eager"] == ["mean, labels 0/1"]
    assert found["left_out"] == {
        "jax": "not installed",
        "torch eager: float32, mean, soft labels": "division by zero",
    }


def test_progress_bar_comes_to_its_end():
    with tqdm(total=0, disable=False, file=io.StringIO()) as bar:
        found = _bench.measure(5000, ["float32"], 1, False, True, bar)
        assert bar.n == bar.total == len(found["rows"])


# The plot.


@pytest.mark.parametrize(
    ("largest", "wanted"), [(1, [1]), (2048, [1024, 2048]), (8191, [1024, 8191]), (10_000, [1024, 4096, 10_000])]
)
def test_sizes_grow_fourfold_to_the_largest(largest, wanted):
    assert _bench.sizes(largest) == wanted


def test_plot_is_a_png_of_all_sizes(figures):
    pytest.importorskip("matplotlib")
    found = figures("--plot", "a.png")
    assert {r["size"] for r in found["rows"]} == {1024, SIZE}
    assert Path("a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_shows_the_figures(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    rows = [
        row(_bench.MEMORY, question, against, 1e-3, 2e-3, size, 10**6)
        for against, questions in _bench_plots.PANELS.values()
        for question in questions
        for size in (1024, 4096)
    ]
    rows.append(row(_bench.RIVALS, "mean, labels 0/1", "jax.jit", 5e-3, 2e-3, 4096, 0))
    facts = {"nbbce": "0", "threads": 2, "processor": "some"}
    _bench_plots.plot({"machine": facts, "rows": rows}, "a.png")
    read, write, bars = pyplot.gcf().axes
    for axes in (read, write):
        roof, *lines = axes.get_lines()
        assert (list(roof.get_xdata()), list(roof.get_ydata())) == ([1024, 4096], pytest.approx([1, 1]))
        assert len(lines) == 3
        for line in lines:
            assert (list(line.get_xdata()), list(line.get_ydata())) == ([1024, 4096], pytest.approx([0.5, 0.5]))
    assert bars.patches[0].get_height() + 1 == pytest.approx(2.5)
    assert [text.get_text() for text in bars.texts] == ["2.5"]
    assert [text.get_text() for text in bars.get_xticklabels()] == ["probabilities:\nmean"]
    pyplot.close("all")


# One line for what is wrong.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "a.gif"], "--plot must end in .png; got 'a.gif'"),
        (["--plot", "no/a.png"], "cannot write no/a.png: No such file or directory"),
    ],
)
def test_plot_that_cannot_be_is_one_line_at_once(nbbce_command, nothing_measured, arguments, message):
    pytest.importorskip("matplotlib")
    assert nbbce_command("bench", *arguments) == (2, "", f"nbbce bench: {message}\n")


def test_missing_matplotlib_is_one_line_at_once(nbbce_command, nothing_measured, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = "nbbce bench: --plot needs matplotlib; python -m pip install 'nbbce[bench]'\n"
    assert nbbce_command("bench", "--plot", "a.png") == (2, "", message)


def test_missing_ml_dtypes_is_one_line(nbbce_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    message = "nbbce bench: --dtype bfloat16 needs ml_dtypes; python -m pip install 'nbbce[bench]'\n"
    assert nbbce_command("bench", "--dtype", "bfloat16") == (2, "", message)


@pytest.mark.parametrize("option", ["--size", "--repeats", "--threads"])
@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_number_that_is_none_is_one_line(nbbce_command, nothing_measured, option, text):
    line = f"nbbce bench: argument {option}: must be a whole number, 1 or above; got {text!r}; see nbbce bench --help\n"
    assert nbbce_command("bench", f"{option}={text}") == (2, "", line)


def test_more_threads_than_there_are_is_one_line(nbbce_command, nothing_measured):
    most = numba.config.NUMBA_NUM_THREADS
    message = f"nbbce bench: --threads must be at most {most}, what Numba has here; got {most + 1}\n"
    assert nbbce_command("bench", "--threads", most + 1) == (2, "", message)


def test_threads_are_set_and_set_back(figures):
    before = numba.get_num_threads()
    assert figures("--threads", 1)["machine"]["threads"] == 1
    assert numba.get_num_threads() == before


def test_size_beyond_memory_is_one_line(nbbce_command):
    assert nbbce_command("bench", "--size", 10**17) == (
        2,
        "",
        f"nbbce bench: {10**17} elements do not fit into memory\n",
    )


@pytest.mark.parametrize("command", ["bench", "warmup"])
def test_help_is_printed(nbbce_command, command):
    code, out, err = nbbce_command(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: nbbce {command}")


# `nbbce warmup`.


def fresh(*command, **variables):
    """A Python process of its own, with a cache in this folder; returns what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NBBCE_CACHE": str(Path("kernels").resolve())} | variables
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


def warm(*arguments, **variables):
    """`nbbce warmup ... --json` in a process of its own."""
    found = fresh("-m", "nbbce", "warmup", *arguments, "--json", **variables)
    assert (found.returncode, found.stderr) == (0, "")
    return json.loads(found.stdout)


def cache_after(call):
    """The files of the cache after a call in a process of its own; a compilation leaves a kernel and a lock."""
    start = "import numpy as np, nbbce\nx = np.full((50_000, 4), 0.5, np.float32)\ny = x.astype(bool)\n"
    found = fresh("-c", start + call, NUMBA_NUM_THREADS="2")
    assert found.returncode == 0, found.stderr
    return files()


def files():
    return {path.name for path in Path("kernels").rglob("*") if path.is_file()}


def test_process_after_warmup_compiles_nothing_of_what_was_named():
    options = ["--function", "binary_cross_entropy", "--dtype", "float32", "--reduction", "mean", "--labels", "bool"]
    # One thread and few elements here, two threads and many below.
    first = warm(*options, NUMBA_NUM_THREADS="1")
    assert first["compiled"] == sum(name.endswith(".nbc") for name in files()) > 0
    kept = files()
    assert warm(*options)["compiled"] == 0
    assert cache_after("nbbce.binary_cross_entropy(x, y); nbbce.binary_cross_entropy(x[:1], y[:1])") == kept
    assert cache_after("nbbce.binary_cross_entropy(x.astype(np.float64), y)") > kept, "this one was not named"


def test_warmup_compiles_for_each_choice_of_arguments():
    warm(
        *("--function", "binary_cross_entropy_with_logits_value_and_grad", "--dtype", "float32"),
        *("--labels", "same", "--reduction", "sum", "--with", "weight", "axis", "out"),
        NUMBA_NUM_THREADS="2",
    )
    kept = files()
    call = "f = nbbce.binary_cross_entropy_with_logits_value_and_grad; o = dict(reduction='sum')\n"
    call += "f(x, x, **o); f(x, x, x, **o); f(x, x, x, axis=1, **o); f(x, x, axis=0, **o)\n"
    call += "f(x, x, x, out=(None, np.empty_like(x)), **o)\n"
    assert cache_after(call) == kept
    assert cache_after(call + "f(x, x, label_smoothing=0.5, **o)") > kept, "this one was not named"


def test_warmup_says_what_it_did(nbbce_command):
    options = ["--function", "binary_cross_entropy", "--dtype", "float32", "--labels", "same", "--reduction", "mean"]
    code, out, err = nbbce_command("warmup", *options)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"calls +1\ncompiled +\d+ kernels in [0-9.]+ [mu]?s\nkept in +[^\n]+\n", out)


def test_default_of_warmup_is_the_common_calls():
    from nbbce import _warmup

    assert set(_warmup.COMMON) < set(nbbce.__all__)
    found = _warmup.calls(["binary_cross_entropy"], ["float32"], ["same", "bool"], ["mean", "none"], [])
    assert [(target, options["reduction"]) for _, _, target, options in found] == [
        ("float32", "mean"),
        ("float32", "none"),
        ("bool", "mean"),
        ("bool", "none"),
    ]


@pytest.mark.parametrize("name", sorted(nbbce.__all__))
def test_every_function_can_be_warmed_up_with_all_that_it_takes(name):
    from nbbce import _warmup

    todo = _warmup.calls([name], ["float32"], ["same"], ["mean", "none"], list(_warmup.ARGUMENTS))
    assert len(todo) >= 16
    for call in todo:
        _warmup.make(*call)


def test_warmup_without_a_cache_is_one_line():
    found = fresh("-m", "nbbce", "warmup", NBBCE_CACHE="0")
    message = "nbbce warmup: there is no cache folder to keep kernels in; see NBBCE_CACHE\n"
    assert (found.returncode, found.stdout, found.stderr) == (2, "", message)


# `nbbce warmup --target cuda`.


def cubins():
    return {path.name for path in Path("kernels").rglob("*.cubin")}


def test_kernels_of_devices_are_compiled_and_kept_without_a_device():
    pytest.importorskip("numba_cuda")
    options = ["--function", "binary_cross_entropy", "--dtype", "float16", "--labels", "bool", "--reduction", "none"]
    found = fresh("-m", "nbbce", "warmup", "--target", "cuda", *options, "--arch", "sm_90")
    assert (found.returncode, found.stderr) == (0, "")
    assert re.fullmatch(r"calls +1\nfor +sm_90\ncompiled +1 kernels in [0-9.]+ [mu]?s\nkept in +[^\n]+\n", found.stdout)
    kept = cubins()
    assert len(kept) == 1
    again = warm("--target", "cuda", *options, "--arch", "sm_90")
    assert (again["compiled"], again["there_before"], again["arch"]) == (0, 1, ["sm_90"])
    # What a call on arrays of a device asks for is there.
    code = """
from nbbce import _compile_cuda, _cuda
from nbbce._elements_cuda import Memory, Spec
x, y, loss = (Memory(kind, "vector") for kind in ("float16", "bool", "float16"))
_compile_cuda.machine_code(Spec("each", "", "float32", x, y, loss=loss, gradient_scaled=False), (9, 0))
"""
    assert fresh("-c", code).returncode == 0
    assert cubins() == kept


@pytest.fixture
def asked_for(monkeypatch):
    """The kernels that are asked for while calls are made for devices, of which none is compiled."""
    pytest.importorskip("numba_cuda")
    from nbbce import _compile_cuda

    seen = []

    def machine_code(spec, capability):
        seen.append((spec, capability))
        return b""

    monkeypatch.setattr(_compile_cuda, "machine_code", machine_code)
    return seen


@pytest.mark.parametrize("name", sorted(nbbce.__all__))
def test_every_function_can_be_warmed_up_for_devices_with_all_that_it_takes(name, asked_for):
    from nbbce import _warmup, _warmup_cuda

    taken = [argument for argument in _warmup.ARGUMENTS if argument != "axis"]
    with _warmup_cuda.compiling((9, 0)):
        for function, dtype, labels, options in _warmup.calls([name], ["float32"], ["bool"], ["mean", "none"], taken):
            _warmup.make(function, dtype, labels, {"validate": False} | options)
    specs = [spec for spec, _ in asked_for]
    assert {spec.task for spec in specs} >= {"each", "check", "count"}
    assert len(set(specs)) == len(specs)
    assert all(memory.access == "vector" for spec in specs for memory in spec.operands if memory is not None)
    assert any(spec.weight for spec in specs)
    assert any(spec.where for spec in specs)


def test_each_architecture_has_its_own_kernels(nbbce_command, asked_for):
    options = ["--function", "binary_cross_entropy", "--dtype", "float32", "--labels", "same", "--reduction", "mean"]
    code, out, err = nbbce_command("warmup", "--target", "cuda", *options, "--arch", "sm_75", "sm_120", "sm_75")
    assert (code, err) == (0, "")
    assert "sm_75, sm_120" in out
    assert [(capability, spec.pairs) for spec, capability in asked_for] == [((7, 5), False), ((12, 0), True)]


def test_calls_after_a_warmup_for_devices_compute_again(asked_for):
    from nbbce import _warmup_cuda

    x = np.array([0.5])
    with _warmup_cuda.compiling((9, 0)):
        nbbce.binary_cross_entropy(x, x, validate=False)
    assert len(asked_for) == 1
    assert float(nbbce.binary_cross_entropy(x, x)) == pytest.approx(np.log(2))


def test_default_architectures_are_those_of_the_devices(nbbce_command, asked_for, monkeypatch):
    devices = [_devices.Device("Some device", capability, 1) for capability in ((8, 6), (9, 0), (8, 6))]
    monkeypatch.setattr(_devices, "found", lambda: _devices.Found("0.30.4", "CUDA 13.1", tuple(devices), ""))
    options = ["--function", "sigmoid_focal_loss", "--dtype", "float32", "--labels", "same", "--reduction", "none"]
    assert nbbce_command("warmup", "--target", "cuda", *options)[0] == 0
    assert [capability for _, capability in asked_for] == [(8, 6), (9, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--arch must name an architecture where there is no device; devices none found: no driver"),
        (["--arch", "gfx90a"], "--arch must be architectures such as sm_90; got 'gfx90a'"),
        (["--arch", "sm_90", "--with", "axis"], "--with axis must go with --target cpu; got --target cuda"),
    ],
)
def test_what_cannot_be_compiled_for_is_one_line(nbbce_command, monkeypatch, arguments, message):
    pytest.importorskip("numba_cuda")
    monkeypatch.setattr(_devices, "found", lambda: _devices.Found("0.30.4", None, (), "none found: no driver"))
    assert nbbce_command("warmup", "--target", "cuda", *arguments) == (2, "", f"nbbce warmup: {message}\n")


@pytest.mark.parametrize("arch", ["sm_20", "sm_999"])
def test_architecture_that_no_compiler_knows_is_one_line(nbbce_command, arch):
    pytest.importorskip("numba_cuda")
    code, out, err = nbbce_command("warmup", "--target", "cuda", "--arch", arch)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"nbbce warmup: {arch} cannot be compiled for: [^\n]+\n", err)


def test_architecture_of_the_processor_is_one_line(nbbce_command):
    message = "nbbce warmup: --arch must go with --target cuda; got --target cpu\n"
    assert nbbce_command("warmup", "--arch", "sm_90") == (2, "", message)


def test_warmup_for_devices_without_numba_cuda_is_one_line(nbbce_command, monkeypatch):
    monkeypatch.setattr(_devices, "installed", lambda name: None)
    message = f"--target cuda needs numba-cuda; not looked for: numba-cuda is not installed; {_devices.INSTALL}"
    assert nbbce_command("warmup", "--target", "cuda", "--arch", "sm_90") == (2, "", f"nbbce warmup: {message}\n")


@pytest.mark.parametrize("name", ["float33", "complex64", "U3"])
def test_target_that_is_no_real_dtype_is_one_line(nbbce_command, name):
    message = f"nbbce warmup: --labels must be real dtypes that NumPy has; got {name!r}\n"
    assert nbbce_command("warmup", "--labels", "same", name) == (2, "", message)


def test_function_that_is_none_is_one_line(nbbce_command):
    code, out, err = nbbce_command("warmup", "--function", "cross_entropy")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"nbbce warmup: argument --function: invalid choice: 'cross_entropy'[^\n]*\n", err)
