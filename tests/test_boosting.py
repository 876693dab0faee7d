"""Objectives of boosting libraries: gradient and hessian by their arguments."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import reference

from nbbce.boosting import Objective, SklearnObjective

LOGITS = np.array([0.0, -3.0, 2.5, 40.0, -40.0, 17.5])
LABELS = np.array([0.0, 1.0, 0.25, 1.0, 0.0, 0.0])
WEIGHTS = np.array([1.0, 2.0, 0.5, 3.0, 0.25, 4.0])


def assert_exact(found, dtype, weights=1.0, **options):
    """Within the bounds of the function behind it: 2 ULP, and of the larger of a gradient's terms."""
    z, y, w = LOGITS.astype(dtype), LABELS, np.broadcast_to(weights, LOGITS.shape)
    exact = (reference.logits_gradients(z, y, w, **options), reference.logits_hessians(z, y, w, **options))
    terms = (reference.larger_logits_terms(z, y, w, **options), None)
    for got, wanted, term in zip(found, exact, terms, strict=True):
        assert got.dtype == dtype
        assert reference.worst(reference.ulps, got, wanted, dtype, z, terms=term)[0] <= 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("empty", [None, np.array([], "f4")], ids=["LightGBM", "XGBoost"])
def test_data_of_either_library_has_labels_and_weights_or_none(dtype, empty):
    predictions = LOGITS.astype(dtype)
    for weights in (empty, WEIGHTS):
        data = SimpleNamespace(get_label=lambda: LABELS.astype("f4"), get_weight=lambda weights=weights: weights)
        found = Objective()(predictions, data)
        assert_exact(found, dtype, 1.0 if weights is empty else WEIGHTS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_of_the_positive_class_and_smoothing_are_those_of_the_loss(dtype):
    data = SimpleNamespace(get_label=lambda: LABELS, get_weight=lambda: WEIGHTS)
    made = {"pos_weight": 3.0, "label_smoothing": 0.25}
    for found in (
        Objective(**made)(LOGITS.astype(dtype), data),
        SklearnObjective(**made)(LABELS, LOGITS.astype(dtype), WEIGHTS),
    ):
        assert_exact(found, dtype, WEIGHTS, pw=3.0, a=0.25)


def test_labels_come_first_for_scikit_learn_and_weights_may_be_none():
    assert_exact(SklearnObjective()(LABELS, LOGITS, None), "float64")
    assert_exact(SklearnObjective()(LABELS, LOGITS), "float64")


def test_hessians_are_true_where_a_difference_from_1_is_none():
    # sigma(-40) = 4.2e-18; in float32 1 - sigma(40) is 0, and in float64 too.
    gradient, hessian = SklearnObjective()(np.array([1, 0]), np.array([40.0, -40.0], "f4"))
    assert np.allclose(gradient, [-4.248354e-18, 4.248354e-18], rtol=1e-6, atol=0)
    assert np.allclose(hessian, [4.248354e-18, 4.248354e-18], rtol=1e-6, atol=0)


def test_objectives_are_kept_with_the_models_that_have_them():
    for made in (Objective(pos_weight=3.0), SklearnObjective(label_smoothing=0.1)):
        assert pickle.loads(pickle.dumps(made)) == made


@pytest.fixture
def samples(rng):
    x = rng.normal(size=(500, 4))
    return x, (x[:, 0] + rng.normal(size=500) > 0).astype(np.float64), rng.random(500) + 0.5


def test_xgboost_grows_the_trees_that_it_grows_by_its_own_objective(samples):
    xgboost = pytest.importorskip("xgboost")
    x, y, weight = samples
    data = xgboost.DMatrix(x, y, weight=weight)
    for scale in (1.0, 3.0):
        own = {"objective": "binary:logistic", "base_score": 0.5, "scale_pos_weight": scale}
        expected = xgboost.train(own, data, 10).predict(data, output_margin=True)
        found = xgboost.train({"base_score": 0.0}, data, 10, obj=Objective(pos_weight=scale)).predict(data)
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)
    model = xgboost.XGBClassifier(objective=SklearnObjective(), n_estimators=10, base_score=0.5)
    model.fit(x, y, sample_weight=weight)
    expected = xgboost.train({"objective": "binary:logistic", "base_score": 0.5}, data, 10)
    assert np.allclose(model.predict(x, output_margin=True), expected.predict(data, output_margin=True), atol=1e-5)


def test_lightgbm_grows_the_trees_that_it_grows_by_its_own_objective(samples):
    lightgbm = pytest.importorskip("lightgbm")
    x, y, weight = samples
    quiet = {"verbose": -1, "boost_from_average": False}
    for scale in (1.0, 3.0):
        own = quiet | {"objective": "binary", "scale_pos_weight": scale}
        expected = lightgbm.train(own, lightgbm.Dataset(x, y, weight=weight), 10).predict(x, raw_score=True)
        ours = quiet | {"objective": Objective(pos_weight=scale)}
        found = lightgbm.train(ours, lightgbm.Dataset(x, y, weight=weight), 10).predict(x)
        assert np.allclose(found, expected, rtol=1e-9)
        model = lightgbm.LGBMClassifier(objective=SklearnObjective(pos_weight=scale), n_estimators=10, verbose=-1)
        model.fit(x, y, sample_weight=weight)
        assert np.allclose(pickle.loads(pickle.dumps(model)).predict(x, raw_score=True), expected, rtol=1e-9)
