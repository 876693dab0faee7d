"""The command line: `nbbce score`, `nbbce info`, `nbbce bench` and `nbbce warmup`.

A command is a function that adds its arguments to the parser and one that does its work and returns what to print.
Numba and tqdm are imported by the commands that need them, so that `nbbce --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import platform
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

import nbbce
from nbbce._arrays import FLOATS, Array, is_real
from nbbce._files import Problem, Source, is_file_name, one_line, read_array

# Elements that are computed at a time: enough to keep every thread busy, and a few dozen MiB.
CHUNK = 1 << 22
# Elements that are computed before the clock starts, which loads or compiles the kernels, the parallel one as well.
WARM_UP = 1 << 17


Index = tuple[slice, ...]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the commands do."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        The exit code: 0; 2 where the user can put something right, after one line on stderr that says what; 130 after
        Ctrl-C; 141 if who reads the output has gone.
    """
    name = "nbbce"
    try:
        try:
            arguments = _parser().parse_args(argv)
        except SystemExit as stop:  # argparse, after --help, --version or an error
            _print("")
            return int(stop.code or 0)
        name = f"nbbce {arguments.command}"
        _print(arguments.run(arguments) + "\n")
        return 0
    except (Problem, ImportError) as problem:
        print(f"{name}: {one_line(problem)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nbbce", description="Binary cross-entropy of arrays in files.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"nbbce {nbbce.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_score, _add_info, _add_bench, _add_warmup):
        add(commands)
    return parser


def _print(text: str) -> None:
    """Print and flush, so that what goes wrong with it is seen here and not when Python exits."""
    try:
        print(text, end="")
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What is still in the buffer would fail again at exit, with a traceback.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise Problem(f"cannot write to standard output: {one_line(error)}") from None


def _check_numba() -> None:
    """Numba raises when it is imported with a setting of its own, such as NUMBA_NUM_THREADS, that it cannot use."""
    try:
        import numba  # noqa: F401
    except Exception as error:
        raise Problem(f"Numba cannot be imported: {one_line(error)}") from None


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows)) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows.items())


