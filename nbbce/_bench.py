"""What `nbbce bench` measures: how near to memory speed each function is, and against whom how fast.

Machines are shared and noisy, and drift: what is compared is timed in turn, repetition by repetition, in one process,
and the minimum of each is what counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from numba import njit, prange

import nbbce
from nbbce._arrays import Array
from nbbce._cpu import PARALLEL_SIZE
from nbbce._files import Problem, one_line

Work = Callable[[], Any]

# What a rival computes in; 16 bits are for storing.
RIVAL_DTYPES = ("float32", "float64")
MEMORY, RIVALS = "how near to memory speed", "against whom"
READS, WRITE, WRITES = "dot product of the same bytes", "loop of two reads and a write", "loop of two reads, two writes"
NUMPY = "NumPy one-liner"
SECONDS = 1.0  # of turns with a rival, after which few turns are enough
RIVAL_NAMES = (NUMPY, "torch eager", "torch.compile", "jax.jit", "Paddle", "scikit-learn")


class Row(NamedTuple):
    """One comparison: of `base`, which is called `against`, with `work`, which answers `question`."""

    question: str
    base: Work
    work: Work
    at_least: float = 0.0
    """What the time of `base` over that of `work` is to be."""
    loops: int = 1
    """Calls in one timing: more for what takes microseconds."""
    against: str | None = None
    """What `base` is, if not what a whole group is measured against."""
    nbytes: int = 0
    """Bytes that `work` must read and write."""


def best(row: Row, repeats: int, enough: int | None = None) -> tuple[float, float]:
    """Least seconds of `base` and of `work`, timed in turn; `enough` turns will do once they take `SECONDS`."""
    least, spent = [float("inf")] * 2, 0.0
    for function in (row.base, row.work):
        function()
    for turn in range(repeats):
        if enough is not None and turn >= enough and spent > SECONDS:
            break
        for k, function in enumerate((row.base, row.work)):
            start = time.perf_counter()
            for _ in range(row.loops):
                function()
            seconds = time.perf_counter() - start
            least[k], spent = min(least[k], seconds / row.loops), spent + seconds
    return least[0], least[1]


# --- Data ----------------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """Probabilities and logits, labels that fit each, and soft labels."""

    x: Array
    hard: Array
    soft: Array
    z: Array
    z_hard: Array


def data(size: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Predictions, labels that fit them, and soft labels."""
    rng = np.random.default_rng(20)
    x = rng.uniform(1e-4, 1 - 1e-4, size).astype(dtype)
    return x, (rng.random(size) < x).astype(dtype), rng.random(size).astype(dtype)


def logits(size: int, dtype: Any = np.float32) -> tuple[Array, Array]:
    """Logits, as of a model that is often right, and labels that fit them."""
    rng = np.random.default_rng(21)
    z = rng.normal(0, 3, size).astype(np.float32)
    return z.astype(dtype), (rng.random(size) < 1 / (1 + np.exp(-z))).astype(dtype)


def inputs(size: int, dtype: str) -> Inputs:
    """All inputs, of one size and dtype."""
    if dtype == "bfloat16":
        needed("ml_dtypes", "--dtype bfloat16")
    try:
        return Inputs(*data(size, np.dtype(dtype)), *logits(size, np.dtype(dtype)))
    except MemoryError:
        raise Problem(f"{size} elements do not fit into memory") from None


