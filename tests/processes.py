"""A test file as a script: what it prints in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from nbbce import __file__ as package


def printed_by(file, *arguments, **environment):
    """What the script `file` prints, as JSON; it finds the package and this folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(package).parents[1])} | environment
    done = subprocess.run(
        [sys.executable, file, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
