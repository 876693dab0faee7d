"""How fast nbbce is, as ratios inside one run: against memory, against `np.log`, against its rivals.

    python asv_benchmarks/speed.py                 against memory and np.log
    python asv_benchmarks/speed.py --rivals        also against NumPy, torch, JAX and scikit-learn, where installed
    python asv_benchmarks/speed.py --json FILE     keep the figures
    python asv_benchmarks/speed.py --markdown FILE print kept figures as README's table; ratios of more files beside

Machines are shared and noisy: what is compared is timed in turn, repetition by repetition, and the minimum of each
is what counts.  Arrays have 10 million elements unless said; two threads unless `--threads` says so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
from tqdm import tqdm

import nbbce
from nbbce import _bench, _cpu
from nbbce._bench import Row, Work, add, best, data, dot, logits, machine, one_liner, shown

CACHED = 16_384

# What the rows of a group are measured against.
AGAINST = {
    "memory_rows": "dot product of the same bytes",
    "logits_rows": "dot product of the same bytes",
    "axis_rows": "the mean of all",
    "layout_rows": "contiguous float32, soft labels",
    "cache_rows": "`np.log` of the array, one thread",
    "call_rows": "NumPy one-liner",
}


def memory_rows(size: int) -> list[Row]:
    """Against reading (and writing) the same bytes."""
    bce, rows = nbbce.binary_cross_entropy, []
    x, hard, soft = data(size, np.float32)
    wide, wide_hard, wide_soft = (a.astype(np.float64) for a in (x, hard, soft))
    byte, flag = hard.astype(np.uint8), hard.astype(bool)
    rows += [
        Row("mean, float32, labels float32", lambda: dot(x, hard), lambda: bce(x, hard), 0.7),
        Row("mean, float32, labels uint8", lambda: dot(x, byte), lambda: bce(x, byte), 0.7),
        Row("mean, float32, labels bool", lambda: dot(x, byte), lambda: bce(x, flag), 0.7),
        Row("mean, float32, soft labels", lambda: dot(x, soft), lambda: bce(x, soft), 0.5),
        Row("mean, float64, soft labels", lambda: dot(wide, wide_soft), lambda: bce(wide, wide_soft), 0.5),
        Row("mean, float64, labels 0/1", lambda: dot(wide, wide_hard), lambda: bce(wide, wide_hard), 0.8),
    ]
    out = np.empty_like(x)
    none: Work = lambda: bce(x, soft, reduction="none", out=out, validate=False)  # noqa: E731
    rows.append(Row("none, float32", lambda: add(x, soft, out), none, 0.7, 1, "loop of two reads and a write"))
    return rows


def logits_rows(size: int) -> list[Row]:
    """Logits against memory."""
    z, hard = logits(size)
    mean, both = nbbce.binary_cross_entropy_with_logits, nbbce.binary_cross_entropy_with_logits_value_and_grad
    out = np.empty_like(z)
    add_work: Work = lambda: add(z, hard, out)  # noqa: E731
    into: Work = lambda: both(z, hard, out=(None, out), validate=False)  # noqa: E731
    losses: Work = lambda: mean(z, hard, reduction="none", out=out, validate=False)  # noqa: E731
    loop = "loop of two reads and a write"
    return [
        Row("logits: mean, float32", lambda: dot(z, hard), lambda: mean(z, hard), 0.5),
        Row("logits: none, float32", add_work, losses, 0.7, 1, loop),
        Row("logits: value_and_grad of the mean, float32", add_work, into, 1 / 1.3, 1, loop),
    ]


def axis_rows(size: int) -> list[Row]:
    """Sums along an axis of rows of ten against the mean of all."""
    x, hard, soft = data(size, np.float32)
    z, _ = logits(size)
    table = (-1, 10)
    rows = []
    for name, function, a, b in (
        ("mean, soft labels", nbbce.binary_cross_entropy, x.reshape(table), soft.reshape(table)),
        ("mean, labels 0/1", nbbce.binary_cross_entropy, x.reshape(table), hard.reshape(table)),
        ("logits: mean, labels 0/1", nbbce.binary_cross_entropy_with_logits, z.reshape(table), hard.reshape(table)),
    ):
        whole: Work = lambda f=function, a=a, b=b: f(a, b)  # noqa: E731
        for axis in (-1, 0):
            along: Work = lambda f=function, a=a, b=b, k=axis: f(a, b, axis=k)  # noqa: E731
            rows.append(Row(f"{name}, axis={axis} of rows of ten", whole, along, 1 / 1.5))
    return rows


def layout_rows(size: int) -> list[Row]:
    """Against the contiguous float32 call with the same labels, per element."""
    import ml_dtypes

    bce = nbbce.binary_cross_entropy
    x, _, soft = data(size, np.float32)
    spread, spread_soft = np.repeat(x, 2)[::2], np.repeat(soft, 2)[::2]
    side = 1000
    table, labels = x.reshape(-1, side), soft.reshape(-1, side)
    row, column, weight = soft[:side], soft[: size // side, None], labels[::-1].copy()
    plain: Work = lambda: bce(x, soft)  # noqa: E731
    rows = []
    for dtype in (np.float16, ml_dtypes.bfloat16):
        short, short_soft = x.astype(dtype), soft.astype(dtype)
        half: Work = lambda x=short, y=short_soft: bce(x, y)  # noqa: E731
        rows.append(Row(f"mean, {np.dtype(dtype).name}", plain, half, 0.5))
    fortran, fortran_soft = (np.asfortranarray(a.reshape(-1, 10)) for a in (x, soft))
    long_rows, long_soft = (np.asfortranarray(a.reshape(100, -1)) for a in (x, soft))
    kept = x > 0.2
    return [
        *rows,
        Row("mean, strided [::2]", plain, lambda: bce(spread, spread_soft), 0.5),
        Row("mean, Fortran order, ten columns", plain, lambda: bce(fortran, fortran_soft), 0.5),
        Row("mean, Fortran order, a hundred rows", plain, lambda: bce(long_rows, long_soft), 0.5),
        Row("mean, where", plain, lambda: bce(x, soft, where=kept), 0.5),
        Row("mean, weight along a row", plain, lambda: bce(table, labels, row), 0.5),
        Row("mean, weight along a column", plain, lambda: bce(table, labels, column), 0.5),
        Row("mean, weight for each element", plain, lambda: bce(table, labels, weight), 0.5),
        *weighted_rows(table, labels, row),
    ]


def weighted_rows(table: np.ndarray, labels: np.ndarray, row: np.ndarray) -> list[Row]:
    """Gradients with a weight for each column or element, or a mask, against those without."""
    rows, out = [], np.empty_like(table)
    weight, kept = labels[::-1].copy(), labels > 0.2
    for name, function in (
        ("gradient", nbbce.binary_cross_entropy_grad),
        ("logits: gradient", nbbce.binary_cross_entropy_with_logits_grad),
    ):
        plain: Work = lambda f=function: f(table, labels, out=out, validate=False)  # noqa: E731
        weighted: Work = lambda f=function: f(table, labels, row, out=out, validate=False)  # noqa: E731
        rows.append(Row(f"{name}, weight along a row", plain, weighted, 0.5, 1, "the same without a weight"))
        each: Work = lambda f=function: f(table, labels, weight, out=out, validate=False)  # noqa: E731
        rows.append(Row(f"{name}, weight for each element", plain, each, 0.5, 1, "the same without a weight"))
        masked: Work = lambda f=function: f(table, labels, where=kept, out=out, validate=False)  # noqa: E731
        rows.append(Row(f"{name}, where", plain, masked, 0.5, 1, "the same without a mask"))
    return rows


def cache_rows(size: int) -> list[Row]:
    """On one thread, in cache, against one `np.log` of the same array: the whole call, and the loop alone."""
    rows = []
    for dtype in (np.float32, np.float64):
        x, hard, soft = data(CACHED, dtype)
        out, name = np.empty_like(x), np.dtype(dtype).name
        log: Work = lambda x=x, out=out: np.log(x, out=out)  # noqa: E731
        for label, y, reduction, at_least in (
            ("none", soft, "none", 1 / 1.4),
            ("mean, labels 0/1", hard, "mean", 1 / 0.8),
        ):
            call: Work = lambda x=x, y=y, r=reduction: nbbce.binary_cross_entropy(x, y, reduction=r)  # noqa: E731
            rows.append(Row(f"{label}, {name}, in cache: the call", log, call, at_least, 50))
            rows.append(Row(f"{label}, {name}, in cache: its loop", log, _loop_of(call), at_least, 50))
    return rows


def _loop_of(call: Work) -> Work:
    """What a call hands to the compiled side, to be run again without the call around it."""
    seen: list[tuple[Any, ...]] = []
    original = _cpu.run_serial.compile()

    def record(vector: Any, arrays_id: int, *numbers: Any) -> Any:
        arrays = ctypes.cast(arrays_id, ctypes.py_object).value  # must outlive the recorded call, which has their `id`
        seen.append((arrays, vector, arrays_id, *numbers))
        return original(vector, arrays_id, *numbers)

    _cpu.run_serial.run = record
    try:
        call()
    finally:
        _cpu.run_serial.run = original
    _, *arguments = kept = seen[-1]
    return lambda kept=kept: original(*arguments)


def call_rows(size: int) -> list[Row]:
    """Calls on one element, and on a small batch, of which nothing is asked: what they cost besides the arithmetic."""
    bce = nbbce.binary_cross_entropy
    x, y = np.array([0.3], np.float32), np.array([1.0], np.float32)
    batch, _, soft = (a.reshape(100, 10) for a in data(1000, np.float32))
    weight, kept = soft[0], soft > 0.2

    def losses() -> Any:
        return -(soft * np.log(batch) + (1 - soft) * np.log(1 - batch))

    return [
        Row("mean, one element", lambda: one_liner(x, y), lambda: bce(x, y), 3, 2000),
        Row("mean, 100 rows of ten", lambda: np.mean(losses()), lambda: bce(batch, soft), 0, 500),
        Row(
            "mean, 100 rows of ten, axis=-1",
            lambda: np.mean(losses(), axis=-1),
            lambda: bce(batch, soft, axis=-1),
            0,
            500,
        ),
        Row(
            "mean, 100 rows of ten, weight along a row",
            lambda: np.mean(weight * losses()),
            lambda: bce(batch, soft, weight),
            0,
            500,
        ),
        Row(
            "mean, 100 rows of ten, where",
            lambda: np.mean(losses(), where=kept),
            lambda: bce(batch, soft, where=kept),
            0,
            500,
        ),
    ]


# What a rival's time over ours is to be.  What is not named here, `nbbce bench --rivals` measures too.
LEAST = {
    ("mean, labels 0/1", "NumPy one-liner"): 35,
    ("mean, soft labels", "NumPy one-liner"): 35,
    ("mean, labels 0/1", "torch eager"): 60,
    ("mean, soft labels", "torch eager"): 60,
    ("mean, labels 0/1", "torch.compile"): 4,
    ("mean, soft labels", "torch.compile"): 4,
    ("value_and_grad, labels 0/1", "torch eager"): 60,
    ("value_and_grad, soft labels", "torch eager"): 60,
    ("mean, labels 0/1", "jax.jit"): 4,
    ("mean, soft labels", "jax.jit"): 4,
    ("mean, labels 0/1", "scikit-learn"): 400,
    ("logits: value_and_grad, labels 0/1", "torch eager"): 40,
    ("logits: value_and_grad, labels 0/1", "torch.compile"): 4,
    ("logits: value_and_grad, labels 0/1", "scikit-learn"): 20,
    ("logits: value_and_grad, pos_weight", "torch.compile"): 1,
    ("focal: mean, labels 0/1", "torch.compile"): 1,
    ("focal: value_and_grad, labels 0/1", "torch.compile"): 1,
}


def rival_rows(size: int) -> list[Row]:
    """Against what users have today, where it is installed."""
    left_out: dict[str, str] = {}
    rows = _bench.rival_rows(_bench.inputs(size, "float32"), True, left_out)
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    return [
        row._replace(at_least=LEAST[row.question, row.against], loops=1)
        for row in rows
        if (row.question, row.against) in LEAST
    ]


def start_up(repeats: int) -> list[dict[str, Any]]:
    """Seconds of whole processes: what `import nbbce` adds, and one call with a cold and with a warm cache."""

    def seconds(code: str, folder: str) -> float:
        environment = os.environ | {"NBBCE_CACHE": folder}
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        return time.perf_counter() - start

    call = "import numpy as np, nbbce; a = np.full(100_000, 0.5, np.float32); nbbce.binary_cross_entropy(a, a)"
    with tempfile.TemporaryDirectory() as folder:
        cold = min(seconds(call, os.path.join(folder, str(k))) for k in range(min(3, repeats)))
        warm = min(seconds(call, os.path.join(folder, "0")) for _ in range(repeats))
        bare = min(seconds("import numpy", folder) for _ in range(repeats))
        imported = min(seconds("import numpy, nbbce", folder) for _ in range(repeats))
    questions = (
        ("import nbbce, beyond import numpy", imported - bare, 0.06),
        ("a process with one call, warm cache", warm, 1.2),
        ("a process with one call, cold cache", cold, 5.0),
    )
    return [{"question": q, "nbbce_s": seconds, "at_most_s": limit} for q, seconds, limit in questions]


def markdown(files: list[str]) -> str:
    """README's table from files of figures: times are those of the first, ratios of each are in a column of its own."""
    runs = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    by_question = [{(row["question"], row.get("against")): row for row in run["rows"]} for run in runs]
    heads = [f"ratio, {run['machine']['processor']}" for run in runs] if len(runs) > 1 else ["ratio"]
    lines = [
        "| " + " | ".join(["work", "against", "reference", "nbbce", *heads]) + " |",
        "| --- | --- " + "| ---: " * (2 + len(heads)) + "|",
    ]
    for (question, against), row in by_question[0].items():
        others = [rows.get((question, against)) for rows in by_question[1:]]
        if "base_s" in row:
            cells = [question, against, shown(row["base_s"]), shown(row["nbbce_s"])]
            cells += [f"{one['base_s'] / one['nbbce_s']:.2f}" if one else "" for one in (row, *others)]
        else:
            cells = [question, "", "", f"{row['nbbce_s']:.3f} s", ""]
            cells += [f"{one['nbbce_s']:.3f} s" if one else "" for one in others]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print the table, and keep it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", action="store_true", help="compare with torch, JAX, scikit-learn and NumPy too")
    parser.add_argument("--threads", type=int, default=min(2, numba.config.NUMBA_NUM_THREADS))
    parser.add_argument("--size", type=int, default=10_000_000, help="elements; a multiple of 1000")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--markdown", metavar="FILE", nargs="+", help="print kept figures as a table; measure nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(arguments.markdown))
        return 0
    groups = [memory_rows, logits_rows, axis_rows, layout_rows, cache_rows, call_rows]
    groups += [rival_rows] * arguments.rivals
    results = []
    for group in groups:
        numba.set_num_threads(1 if group in (cache_rows, call_rows) else arguments.threads)
        for row in tqdm(group(arguments.size), desc=group.__name__, leave=False, disable=not sys.stderr.isatty()):
            if group is rival_rows:
                with _bench.kept_memory():
                    base, work = best(row, arguments.repeats, _bench.fewer(arguments.repeats))
            else:
                base, work = best(row, arguments.repeats)
            against = AGAINST[group.__name__] if row.against is None else row.against
            results.append(
                {
                    "question": row.question,
                    "against": against,
                    "base_s": base,
                    "nbbce_s": work,
                    "at_least": row.at_least,
                }
            )
            met = " " if base / work >= row.at_least else "-"
            wanted = f"  (at least {row.at_least:.2f})" if row.at_least else ""
            print(
                f"{met} {row.question + ' / ' + against:76s} {base * 1e6:12.2f} us {work * 1e6:12.2f} us  "
                f"{base / work:8.2f}x{wanted}",
                flush=True,
            )
    for result in start_up(arguments.repeats):
        met = " " if result["nbbce_s"] <= result["at_most_s"] else "-"
        print(f"{met} {result['question']:76s} {result['nbbce_s']:12.3f} s  (at most {result['at_most_s']:.2f} s)")
        results.append(result)
    if arguments.json:
        facts = (
            machine() | {"threads": arguments.threads} | (_bench.versions(_bench.ANSWERS) if arguments.rivals else {})
        )
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": facts, "rows": results}, file, indent=1)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