def needed(module: str, what: str) -> Any:
    """A module of the extra `bench`, or one line on how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Problem(f"{what} needs {module}; python -m pip install 'nbbce[bench]'") from None


# --- How near to memory speed --------------------------------------------------------------------------------------


def _dot(x: Any, y: Any) -> Any:
    """The floor of a sum: read the same bytes, do next to nothing."""
    total = x.dtype.type(0)
    for i in prange(x.size):
        total += x[i] * y[i]
    return total


def _add(x: Any, y: Any, out: Any) -> None:
    """The floor of an elementwise result: two reads, one write."""
    for i in prange(x.size):
        out[i] = x[i] + y[i]


def _add_and_subtract(x: Any, y: Any, out: Any, other: Any) -> None:
    """The floor of two elementwise results: two reads, two writes."""
    for i in prange(x.size):
        out[i] = x[i] + y[i]
        other[i] = x[i] - y[i]


dot = njit(parallel=True, fastmath=True)(_dot)
add = njit(parallel=True)(_add)
add_and_subtract = njit(parallel=True)(_add_and_subtract)
# Few elements are read sooner by one thread than dealt out to several: the floor of what nbbce does on one.
SERIAL = njit(fastmath=True)(_dot), njit(_add), njit(_add_and_subtract)
PARALLEL = dot, add, add_and_subtract


class Question(NamedTuple):
    """What is measured: a function of nbbce on two of the inputs."""

    name: str
    function: str
    x: str
    y: str
    results: str = "mean"
    """What it gives: 'mean', 'loss', 'derivative', 'mean and derivative', 'loss and derivative', 'derivatives'."""
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def arrays(self) -> int:
        """How many of its results are as large as an input."""
        return {"mean": 0, "loss and derivative": 2, "derivatives": 2}.get(self.results, 1)

    def work(self, a: Any, first: Any, second: Any) -> Work:
        """The call.  Results go to `first` and `second`, and values are not looked at in a pass of its own."""
        function, x, y = getattr(nbbce, self.function), getattr(a, self.x), getattr(a, self.y)
        options = dict(self.options) | {"reduction": "none" if self.results.startswith("loss") else "mean"}
        if self.arrays:
            several = {"mean and derivative": (None, first)}.get(self.results, (first, second))
            options |= {"out": first if self.results in ("loss", "derivative") else several, "validate": False}
        return lambda: function(x, y, **options)


POS_WEIGHT = 3.0
_BOTH, _OF_LOGITS = "mean and derivative", "binary_cross_entropy_with_logits"
QUESTIONS = (
    Question("mean, labels 0/1", "binary_cross_entropy", "x", "hard"),
    Question("mean, soft labels", "binary_cross_entropy", "x", "soft"),
    Question("none, soft labels", "binary_cross_entropy", "x", "soft", "loss"),
    Question("value_and_grad, labels 0/1", "binary_cross_entropy_value_and_grad", "x", "hard", _BOTH),
    Question("value_and_grad, soft labels", "binary_cross_entropy_value_and_grad", "x", "soft", _BOTH),
    Question("logits: mean, labels 0/1", _OF_LOGITS, "z", "z_hard"),
    Question("logits: mean, soft labels", _OF_LOGITS, "z", "soft"),
    Question("logits: none, labels 0/1", _OF_LOGITS, "z", "z_hard", "loss"),
    Question("logits: value_and_grad, labels 0/1", f"{_OF_LOGITS}_value_and_grad", "z", "z_hard", _BOTH),
    Question("logits: grad_and_hess, labels 0/1", f"{_OF_LOGITS}_grad_and_hess", "z", "z_hard", "derivatives"),
    Question(
        "logits: value_and_grad, pos_weight",
        f"{_OF_LOGITS}_value_and_grad",
        "z",
        "z_hard",
        _BOTH,
        (("pos_weight", POS_WEIGHT),),
    ),
    Question("focal: mean, labels 0/1", "sigmoid_focal_loss", "z", "z_hard"),
    Question("focal: value_and_grad, labels 0/1", "sigmoid_focal_loss_value_and_grad", "z", "z_hard", _BOTH),
)


def memory_rows(a: Inputs) -> list[Row]:
    """Each function against reading, and where it has an array to give writing, the same bytes.

    Results go into arrays that are there: the page faults of a fresh one cost as much as the work.
    """
    first, second = np.empty_like(a.x), np.empty_like(a.x)
    floors = PARALLEL if a.x.size > PARALLEL_SIZE else SERIAL

    # Of 16 bits, a processor adds integers: their floor is that of memory, not of a conversion.
    def raw(array: Array) -> Array:
        return array.view(np.int16) if array.itemsize == 2 else array

    def floor(question: Question) -> Work:
        inputs = raw(getattr(a, question.x)), raw(getattr(a, question.y))
        operands = *inputs, *(raw(first), raw(second))[: question.arrays]
        return lambda: floors[question.arrays](*operands)

    return [
        Row(
            question.name,
            floor(question),
            question.work(a, first, second),
            0.0,
            loops_of(a.x.size),
            (READS, WRITE, WRITES)[question.arrays],
            (2 + question.arrays) * a.x.nbytes,
        )
        for question in QUESTIONS
    ]


def loops_of(size: int) -> int:
    """Calls in one timing: enough to be seen by the clock."""
    return max(1, 200_000 // size)


# --- Against whom --------------------------------------------------------------------------------------------------


# A rival's answers: question, name, work.
Answers = Iterator[tuple[str, str, Work]]


def one_liner(x: Array, y: Array) -> Any:
    """What one writes in NumPy."""
    return -np.mean(y * np.log(x) + (1 - y) * np.log(1 - x))


def numpy_answers(a: Inputs, how: str = NUMPY) -> Answers:
    """What one writes in NumPy, in a line or two; for arrays of another library that takes its place, `how`."""
    x, hard, soft, z, z_hard = a

    def losses(y: Array) -> Any:
        return np.logaddexp(0, z) - y * z

    def gradient_and_hessian() -> Any:
        p = 1 / (1 + np.exp(-z))
        return p - z_hard, p * (1 - p)

    yield "mean, labels 0/1", how, lambda: one_liner(x, hard)
    yield "mean, soft labels", how, lambda: one_liner(x, soft)
    yield "none, soft labels", how, lambda: -(soft * np.log(x) + (1 - soft) * np.log(1 - x))
    yield "value_and_grad, labels 0/1", how, lambda: (one_liner(x, hard), (x - hard) / (x * (1 - x)) / x.size)
    yield "value_and_grad, soft labels", how, lambda: (one_liner(x, soft), (x - soft) / (x * (1 - x)) / x.size)
    yield "logits: mean, labels 0/1", how, lambda: np.mean(losses(z_hard))
    yield "logits: mean, soft labels", how, lambda: np.mean(losses(soft))
    yield "logits: none, labels 0/1", how, lambda: losses(z_hard)
    yield "logits: grad_and_hess, labels 0/1", how, gradient_and_hessian

    def focal_loss() -> Any:
        p = 1 / (1 + np.exp(-z))
        return np.mean((0.75 - 0.5 * z_hard) * losses(z_hard) * (p + z_hard - 2 * p * z_hard) ** 2)

    yield "focal: mean, labels 0/1", how, focal_loss


def torch_answers(a: Inputs, upload: Any = None) -> Answers:
    """PyTorch, as it is and compiled; a gradient is a forward and a backward pass.  `upload` makes tensors."""
    import torch

    torch.set_num_threads(numba.get_num_threads())
    x, hard, soft, z, z_hard = map(upload or torch.from_numpy, a)

    def forward_and_backward(function: Any, leaf: Any, y: Any) -> None:
        leaf.grad = None
        function(leaf, y).backward()

    factor = torch.tensor(POS_WEIGHT, dtype=x.dtype, device=x.device)

    def weighted_loss(z: Any, y: Any) -> Any:
        return torch.nn.functional.binary_cross_entropy_with_logits(z, y, pos_weight=factor)

    def focal_loss(z: Any, y: Any) -> Any:
        """That of torchvision, with its defaults."""
        p = torch.sigmoid(z)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
        right = p * y + (1 - p) * (1 - y)
        return ((0.25 * y + 0.75 * (1 - y)) * losses * (1 - right) ** 2).mean()

    for how, of in (("torch eager", lambda function: function), ("torch.compile", torch.compile)):
        loss = of(torch.nn.functional.binary_cross_entropy)
        of_logits = of(torch.nn.functional.binary_cross_entropy_with_logits)
        weighted, focal = of(weighted_loss), of(focal_loss)
        leaf, z_leaf = x.clone().requires_grad_(), z.clone().requires_grad_()

        def gradient(function: Any, leaf: Any, y: Any) -> Work:
            return lambda: forward_and_backward(function, leaf, y)

        def each(function: Any, p: Any, y: Any, **options: Any) -> Work:
            return lambda: function(p, y, **options)

        yield "mean, labels 0/1", how, each(loss, x, hard)
        yield "mean, soft labels", how, each(loss, x, soft)
        yield "none, soft labels", how, each(loss, x, soft, reduction="none")
        yield "value_and_grad, labels 0/1", how, gradient(loss, leaf, hard)
        yield "value_and_grad, soft labels", how, gradient(loss, leaf, soft)
        yield "logits: mean, labels 0/1", how, each(of_logits, z, z_hard)
        yield "logits: mean, soft labels", how, each(of_logits, z, soft)
        yield "logits: none, labels 0/1", how, each(of_logits, z, z_hard, reduction="none")
        yield "logits: value_and_grad, labels 0/1", how, gradient(of_logits, z_leaf, z_hard)
        yield "logits: value_and_grad, pos_weight", how, gradient(weighted, z_leaf, z_hard)
        yield "focal: mean, labels 0/1", how, each(focal, z, z_hard)
        yield "focal: value_and_grad, labels 0/1", how, gradient(focal, z_leaf, z_hard)


def jax_answers(a: Inputs, wait: Any = None) -> Answers:
    """JAX, compiled; the formulas are those of Optax and of its users.  `wait` is what a call does with its result."""
    import jax
    import jax.numpy as jnp

    wait = wait or jax.block_until_ready

    if a.x.dtype == np.float64:
        jax.config.update("jax_enable_x64", True)
    x, hard, soft, z, z_hard = map(jnp.asarray, a)

    def losses(x: Any, y: Any) -> Any:
        return -(y * jnp.log(x) + (1 - y) * jnp.log1p(-x))

    def losses_of_logits(z: Any, y: Any) -> Any:
        return -(y * jax.nn.log_sigmoid(z) + (1 - y) * jax.nn.log_sigmoid(-z))

    def gradient_and_hessian(z: Any, y: Any) -> Any:
        p = jax.nn.sigmoid(z)
        return p - y, p * (1 - p)

    def each(function: Any, p: Any, y: Any) -> Work:
        compiled = jax.jit(function)
        return lambda: wait(compiled(p, y))

    def mean(function: Any) -> Any:
        return lambda p, y: jnp.mean(function(p, y))

    how = "jax.jit"
    yield "mean, labels 0/1", how, each(mean(losses), x, hard)
    yield "mean, soft labels", how, each(mean(losses), x, soft)
    yield "none, soft labels", how, each(losses, x, soft)
    yield "value_and_grad, labels 0/1", how, each(jax.value_and_grad(mean(losses)), x, hard)
    yield "value_and_grad, soft labels", how, each(jax.value_and_grad(mean(losses)), x, soft)
    yield "logits: mean, labels 0/1", how, each(mean(losses_of_logits), z, z_hard)
    yield "logits: mean, soft labels", how, each(mean(losses_of_logits), z, soft)
    yield "logits: none, labels 0/1", how, each(losses_of_logits, z, z_hard)
    yield "logits: value_and_grad, labels 0/1", how, each(jax.value_and_grad(mean(losses_of_logits)), z, z_hard)
    yield "logits: grad_and_hess, labels 0/1", how, each(gradient_and_hessian, z, z_hard)


def paddle_answers(a: Inputs) -> Answers:
    """Paddle, as it is; a gradient is a forward and a backward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses a compiler cache that nothing here needs
        import paddle
    x, hard, soft, z, z_hard = map(paddle.to_tensor, a)
    loss = paddle.nn.functional.binary_cross_entropy
    of_logits = paddle.nn.functional.binary_cross_entropy_with_logits
    leaf, z_leaf = (paddle.to_tensor(p, stop_gradient=False) for p in (a.x, a.z))

    def gradient(function: Any, leaf: Any, y: Any) -> None:
        leaf.clear_grad()
        function(leaf, y).backward()

    how = "Paddle"
    yield "mean, labels 0/1", how, lambda: loss(x, hard)
    yield "mean, soft labels", how, lambda: loss(x, soft)
    yield "none, soft labels", how, lambda: loss(x, soft, reduction="none")
    yield "value_and_grad, labels 0/1", how, lambda: gradient(loss, leaf, hard)
    yield "value_and_grad, soft labels", how, lambda: gradient(loss, leaf, soft)
    yield "logits: mean, labels 0/1", how, lambda: of_logits(z, z_hard)
    yield "logits: mean, soft labels", how, lambda: of_logits(z, soft)
    yield "logits: none, labels 0/1", how, lambda: of_logits(z, z_hard, reduction="none")
    yield "logits: value_and_grad, labels 0/1", how, lambda: gradient(of_logits, z_leaf, z_hard)


