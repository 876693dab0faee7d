"""`nbbce bench --target cuda`: what is measured and printed, on a driver that only keeps time."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import nbbce
from nbbce import _bench, _bench_cuda, _devices, cli

SIZE = 3000
H100 = _devices.Device("Some device", (9, 0), 80 * 2**30)
FOUND = _devices.Found("0.30.4", "580.65.06, CUDA 13.1", (H100,), "")


class Driver:
    """A driver whose time passes only while bytes are moved, and when a work says so."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0)

    def __init__(self):
        self.now, self.addresses, self.log = 0.0, iter(range(1, 100)), []

    def CUstream(self, handle):
        return handle

    def cuMemAlloc(self, nbytes):
        return 0, next(self.addresses)

    def cuMemcpyDtoDAsync(self, destination, source, nbytes, stream):
        assert (destination, source, stream) == (2, 1, 0)
        self.now += 2 * nbytes / 1e9  # a byte that is read and written takes 2 ns
        return (0,)

    def cuMemsetD8Async(self, destination, value, nbytes, stream):
        self.log.append("clear")
        self.now += 10.0
        return (0,)

    def cuEventCreate(self, flags):
        return 0, []

    def cuEventRecord(self, event, stream):
        self.log.append("event")
        event.append(self.now)
        self.now += 1e-9
        return (0,)

    def cuEventElapsedTime(self, before, after):
        return 0, (after[0] - before[0]) * 1e3

    def cuEventDestroy(self, event):
        return (0,)

    def cuCtxSynchronize(self):
        return (0,)


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def machine(monkeypatch, driver):
    """A machine with a device, whose arrays are those of NumPy, and without rivals."""
    modules = {
        "cuda.bindings.driver": driver,
        "cuda.core": SimpleNamespace(Device=lambda index: SimpleNamespace(set_current=lambda: None)),
    }
    monkeypatch.setattr(_bench_cuda, "import_module", modules.__getitem__)
    monkeypatch.setattr(_devices, "found", lambda: FOUND)
    monkeypatch.setattr(
        _bench_cuda, "library", lambda: _bench_cuda.Library("numpy", lambda array: array, np.empty_like)
    )
    monkeypatch.setattr(_bench_cuda, "ANSWERS", {})
    monkeypatch.setattr(_bench_cuda, "CLEARED", 1)


