"""Make the example data: held-out predictions on the Wisconsin breast cancer data that scikit-learn ships.

Run `python examples/make_breast_cancer.py` where scikit-learn is installed.  The last digits of the predictions depend
on the linear algebra library of the machine, so what is committed was made once; see README.md beside this file.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent


def main() -> None:
    """Predict each fold by a model of the other four, write the files, and print scikit-learn's own loss."""
    features, targets = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(random_state=0))
    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=0)
    predictions = cross_val_predict(model, features, targets, cv=folds, method="predict_proba")[:, 1]
    np.save(HERE / "breast_cancer_predictions.npy", predictions.astype(np.float64))
    np.save(HERE / "breast_cancer_targets.npy", targets.astype(np.uint8))
    with (HERE / "breast_cancer.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["target", "prediction"])
        # `repr` of a float is the shortest text that reads back as the same bits.
        writer.writerows([int(target), repr(float(value))] for target, value in zip(targets, predictions, strict=True))
    print(repr(float(log_loss(targets, predictions))))


if __name__ == "__main__":
    main()
