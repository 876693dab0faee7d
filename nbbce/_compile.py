"""How a kernel becomes machine code: lazily, once, and kept on disk in a folder of our own.

Numba's own cache stays stale when a function in *another* file changes, and two processes that fill it at once
have crashed (numba#4807, #10128).  Here the folder's name is a digest of everything that can change the code, so
nothing in it is ever stale, and a miss is compiled under a file lock, so that of many processes one compiles.

What it needs of Numba's internals: its `CFunc`, its dispatcher's `_cache`, its cache classes, and the lock under which
it compiles.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import llvmlite
import numba
import numpy as np
import platformdirs
from numba.core import sigutils
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, _CacheLocator
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock

from nbbce._primitives_cpu import COPIER, MAKER, WALKER

# Everything that a kernel is compiled from.
SOURCES = ("_axes.py", "_blocks_cpu.py", "_columns_cpu.py", "_compile.py", "_generated_cpu.py", "_primitives_cpu.py")
# Numba settings that change the code it makes.  Processor name and features are part of Numba's own index key.
SETTINGS = (
    "BOUNDSCHECK",
    "DEBUG",
    "DEBUGINFO_DEFAULT",
    "DISABLE_INTEL_SVML",
    "ENABLE_AVX",
    "LOOP_VECTORIZE",
    "OPT",
    "SLP_VECTORIZE",
)
# A process that waits this long for another's compilation (1 to 3 s) compiles for itself.
LOCK_SECONDS = 60.0

if numba.config.DISABLE_JIT:  # pragma: no cover
    raise ImportError("nbbce compiles its kernels with Numba; unset NUMBA_DISABLE_JIT")


def _digest() -> str:
    """A digest of all that decides what machine code a kernel becomes."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    for version in (sys.version, numba.__version__, llvmlite.__version__, np.__version__):
        digest.update(version.encode())
    for name in SETTINGS:
        digest.update(f"{name}={getattr(numba.config, name, None)!s}".encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """The folder that kernels are kept in, or None for no cache.

    ``NBBCE_CACHE`` names another folder, or is ``0`` for none.  A folder that cannot be made or written is no
    error, nor is a user without a home: kernels are then compiled in each process.
    """
    setting = os.environ.get("NBBCE_CACHE", "")
    if setting == "0":
        return None
    try:
        users = Path(setting or platformdirs.user_cache_dir("nbbce", appauthor=False))
        folder = users.expanduser().absolute() / _digest()  # also once the process has gone elsewhere
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: "Could not determine home directory"
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


FOLDER = cache_folder()


class _Locator(_CacheLocator):  # type: ignore[misc]
    """Tells Numba where one function's files go.  The folder's name is the stamp."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_cache_path(self) -> str:
        return str(FOLDER)

    def get_source_stamp(self) -> str:
        assert FOLDER is not None
        return FOLDER.name

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _Locator:
        return cls(py_func.__qualname__)


class _Files(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, with a lock from a miss until `release`."""

    _impl_class = _Files

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        assert FOLDER is not None
        self._lock = filelock.FileLock(FOLDER / f"{function.__qualname__}.lock", timeout=LOCK_SECONDS)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        found = self._quietly(super().load_overload, signature, target_context)
        if found is None:
            self._quietly(self._lock.acquire)
            # Another process may have compiled it while this one waited.
            found = self._quietly(super().load_overload, signature, target_context)
        return found

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except Exception:
            # Numba reads the index before it writes, and fails on a broken one: start it anew.
            self._quietly(self.flush)
            self._quietly(super().save_overload, signature, data)

    def release(self) -> None:
        """Let others have the lock, whether the compilation came to an end or was broken off."""
        self._lock.release(force=True)

    @staticmethod
    def _quietly(action: Callable[..., Any], *arguments: Any) -> Any:
        """A full disk, a broken file or a lock that cannot be had costs a compilation, not the answer."""
        try:
            return action(*arguments)
        except Exception:
            return None


class _NoCache(NullCache):  # type: ignore[misc]
    def release(self) -> None:
        """There is no lock."""


def _cache_of(function: Callable[..., Any]) -> Any:
    return _NoCache() if FOLDER is None else _Cache(function)


class _Lazy:
    """What is compiled when it is first asked for, by one thread."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.function, self.signature = function, signature
        self.__doc__ = function.__doc__
        self._compiled: Any = None

    @property
    def is_compiled(self) -> bool:
        """Whether it has been asked for."""
        return self._compiled is not None

    def compile(self) -> Any:
        """What Numba makes of this function."""
        if self._compiled is None:
            # Numba's own lock, as nobody forks while it is held (see _cpu.py): a child would inherit another one held.
            with global_compiler_lock:
                if self._compiled is None:
                    self._compiled = self._compile(_cache_of(self.function))
        return self._compiled

    def _compile(self, cache: Any) -> Any:
        raise NotImplementedError


class Native(_Lazy):
    """A function that is compiled to a C function."""

    def _compile(self, cache: Any) -> Any:
        signature = sigutils.normalize_signature(self.signature)
        callback: Any = CFunc(self.function, signature, locals={}, options={"error_model": "numpy"})
        callback._cache = cache
        try:
            callback.compile()
        finally:
            cache.release()
        return callback

    @property
    def address(self) -> int:
        """Address of the C function."""
        return int(self.compile().address)


class Entry(_Lazy):
    """A function that Python calls, by `run`, without the GIL.

    Its types are known, so `run` is what Numba compiles and not the dispatcher, which looks at the type of each
    argument first: 0.14 us of the 3 that a call takes on one element.
    """

    def __init__(self, function: Callable[..., Any], signature: Any, **options: Any) -> None:
        super().__init__(function, signature)
        self._options = options
        self.run: Callable[..., Any] = self._first_run

    def _compile(self, cache: Any) -> Any:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **self._options)(self.function)
        dispatcher._cache = cache
        try:
            return dispatcher.compile(self.signature)
        finally:
            cache.release()

    def _first_run(self, *arguments: Any) -> Any:
        self.run = self.compile()
        return self.run(*arguments)


def maker(function: Callable[..., Any]) -> Native:
    """A loop over one block: reads x, y and w, and returns a number or fills `out`."""
    return Native(function, MAKER)


def copier(function: Callable[..., Any]) -> Native:
    """A conversion from one strided place to another."""
    return Native(function, COPIER)


def walker(function: Callable[..., Any]) -> Native:
    """What walks a run of blocks.  Compiled apart from the entries, so not once for each of them."""
    return Native(function, WALKER)


def entry(signature: str, **options: Any) -> Callable[[Callable[..., Any]], Entry]:
    """What Python calls with arguments of the types of `signature`; `options` are those of `numba.njit`."""

    def decorate(function: Callable[..., Any]) -> Entry:
        return Entry(function, signature, **options)

    return decorate
