"""How far results are from the exact values."""

from typing import Any

import numpy as np

from .common import DTYPES, FUNCTIONS, TARGETS, function_of, oracle

POINTS = 300


class Accuracy:
    """The largest error of single results over hard points of the whole domain, the same in every run.

    A gradient that is the difference of two terms is measured by the larger of them, as in the tests.
    """

    params = (TARGETS, FUNCTIONS, DTYPES)
    param_names = ("target", "function", "dtype")
    unit = "ULP"

    def setup(self, target: str, function: str, dtype: str) -> None:
        self.function, self.reference = function_of(function), oracle()
        family = "focal" if "focal" in function else "logits" if "logits" in function else "probabilities"
        reference, rng = self.reference, np.random.default_rng(21)
        points = (reference.hard_points if family == "probabilities" else reference.hard_logits)(dtype, rng, POINTS)
        # The edges come in order, each with every label: as many of them as of the others, spread evenly.
        x, y = (np.concatenate([a[: -POINTS : max(1, a.size // POINTS)], a[-POINTS:]]) for a in points)
        self.x, self.y = x, y
        losses, gradients, largest_terms = {
            "probabilities": (reference.losses, reference.gradients, None),
            "logits": (reference.logits_losses, reference.logits_gradients, reference.larger_logits_terms),
            "focal": (reference.focal_losses, reference.focal_gradients, reference.largest_focal_terms),
        }[family]
        self.exact: list[tuple[Any, Any]] = []
        if function.endswith(("_grad", "_grad_and_hess")):
            self.exact.append((gradients(x, y), largest_terms and largest_terms(x, y)))
        if function.endswith("_grad_and_hess"):
            self.exact.append((reference.logits_hessians(x, y), None))
        elif not function.endswith("_grad") or function.endswith("_value_and_grad"):
            self.exact.insert(0, (losses(x, y), None))

    def track_ulps(self, target: str, function: str, dtype: str) -> float:
        results: Any = self.function(self.x, self.y, reduction="none")
        found = results if isinstance(results, tuple) else (results,)
        return max(
            self.reference.worst(self.reference.ulps, result, exact, dtype, terms=terms)[0]
            for result, (exact, terms) in zip(found, self.exact, strict=True)
        )
