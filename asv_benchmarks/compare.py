"""Is a commit slower than another?  Exits 1 if a call takes more than a factor longer.

    python asv_benchmarks/compare.py main HEAD
    python asv_benchmarks/compare.py main HEAD --factor 1.2 --cells 'cross_entropy mean .* small'

Two processes, one a commit, run the same call in turn, repetition by repetition, and the least time of each counts:
what slows the machine slows both.  What is beyond the factor is measured again by new processes, which have other
memory, and counts if it is beyond it each time.  A cell is a function, a reduction, a dtype, labels, a size and
threads, in this order and with a space between.  What one of the commits lacks is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
TURNS, TRIES = 50, 3
SECONDS = 0.0005  # a timing is of as many calls as take so long: other programs leave many of them alone

Cell = tuple[str, ...]


class Commit:
    """A process that runs the nbbce of one commit, and times a call when it is told to."""

    def __init__(self, checkout: Path) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "NBBCE_CACHE": str(checkout / "kernels"),
            # Threads that wait for work must not take the cores from the other process.
            "OMP_WAIT_POLICY": "passive",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(checkout)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: Any) -> Any:
        """Its answer to one line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that runs a commit has ended, with exit status {self.process.wait()}")
        return json.loads(answer)

    def end(self) -> None:
        """Let the process go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(checkout: Path) -> None:
    """What the process of a commit does: read a cell and set it up, or a number of calls and time them."""
    from benchmarks.common import call_of

    import nbbce

    assert Path(nbbce.__file__).is_relative_to(checkout), f"{nbbce.__file__} is not of this commit"
    call: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, int):
            start = time.perf_counter()
            for _ in range(question):
                call()
            answer: Any = (time.perf_counter() - start) / question
        else:
            try:
                call = call_of(*question)
                answer = True
            except NotImplementedError:
                answer = False
        print(json.dumps(answer), flush=True)


@contextlib.contextmanager
def running(checkouts: tuple[Path, Path]) -> Iterator[list[Commit]]:
    """A process for each of two commits."""
    commits = [Commit(checkout) for checkout in checkouts]
    try:
        yield commits
    finally:
        for commit in commits:
            commit.end()


def slowdown(commits: list[Commit], cell: Cell) -> float | None:
    """Least time of the second commit over that of the first; None if one of them lacks the call."""
    if not all([commit.ask(cell) for commit in commits]):
        return None
    once = min(commits[0].ask(1) for _ in range(3))  # the first compiles
    calls = max(1, math.ceil(SECONDS / once))
    least = [math.inf, math.inf]
    for _ in range(TURNS):
        for k, commit in enumerate(commits):
            least[k] = min(least[k], commit.ask(calls))
    return least[1] / least[0]


def check_out(commit: str, folder: Path) -> Path:
    """The files of a commit, in a folder of their own: the working tree and git's index stay as they are."""
    name = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    if not name:
        raise SystemExit(f"compare.py: BASE and HEAD must be commits; got {commit!r}")
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", name, "nbbce"], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def cells(pattern: str) -> list[Cell]:
    """The cells that are compared, of those whose name the pattern is found in."""
    sys.path.append(str(ROOT))  # the list of functions stands where nbbce is imported; it need not be installed
    from benchmarks.common import FUNCTIONS

    whole = [
        *itertools.product(FUNCTIONS, ["mean", "none"], ["float32", "float64"], ["0/1", "soft"], ["cache"], ["one"]),
        *itertools.product(FUNCTIONS, ["mean", "none"], ["float32"], ["0/1"], ["small"], ["one"]),
        *itertools.product(FUNCTIONS, ["mean"], ["float32"], ["soft"], ["cache", "memory"], ["all"]),
    ]
    return [cell for cell in whole if re.search(pattern, " ".join(cell))]


def compare(base: str, head: str, factor: float, pattern: str) -> int:
    """Print the slowdown of each cell; the number of those beyond the factor."""
    chosen = cells(pattern)
    if not chosen:
        raise SystemExit(f"compare.py: --cells must be found in the name of a cell; got {pattern!r}")
    with tempfile.TemporaryDirectory() as folder:
        checkouts = check_out(base, Path(folder, "base")), check_out(head, Path(folder, "head"))
        found: dict[Cell, float] = {}
        with running(checkouts) as commits:
            for cell in tqdm(chosen, leave=False, disable=not sys.stderr.isatty()):
                ratio = slowdown(commits, cell)
                if ratio is None:
                    print(f"  {' '.join(cell):90s} left out: not in both commits", flush=True)
                else:
                    found[cell] = ratio
        for _ in range(TRIES - 1):
            again = [cell for cell, ratio in found.items() if ratio > factor]
            if again:
                with running(checkouts) as commits:
                    for cell in again:
                        found[cell] = min(found[cell], slowdown(commits, cell) or math.inf)
    for cell, ratio in found.items():
        print(f"{'-' if ratio > factor else ' '} {' '.join(cell):90s} {ratio:6.2f} times the time")
    if not found:
        raise SystemExit("compare.py: nothing to compare: no cell is in both commits")
    slower = sum(ratio > factor for ratio in found.values())
    print(f"{slower} of {len(found)} calls take more than {factor} times as long as in {base}")
    return slower


def main() -> int:
    """Compare two commits, or be the process of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", metavar="BASE", help="the commit to compare with")
    parser.add_argument("head", nargs="?", metavar="HEAD", default="HEAD", help="default: HEAD")
    parser.add_argument("--factor", type=float, default=1.3, help="how many times as long is too long; default: 1.3")
    parser.add_argument("--cells", metavar="REGEX", default="", help="compare those whose name it is found in")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    if arguments.base is None:
        parser.error("BASE is missing")
    return min(1, compare(arguments.base, arguments.head, arguments.factor, arguments.cells))


if __name__ == "__main__":
    sys.exit(main())
