"""How a kernel becomes code for a device, is kept on disk, and is launched.

numba-cuda is in maintenance mode, so what touches its internals is here, each use with its reason; so is what touches
the driver.  A kernel is compiled to PTX by Numba and linked to the code of one architecture; from then on it belongs
to cuda.core, whose launch takes plain integers and floats: a tenth of the time of Numba's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import threading
import types as python_types
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import cuda.bindings.driver as driver
import llvmlite
import numba_cuda
import numpy as np
from cuda.core import Device, Event, EventOptions, LaunchConfig, Linker, LinkerOptions, ObjectCode, Stream, launch
from cuda.core.utils import StridedMemoryView
from numba.cuda import compiler, descriptor, dispatcher, types

from nbbce._blocks_cuda import kernel
from nbbce._compile import FOLDER
from nbbce._devices import result_of
from nbbce._elements_cuda import ADDRESSES, NUMBERS, SIZES, THREADS, Spec

SOURCES = (
    "_axes_cuda.py",
    "_blocks_cuda.py",
    "_compile_cuda.py",
    "_elements_cuda.py",
    "_generated_cuda.py",
    "_primitives_cuda.py",
)
# Packages of the toolkit that makes code, as they are called for CUDA 13 and for 12.
TOOLKIT = ("cuda-bindings", "nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink-cu12")
NAME = "nbbce_kernel"
CHECK = 32  # bytes of the digest that a file begins with: of what a crash has left, a driver would make an error

# Thread blocks that a multiprocessor is to run at once, which bounds the registers of a thread: 72 with seven, 96 with
# five, 128 with four, 168 with three.  On an H100 these were the fastest of three to five for sums: of logits and of
# gradients some registers more are worth more than a thread block.  A kernel that does not fit is linked again with one
# fewer, so that none keeps a register in memory.
BLOCKS_OF_EACH, BLOCKS_OF_SUM, BLOCKS_OF_FLOAT64, FEWEST_BLOCKS = 7, 5, 4, 2


def blocks_of(spec: Spec) -> int:
    """Thread blocks of a kernel that a multiprocessor is to run at once."""
    if spec.family == "focal_":
        return FEWEST_BLOCKS  # two links of 5 s each would be one too many
    if spec.computed == "float64":
        return BLOCKS_OF_FLOAT64
    if spec.task == "sum":
        return BLOCKS_OF_SUM - spec.derived - (spec.family == "logits_")
    return BLOCKS_OF_SUM if spec.task in ("rows", "columns") else BLOCKS_OF_EACH


def signature(spec: Spec) -> tuple[Any, ...]:
    """Numba's types of a kernel's arguments."""
    layout = types.UniTuple(types.int64, spec.numbers_in_layout)
    return (types.int64,) * (ADDRESSES + SIZES) + (types.float64,) * NUMBERS + (layout,)


# Of two threads that pretend at once, the one that ends last would leave the other's device behind.
_compiling = threading.Lock()


@cache
def _load_registries() -> None:
    """Let numba-cuda load what it compiles with.

    Version 0.30.4 looks for `np.row_stack` then, which NumPy 2.5 has no more, and would compile nothing.
    """
    known = getattr(np, "row_stack", np.vstack)
    with mock.patch.object(np, "row_stack", known, create=True):
        descriptor.cuda_target.typing_context.refresh()


def ptx_of(spec: Spec, capability: tuple[int, int]) -> str:
    """The PTX of a kernel for a compute capability.  Needs no device and no driver."""
    # numba-cuda asks the current device for its capability when a kernel calls a function, even if it is told one.
    pretended = python_types.SimpleNamespace(compute_capability=capability, supports_bfloat16=True, id=0)
    with _compiling, mock.patch.object(dispatcher, "get_current_device", lambda: pretended):
        _load_registries()
        # What compile_ptx does, but for the option below, for which it has no name.
        library, _ = compiler._compile_pyfunc_with_fixup(
            kernel(spec),
            signature(spec),
            debug=False,
            opt=True,
            device=False,
            abi="numba",
            cc=capability,
            launch_bounds=(THREADS, blocks_of(spec)),
        )
        # NVVM contracts a * b + c to an fma unless told not to, and then the bits would not be those of the CPU.
        library._nvvm_options["fma"] = False
        (text,) = library.get_asm_strs(cc=capability)
    (name,) = re.findall(r"\.visible \.entry (\w+)\(", text)
    return str(text.replace(name, NAME))


def code_of(ptx: str, capability: tuple[int, int]) -> bytes:
    """Machine code of that PTX for one architecture."""
    options = LinkerOptions(arch=f"sm_{capability[0]}{capability[1]}", ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    code = bytes(linker.link("cubin").code)
    (blocks,) = map(int, re.findall(r"\.minnctapersm (\d+)", ptx))
    if blocks > FEWEST_BLOCKS and not re.search(r"\b0 bytes stack frame", linker.get_info_log()):
        return code_of(ptx.replace(f".minnctapersm {blocks}", f".minnctapersm {blocks - 1}"), capability)
    return code


@cache
def _folder() -> Path | None:
    """Where compiled kernels are kept: beside those of the CPU, in a folder named by all that decides their code."""
    if FOLDER is None:
        return None
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    for version in (sys.version, numba_cuda.__version__, llvmlite.__version__):
        digest.update(version.encode())
    for package in TOOLKIT:
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{package}={metadata.version(package)}".encode())
    folder = FOLDER.with_name(f"cuda-{digest.hexdigest()[:16]}")
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    return folder


def machine_code(spec: Spec, capability: tuple[int, int]) -> bytes:
    """Machine code of a kernel, from disk if it was compiled before."""
    folder = _folder()
    digest = hashlib.sha256(repr((spec, capability)).encode()).hexdigest()[:24]
    path = None if folder is None else folder / f"{spec.task}-{digest}.cubin"
    if path is not None:
        with contextlib.suppress(OSError):
            kept = path.read_bytes()
            if hashlib.sha256(kept[CHECK:]).digest() == kept[:CHECK]:
                return kept[CHECK:]
    code = code_of(ptx_of(spec, capability), capability)
    if path is not None:
        with contextlib.suppress(OSError):  # a full disk costs a compilation in the next process, not the answer
            handle, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            Path(temporary).replace(path)  # at once, so that no process sees half of it
    return code


_here = contextlib.nullcontext()


def on_device(index: int) -> contextlib.AbstractContextManager[None]:
    """Work on a device, and leave the caller's the current one."""
    error, current = driver.cuCtxGetDevice()
    return _here if error == driver.CUresult.CUDA_SUCCESS and int(current) == index else _made_current(index)


