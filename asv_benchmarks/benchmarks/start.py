"""How long a process takes to its first result."""

import os
import subprocess
import sys
import tempfile

CALL = "import numpy as np, nbbce; a = np.full(100_000, 0.5, np.float32); nbbce.binary_cross_entropy(a, a)"


class Import:
    """What `import nbbce` takes beyond `import numpy`."""

    rounds = 1
    repeat = 10

    def timeraw_import(self) -> tuple[str, str]:
        return "import nbbce", "import numpy"


class FirstCall:
    """The first call of a process, whose kernels are in the cache, or are not and are compiled."""

    params = (["warm", "cold"],)
    param_names = ("cache",)
    rounds = 1
    repeat = 3

    def setup(self, cache: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        if cache == "warm":
            subprocess.run([sys.executable, "-c", CALL], env=os.environ | {"NBBCE_CACHE": self.folder.name}, check=True)

    def teardown(self, cache: str) -> None:
        self.folder.cleanup()

    def timeraw_first_call(self, cache: str) -> tuple[str, str]:
        # A folder of its own for each cold process: the first of them fills it.
        folder = repr(self.folder.name) if cache == "warm" else f"tempfile.mkdtemp(dir={self.folder.name!r})"
        return CALL, f"import os, tempfile; os.environ['NBBCE_CACHE'] = {folder}"