# --- nbbce score ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Arrays that fit each other, and how to compute their loss."""

    predictions: Source
    targets: Source
    weight: Source | float | None
    pos_weight: Source | float | None
    label_smoothing: float
    logits: bool
    validate: bool

    def sources(self) -> list[Source]:
        """All that is read."""
        found = (self.predictions, self.targets, self.weight, self.pos_weight)
        return [source for source in found if isinstance(source, Source)]

    def view(self, array: Array) -> Array:
        """`array` with its dimensions in the order in which the predictions lie in memory, slowest first."""
        order = self.predictions.array.flags
        return array.T if order.f_contiguous and not order.c_contiguous else array

    def loss(self, index: Index, out: Array | None = None) -> float:
        """Sum of the losses at `index` of the views, or, where `out` is given, the losses themselves in there."""
        # Without the ellipsis a 0-d array would give a number.
        place: Any = (*index, ...)
        x, y = self.view(self.predictions.array)[place], self.view(self.targets.array)[place]
        function = nbbce.binary_cross_entropy_with_logits if self.logits else nbbce.binary_cross_entropy
        options: dict[str, Any] = {
            "weight": self._factor(self.weight, place),
            "pos_weight": self._factor(self.pos_weight, place),
            "label_smoothing": self.label_smoothing,
            "validate": self.validate,
        }
        try:
            if out is None:
                return float(function(x, y, reduction="sum", dtype=np.float64, **options))
            function(x, y, reduction="none", out=self.view(out)[place], **options)
            return math.nan
        except ValueError as error:
            raise self._out_of_domain(index, x, y) or Problem(one_line(error)) from None

    def _factor(self, weight: Source | float | None, place: Any) -> Any:
        """A weight, or what of it belongs to the predictions at `place` of their view."""
        if isinstance(weight, Source):
            return self.view(np.broadcast_to(weight.array, self.predictions.array.shape))[place]
        return weight

    def _out_of_domain(self, index: Index, x: Array, y: Array) -> Problem | None:
        """The first value outside [0, 1] among those at `index`, by its file and its place in the whole file."""
        if not self.validate:
            return None
        bad_y = ~((y >= 0) & (y <= 1))
        # Any number is a logit.
        bad_x = np.zeros_like(bad_y) if self.logits else ~((x >= 0) & (x <= 1))
        bad = bad_x | bad_y
        if not bad.any():
            return None
        here = np.unravel_index(int(np.argmax(bad)), bad.shape)
        source, values = (self.predictions, x) if bad_x[here] else (self.targets, y)
        place = [cut.start + int(i) for cut, i in zip(index, here, strict=True)]
        if self.view(self.predictions.array) is not self.predictions.array:
            place.reverse()
        what = "targets" if self.logits else "values"
        return Problem(f"{what} must be in [0, 1]; got {source.name}{place if place else ''} = {values[here]!s}")


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="the loss of predictions in a file",
        description="""The binary cross-entropy of predicted probabilities, or of logits, and targets in [0, 1].  A file
            is .npy (memory-mapped, so it may be larger than memory), .npz (FILE.npz:KEY), or .csv or .csv.gz with a
            header (FILE.csv:COLUMN, by name or by index from 0); key and column may be left out where there is one.""",
        epilog="""The time is that of one pass over the arrays, GB/s the bytes of the arrays over it: for .npy it
            includes reading the file, for the others not.""",
        allow_abbrev=False,
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", help="a file of float16, float32 or float64")
    parser.add_argument("targets", metavar="TARGETS", help="a file of any real dtype, of the shape of PREDICTIONS")
    parser.add_argument("--logits", action="store_true", help="PREDICTIONS are logits: any numbers, infinite ones too")
    parser.add_argument(
        "--weight", metavar="W", help="factor of each loss: a number, or a file that broadcasts to PREDICTIONS"
    )
    parser.add_argument(
        "--pos-weight",
        metavar="P",
        help="factor of what the positive share of a target costs: a number, or a file that broadcasts to PREDICTIONS",
    )
    parser.add_argument(
        "--label-smoothing",
        metavar="A",
        default="0",
        help="in [0, 1]: a target Y counts as Y (1 - A) + A/2; default: 0",
    )
    parser.add_argument("--reduction", choices=("mean", "sum", "none"), default="mean", help="default: mean")
    parser.add_argument("--output", metavar="LOSSES.npy", help="where --reduction none writes the losses")
    parser.add_argument(
        "--no-validate",
        dest="validate",
        action="store_false",
        help="let a value outside [0, 1] give NaN instead of an error (a logit that is NaN always does)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object (a loss that is not finite as null)")
    parser.set_defaults(run=score)


def score(arguments: argparse.Namespace) -> str:
    """The loss of the arrays in two files.

    Parameters
    ----------
    arguments : argparse.Namespace
        `predictions`, `targets`, `logits`, `weight`, `pos_weight`, `label_smoothing`, `reduction`, `output`,
        `validate` and `json`, as the parser makes them.

    Returns
    -------
    str
        What to print.

    Raises
    ------
    Problem
        If a file, a column, a shape or a value is not what it must be.
    """
    reduction, output = arguments.reduction, arguments.output
    if (reduction == "none") != (output is not None):
        given = "--output without it" if output is not None else "no --output"
        raise Problem(f"--reduction none must go with --output LOSSES.npy; got {given}")
    job = Job(
        weight=_weight("--weight", arguments.weight),
        pos_weight=_weight("--pos-weight", arguments.pos_weight),
        label_smoothing=_label_smoothing(arguments.label_smoothing),
        predictions=read_array(arguments.predictions),
        targets=read_array(arguments.targets),
        logits=arguments.logits,
        validate=arguments.validate,
    )
    _check(job)
    count = job.predictions.array.size
    if count == 0 and reduction == "mean":
        raise Problem(f"a mean must be over one value or more; got none in {job.predictions.name}")
    if output is None:
        seconds, total = _compute(job, None)
        loss = total / count if reduction == "mean" else total
    else:
        seconds, loss = _write(output, job), math.nan
    read = sum(source.array.nbytes for source in job.sources())
    speed = read / seconds / 1e9
    if arguments.json:
        result = {"reduction": reduction, "loss": loss if math.isfinite(loss) else None, "output": output}
        return json.dumps(result | {"count": count, "bytes": read, "seconds": seconds, "gb_per_second": speed})
    first = {"loss": f"{loss!r} ({reduction})"} if output is None else {"losses": output}
    return _table(first | {"count": str(count), "time": _duration(seconds), "speed": f"{speed:.3g} GB/s"})


