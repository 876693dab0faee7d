"""The public functions: signature, docstring, one call each."""

from __future__ import annotations

from typing import Any

from nbbce._call import Call, checked

__all__ = ["binary_cross_entropy", "binary_cross_entropy_grad", "binary_cross_entropy_value_and_grad"]


def _run(call: Call) -> tuple[Any, Any]:
    # Imported on the first call: Numba takes 0.3 s, and `import nbbce` must not.
    from nbbce._cpu import run

    return run(call)


def binary_cross_entropy(input, target, weight=None, reduction="mean", *, where=None, dtype=None, out=None, validate=None):
    return _run(checked("binary_cross_entropy", input, target, weight, reduction, where=where, dtype=dtype, out=out, validate=validate))[0]


def binary_cross_entropy_grad(input, target, weight=None, reduction="mean", *, grad_output=None, where=None, dtype=None, out=None, validate=None):
    return _run(checked("binary_cross_entropy_grad", input, target, weight, reduction, grad_output=grad_output, where=where, dtype=dtype, out=out, validate=validate, wants_value=False, wants_gradient=True))[1]


def binary_cross_entropy_value_and_grad(input, target, weight=None, reduction="mean", *, grad_output=None, where=None, dtype=None, out=None, validate=None):
    return _run(checked("binary_cross_entropy_value_and_grad", input, target, weight, reduction, grad_output=grad_output, where=where, dtype=dtype, out=out, validate=validate, wants_gradient=True))
