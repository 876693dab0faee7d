"""What is not imported for its doctests where packages are missing: those of devices, as on macOS, and PyTorch."""

import importlib.util

OF_DEVICES = ("numba_cuda", "cuda", "array_api_compat")
NEEDED = {
    "nbbce/_*cuda*.py": OF_DEVICES,
    "nbbce/_device_arrays.py": OF_DEVICES,
    "nbbce/torch.py": ("torch",),
    "tests/device_code.py": OF_DEVICES,
    "tests/ptx_d*.py": OF_DEVICES,
}
collect_ignore_glob = [files for files, names in NEEDED.items() if not all(map(importlib.util.find_spec, names))]