@contextlib.contextmanager
def _made_current(index: int) -> Iterator[None]:
    """The same where another device is current, or none, or this one, made so by a library: cuda.core wants to know."""
    error, before = driver.cuCtxGetCurrent()
    Device(index).set_current()
    try:
        yield
    finally:
        if error == driver.CUresult.CUDA_SUCCESS and int(before):
            driver.cuCtxSetCurrent(before)


@cache
def multiprocessors(device: int) -> int:
    """Multiprocessors of a device."""
    return int(Device(device).properties.multiprocessor_count)


@cache
def _capability(device: int) -> tuple[int, int]:
    capability = Device(device).compute_capability
    return int(capability.major), int(capability.minor)


def converts_pairs(device: int) -> bool:
    """Whether a device converts two floats to 16 bits in one instruction."""
    return _capability(device) >= (8, 0)


def resident(kernel: Any, threads: int) -> int:
    """Thread blocks of a kernel that a multiprocessor runs at once."""
    return max(1, int(kernel.occupancy.max_active_blocks_per_multiprocessor(threads, 0)))


@cache
def loaded(spec: Spec, device: int) -> Any:
    """The kernel on a device."""
    return ObjectCode.from_cubin(machine_code(spec, _capability(device))).get_kernel(NAME)


@cache
def _stream(device: int, handle: int) -> Stream:
    """The stream of a handle, where 0 stands for the default one as 1 does; making one takes 9 us."""
    return Stream.from_handle(handle or 1)


@lru_cache(maxsize=1000)  # of each size of losses there is one
def _config(grid: int, threads: int) -> LaunchConfig:
    return LaunchConfig(grid=grid, block=threads)


def run(kernel: Any, device: int, stream: int, grid: int, threads: int, arguments: Sequence[Any]) -> None:
    """Launch a kernel on a stream of a device, which must be the current one."""
    launch(_stream(device, stream), _config(grid, threads), kernel, *arguments)


def is_capturing(stream: int) -> bool:
    """Whether what is launched on a stream is being recorded to a graph."""
    error, status = driver.cuStreamIsCapturing(driver.CUstream(stream))
    active = driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
    return bool(error == driver.CUresult.CUDA_SUCCESS and status == active)


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any], device: int, stream: int) -> Any:
    """Memory of our own, as an array that others take by DLPack."""
    with _made_current(device):
        size = max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        buffer = Device(device).allocate(size, stream=_stream(device, stream))
    return StridedMemoryView.from_buffer(buffer, shape, dtype=dtype)


def _ask(name: str, *arguments: Any) -> Any:
    """What a function of the driver returns; its error, which may be that of an earlier launch, as an exception."""
    return result_of(driver, getattr(driver, name)(*arguments))


def synchronise(stream: int) -> None:
    """Wait until what is on a stream so far is done."""
    _ask("cuStreamSynchronize", driver.CUstream(stream))


def fill(address: int, values: np.ndarray[Any, Any], stream: int) -> None:
    """Copy values from the host, which are there when this returns."""
    _ask("cuMemcpyHtoDAsync", address, values.ctypes.data, values.nbytes, driver.CUstream(stream))
    synchronise(stream)


def fetch(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], stream: int) -> np.ndarray[Any, Any]:
    """Values from the memory of a device, brought to the host once the stream has come there."""
    values = np.empty(shape, dtype)
    _ask("cuMemcpyDtoHAsync", values.ctypes.data, address, values.nbytes, driver.CUstream(stream))
    synchronise(stream)
    return values


def let_wait(waiting: int, working: int, device: int) -> None:
    """Let one stream wait for what is on another so far; the host waits for neither."""
    if waiting != working:
        with on_device(device):
            _stream(device, waiting).wait(_stream(device, working))


_in_use: deque[tuple[Event, Any]] = deque()
_in_use_lock = threading.Lock()


def keep_until_done(device: int, stream: int, arrays: Any) -> None:
    """Keep arrays whose library does not know of our stream until what is on it so far is done."""
    done = []  # dropped when the lock is free again: what then ends may come here itself
    with _in_use_lock:
        while _in_use and _in_use[0][0].is_done:
            done.append(_in_use.popleft())
    with on_device(device):
        _in_use.append((_stream(device, stream).record(options=EventOptions(timing_enabled=False)), arrays))