def sklearn_answers(a: Inputs) -> Answers:
    """scikit-learn's metric, and the loss inside its models."""
    from sklearn._loss.loss import HalfBinomialLoss
    from sklearn.metrics import log_loss

    x, hard, _, z, z_hard = a
    half, threads = HalfBinomialLoss(), numba.get_num_threads()
    first, second = np.empty_like(z), np.empty_like(z)
    yield "mean, labels 0/1", "scikit-learn", lambda: log_loss(hard, x)
    kept = {"n_threads": threads}
    yield "logits: none, labels 0/1", "scikit-learn", lambda: half.loss(z_hard, z, None, first, **kept)
    question = "logits: value_and_grad, labels 0/1"
    yield question, "scikit-learn", lambda: half.loss_gradient(z_hard, z, None, first, second, **kept)
    question = "logits: grad_and_hess, labels 0/1"
    yield question, "scikit-learn", lambda: half.gradient_hessian(z_hard, z, None, first, second, **kept)


ANSWERS: dict[str, Callable[[Inputs], Answers]] = {
    "torch": torch_answers,
    "jax": jax_answers,
    "paddle": paddle_answers,
    "sklearn": sklearn_answers,
}


def rival_rows(a: Inputs, rivals: bool, left_out: dict[str, str]) -> list[Row]:
    """Against the NumPy one-liner, and with `rivals` against who is installed; who is not goes to `left_out`."""
    mine = {row.question: row.work for row in memory_rows(a)}
    answers = list(numpy_answers(a))
    for name, of in ANSWERS.items() if rivals else ():
        try:
            answers += of(a)
        except Exception as error:
            left_out[name] = "not installed" if isinstance(error, ModuleNotFoundError) else one_line(error)
    loops = loops_of(a.x.size)
    return [Row(question, base, mine[question], 0.0, loops, against) for question, against, base in answers]


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Let the process keep the memory that it frees, where its C library can.

    Otherwise each large array is of fresh pages, and what these cost, which can be many times the work, decides how
    fast those seem who cannot write into an array that is there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        yield
        return
    trim_threshold, mmap_max = -1, -4  # as malloc.h numbers them
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    try:
        yield
    finally:
        mallopt(trim_threshold, 128 * 1024)
        mallopt(mmap_max, 65536)


