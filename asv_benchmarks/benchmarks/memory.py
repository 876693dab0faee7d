"""What a sum allocates: at most 1 MiB, whatever the size of its inputs."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from .common import DTYPES, LABELS, LOSSES, SIZES, TARGETS, arrays, function_of, set_threads

MIB = 2**20
FILL = "import sys; sys.path.insert(0, sys.argv[1]); from benchmarks.memory import Sums; Sums().warm(*sys.argv[2:])"


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Sums:
    """A sum of arrays in memory; `peakmem_sum` is to be what `peakmem_inputs_alone` is."""

    params = (TARGETS, LOSSES, DTYPES, LABELS)
    param_names = ("target", "function", "dtype", "labels")

    def setup(self, target: str, function: str, dtype: str, labels: str) -> None:
        self.function = function_of(function)
        # What compiling takes is not what a sum takes: another process compiles, this one reads the cache.
        folder = str(Path(__file__).parents[1])
        subprocess.run([sys.executable, "-c", FILL, folder, function, dtype, labels], check=True)
        self.warm(function, dtype, labels)
        self.x, self.y = arrays(function, dtype, labels, SIZES["memory"])

    def warm(self, function: str, dtype: str, labels: str) -> None:
        """Run it on arrays that are large enough for all threads."""
        set_threads("all")
        function_of(function)(*arrays(function, dtype, labels, SIZES["cache"]), reduction="sum")

    def peakmem_inputs_alone(self, *_: str) -> None:
        pass

    def peakmem_sum(self, *_: str) -> None:
        self.function(self.x, self.y, reduction="sum")

    def track_allocated(self, *_: str) -> float:
        ballast, before = [], peak()
        # Memory is filled until the peak moves: from then on it is what is held now.
        while peak() == before:
            ballast.append(np.ones(MIB // 8, np.uint8))
        before = peak()
        self.function(self.x, self.y, reduction="sum")
        return (peak() - before) / MIB

    track_allocated.unit = "MiB"  # type: ignore[attr-defined]