def _duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _weight(option: str, text: str | None) -> Source | float | None:
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return float(text)
    if not is_file_name(text):
        raise Problem(f"{option} must be a number or a .npy, .npz, .csv or .csv.gz file; got {text!r}")
    return read_array(text)


def _label_smoothing(text: str) -> float:
    with contextlib.suppress(ValueError):
        number = float(text)
        if 0 <= number <= 1:
            return number
    raise Problem(f"--label-smoothing must be a number in [0, 1]; got {text!r}")


def _check(job: Job) -> None:
    """Dtypes and shapes, in the words of the command line."""
    x, y = job.predictions, job.targets
    weights = {"weights": job.weight, "positive weights": job.pos_weight}
    if x.array.dtype.name not in ("float16", "float32", "float64"):
        raise Problem(f"predictions must have dtype float16, float32 or float64; got {x.array.dtype} in {x.name}")
    for what, source in {"targets": y, **weights}.items():
        if isinstance(source, Source) and not is_real(source.array.dtype):
            raise Problem(f"{what} must have a real dtype; got {source.array.dtype} in {source.name}")
    shape = x.array.shape
    if y.array.shape != shape:
        raise Problem(
            f"targets must have the shape of the predictions, {shape} in {x.name}; got {y.array.shape} in {y.name}"
        )
    for what, source in weights.items():
        if not isinstance(source, Source):
            continue
        try:
            np.broadcast_to(source.array, shape)
        except ValueError:
            raise Problem(
                f"{what} must broadcast to the shape of the predictions, {shape} in {x.name}; "
                f"got {source.array.shape} in {source.name}"
            ) from None


def _pieces(shape: tuple[int, ...], limit: int) -> Iterator[Index]:
    """Indices of pieces of at most `limit` elements that cover an array of `shape` in C order."""
    axis, inner = 0, math.prod(shape[1:])
    while inner > limit:
        axis += 1
        inner = math.prod(shape[axis + 1 :])
    if not shape:
        yield ()
        return
    step = max(1, limit // max(1, inner))
    rest = tuple(slice(0, extent) for extent in shape[axis + 1 :])
    for outer in np.ndindex(*shape[:axis]):
        before = tuple(slice(i, i + 1) for i in outer)
        for start in range(0, shape[axis], step):
            yield (*before, slice(start, min(start + step, shape[axis])), *rest)


def _shown(pieces: Iterator[Index], total: int) -> Generator[Index, None, None]:
    """The pieces, with a progress bar of the elements done if stderr is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield from pieces
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="", unit_scale=True, leave=False) as bar:
        for index in pieces:
            yield index
            bar.update(math.prod(cut.stop - cut.start for cut in index))


def _compute(job: Job, losses: Array | None) -> tuple[float, float]:
    """Go through all chunks; returns the seconds that it took and the sum of the losses."""
    _check_numba()
    shape = job.view(job.predictions.array).shape
    for index in _pieces(shape, min(CHUNK, WARM_UP)):
        job.loss(index, losses)
        break
    sums: list[float] = []
    start = time.perf_counter()
    # Closing takes the bar off the screen before an error is printed.
    with contextlib.closing(_shown(_pieces(shape, CHUNK), math.prod(shape))) as pieces:
        sums.extend(job.loss(index, losses) for index in pieces)
    seconds = time.perf_counter() - start
    with np.errstate(all="ignore"):
        return seconds, float(np.sum(sums))


def _write(output: str, job: Job) -> float:
    """Write the losses; the file has its name only once it is whole.  Returns the seconds that computing took."""
    # A link is kept, and what it points to replaced.
    path = Path(os.path.realpath(output))
    if path.suffix != ".npy":
        raise Problem(f"--output must end in .npy; got {output!r}")
    if path.is_dir():
        raise Problem(f"cannot write {output}: {os.strerror(errno.EISDIR)}")
    if any(path.exists() and path.samefile(source.path) for source in job.sources()):
        raise Problem(f"--output must be another file than the inputs; got {output}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    x = job.predictions.array
    try:
        # Laid out as the predictions, so that both are gone through from front to back.
        fortran = job.view(x) is not x
        losses = open_memmap(part, "w+", x.dtype.newbyteorder("="), x.shape, fortran_order=fortran)
        _reserve(part)
        seconds, _ = _compute(job, losses)
        losses.flush()
        del losses  # Windows renames no file that is mapped
        part.replace(path)
    except OSError as error:
        raise Problem(f"cannot write {output}: {one_line(error)}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return seconds


def _reserve(path: Path) -> None:
    """Take the disk space of a sparse file now: a full disk found while writing to the map would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # what some file systems answer
                    raise


# --- nbbce info ----------------------------------------------------------------------------------------------------


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="versions, threads, cache, targets and devices",
        description="""What nbbce runs with: versions, threads, the folder that compiled kernels are kept in,
            targets, and the driver and devices that were found.""",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=info)