# --- All of it -----------------------------------------------------------------------------------------------------


def sizes(largest: int) -> list[int]:
    """Powers of four from 1024 on, to no more than half the largest, and the largest."""
    found = [1024]
    while found[-1] <= largest // 2:
        found.append(found[-1] * 4)
    return [*found[:-1], largest]


def machine() -> dict[str, Any]:
    """The machine and the versions that figures belong to."""
    return {
        "processor": llvmlite.binding.get_host_cpu_name(),
        "threads": numba.get_num_threads(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "nbbce": nbbce.__version__,
    }


def versions(names: Any) -> dict[str, str]:
    """The versions of what is installed of `names`."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version({"paddle": "paddlepaddle", "sklearn": "scikit-learn"}.get(name, name))
    return found


def fewer(repeats: int) -> int:
    """Turns with a rival that is slow.  It needs fewer: its minimum settles earlier."""
    return max(3, repeats // 4)


def measure(largest: int, dtypes: list[str], repeats: int, rivals: bool, sweep: bool, bar: Any) -> dict[str, Any]:
    """The figures of `nbbce bench`; `bar` is a tqdm progress bar, `sweep` asks for all sizes up to the largest."""
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}

    def add_row(group: str, dtype: str, size: int, row: Row) -> None:
        bar.set_description(f"{dtype}, {size}: {row.question} / {row.against}")
        try:
            base, work = best(row, repeats, fewer(repeats) if group == RIVALS else None)
        except Exception as error:
            if group == MEMORY:
                raise
            # Such as torch.compile without a compiler for C++.
            left_out[f"{row.against}: {dtype}, {row.question}"] = one_line(error)
        else:
            found = {"group": group, "dtype": dtype, "size": size, "question": row.question, "against": row.against}
            rows.append(found | {"base_s": base, "nbbce_s": work, "bytes": row.nbytes})
        bar.update()

    with kept_memory():
        for dtype in dtypes:
            for size in sizes(largest) if sweep else [largest]:
                near = memory_rows(inputs(size, dtype))
                bar.total += len(near)
                for row in near:
                    add_row(MEMORY, dtype, size, row)
            if dtype in RIVAL_DTYPES:
                against = rival_rows(inputs(largest, dtype), rivals, left_out)
                bar.total += len(against)
                for row in against:
                    add_row(RIVALS, dtype, largest, row)
    facts = machine() | (versions(ANSWERS) if rivals else {})
    return {"machine": facts, "repeats": repeats, "rows": rows, "left_out": left_out}


def shown(seconds: float) -> str:
    """A time to read: milliseconds, or microseconds."""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.2f} us"


def table(figures: dict[str, Any]) -> str:
    """The figures of the largest size: first how near to memory speed, then against whom."""
    facts = figures["machine"]
    largest = max(row["size"] for row in figures["rows"])
    lines = [
        f"{largest} elements, {facts['threads']} threads, {facts['processor']}; minima of {figures['repeats']} turns, "
        f"against slow others of {fewer(figures['repeats'])} or more"
    ]
    for group, heads in ((MEMORY, ("reference", "nbbce", "ratio", "GB/s")), (RIVALS, ("rival", "nbbce", "ratio", ""))):
        found = [row for row in figures["rows"] if row["group"] == group and row["size"] == largest]
        # Of memory the nearest first, of rivals one after the other.
        found.sort(key=lambda row: (row["dtype"], row["against"] if row["group"] == RIVALS else "", -ratio(row)))
        if found:
            lines += ["", _line(group, "", *heads)]
        for row in found:
            speed = f"{row['bytes'] / row['nbbce_s'] / 1e9:.1f}" if row["bytes"] else ""
            times = shown(row["base_s"]), shown(row["nbbce_s"])
            lines.append(
                _line(f"{row['dtype']}, {row['question']}", row["against"], *times, f"{ratio(row):.2f}", speed)
            )
    lines += [""] * bool(figures["left_out"])
    lines += [f"left out: {name}: {reason}" for name, reason in figures["left_out"].items()]
    return "\n".join(lines)


def _line(work: str, against: str, base: str, mine: str, times: str, speed: str) -> str:
    return f"{work:44s} {against:29s} {base:>10s} {mine:>10s} {times:>8s} {speed:>6s}".rstrip()


def ratio(row: dict[str, Any]) -> float:
    """How many times as fast as the reference nbbce is."""
    return float(row["base_s"] / row["nbbce_s"])
