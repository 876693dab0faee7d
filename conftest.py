"""What doctest does not import where packages are not installed: those of devices, as on macOS, and PyTorch."""

import importlib.util

NEEDED = {
    "nbbce/_*cuda*.py": ("numba_cuda", "cuda", "array_api_compat"),
    "nbbce/_device_arrays.py": ("numba_cuda", "cuda", "array_api_compat"),
    "nbbce/torch.py": ("torch",),
}
collect_ignore_glob = [files for files, names in NEEDED.items() if not all(map(importlib.util.find_spec, names))]
