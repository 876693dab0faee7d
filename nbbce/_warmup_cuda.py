"""What `nbbce warmup --target cuda` does: makes the calls that a user names on arrays that are nowhere.

All but the launch is done as for arrays on a device, so that the kernels that are compiled are those that calls ask
for.  No device is needed, and none is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from nbbce import _compile_cuda, _cuda, functional
from nbbce._call import Call
from nbbce._device_arrays import DeviceArray, Library
from nbbce._elements_cuda import Spec
from nbbce._files import Problem, one_line

Capability = tuple[int, int]
ARRAYS = (
    *("input", "target", "weight", "pos_weight", "where", "grad_output"),
    *("value_out", "gradient_out", "hessian_out"),
)


class Nowhere(Library):
    """A library whose arrays have a place, but no memory there."""

    name = "nowhere"

    def view(self, array: Any) -> DeviceArray:
        return array if isinstance(array, DeviceArray) else self.array(array.shape, array.strides, array.dtype)

    def array(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """An array; its address is a multiple of all, as those that libraries allocate."""
        return DeviceArray(0, shape, strides, dtype, 0, self, None)

    def stream(self, device: int) -> int:
        return 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        return self.view(np.empty(shape, dtype))

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype[Any], like: DeviceArray, stream: int) -> Any:
        return self.view(np.empty(shape, dtype))


@contextmanager
def compiling(capability: Capability) -> Iterator[None]:
    """Let calls on NumPy arrays compile and keep the kernels of a device, and compute nothing."""
    library = Nowhere()

    def loaded(spec: Spec, device: int) -> None:
        try:
            _compile_cuda.machine_code(spec, capability)
        except Exception as error:  # of Numba, NVVM or the linker, as the architecture is too old or too new for each
            arch = f"sm_{capability[0]}{capability[1]}"
            raise Problem(f"{arch} cannot be compiled for: {one_line(error)}") from None

    compiler = SimpleNamespace(
        loaded=loaded,
        resident=lambda kernel, threads: 1,
        run=lambda *arguments: None,
        fetch=lambda address, shape, dtype, stream: _cuda.NOWHERE,  # all is in its domain
        multiprocessors=lambda device: 1,
        converts_pairs=lambda device: capability >= (8, 0),
        is_capturing=lambda stream: False,
    )

    def run(call: Call) -> tuple[Any, Any]:
        arrays: dict[str, Any] = {name: getattr(call, name) for name in ARRAYS}
        for name, array in arrays.items():
            if array is not None:
                setattr(call, name, library.view(array))
        results = _cuda._run(call, _cuda._Launch(call))
        value, gradient, hessian = (None if array is None else np.empty(array.shape, array.dtype) for array in results)
        return (gradient, hessian) if call.wants_hessian else (value, gradient)

    with (
        mock.patch.object(_cuda, "compiler", compiler),
        mock.patch.object(_cuda, "_kernels", {}),  # those of this architecture alone
        mock.patch.object(functional, "_run", run),
    ):
        yield


def capability_of(arch: str) -> Capability:
    """The compute capability of an architecture such as sm_90."""
    found = re.fullmatch(r"sm_(\d+)(\d)", arch)
    if found is None:
        raise Problem(f"--arch must be architectures such as sm_90; got {arch!r}")
    return int(found[1]), int(found[2])


def folder() -> Path | None:
    """The folder that kernels are kept in."""
    return _compile_cuda._folder()


def kernels() -> set[Path]:
    """The kernels on disk."""
    kept = folder()
    return set() if kept is None else set(kept.glob("*.cubin"))
