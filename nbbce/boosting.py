"""Objectives of two classes for XGBoost and LightGBM: gradient and hessian of logits in one pass.

Where the libraries' own take ``p * (1 - p)``, which is 0 in float32 from a logit of 17 on, these hessians are true in
both tails, and so are the gradients.  Like any objective of a user's, they make a model predict logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nbbce.functional import binary_cross_entropy_with_logits_grad_and_hess

__all__ = ["Objective", "SklearnObjective"]


@dataclass(frozen=True)
class Objective:
    """An objective for ``xgboost.train`` or ``lightgbm.train``: a function of (predictions, data).

    It gives gradient and hessian of each sample, of the shape and dtype of `predictions`, logits.  `data` is an
    ``xgboost.DMatrix`` or a ``lightgbm.Dataset``, or whatever else has their ``get_label`` and ``get_weight``; labels
    may be soft.

    Parameters
    ----------
    pos_weight : real number, optional
        Factor of what the positive share of a label costs: ``scale_pos_weight`` of both libraries.
    label_smoothing : float, default: 0.0
        Share ``a`` in [0, 1] of a label that is given away: ``y`` becomes ``y * (1 - a) + a / 2``.

    See Also
    --------
    nbbce.binary_cross_entropy_with_logits_grad_and_hess : Formulas and errors.

    Examples
    --------
    ``xgboost.train({"base_score": 0.0}, data, obj=nbbce.boosting.Objective(pos_weight=3.0))``, where without the score
    XGBoost starts from a logit of 0.5; and for LightGBM
    ``lightgbm.train({"objective": nbbce.boosting.Objective()}, data)``.

    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from nbbce.boosting import Objective
    >>> data = SimpleNamespace(get_label=lambda: np.array([0.0, 1.0]), get_weight=lambda: np.array([]))
    >>> gradient, hessian = Objective()(np.array([0.0, 40.0]), data)
    >>> gradient, hessian
    (array([ 5.00000000e-01, -4.24835426e-18]), array([2.50000000e-01, 4.24835426e-18]))
    """

    pos_weight: float | None = None
    label_smoothing: float = 0.0

    def __call__(self, predictions: Any, data: Any) -> tuple[Any, Any]:
        """Gradient and hessian of each sample."""
        of_samples = SklearnObjective(self.pos_weight, self.label_smoothing)
        return of_samples(data.get_label(), predictions, data.get_weight())


@dataclass(frozen=True)
class SklearnObjective:
    """An objective for ``xgboost.XGBClassifier`` or ``lightgbm.LGBMClassifier``: of (y_true, y_pred, sample_weight).

    It gives gradient and hessian of each sample, of the shape and dtype of `y_pred`, logits; `sample_weight` may be
    None.

    Parameters
    ----------
    pos_weight, label_smoothing
        As of `Objective`.

    Examples
    --------
    ``lightgbm.LGBMClassifier(objective=nbbce.boosting.SklearnObjective())``.

    >>> import numpy as np
    >>> from nbbce.boosting import SklearnObjective
    >>> SklearnObjective(pos_weight=3.0)(np.array([0, 1]), np.array([0.0, 0.0]))
    (array([ 0.5, -1.5]), array([0.25, 0.75]))
    """

    pos_weight: float | None = None
    label_smoothing: float = 0.0

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        """Gradient and hessian of each sample."""
        weight = None if sample_weight is None or np.size(sample_weight) == 0 else sample_weight
        gradient, hessian = binary_cross_entropy_with_logits_grad_and_hess(
            y_pred, y_true, weight, "sum", self.pos_weight, label_smoothing=self.label_smoothing
        )
        return gradient, hessian