def info(arguments: argparse.Namespace) -> str:
    """What nbbce runs with.

    Parameters
    ----------
    arguments : argparse.Namespace
        `json`, as the parser makes it.

    Returns
    -------
    str
        What to print.
    """
    _check_numba()
    import llvmlite
    import llvmlite.binding
    import numba

    from nbbce import _devices
    from nbbce._compile import FOLDER

    threads, layer = _threads()
    found = _devices.found()
    facts: dict[str, Any] = {
        "nbbce": nbbce.__version__,
        "python": platform.python_version(),
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "numpy": np.__version__,
        "processor": llvmlite.binding.get_host_cpu_name(),
        "threads": threads,
        "threading_layer": layer,
        "cache": None if FOLDER is None else str(FOLDER),
        "kernels": 0 if FOLDER is None else len(list(FOLDER.glob("*.nbc"))),
        "targets": {"cpu": "yes", "cuda": "yes" if found.devices else "no"},
        "numba_cuda": found.numba_cuda,
        "driver": found.driver,
    }
    if arguments.json:
        return json.dumps(facts | {"devices": [device._asdict() for device in found.devices]})
    facts["cache"] = facts["cache"] or "off"
    facts["targets"] = ", ".join(f"{name}: {answer}" for name, answer in facts["targets"].items())
    facts["numba_cuda"] = facts["numba_cuda"] or "not installed"
    facts["driver"] = facts["driver"] or ("none found" if found.looked else "not looked for")
    devices = {f"device {k}": str(device) for k, device in enumerate(found.devices)} or {"devices": found.missing}
    return _table({name.replace("_", " "): str(value) for name, value in (facts | devices).items()})


def _threads() -> tuple[int, str]:
    """How many threads a call uses, and Numba's threading layer: the one that runs, or why none does."""
    import numba

    try:
        return numba.get_num_threads(), numba.threading_layer()
    except Exception as error:
        return numba.config.NUMBA_NUM_THREADS, f"{numba.config.THREADING_LAYER}, which fails: {one_line(error)}"


# --- nbbce bench ---------------------------------------------------------------------------------------------------


