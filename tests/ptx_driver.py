"""A CUDA driver made of tests/ptx.py, for numba-cuda and cuda.core: what they ask of libcuda, in Python.

So all that nbbce does on a device runs without one: launches with their arguments in the driver's form, memory, streams
and events.  The device's memory is of the host, and work is done when it is asked for; a stream that is captured is not
known.  What is loaded as machine code must be PTX.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import device_code
import ptx

SUCCESS, INVALID_VALUE, INVALID_CONTEXT, NOT_SUPPORTED, FAILED = 0, 1, 201, 801, 999
# Numbers of CUdevice_attribute: threads of a block, of a warp, multiprocessors, unified addresses, compute capability,
# memory pools.  Those of CUpointer_attribute: memory of a device, which is the first.
ATTRIBUTES = {1: 1024, 10: 32, 16: 2, 41: 1, 75: 9, 76: 0, 115: 1}
POINTER = {2: 2, 9: 0}
CONTEXT, POOL, TOTAL = 0xC0, 0xD0, 1 << 36

memory = ptx.Memory(TOTAL)
handles = itertools.count(0x1000, 0x10)
allocated: dict[int, int] = {}
"""Bytes by address."""
loaded: dict[int, ptx.Kernel] = {}
"""Kernels by the handle of their library."""
current: list[int] = []
"""The stack of contexts."""


def _write(address: int, value: int, size: int = 8) -> None:
    ctypes.memmove(address, (value % 2 ** (8 * size)).to_bytes(size, "little"), size)


def _read(address: int, size: int = 8) -> int:
    return int.from_bytes(ctypes.string_at(address, size), "little")


def _make(address: int) -> None:
    """A new handle."""
    _write(address, next(handles))


def _allocate(address: int, size: int) -> None:
    found = memory.allocate(size, unwritten=True).ctypes.data
    allocated[found] = size
    _write(address, found)


def _is_written(address: int, size: int) -> None:
    """The host has written there, if it is the memory of the device."""
    start = address - memory.base
    if 0 <= start < TOTAL:
        memory.unwritten[start : start + size] = False


def _copy(to: int, source: int, size: int) -> None:
    ctypes.memmove(to, source, size)
    _is_written(to, size)


def _fill(address: int, value: int, size: int) -> None:
    ctypes.memset(address, value & 0xFF, size)
    _is_written(address, size)


def _load(library: int, code: int) -> None:
    _make(library)
    loaded[_read(library)] = ptx.parse(ctypes.string_at(code).decode())


def _launch(configuration: int, kernel: int, parameters: int) -> None:
    """Run a kernel; `parameters` is an array of addresses of arguments, of which the kernel knows types and number."""
    grid, grid_y, grid_z, threads, threads_y, threads_z = (_read(configuration + 4 * k, 4) for k in range(6))
    assert grid_y == grid_z == threads_y == threads_z == 1
    arguments: list[Any] = []
    for k, kind in enumerate(loaded[kernel].parameters.values()):
        place = _read(parameters + 8 * k)
        arguments.append(ctypes.c_double.from_address(place).value if kind == "f64" else _read(place))
    ptx.run(loaded[kernel], memory, grid, threads, arguments)


def _set(context: int) -> None:
    if current:
        current.pop()
    if context:
        current.append(context)


def _memory(free: int, total: int) -> None:
    _write(free, TOTAL - sum(allocated.values()))
    _write(total, TOTAL)


# By the name of the driver's function, without its version.  Results are written to addresses, mostly the first ones;
# who returns a number means an error of the driver.
FUNCTIONS: dict[str, Callable[..., int | None]] = {
    "cuInit": lambda *_: None,
    "cuDriverGetVersion": lambda version, *_: _write(version, 13000, 4),
    "cuDeviceGetCount": lambda count, *_: _write(count, 1, 4),
    "cuDeviceGet": lambda device, *_: _write(device, 0, 4),
    "cuDeviceGetAttribute": lambda value, attribute, *_: _write(value, ATTRIBUTES.get(attribute & 0xFFFF, 0), 4),
    "cuDeviceGetName": lambda name, *_: _write(name, int.from_bytes(b"tests/ptx.py", "little"), 16),
    "cuDeviceGetUuid": lambda uuid, *_: _write(uuid, 1, 16),
    "cuDeviceTotalMem": lambda size, *_: _write(size, TOTAL),
    "cuDevicePrimaryCtxRetain": lambda context, *_: _write(context, CONTEXT),
    "cuDevicePrimaryCtxRelease": lambda *_: None,
    "cuCtxGetCurrent": lambda context, *_: _write(context, current[-1] if current else 0),
    "cuCtxSetCurrent": lambda context, *_: _set(context),
    "cuCtxPushCurrent": lambda context, *_: current.append(context),
    "cuCtxPopCurrent": lambda context, *_: _write(context, current.pop()),
    "cuCtxGetDevice": lambda device, *_: _write(device, 0, 4) if current else INVALID_CONTEXT,
    "cuCtxSynchronize": lambda *_: None,
    "cuMemGetInfo": lambda free, total, *_: _memory(free, total),
    "cuMemAlloc": lambda address, size, *_: _allocate(address, size),
    "cuMemFree": lambda address, *_: None if allocated.pop(address, None) is not None else INVALID_VALUE,
    "cuDeviceGetMemPool": lambda pool, *_: _write(pool, POOL),
    "cuDeviceGetDefaultMemPool": lambda pool, *_: _write(pool, POOL),
    "cuMemPoolGetAttribute": lambda pool, attribute, value, *_: _write(value, 0),
    "cuMemPoolSetAttribute": lambda *_: None,
    "cuMemPoolSetAccess": lambda *_: None,
    "cuMemcpyHtoD": lambda to, source, size, *_: _copy(to, source, size),
    "cuMemsetD8Async": lambda to, value, size, *_: _fill(to, value, size),
    "cuPointerGetAttribute": lambda value, attribute, *_: _write(value, POINTER[attribute & 0xFFFF], 4),
    "cuStreamCreate": lambda stream, *_: _make(stream),
    "cuStreamDestroy": lambda *_: None,
    "cuStreamSynchronize": lambda *_: None,
    "cuStreamWaitEvent": lambda *_: None,
    "cuStreamGetCtx": lambda stream, context, *_: _write(context, CONTEXT),
    "cuStreamIsCapturing": lambda stream, status, *_: _write(status, 0, 4),
    "cuEventCreate": lambda event, *_: _make(event),
    "cuEventRecord": lambda *_: None,
    "cuEventQuery": lambda *_: None,
    "cuEventSynchronize": lambda *_: None,
    "cuEventElapsedTime": lambda milliseconds, *_: _write(milliseconds, 0x3F800000, 4),  # 1.0
    "cuEventDestroy": lambda *_: None,
    "cuLibraryLoadData": lambda library, code, *_: _load(library, code),
    "cuLibraryUnload": lambda *_: None,
    "cuLibraryGetKernel": lambda kernel, library, *_: _write(kernel, library),
    "cuKernelGetFunction": lambda function, kernel, *_: _write(function, kernel),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": lambda count, *_: _write(count, 2, 4),
    "cuLaunchKernelEx": lambda configuration, kernel, parameters, *_: _launch(configuration, kernel, parameters),
}
for copy in ("cuMemcpyDtoH", "cuMemcpyDtoD", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync"):
    FUNCTIONS[copy] = FUNCTIONS["cuMemcpyHtoD"]
FUNCTIONS["cuMemAllocFromPoolAsync"] = FUNCTIONS["cuMemAllocAsync"] = FUNCTIONS["cuMemAlloc"]
FUNCTIONS["cuMemFreeAsync"] = FUNCTIONS["cuMemFree"]
FUNCTIONS["cuStreamCreateWithPriority"] = FUNCTIONS["cuStreamCreate"]


def _function(name: bytes) -> int:
    """The address of a driver's function: cuda.bindings asks for each once."""
    known = re.sub(r"(_v\d+|_ptsz|_ptds)+$", "", name.decode())
    if known in instead:
        return instead[known]
    function = FUNCTIONS.get(known)

    def called(*arguments: int, ended: list[bool] = ended, done: int = SUCCESS) -> int:
        if ended:  # Python has forgotten the names of this module, and libraries still free what they have
            return done
        if function is None:
            print(f"{name.decode()} is not in tests/ptx_driver.py", file=sys.stderr)
            return NOT_SUPPORTED
        try:
            return function(*arguments) or SUCCESS
        except BaseException:
            traceback.print_exc()
            return FAILED

    kept.append(ENTRY(called))
    return ctypes.cast(kept[-1], ctypes.c_void_p).value or 0


instead: dict[str, int] = {}
"""Addresses of functions of C."""
ended: list[bool] = []
atexit.register(ended.append, True)
ENTRY = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint64] * 6)
kept: list[Any] = [ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(_function)]


def install(launching: bool = True) -> None:
    """Let this be the driver of the process, before anything asks for one; `launching`: kernels run."""
    with tempfile.TemporaryDirectory() as folder:
        path, source = Path(folder) / "libcuda.so.1", Path(__file__).with_name("libcuda.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(path), str(source)], check=True)
        library = ctypes.CDLL(
            str(path), ctypes.RTLD_GLOBAL
        )  # one of that name is there now, and no other is looked for
    if not launching:
        for name, entry in (("cuLaunchKernelEx", library.launch_nothing), ("cuCtxGetDevice", library.first_device)):
            instead[name] = ctypes.cast(entry, ctypes.c_void_p).value or 0
    library.set_functions(kept[0])
    from nbbce import _compile_cuda

    def machine_code(spec: Any, capability: tuple[int, int]) -> bytes:
        return device_code.ptx_of(spec, capability).encode()

    _compile_cuda.machine_code = machine_code
