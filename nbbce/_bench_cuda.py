"""What `nbbce bench --target cuda` measures: how near each function is to the speed of the device's memory, and rivals.

Times are the device's own, from an event before a call to one after it, and the median of the turns counts.  Before
each, memory is cleared: so the caches hold nothing of the inputs, and the device is busy while the host prepares the
call, which then waits for no host.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

import nbbce
from nbbce import _bench, _devices
from nbbce._bench import MEMORY, QUESTIONS, RIVALS, Answers, Inputs, Question, Work, needed, ratio, shown
from nbbce._files import Problem, one_line

COPY = "copy of the same bytes"
CUPY, JAX = "CuPy one-liner", "jax.jit"
SIZE = 50_000_000
PERIOD = 1_000_003  # elements until the inputs repeat: making more takes the host long
CLEARED = 256 * 2**20  # bytes, at least: more than any cache
JAX_CALLS = 10

ALL_QUESTIONS = (
    *QUESTIONS,
    Question("grad, labels 0/1", "binary_cross_entropy_grad", "x", "hard", "derivative"),
    Question(
        "value_and_grad of none, soft labels",
        "binary_cross_entropy_value_and_grad",
        "x",
        "soft",
        "loss and derivative",
    ),
    Question("logits: grad, labels 0/1", "binary_cross_entropy_with_logits_grad", "z", "z_hard", "derivative"),
    Question("focal: none, labels 0/1", "sigmoid_focal_loss", "z", "z_hard", "loss"),
    Question(
        "focal: value_and_grad of none, labels 0/1",
        "sigmoid_focal_loss_value_and_grad",
        "z",
        "z_hard",
        "loss and derivative",
    ),
)
PACKAGES = ("numba-cuda", "cuda-bindings", "cuda-core", "torch", "jax")


class Device:
    """The first device: memory to copy and to clear, and a clock of its own.  All is on its default stream."""

    def __init__(self, driver: Any, largest: int) -> None:
        self.driver, self.stream = driver, driver.CUstream(0)
        self.nbytes = max(largest, CLEARED)
        self.source, self.destination = (self.ask("cuMemAlloc", self.nbytes) for _ in range(2))

    def ask(self, name: str, *arguments: Any) -> Any:
        """What a function of the driver returns."""
        return _devices.result_of(self.driver, getattr(self.driver, name)(*arguments))

    def copy(self, nbytes: int) -> None:
        """Move so many bytes: half of them are read, half are written."""
        self.ask("cuMemcpyDtoDAsync", self.destination, self.source, nbytes // 2, self.stream)

    def wait(self) -> None:
        """Let the host wait until all is done."""
        self.ask("cuCtxSynchronize")

    def medians(self, works: tuple[Work, ...], turns: int) -> list[float]:
        """Median seconds of several works, timed in turn."""
        for work in works:
            work()
        self.wait()
        events = [[[self.ask("cuEventCreate", 0) for _ in range(2)] for _ in works] for _ in range(turns)]
        for turn in events:
            for work, (before, after) in zip(works, turn, strict=True):
                self.ask("cuMemsetD8Async", self.destination, 0, self.nbytes, self.stream)
                self.ask("cuEventRecord", before, self.stream)
                work()
                self.ask("cuEventRecord", after, self.stream)
        self.wait()
        times = [[self.ask("cuEventElapsedTime", *pair) / 1e3 for pair in turn] for turn in events]
        for event in (event for turn in events for pair in turn for event in pair):
            self.ask("cuEventDestroy", event)
        return [statistics.median(of_work) for of_work in zip(*times, strict=True)]

    def clocked(self, work: Work, turns: int) -> float:
        """Median seconds of one of several calls in a row, by the host's clock; `work` waits for the last of them."""
        work()
        times = []
        for _ in range(turns):
            start = time.perf_counter()
            work()
            times.append((time.perf_counter() - start) / JAX_CALLS)
        return statistics.median(times)


def first_device(largest: int) -> tuple[_devices.Found, Device]:
    """What was found, and the first device, with memory to copy up to `largest` bytes."""
    found = _devices.found()
    if not found.devices:
        raise Problem(f"--target cuda needs a device; {found.missing}")
    import_module("cuda.core").Device(0).set_current()
    return found, Device(import_module("cuda.bindings.driver"), largest)


# --- Arrays on the device ------------------------------------------------------------------------------------------


