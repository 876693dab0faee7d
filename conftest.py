"""What doctest does not import where the packages of devices are not installed, as on macOS."""

import importlib.util

NEEDED = ("numba_cuda", "cuda", "array_api_compat")
collect_ignore_glob = (
    [] if all(map(importlib.util.find_spec, NEEDED)) else ["nbbce/_*cuda*.py", "nbbce/_device_arrays.py"]
)