def _count(text: str) -> int:
    """A number of things of which there must be one."""
    with contextlib.suppress(ValueError):
        if int(text) > 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number, 1 or above; got {text!r}")


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="how fast nbbce is here: against memory, and against others",
        description="""Times each function in turn with what it is compared with, in one process, and takes the least
            time of each.  A ratio is the time of the other over the time of nbbce: above 1, nbbce is the faster.""",
        epilog="""Without --rivals the only other is the NumPy one-liner.  Others are measured in float32 and float64.
            PyTorch and scikit-learn get as many threads as nbbce, JAX and Paddle as many as they take.  nbbce writes
            into arrays that are there; others, where they cannot, into memory that the process keeps.  On a device, by
            --target cuda, the device's own clock and the median count.""",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--target",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: arrays on the first device, against a copy there, and against others where installed; default: cpu",
    )
    parser.add_argument(
        "--size", metavar="N", type=_count, help="elements; default: 10000000, with --target cuda 50000000"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        metavar="DTYPE",
        choices=FLOATS,
        help=f"{', '.join(FLOATS)}; default: float32, with --target cuda all",
    )
    parser.add_argument("--threads", metavar="N", type=_count, help="default: what Numba uses")
    parser.add_argument("--repeats", metavar="N", type=_count, default=20, help="turns; default: 20")
    parser.add_argument(
        "--rivals",
        action="store_true",
        help="compare with PyTorch, JAX, Paddle and scikit-learn, where installed; --target cuda always does",
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw throughput over size under the roof of memory, and bars against others"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=bench)


def bench(arguments: argparse.Namespace) -> str:
    """How fast nbbce is.

    Parameters
    ----------
    arguments : argparse.Namespace
        `target`, `size`, `dtype`, `threads`, `repeats`, `rivals`, `plot` and `json`, as the parser makes them.

    Returns
    -------
    str
        What to print.

    Raises
    ------
    Problem
        If a package or a device is missing, or the plot cannot be written.
    """
    _check_numba()
    dtypes = list(dict.fromkeys(arguments.dtype or (FLOATS if arguments.target == "cuda" else ["float32"])))
    return (_bench_on_device if arguments.target == "cuda" else _bench_on_host)(arguments, dtypes)


def _bench_on_device(arguments: argparse.Namespace, dtypes: list[str]) -> str:
    from tqdm import tqdm

    from nbbce import _bench_cuda

    for option in ("threads", "plot"):
        if getattr(arguments, option) is not None:
            raise Problem(f"--{option} must go with --target cpu; got --target cuda")
    with tqdm(total=0, leave=False, disable=not _is_terminal()) as bar:
        figures = _bench_cuda.measure(arguments.size or _bench_cuda.SIZE, dtypes, arguments.repeats, bar)
    return json.dumps(figures) if arguments.json else _bench_cuda.table(figures)


def _bench_on_host(arguments: argparse.Namespace, dtypes: list[str]) -> str:
    import numba
    from tqdm import tqdm

    from nbbce import _bench, _bench_plots

    if arguments.plot is not None:  # what would be wrong after minutes of work
        _bench.needed("matplotlib", "--plot")
        if Path(arguments.plot).suffix != ".png":
            raise Problem(f"--plot must end in .png; got {arguments.plot!r}")
        if not Path(arguments.plot).parent.is_dir():
            raise Problem(f"cannot write {arguments.plot}: {os.strerror(errno.ENOENT)}")
    before, most = numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS
    if arguments.threads is not None and arguments.threads > most:
        raise Problem(f"--threads must be at most {most}, what Numba has here; got {arguments.threads}")
    numba.set_num_threads(arguments.threads or before)
    size, sweep = arguments.size or 10_000_000, arguments.plot is not None
    try:
        with tqdm(total=0, leave=False, disable=not _is_terminal()) as bar:
            figures = _bench.measure(size, dtypes, arguments.repeats, arguments.rivals, sweep, bar)
    finally:
        numba.set_num_threads(before)
    if sweep:
        _bench_plots.plot(figures, arguments.plot)
    return json.dumps(figures) if arguments.json else _bench.table(figures)


def _is_terminal() -> bool:
    """Whether a progress bar on stderr has a reader."""
    return sys.stderr is not None and sys.stderr.isatty()


# --- nbbce warmup --------------------------------------------------------------------------------------------------


def _add_warmup(commands: Any) -> None:
    parser = commands.add_parser(
        "warmup",
        help="compile kernels now, and keep them on disk",
        description="""Compiles and keeps the kernels of the calls named, so that later processes compile nothing: for
            every function, dtype, target and reduction together, with each choice of the arguments of --with.""",
        epilog="""NBBCE_CACHE names the folder that kernels are kept in; `nbbce info` shows it.  Kernels of devices are
            those of arrays that lie dense in memory; strided ones compile their own when they come.""",
        allow_abbrev=False,
    )
    names = sorted(nbbce.__all__)
    extras = ("weight", "pos_weight", "label_smoothing", "where", "axis", "out", "validate")
    parser.add_argument(
        "--target",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: kernels of devices, which needs no device; default: cpu",
    )
    parser.add_argument(
        "--arch",
        nargs="+",
        metavar="ARCH",
        help="with --target cuda: architectures, such as sm_90; default: those of the devices here",
    )
    parser.add_argument(
        "--function",
        nargs="+",
        metavar="NAME",
        choices=names,
        help=f"{', '.join(names)}; default: loss, and loss with gradient, of probabilities and of logits",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        metavar="DTYPE",
        choices=FLOATS,
        default=["float32", "float64"],
        help=f"of the predictions: {', '.join(FLOATS)}; default: float32 float64",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        metavar="DTYPE",
        default=["same", "bool", "int64"],
        help="dtypes of the labels, or same for that of the predictions; default: same bool int64",
    )
    parser.add_argument(
        "--reduction", nargs="+", choices=("mean", "sum", "none"), default=["mean", "none"], help="default: mean none"
    )
    parser.add_argument(
        "--with",
        dest="arguments",
        nargs="+",
        metavar="ARGUMENT",
        choices=extras,
        default=[],
        help=f"what calls will be given, alone or together: {', '.join(extras)}; default: none of these",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=warmup)


def warmup(arguments: argparse.Namespace) -> str:
    """Compile kernels and keep them.

    Parameters
    ----------
    arguments : argparse.Namespace
        `target`, `arch`, `function`, `dtype`, `labels`, `reduction`, `arguments` and `json`, as the parser makes them.

    Returns
    -------
    str
        What to print.

    Raises
    ------
    Problem
        If there is no cache to keep kernels in, a dtype is none, or no architecture can be compiled for.
    """
    _check_numba()
    from nbbce import _warmup
    from nbbce._compile import FOLDER

    if FOLDER is None:
        raise Problem("there is no cache folder to keep kernels in; see NBBCE_CACHE")
    for option, name in [("--dtype", n) for n in arguments.dtype] + [("--labels", n) for n in arguments.labels]:
        if name != "same":
            _check_dtype(option, name)
    todo = _warmup.calls(
        arguments.function or list(_warmup.COMMON),
        arguments.dtype,
        arguments.labels,
        arguments.reduction,
        arguments.arguments,
    )
    start = time.perf_counter()
    if arguments.target == "cuda":
        facts = _warm_devices(arguments, todo)
    elif arguments.arch is not None:
        raise Problem("--arch must go with --target cuda; got --target cpu")
    else:
        there = _warmup.kernels()
        _make_calls(todo)
        _warmup.compile_more()
        compiled = len(_warmup.kernels() - there)
        facts = {"calls": len(todo), "compiled": compiled, "there_before": len(there), "cache": str(FOLDER)}
    seconds = time.perf_counter() - start
    if arguments.json:
        return json.dumps(facts | {"seconds": seconds})
    return _table(
        {"calls": str(len(todo))}
        | ({"for": ", ".join(facts["arch"])} if "arch" in facts else {})
        | {"compiled": f"{facts['compiled']} kernels in {_duration(seconds)}", "kept in": facts["cache"]}
    )


def _make_calls(todo: list[Any], what: str = "", **options: Any) -> None:
    """Make calls of nbbce, each with `options` too if it does not have them."""
    from tqdm import tqdm

    from nbbce import _warmup

    with tqdm(todo, leave=False, disable=not _is_terminal()) as bar:
        for name, dtype, labels, own in bar:
            bar.set_description(f"{what}{name}, {dtype}")
            _warmup.make(name, dtype, labels, options | own)


def _warm_devices(arguments: argparse.Namespace, todo: list[Any]) -> dict[str, Any]:
    """Compile the kernels of calls for devices."""
    from nbbce import _devices

    if "axis" in arguments.arguments:
        raise Problem("--with axis must go with --target cpu; got --target cuda")
    found = _devices.found()
    if not found.looked:
        raise Problem(f"--target cuda needs numba-cuda; {found.missing}")
    archs = list(dict.fromkeys(arguments.arch or (device.arch for device in found.devices)))
    if not archs:
        raise Problem(f"--arch must name an architecture where there is no device; devices {found.missing}")
    from nbbce import _warmup_cuda

    capabilities = {arch: _warmup_cuda.capability_of(arch) for arch in archs}
    there = _warmup_cuda.kernels()
    for arch, capability in capabilities.items():
        with _warmup_cuda.compiling(capability):
            _make_calls(todo, f"{arch}: ", validate=False)
    compiled = len(_warmup_cuda.kernels() - there)
    facts = {"calls": len(todo), "compiled": compiled, "there_before": len(there), "arch": archs}
    return facts | {"cache": str(_warmup_cuda.folder())}


def _check_dtype(option: str, name: str) -> None:
    with contextlib.suppress(ImportError):
        import ml_dtypes  # noqa: F401  # gives NumPy the dtype bfloat16
    try:
        found = np.dtype(name)
    except TypeError:
        raise Problem(f"{option} must be real dtypes that NumPy has; got {name!r}") from None
    if not is_real(found):
        raise Problem(f"{option} must be real dtypes that NumPy has; got {name!r}")