@pytest.fixture
def bench(capsys):
    """`nbbce bench --target cuda` in this process: from arguments to exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.main(["bench", "--target", "cuda", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def figures(bench, machine):
    def run(*arguments):
        code, out, err = bench("--size", SIZE, "--repeats", 3, *arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def test_median_of_the_turns_counts_and_memory_is_cleared_before_each(driver):
    device = _bench_cuda.Device(driver, 1)
    # The first call of each is not timed.
    steps = iter([100.0, 100.0, 5.0, 50.0, 1.0, 70.0, 9.0, 60.0])

    def work():
        driver.log.append("work")
        driver.now += next(steps)

    assert device.medians((work, work), 3) == pytest.approx([5.0, 60.0])
    assert driver.log == ["work"] * 2 + ["clear", "event", "work", "event"] * 6


def test_one_call_of_several_in_a_row_counts_by_the_clock(driver, monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(_bench_cuda.time, "perf_counter", lambda: next(clock))
    seconds = _bench_cuda.Device(driver, 1).clocked(lambda: None, 3)
    assert seconds * _bench_cuda.JAX_CALLS == pytest.approx(2.0)


def test_error_of_the_driver_is_named(driver):
    driver.cuMemAlloc = lambda nbytes: (SimpleNamespace(name="CUDA_ERROR_OUT_OF_MEMORY"), 0)
    with pytest.raises(RuntimeError, match=r"^CUDA_ERROR_OUT_OF_MEMORY$"):
        _bench_cuda.Device(driver, 1)


def test_every_function_is_measured_against_a_copy_in_every_dtype(figures):
    found = figures()
    assert found["left_out"] == {}
    for dtype in cli.FLOATS:
        rows = [row for row in found["rows"] if row["dtype"] == dtype]
        assert [row["question"] for row in rows] == [question.name for question in _bench_cuda.ALL_QUESTIONS]
    assert {question.function for question in _bench_cuda.ALL_QUESTIONS} == set(nbbce.__all__)
    for row in found["rows"]:
        assert row["against"] == _bench_cuda.COPY
        # Of the bytes half are read and half are written, each pair in 2 ns.
        assert row["base_s"] == pytest.approx(row["bytes"] / 1e9, rel=1e-3)
        assert row["size"] == SIZE


def test_bytes_are_those_of_inputs_and_results(figures):
    found = {row["question"]: row["bytes"] / (8 * SIZE) for row in figures("--dtype", "float64")["rows"]}
    assert found["mean, labels 0/1"] == found["focal: mean, labels 0/1"] == 2
    assert found["grad, labels 0/1"] == found["logits: value_and_grad, labels 0/1"] == 3
    assert found["logits: grad_and_hess, labels 0/1"] == found["value_and_grad of none, soft labels"] == 4


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("question", _bench_cuda.ALL_QUESTIONS, ids=lambda question: question.name)
def test_results_are_those_of_the_plain_call(question):
    a = _bench_cuda.host_inputs(SIZE, "float32")
    first, second = np.empty_like(a.x), np.empty_like(a.x)
    reduction = "none" if "none" in question.name else "mean"
    x, y = getattr(a, question.x), getattr(a, question.y)
    assert ("logits" in question.name or "focal" in question.name) == (x is a.z)
    wanted = as_tuple(getattr(nbbce, question.function)(x, y, reduction=reduction, **dict(question.options)))
    found = as_tuple(question.work(a, first, second)())
    for mine, plain in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, plain)
    assert sum(isinstance(array, np.ndarray) for array in found) == question.arrays


@pytest.mark.parametrize("dtype", cli.FLOATS)
def test_inputs_repeat_where_they_are_many(dtype, monkeypatch):
    monkeypatch.setattr(_bench_cuda, "PERIOD", 10)
    for array in _bench_cuda.host_inputs(25, dtype):
        assert (array.dtype, array.shape) == (_bench.inputs(1, dtype).x.dtype, (25,))
        np.testing.assert_array_equal(array[10:], array[:-10])


def test_rivals_are_measured_and_those_that_fail_are_left_out(figures, monkeypatch, driver):
    def slow():
        driver.now += 7.0

    def answering(a):
        assert a.x.dtype == np.float32
        yield "mean, labels 0/1", "torch eager", slow
        yield "mean, soft labels", "torch eager", lambda: 1 / 0

    def missing(a):
        raise ModuleNotFoundError("no such thing")

    def elsewhere(a):
        raise _bench_cuda.Problem("it has no device")

    answers = {"torch": answering, "cupy": missing, "jax": elsewhere}
    monkeypatch.setattr(_bench_cuda, "ANSWERS", answers)
    found = figures("--dtype", "float32")
    (row,) = (row for row in found["rows"] if row["group"] == _bench.RIVALS)
    assert (row["question"], row["against"]) == ("mean, labels 0/1", "torch eager")
    assert row["base_s"] == pytest.approx(7.0)
    assert found["left_out"] == {
        "float32, mean, soft labels / torch eager": "division by zero",
        "cupy": "not installed",
        "jax": "it has no device",
    }


def test_figures_name_device_driver_versions_and_day(figures):
    facts = figures("--dtype", "float16")["machine"]
    assert (facts["device"], facts["compute_capability"]) == ("Some device", "9.0")
    assert facts["driver"] == "580.65.06, CUDA 13.1"
    assert facts["nbbce"] == nbbce.__version__
    assert facts["numpy"] == np.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"])


def test_table_shows_speed_beside_that_of_the_copy():
    def row(group, question, against, base_s, nbbce_s):
        found = {"group": group, "dtype": "float32", "size": SIZE, "question": question, "against": against}
        return found | {"base_s": base_s, "nbbce_s": nbbce_s, "bytes": 3 * 10**9}

    rows = [
        row(_bench.MEMORY, "mean, soft labels", _bench_cuda.COPY, 1e-3, 2e-3),
        row(_bench.MEMORY, "mean, labels 0/1", _bench_cuda.COPY, 1e-3, 1.25e-3),
        row(_bench.RIVALS, "mean, labels 0/1", "jax.jit", 6e-3, 1.25e-3),
    ]
    facts = {"device": "Some device", "driver": "CUDA 13.1", "date": "2026-11-23", "arrays": "torch", "nbbce": "1"}
    text = _bench_cuda.table({"machine": facts, "repeats": 20, "rows": rows, "left_out": {"cupy": "not installed"}})
    assert [re.sub(" {2,}", " | ", line) for line in text.splitlines()] == [
        "3000 elements, Some device, driver CUDA 13.1, 2026-11-23; medians of 20 turns",
        "arrays of torch; nbbce 1",
        "",
        "GB/s | copy of the same bytes | nbbce | ratio | time",
        "float32, mean, labels 0/1 | 3000 | 2400 | 0.80 | 1.25 ms",
        "float32, mean, soft labels | 3000 | 1500 | 0.50 | 2.00 ms",
        "",
        "against whom | rival | nbbce | ratio | rival's time",
        "float32, mean, labels 0/1 | jax.jit | 1.25 ms | 4.80 | 6.00 ms",
        "",
        "JAX is timed by the host's clock, 10 calls in a row",
        "",
        "left out: cupy: not installed",
    ]


def test_bench_prints_its_table(bench, machine):
    code, out, err = bench("--size", SIZE, "--repeats", 1, "--dtype", "float32")
    assert (code, err) == (0, "")
    assert out.startswith(f"{SIZE} elements, Some device, driver 580.65.06, CUDA 13.1, ")


def test_arrays_that_a_library_cannot_hold_are_left_out(figures, monkeypatch):
    def upload(array):
        if array.dtype.name == "bfloat16":
            raise TypeError("no such dtype")
        return array

    monkeypatch.setattr(_bench_cuda, "library", lambda: _bench_cuda.Library("some", upload, np.empty_like))
    found = figures("--dtype", "bfloat16", "float16")
    assert {row["dtype"] for row in found["rows"]} == {"float16"}
    assert found["left_out"] == {"bfloat16, arrays of some": "no such dtype"}


# One line for what is wrong.


def test_no_device_is_one_line_and_code_2(bench, monkeypatch):
    monkeypatch.setattr(_devices, "found", lambda: _devices.Found("0.30.4", None, (), "none found: no driver"))
    message = "nbbce bench: --target cuda needs a device; none found: no driver\n"
    assert bench() == (2, "", message)


@pytest.mark.parametrize(("option", "value"), [("--threads", "1"), ("--plot", "a.png")])
def test_option_of_the_processor_is_one_line(bench, option, value):
    message = f"nbbce bench: {option} must go with --target cpu; got --target cuda\n"
    assert bench(option, value) == (2, "", message)


def test_device_that_is_too_small_is_one_line(bench, machine, driver):
    driver.cuMemAlloc = lambda nbytes: (SimpleNamespace(name="CUDA_ERROR_OUT_OF_MEMORY"), 0)
    message = f"{SIZE} elements do not fit into the device's memory: CUDA_ERROR_OUT_OF_MEMORY"
    assert bench("--size", SIZE) == (2, "", f"nbbce bench: {message}\n")


def test_nothing_measured_is_one_line(bench, machine, monkeypatch):
    def upload(array):
        raise RuntimeError("the device is broken")

    monkeypatch.setattr(_bench_cuda, "library", lambda: _bench_cuda.Library("some", upload, np.empty_like))
    message = "nbbce bench: nothing could be measured; the device is broken\n"
    assert bench("--size", SIZE) == (2, "", message)
