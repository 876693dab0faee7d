"""Tensors of PyTorch and arrays of JAX in the memory of the host: that memory as NumPy sees it, and results in kind.

A library is met through an array of it, so it is there already; none is imported for its own sake.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from nbbce._arrays import Array, bfloat16, kind_of


class HostLibrary:
    """What nbbce asks of an array library."""

    name = ""
    writes = True
    """Whether its arrays are written to."""
    takes_all = True
    """Whether it takes over all memory without a copy, not only that from `empty`."""

    def holds(self, array: Any) -> bool:
        """Whether the array is in the memory of the host."""
        raise NotImplementedError

    def view(self, array: Any) -> Array:
        """The memory of the array, or what is raised if NumPy cannot see it."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory that the library takes over without a copy."""
        return np.empty(shape, dtype)

    def taken(self, result: Any, like: Any) -> Any:
        """A result as an array of the library, where `like` is."""
        raise NotImplementedError

    def note_written(self, array: Any) -> None:
        """Let the library know that an array of the caller's has been written to."""


class Torch(HostLibrary):
    """PyTorch.  Results do not require a gradient."""

    name = "torch"

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def holds(self, array: Any) -> bool:
        return bool(array.is_cpu)

    def view(self, array: Any) -> Array:
        tensor = array.detach() if array.requires_grad else array
        if tensor.dtype == self.torch.bfloat16:  # which PyTorch gives to NumPy under no name
            return np.asarray(tensor.view(self.torch.int16).numpy().view(bfloat16()))
        return np.asarray(tensor.numpy())

    def taken(self, result: Any, like: Any) -> Any:
        values = np.asarray(result)
        if kind_of(values.dtype) == "bfloat16":
            return self.torch.from_numpy(values.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(values)

    def note_written(self, array: Any) -> None:
        self.torch.autograd.graph.increment_version(array)  # or a gradient that needs what was there would be wrong


class Jax(HostLibrary):
    """JAX.  Without its option for 64 bits, what is float64 becomes float32, as everywhere there."""

    name = "jax"
    writes = takes_all = False
    # JAX copies memory that begins elsewhere: 10 million float32 in 20 ms, where their losses take 3.5.
    ALIGNMENT = 64

    def __init__(self, jax: Any) -> None:
        self.jax = jax

    def holds(self, array: Any) -> bool:
        try:
            return all(device.platform == "cpu" for device in array.devices())
        except Exception:  # of an array that is traced, which has none; what NumPy says of it tells what it is
            return False

    def view(self, array: Any) -> Array:
        return np.asarray(array)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        size = math.prod(shape) * dtype.itemsize
        memory = np.empty(size + self.ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % self.ALIGNMENT
        return memory[start : start + size].view(dtype).reshape(shape)

    def taken(self, result: Any, like: Any) -> Any:
        # As results of JAX's own: where the input is if that was asked for, and else where JAX will.
        asked_for = like.committed and (len(like.devices()) == 1 or result.shape == like.shape)
        return self.jax.device_put(result, like.sharding) if asked_for else self.jax.device_put(result)


LIBRARIES = {"torch": ("Tensor", Torch), "jax": ("Array", Jax)}
"""By the name of the module: the name of its type of arrays there, and what is asked of it."""
_library_of_type: dict[type, HostLibrary | None] = {}
"""Of the types that were met so far.  One type of PyTorch is that of tensors in any memory."""


def library_of(array: object) -> HostLibrary | None:
    """The library of an array in the memory of the host, if it is one of these."""
    kind = type(array)
    try:
        library = _library_of_type[kind]
    except KeyError:
        library = _library_of_type[kind] = _library_that_has(array)
    return library if library is not None and library.holds(array) else None


def _library_that_has(array: object) -> HostLibrary | None:
    for module_name, (name, make) in LIBRARIES.items():
        module = sys.modules.get(module_name)
        if module is not None and isinstance(array, getattr(module, name, ())):
            return make(module)
    return None


def in_kind(library: HostLibrary, like: Any, out: Any, results: tuple[Any, Any]) -> tuple[Any, Any]:
    """Results as arrays of the library: the caller's own, where `out` has one, and new ones beside `like`."""
    own = out if type(out) is tuple else (out, out)
    found: list[Any] = [None, None]
    for k, (result, given) in enumerate(zip(results, own, strict=True)):
        if result is not None and given is not None:
            library.note_written(given)
            found[k] = given
        elif result is not None:
            found[k] = library.taken(result, like)
    return found[0], found[1]