class Library(NamedTuple):
    """An array library, and how a NumPy array becomes one of its own on the device."""

    name: str
    upload: Callable[[np.ndarray[Any, Any]], Any]
    empty_like: Callable[[Any], Any]


def torch_upload(array: np.ndarray[Any, Any]) -> Any:
    """As a tensor; PyTorch does not know the bfloat16 of ml_dtypes."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).to("cuda").view(torch.bfloat16)
    return torch.from_numpy(array).to("cuda")


def library() -> Library:
    """PyTorch or CuPy, whichever is installed and sees the device; otherwise Numba."""
    for name, usable in (("torch", "cuda.is_available"), ("cupy", "is_available")):
        try:
            module: Any = import_module(name)
            found = module
            for part in usable.split("."):
                found = getattr(found, part)
            if found():
                return Library(name, torch_upload if name == "torch" else module.asarray, module.empty_like)
        except Exception:  # broken, or of another CUDA: the next one may do
            continue
    from numba import cuda

    return Library("numba", cuda.to_device, cuda.device_array_like)


def host_inputs(size: int, dtype: str) -> Inputs:
    """All inputs, on the host."""
    few = _bench.inputs(min(size, PERIOD), dtype)
    return Inputs(*(np.resize(array, size) for array in few))


# --- Rivals --------------------------------------------------------------------------------------------------------


def torch_answers(a: Inputs) -> Answers:
    """PyTorch, as it is and compiled."""
    import torch

    if not torch.cuda.is_available():
        raise Problem("it has no device")
    return _bench.torch_answers(a, torch_upload)


def cupy_answers(a: Inputs) -> Answers:
    """What one writes in CuPy, which is what one writes in NumPy."""
    import cupy

    return _bench.numpy_answers(Inputs(*map(cupy.asarray, a)), CUPY)


def jax_answers(a: Inputs) -> Answers:
    """JAX, compiled; a work is `JAX_CALLS` calls, since it has streams of its own, on which no event can be put."""
    import jax

    if jax.default_backend() not in ("gpu", "cuda"):
        raise Problem("it has no device")

    def several(call: Work) -> None:
        for _ in range(JAX_CALLS - 1):
            call()
        jax.block_until_ready(call())

    for question, against, work in _bench.jax_answers(a, lambda result: result):
        yield question, against, partial(several, work)


ANSWERS: dict[str, Callable[[Inputs], Answers]] = {"torch": torch_answers, "cupy": cupy_answers, "jax": jax_answers}


# --- All of it -----------------------------------------------------------------------------------------------------


def facts(found: _devices.Found, arrays: str) -> dict[str, Any]:
    """The device and the versions that figures belong to, and the day."""
    device = found.devices[0]
    versions = {name: _devices.installed(name) for name in PACKAGES}
    cupy = {"cupy": _cupy_version()}
    return {
        "device": device.name,
        "compute_capability": ".".join(map(str, device.capability)),
        "memory": device.memory,
        "driver": found.driver,
        "date": datetime.date.today().isoformat(),
        "arrays": arrays,
        "nbbce": nbbce.__version__,
        "python": platform.python_version(),
        "numba": _devices.installed("numba"),
        "numpy": np.__version__,
    } | {name: number for name, number in (versions | cupy).items() if number is not None}


def _cupy_version() -> str | None:
    names = ("cupy", "cupy-cuda13x", "cupy-cuda12x")
    return next((number for number in map(_devices.installed, names) if number is not None), None)


def measure(largest: int, dtypes: list[str], repeats: int, bar: Any) -> dict[str, Any]:
    """The figures of `nbbce bench --target cuda`; `bar` is a tqdm progress bar."""
    for dtype in dtypes:
        if dtype == "bfloat16":
            needed("ml_dtypes", "--dtype bfloat16")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the device's memory
    itemsize = max({"float64": 8, "float32": 4}.get(dtype, 2) for dtype in dtypes)
    try:
        found, device = first_device(2 * largest * itemsize)
    except RuntimeError as error:
        raise Problem(f"{largest} elements do not fit into the device's memory: {one_line(error)}") from None
    arrays = library()
    figures: dict[str, Any] = {
        "machine": facts(found, arrays.name),
        "repeats": repeats,
        "rows": [],
        "left_out": {},
    }
    for dtype in dtypes:
        _measure_dtype(figures, device, arrays, dtype, largest, bar)
    if not figures["rows"]:
        raise Problem(f"nothing could be measured; {next(iter(figures['left_out'].values()))}")
    return figures


def _measure_dtype(figures: dict[str, Any], device: Device, arrays: Library, dtype: str, size: int, bar: Any) -> None:
    """The rows of one dtype; what fails is left out, with the reason."""
    left_out, turns = figures["left_out"], figures["repeats"]
    host = host_inputs(size, dtype)
    try:
        own = Inputs(*map(arrays.upload, host))
        first, second = arrays.empty_like(own.x), arrays.empty_like(own.x)
    except Exception as error:
        left_out[f"{dtype}, arrays of {arrays.name}"] = one_line(error)
        return
    works = {question.name: question.work(own, first, second) for question in ALL_QUESTIONS}
    nbytes = {question.name: (2 + question.arrays) * host.x.nbytes for question in ALL_QUESTIONS}

    def add_row(group: str, question: str, against: str, base: Work) -> None:
        bar.set_description(f"{dtype}: {question} / {against}")
        try:
            if against == JAX:
                base_s, (work_s,) = device.clocked(base, turns), device.medians((works[question],), turns)
            else:
                base_s, work_s = device.medians((base, works[question]), turns)
        except Exception as error:
            left_out[f"{dtype}, {question} / {against}"] = one_line(error)
        else:
            row = {"group": group, "dtype": dtype, "size": size, "question": question, "against": against}
            figures["rows"].append(row | {"base_s": base_s, "nbbce_s": work_s, "bytes": nbytes[question]})
        bar.update()

    bar.total += len(ALL_QUESTIONS)
    for question in ALL_QUESTIONS:
        add_row(MEMORY, question.name, COPY, partial(device.copy, nbytes[question.name]))
    for name, of in ANSWERS.items():
        try:
            for question_name, against, base in _counted(of(host), bar):
                add_row(RIVALS, question_name, against, base)
        except Exception as error:
            left_out[name] = "not installed" if isinstance(error, ModuleNotFoundError) else one_line(error)


def _counted(answers: Answers, bar: Any) -> Iterator[tuple[str, str, Work]]:
    """The answers, each counted before it is given."""
    for answer in answers:
        bar.total += 1
        yield answer


def table(figures: dict[str, Any]) -> str:
    """The figures: first how near to the speed of the device's memory, then against whom."""
    machine, rows = figures["machine"], figures["rows"]
    size = rows[0]["size"]
    names = ("nbbce", "python", "numba", "numpy", *PACKAGES, "cupy")
    lines = [
        f"{size} elements, {machine['device']}, driver {machine['driver']}, {machine['date']}; "
        f"medians of {figures['repeats']} turns",
        f"arrays of {machine['arrays']}; {', '.join(f'{name} {machine[name]}' for name in names if name in machine)}",
    ]
    near = sorted((row for row in rows if row["group"] == MEMORY), key=lambda row: (row["dtype"], -ratio(row)))
    if near:
        lines += ["", _line("GB/s", COPY, "nbbce", "ratio", "time")]
    for row in near:
        copied, mine = (f"{row['bytes'] / row[key] / 1e9:.0f}" for key in ("base_s", "nbbce_s"))
        lines.append(
            _line(f"{row['dtype']}, {row['question']}", copied, mine, f"{ratio(row):.2f}", shown(row["nbbce_s"]))
        )
    others = [row for row in rows if row["group"] == RIVALS]
    others.sort(key=lambda row: (row["dtype"], row["against"], -ratio(row)))
    if others:
        lines += ["", _line("against whom", "rival", "nbbce", "ratio", "rival's time")]
    for row in others:
        work = f"{row['dtype']}, {row['question']}"
        lines.append(_line(work, row["against"], shown(row["nbbce_s"]), f"{ratio(row):.2f}", shown(row["base_s"])))
    if any(row["against"] == JAX for row in others):
        lines += ["", f"JAX is timed by the host's clock, {JAX_CALLS} calls in a row"]
    lines += [""] * bool(figures["left_out"])
    lines += [f"left out: {name}: {reason}" for name, reason in figures["left_out"].items()]
    return "\n".join(lines)


def _line(work: str, against: str, mine: str, times: str, last: str) -> str:
    return f"{work:52s} {against:>22s} {mine:>10s} {times:>8s} {last:>14s}".rstrip()
