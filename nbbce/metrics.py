"""scikit-learn's `log_loss` for two classes, by its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbce import functional
from nbbce._arguments import checked_array, described
from nbbce._call import checked
from nbbce._host_arrays import library_of

__all__ = ["log_loss"]

_NAME = f"{__name__}.log_loss"


def log_loss(
    y_true: Any,
    y_proba: Any,
    *,
    normalize: bool = True,
    sample_weight: Any = None,
    labels: Any = None,
) -> float:
    """Log loss of two classes as scikit-learn's ``metrics.log_loss`` takes its arguments.

    The mean over the samples of ``-(y * log(p) + (1 - y) * log(1 - p))``, weighted by `sample_weight`, where ``y`` is 1
    for the positive class and ``p`` the probability of it that was predicted.

    Parameters
    ----------
    y_true : array or list, of shape (samples,)
        The class of each sample.  Without `labels` 0 or 1, False or True, or its probability in [0, 1], which
        scikit-learn does not take; in lists, in arrays of NumPy and in pandas also strings, of which there must be
        two, as if `labels` named them.
    y_proba : array or list of floats, of shape (samples,), (samples, 1) or (samples, 2)
        Predicted probabilities of the positive class; of two columns it is the last one.
    normalize : bool, default: True
        Whether to divide by the number of samples, or by the sum of their weights.
    sample_weight : array or list, of shape (samples,), optional
        Weight of each sample.
    labels : array or list of two, optional
        The classes.  The positive one is the one that is sorted last.

    Returns
    -------
    float
        The loss.

    Raises
    ------
    TypeError
        If an argument is neither an array nor a list, or a dtype is none of a probability or of a weight.
    ValueError
        If shapes do not fit, there is no sample, there are not two classes, a class is not among `labels`, the
        weights add up to 0, or a value is outside [0, 1].

    See Also
    --------
    nbbce.binary_cross_entropy : The loss of each sample, and more.

    Notes
    -----
    Each logarithm is held at -100 or above.  scikit-learn holds probabilities at the distance of one epsilon from 0 and
    1, so that no loss is above 36.04 in float64 and 15.9 in float32.

    Examples
    --------
    >>> from nbbce.metrics import log_loss
    >>> log_loss(["spam", "ham", "ham", "spam"], [[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]])
    0.21616187468057915
    >>> log_loss([1, 0, 0, 1], [0.9, 0.1, 0.2, 0.65], sample_weight=[1, 1, 1, 5])
    0.3234723953865167
    """
    y_true, y_proba = _array("y_true", y_true), _array("y_proba", y_proba, np.float64)
    sample_weight = None if sample_weight is None else _array("sample_weight", sample_weight)
    if len(y_proba.shape) == 2 and y_proba.shape[1] in (1, 2):
        y_proba = y_proba[:, -1]
    if len(y_proba.shape) != 1:
        raise ValueError(f"{_NAME}: 'y_proba' must have one column or two; got shape {tuple(y_proba.shape)}")
    if y_proba.shape[0] == 0:
        raise ValueError(f"{_NAME}: 'y_proba' must have a sample; got none")
    if labels is None and isinstance(y_true, np.ndarray) and y_true.dtype.kind in "OUST":
        labels = y_true
    if labels is not None:
        y_true = _is_positive(y_true, labels)
    if sample_weight is not None and sample_weight.shape != y_proba.shape:
        given, wanted = tuple(sample_weight.shape), tuple(y_proba.shape)
        raise ValueError(f"{_NAME}: 'sample_weight' must have the shape of 'y_proba', {wanted}; got {given}")
    call = checked(
        _NAME,
        y_proba,
        y_true,
        sample_weight,
        "sum" if sample_weight is not None or not normalize else "mean",
        dtype=np.float64,
        validate=True,
        target_name="y_true",
        input_name="y_proba",
    )
    loss = float(functional._run(call)[0])
    if sample_weight is None or not normalize:
        return loss
    total = float(_in_float64(sample_weight).sum())
    if total == 0.0:
        raise ValueError(f"{_NAME}: 'sample_weight' must not add up to 0; got {total}")
    return loss / total


def _array(name: str, value: Any, dtype: Any = None) -> Any:
    """A list, or what pandas or a library of the host has, as an array of NumPy; what is elsewhere stays there."""
    if isinstance(value, (list, tuple)):
        return np.asarray(value, dtype)
    value = value.to_numpy() if hasattr(value, "to_numpy") else value
    if library_of(value) is not None:
        return checked_array(_NAME, name, value)
    if not hasattr(value, "shape") or isinstance(value, np.generic):
        raise TypeError(f"{_NAME}: {name!r} must be an array or a list; got {described(value)}")
    return value


def _in_float64(array: Any) -> Any:
    """The array in float64, whose sum is as exact as that of the losses."""
    return array.double() if hasattr(array, "double") else array.astype(np.float64)


def _is_positive(y_true: Any, labels: Any) -> Any:
    """Whether each sample is of the class that is sorted last."""
    try:
        classes = np.unique(_array("labels", labels))
    except TypeError:  # as of words and None
        raise TypeError(f"{_NAME}: classes must be of one kind, which can be sorted; got several") from None
    if len(classes) != 2:
        raise ValueError(f"{_NAME}: there must be two classes; got {classes.tolist()}")
    negative, positive = classes.tolist()
    found = y_true == positive
    # An array of numbers is not equal to a word: neither is an array of its elements.
    if isinstance(found, bool) or not bool((found | (y_true == negative)).all()):
        raise ValueError(f"{_NAME}: 'y_true' must hold the classes {negative!r} and {positive!r} alone; got another")
    return found
