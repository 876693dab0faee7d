"""`mindspore.mint.nn.functional.binary_cross_entropy` and its twin of logits, on arrays."""

from __future__ import annotations

from typing import Any

from nbbce import functional
from nbbce._call import LOGITS, checked
from nbbce.compat._checks import dtype_of

__all__ = ["binary_cross_entropy", "binary_cross_entropy_with_logits"]

_NAME = f"{__name__}.binary_cross_entropy"
_WITH_LOGITS = f"{_NAME}_with_logits"
_DTYPES = ("float16", "float32")
_DTYPES_WITH_LOGITS = ("float16", "bfloat16", "float32")


def binary_cross_entropy(input: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """Binary cross-entropy as MindSpore's ``mint.nn.functional.binary_cross_entropy`` takes its arguments.

    Parameters
    ----------
    input : array of float16 or float32
        Predicted probabilities, in [0, 1].
    target : array
        Wanted probabilities, in [0, 1], of the shape and dtype of `input`.
    weight : array of float16 or float32, optional
        Factor of each element's loss; broadcasts to the shape of `input`.
    reduction : {'mean', 'sum', 'none'}, default: 'mean'
        What to return: the mean of the losses over all elements, also when `weight` is given; their sum; the losses.

    Returns
    -------
    NumPy scalar or array
        Of the dtype of `input`; with ``reduction='none'`` an array of its shape, otherwise one number.

    Raises
    ------
    TypeError
        If `input`, `target` or `weight` is no array or has another dtype, or `target` not the dtype of `input`.
    ValueError
        If `reduction` is unknown, a shape does not fit, or a value is outside [0, 1] (a RuntimeError in MindSpore,
        which looks at `input` alone).

    See Also
    --------
    nbbce.binary_cross_entropy : Takes more kinds of arrays, and numbers as weights.

    Notes
    -----
    Where MindSpore adds 1e-12 inside each logarithm, nbbce takes the logarithm itself, held at -100 or above: losses
    differ where a probability is below 1e-5 or so, and a fully wrong answer costs 100, not 27.6.  One element,
    no element and a weight that is broadcast give what MindSpore documents and not what its CPU kernel computes.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce.compat.mindspore import binary_cross_entropy
    >>> input = np.array([0.2, 0.7, 0.1], np.float32)
    >>> target = np.array([0.0, 1.0, 0.0], np.float32)
    >>> weight = np.array([1, 2, 2], np.float32)
    >>> print(binary_cross_entropy(input, target, weight))
    0.38240483

    MindSpore prints 0.38240486, which is the next float32; the exact value is 0.382404837...
    """
    wanted, got = dtype_of(_NAME, "input", input, _DTYPES), dtype_of(_NAME, "target", target, _DTYPES)
    if weight is not None:
        dtype_of(_NAME, "weight", weight, _DTYPES)
    if got != wanted:
        raise TypeError(f"{_NAME}: 'target' must have the dtype of 'input', {wanted}; got {got}")
    return functional._run(checked(_NAME, input, target, weight, reduction))[0]


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """Binary cross-entropy as MindSpore's ``mint.nn.functional.binary_cross_entropy_with_logits`` takes its arguments.

    Parameters
    ----------
    input : array of float16, bfloat16 or float32
        Logits: any numbers, infinite ones too.
    target : array of float16, bfloat16 or float32
        Wanted probabilities, in [0, 1], of the shape of `input`.
    weight : array of float16, bfloat16 or float32, optional
        Factor of each element's loss; broadcasts to the shape of `input`.
    reduction : {'mean', 'sum', 'none'}, default: 'mean'
        What to return: the mean of the losses over all elements, also when `weight` is given; their sum; the losses.
    pos_weight : array of float16, bfloat16 or float32, optional
        Factor of what the positive share of a label costs; broadcasts to the shape of `input` (one value a class).

    Returns
    -------
    NumPy scalar or array
        Of the dtype of `input`; with ``reduction='none'`` an array of its shape, otherwise one number.

    Raises
    ------
    TypeError
        If `input`, `target`, `weight` or `pos_weight` is no array or has another dtype.
    ValueError
        If `reduction` is unknown, a shape does not fit, or a target is outside [0, 1] (MindSpore takes any, and those
        of its own example reach from -0.6 to 2.2).

    See Also
    --------
    nbbce.binary_cross_entropy_with_logits : Takes more kinds of arrays, and numbers as weights.

    Notes
    -----
    In float32 MindSpore's loss of a right answer is 0 from logits of 17 on, and with a target of 1 its derivative too;
    here both are true, 4e-8 at 17.  An infinite logit gives NaN there, here 0 on the right side and infinity on the
    wrong one.  The result has the dtype of `input`, as MindSpore documents; its kernel returns that of `target`.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce.compat.mindspore import binary_cross_entropy_with_logits
    >>> input = np.array([[-0.8, 1.2, 0.7], [-0.1, -0.4, 0.7]], np.float32)
    >>> target = np.array([[0.3, 0.8, 1.0], [0.0, 0.1, 1.0]], np.float32)
    >>> pos_weight = np.array([1, 2, 1], np.float32)
    >>> print(binary_cross_entropy_with_logits(input, target, pos_weight=pos_weight))
    0.5700158

    MindSpore prints 0.5700157, which is the float32 below; the exact value is 0.570015773...
    """
    operands = {"input": input, "target": target, "weight": weight, "pos_weight": pos_weight}
    for name, operand in operands.items():
        if operand is not None or name in ("input", "target"):
            dtype_of(_WITH_LOGITS, name, operand, _DTYPES_WITH_LOGITS)
    return functional._run(checked(_WITH_LOGITS, **operands, reduction=reduction, family=LOGITS))[0]
