"""`mindspore.mint.nn.functional.binary_cross_entropy`, on arrays."""

from __future__ import annotations

from typing import Any

from nbbce import functional
from nbbce._call import checked
from nbbce.compat._checks import checked_array

__all__ = ["binary_cross_entropy"]

_NAME = f"{__name__}.binary_cross_entropy"
_DTYPES = ("float16", "float32")


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
    NumPy scalar or numpy.ndarray
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
    x = checked_array(_NAME, "input", input, _DTYPES)
    y = checked_array(_NAME, "target", target, _DTYPES)
    w = None if weight is None else checked_array(_NAME, "weight", weight, _DTYPES)
    if y.dtype != x.dtype:
        raise TypeError(f"{_NAME}: 'target' must have the dtype of 'input', {x.dtype}; got {y.dtype}")
    return functional._run(checked(_NAME, x, y, w, reduction, None, None, None, None, None, True, False))[0]
