"""How large the compiled loops are that sum a block, and how many instructions they run for one element.

Of the kernels of devices the instructions are counted in their text: no device is needed.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np

LOOPS = [
    "hard_sum_float32_float",
    "hard_sum_float32_byte",
    "hard_sum_float64_float",
    "sum_float32",
    "sum_float64",
    "logits_product_sum_float32",
    "logits_sum_float32",
    "logits_sum_float64",
    "focal_sum_float32",
    "focal_sum_float64",
]
# As tools/sass.py names them.
KERNELS = [
    "none, float32",
    "none, bfloat16",
    "none of logits, float32",
    "mean, float32",
    "mean, float64",
    "mean of logits, float32",
    "gradient of logits, float32",
    "value and gradient, float32",
]
TRACEME, SINGLESTEP = 0, 9  # as Linux numbers the requests of ptrace
# What the loops are called with: addresses of x, y, w; the scale, or which piece it is; results, elements, scratch.
PARAMETERS = (ctypes.c_int64,) * 3 + (ctypes.c_double,) + (ctypes.c_int64,) * 3
ONLY_PIECE = 3.0
FOCAL = 2.0, 0.25, 0.75  # gamma and what alpha makes, which stand 32 bytes before the scratch memory
BEFORE = 128  # bytes before the scratch memory that are there to be read
SHORT, LONG = 1024, 4096
TRIES = 3  # Python's own steps differ from one process to the next, by up to some hundred


def steps(function: Any, arguments: tuple[Any, ...]) -> int:
    """Instructions that a child process runs until it has called `function` and is gone."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes, ptrace.restype = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p], ctypes.c_long
    child = os.fork()
    if child == 0:
        ptrace(TRACEME, 0, None, None)
        function(*arguments)  # once before the count, so that Python has all at hand that a call needs
        os.kill(os.getpid(), signal.SIGSTOP)
        function(*arguments)
        os._exit(0)
    count, (_, status) = 0, os.waitpid(child, 0)
    while os.WIFSTOPPED(status):
        if ptrace(SINGLESTEP, child, None, None) != 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise NotImplementedError("this system lets no process be stepped through")
        count += 1
        _, status = os.waitpid(child, 0)
    return count


class SumLoops:
    """The loops behind sums and means, without their callers."""

    params = (["cpu"], LOOPS)
    param_names = ("target", "loop")

    def setup(self, target: str, loop: str) -> None:
        from nbbce import _generated_cpu

        native = getattr(_generated_cpu, loop, None)
        if native is None:
            raise NotImplementedError(f"this nbbce has no {loop}")
        # Compiled anew: what comes from the cache has no module that could be looked at.
        self.compiled = numba.cfunc(native.signature, error_model="numpy")(native.function)

    def track_bytes(self, *_: str) -> int:
        library = self.compiled._library
        code = library._codegen._tm.emit_object(library._final_module)
        return sum(s.size() for s in llvmlite.binding.ObjectFileRef.from_data(code).sections() if s.is_text())

    def track_instructions(self, target: str, loop: str) -> float:
        if not sys.platform.startswith("linux"):
            raise NotImplementedError("instructions are counted by ptrace, as Linux has it")
        x = np.full(LONG, 0.3, "float64" if "float64" in loop else "float32")
        y = np.zeros(LONG, "uint8" if "byte" in loop else x.dtype)
        # Products and hard sums are of labels 0 and 1, the others of any.
        y[:] = 1 if "hard" in loop or "product" in loop else 0.25
        scratch = np.zeros(100_000)
        scratch[(BEFORE - 32) // 8 :][:3] = FOCAL
        function = ctypes.CFUNCTYPE(ctypes.c_double, *PARAMETERS)(self.compiled.address)
        where = x.ctypes.data, y.ctypes.data, 0, ONLY_PIECE, 0
        calls = [(*where, count, scratch.ctypes.data + BEFORE) for count in (SHORT, LONG)]
        if not np.isfinite([function(*arguments) for arguments in calls]).all():
            raise NotImplementedError("this loop is called in another way")
        # The difference leaves out all that does not come once an element, Python's own steps too.
        short, long = (min(steps(function, arguments) for _ in range(TRIES)) for arguments in calls)
        return (long - short) / (LONG - SHORT)

    track_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_instructions.unit = "instructions"  # type: ignore[attr-defined]


class DeviceKernels:
    """Kernels of a device of compute capability 9.0."""

    params = (["cuda"], KERNELS)
    param_names = ("target", "kernel")

    def setup(self, target: str, kernel: str) -> None:
        folder = str(Path(__file__).parents[2] / "tools")
        if folder not in sys.path:
            sys.path.append(folder)
        try:
            import sass

            self.sass, (self.spec, _) = sass, sass.main_kernels()[kernel]
            sass.nvdisasm()
        except (ImportError, FileNotFoundError) as error:
            raise NotImplementedError(str(error)) from None

    def track_sass(self, target: str, kernel: str) -> float:
        loops = self.sass.reading_loops(self.spec)
        if not loops:
            raise NotImplementedError("its loop is of another shape")
        # The first is that of labels 0 and 1, where they have one of their own.
        loop, elements = loops[0]
        return float(loop.count() / elements)

    track_sass.unit = "instructions"  # type: ignore[attr-defined]
