"""What `nbbce warmup` does: makes the calls that a user names, so that their kernels are compiled and kept on disk."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import nbbce
from nbbce import _blocks_cpu, _columns_cpu, _compile, _vectors_cpu

COMMON = (
    "binary_cross_entropy",
    "binary_cross_entropy_value_and_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_value_and_grad",
)
SHAPE = (40, 40)  # along the first axis these are columns: a small group (see _axes.GROUP) would be rows
ABSENT = object()
# The values of each argument that lead to kernels of their own, for predictions of a dtype.  For `out` it is what the
# call without it returned.
ARGUMENTS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "weight": lambda dtype: (np.ones(SHAPE, dtype), np.ones(SHAPE)),
    "pos_weight": lambda dtype: (2.0, np.ones(SHAPE, dtype), np.ones(SHAPE)),
    "label_smoothing": lambda dtype: (0.1,),
    "where": lambda dtype: (np.ones(SHAPE, bool),),
    "axis": lambda dtype: (0, 1),
    "out": lambda dtype: (True,),
    "validate": lambda dtype: (True,),
}


def calls(
    functions: list[str], dtypes: list[str], targets: list[str], reductions: list[str], arguments: list[str]
) -> list[tuple[str, str, str, dict[str, Any]]]:
    """The calls to make: function, dtypes of input and target, keyword arguments."""
    found = []
    for name, dtype, target, reduction in itertools.product(functions, dtypes, targets, reductions):
        taken = inspect.signature(getattr(nbbce, name)).parameters
        given = [a for a in arguments if a in taken and not (a == "axis" and reduction == "none")]
        for values in itertools.product(*((ABSENT, *ARGUMENTS[argument](dtype)) for argument in given)):
            options = {k: value for k, value in zip(given, values, strict=True) if value is not ABSENT}
            found.append((name, dtype, dtype if target == "same" else target, {"reduction": reduction} | options))
    return found


def make(name: str, dtype: str, target: str, options: dict[str, Any]) -> None:
    """One call, on a few elements: what is compiled depends on types and arguments, not on values or sizes."""
    function: Any = getattr(nbbce, name)
    x, y = np.full(SHAPE, 0.5, np.dtype(dtype)), np.ones(SHAPE, np.dtype(target))
    into = "out" in options
    options = {argument: value for argument, value in options.items() if argument != "out"}
    result = function(x, y, **options)
    if into:
        kept = tuple(a if isinstance(a, np.ndarray) else None for a in (result if type(result) is tuple else (result,)))
        if any(a is not None for a in kept):
            function(x, y, **options, out=kept if type(result) is tuple else kept[0])


def compile_more() -> None:
    """Compile what other labels, more elements or more threads need: the calls made have few of each."""
    _vectors_cpu.compile_all()
    for serial, parallel in (
        (_blocks_cpu.run_serial, _blocks_cpu.run_parallel),
        (_columns_cpu.run_columns_serial, _columns_cpu.run_columns_parallel),
    ):
        if serial.is_compiled:
            parallel.compile()


def kernels() -> set[Path]:
    """The kernels on disk."""
    return set() if _compile.FOLDER is None else set(_compile.FOLDER.glob("*.nbc"))
