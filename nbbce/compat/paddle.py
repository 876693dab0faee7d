"""`paddle.nn.functional.binary_cross_entropy` and its twin of logits, on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbce import functional
from nbbce._call import LOGITS, checked
from nbbce.compat._checks import dtype_of

__all__ = ["binary_cross_entropy", "binary_cross_entropy_with_logits"]

_NAME = f"{__name__}.binary_cross_entropy"
_WITH_LOGITS = f"{_NAME}_with_logits"
_DTYPES = ("float16", "float32", "float64")


def binary_cross_entropy(
    input: Any, label: Any, weight: Any = None, reduction: str = "mean", name: str | None = None
) -> Any:
    """Binary cross-entropy as Paddle's ``nn.functional.binary_cross_entropy`` takes its arguments.

    Parameters
    ----------
    input : array of float16, float32 or float64
        Predicted probabilities, in [0, 1].
    label : array of float16, float32 or float64
        Wanted probabilities, in [0, 1], of the shape of `input`.
    weight : array of float16, float32 or float64, optional
        Factor of each element's loss; broadcasts to the shape of `input`.
    reduction : {'mean', 'sum', 'none'}, default: 'mean'
        What to return: the mean of the losses over all elements, also when `weight` is given; their sum; the losses.
    name : str, optional
        Not used; Paddle names the operation in its graph with it.

    Returns
    -------
    NumPy scalar or array
        With ``reduction='none'`` an array of the shape of `input`, otherwise one number; of the dtype of `input`, or
        of `weight` if that is wider.

    Raises
    ------
    TypeError
        If `input`, `label` or `weight` is no array or has another dtype.
    ValueError
        If `reduction` is unknown, a shape does not fit (also that of a `weight` larger than `input`, by which Paddle
        enlarges its result), or a value is outside [0, 1] (Paddle looks at `input` alone).

    See Also
    --------
    nbbce.binary_cross_entropy : Takes more kinds of arrays, and numbers as weights.

    Notes
    -----
    Each logarithm is held at -100 or above, which is Paddle's rule too.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce.compat.paddle import binary_cross_entropy
    >>> input = np.array([0.5, 0.6, 0.7], np.float32)
    >>> label = np.array([1.0, 0.0, 1.0], np.float32)
    >>> print(binary_cross_entropy(input, label))
    0.65537095
    """
    dtype = dtype_of(_NAME, "input", input, _DTYPES)
    dtype_of(_NAME, "label", label, _DTYPES)
    if weight is not None:
        dtype = np.result_type(dtype, dtype_of(_NAME, "weight", weight, _DTYPES))
    # Our word for Paddle's `label` is `target`.  Without a dtype the call may be known from before.
    own = None if weight is None else dtype
    call = checked(_NAME, input, label, weight, reduction, dtype=own, target_name="label")
    return functional._run(call)[0]


def binary_cross_entropy_with_logits(
    logit: Any,
    label: Any,
    weight: Any = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    name: str | None = None,
) -> Any:
    """Binary cross-entropy as Paddle's ``nn.functional.binary_cross_entropy_with_logits`` takes its arguments.

    Parameters
    ----------
    logit : array of float16, float32 or float64
        Logits: any numbers, infinite ones too.
    label : array of float16, float32 or float64
        Wanted probabilities, in [0, 1], of the shape of `logit`.
    weight : array of float16, float32 or float64, optional
        Factor of each element's loss; broadcasts to the shape of `logit`.
    reduction : {'mean', 'sum', 'none'}, default: 'mean'
        What to return: the mean of the losses over all elements, also when `weight` is given; their sum; the losses.
    pos_weight : array of float16, float32 or float64, optional
        Factor of what the positive share of a label costs; broadcasts to the shape of `logit` (one value a class).
    name : str, optional
        Not used; Paddle names the operation in its graph with it.

    Returns
    -------
    NumPy scalar or array
        With ``reduction='none'`` an array of the shape of `logit`, otherwise one number; of the dtype of `logit`, or
        of `weight` if that is wider.

    Raises
    ------
    TypeError
        If `logit`, `label`, `weight` or `pos_weight` is no array or has another dtype.
    ValueError
        If `reduction` is unknown, a shape does not fit (also that of a `weight` larger than `logit`, by which Paddle
        enlarges its result), or a label is outside [0, 1] (Paddle takes any).

    See Also
    --------
    nbbce.binary_cross_entropy_with_logits : Takes more kinds of arrays, and numbers as weights.
    nbbce.binary_cross_entropy_with_logits_grad : The derivative; Paddle's on the CPU is wrong where a logit is 0.

    Notes
    -----
    Paddle takes the loss of an element whose label is -100 for 0, undocumented, and divides a mean by it all the same;
    here such a label is a ValueError (`where` of `nbbce.binary_cross_entropy_with_logits` leaves elements out).  In
    float32 Paddle's loss of a right answer is 0 from logits of 17 on, 4e-8 here; and that of an infinite logit is NaN,
    here 0 on the right side and infinity on the wrong one.

    Examples
    --------
    >>> import numpy as np
    >>> from nbbce.compat.paddle import binary_cross_entropy_with_logits
    >>> logit = np.array([5.0, 1.0, 3.0], np.float32)
    >>> label = np.array([1.0, 0.0, 1.0], np.float32)
    >>> print(binary_cross_entropy_with_logits(logit, label))
    0.45618814

    Paddle prints 0.45618808, two float32 below; the exact value is 0.456188129...
    """
    dtype = dtype_of(_WITH_LOGITS, "logit", logit, _DTYPES)
    dtype_of(_WITH_LOGITS, "label", label, _DTYPES)
    if pos_weight is not None:
        dtype_of(_WITH_LOGITS, "pos_weight", pos_weight, _DTYPES)
    if weight is not None:
        dtype = np.result_type(dtype, dtype_of(_WITH_LOGITS, "weight", weight, _DTYPES))
    call = checked(
        _WITH_LOGITS,
        logit,
        label,
        weight,
        reduction,
        family=LOGITS,
        pos_weight=pos_weight,
        dtype=None if weight is None else dtype,
        target_name="label",
        input_name="logit",
    )
    return functional._run(call)[0]
