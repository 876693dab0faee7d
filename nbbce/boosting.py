"""Objectives of two classes for XGBoost and LightGBM: gradient and hessian of logits in one pass.

Where the libraries' own take ``p * (1 - p)``, which is 0 in float32 from a logit of 17 on, these hessians are true in
both tails, and so are the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nbbce.functional import binary_cross_entropy_with_logits_grad_and_hess

__all__ = ["objective", "sklearn_objective"]


def objective(*, pos_weight: Any = None, label_smoothing: float = 0.0) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Make an objective for ``xgboost.train`` or ``lightgbm.train``.

    Parameters
    ----------
    pos_weight : real number, optional
        Factor of what the positive share of a label costs: ``scale_pos_weight`` of both libraries.
    label_smoothing : float, default: 0.0
        Share ``a`` in [0, 1] of a label that is given away: ``y`` becomes ``y * (1 - a) + a / 2``.

    Returns
    -------
    function of (predictions, data)
        Which gives gradient and hessian of each sample, of the shape and dtype of `predictions`, logits.  `data` is an
        ``xgboost.DMatrix`` or a ``lightgbm.Dataset``, or whatever else has their ``get_label`` and ``get_weight``;
        labels may be soft.

    See Also
    --------
    nbbce.binary_cross_entropy_with_logits_grad_and_hess : Formulas and errors.

    Examples
    --------
    ``xgboost.train(parameters, data, obj=nbbce.boosting.objective(pos_weight=3.0))``, and for LightGBM
    ``lightgbm.train({"objective": nbbce.boosting.objective()}, data)``.  What they then predict are logits.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from nbbce.boosting import objective
    >>> data = SimpleNamespace(get_label=lambda: np.array([0.0, 1.0]), get_weight=lambda: np.array([]))
    >>> gradient, hessian = objective()(np.array([0.0, 40.0]), data)
    >>> gradient, hessian
    (array([ 5.00000000e-01, -4.24835426e-18]), array([2.50000000e-01, 4.24835426e-18]))
    """

    def of_data(predictions: Any, data: Any) -> tuple[Any, Any]:
        return derivatives(data.get_label(), predictions, data.get_weight())

    derivatives = sklearn_objective(pos_weight=pos_weight, label_smoothing=label_smoothing)
    return of_data


def sklearn_objective(
    *, pos_weight: Any = None, label_smoothing: float = 0.0
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """Make an objective for ``xgboost.XGBClassifier`` or ``lightgbm.LGBMClassifier``.

    Parameters
    ----------
    pos_weight, label_smoothing
        As of `objective`.

    Returns
    -------
    function of (y_true, y_pred, sample_weight)
        Which gives gradient and hessian of each sample, of the shape and dtype of `y_pred`, logits.  `sample_weight`
        may be None.

    Examples
    --------
    ``lightgbm.LGBMClassifier(objective=nbbce.boosting.sklearn_objective())``; its ``predict_proba`` then gives logits.

    >>> import numpy as np
    >>> from nbbce.boosting import sklearn_objective
    >>> sklearn_objective(pos_weight=3.0)(np.array([0, 1]), np.array([0.0, 0.0]), None)
    (array([ 0.5, -1.5]), array([0.25, 0.75]))
    """

    def derivatives(y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        weight = None if sample_weight is None or np.size(sample_weight) == 0 else sample_weight
        gradient, hessian = binary_cross_entropy_with_logits_grad_and_hess(
            y_pred, y_true, weight, "sum", pos_weight, label_smoothing=label_smoothing
        )
        return gradient, hessian

    return derivatives
