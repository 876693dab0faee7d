"""scikit-learn's log loss by its arguments, of every kind of labels that it takes."""

import re

import numpy as np
import pandas as pd
import pytest
import reference

from nbbce.metrics import log_loss

NAME = "nbbce.metrics.log_loss"
TRUTH = np.array([1, 0, 0, 1, 1])
PROBABILITIES = np.array([0.9, 0.1, 0.2, 0.65, 1e-9])
WEIGHTS = np.array([1.0, 2.0, 0.5, 3.0, 0.25])
LETTERS = {"labels": ["a", "b"]}
TWO_COLUMNS = np.stack([1 - PROBABILITIES, PROBABILITIES], axis=1)


def exact(y=TRUTH, p=PROBABILITIES, weights=None, normalize=True):
    """The loss by mpmath."""
    weights = np.ones(len(p)) if weights is None else weights
    total = sum(reference.loss(float(x), float(t), float(w)) for x, t, w in zip(p, y, weights, strict=True))
    return total / sum(map(float, weights)) if normalize else total


def assert_near(loss, expected):
    """Within 2 ULP: the sum is within one, and so are a sum of weights and the division."""
    assert type(loss) is float
    assert reference.ulps(loss, expected, "float64") <= 2


@pytest.mark.parametrize(
    ("y_true", "labels"),
    [
        (TRUTH, None),
        (TRUTH.tolist(), None),
        (TRUTH.astype(bool), None),
        (TRUTH.astype("f4"), None),
        (2 * TRUTH - 1, [-1, 1]),
        (2 * TRUTH - 1, (1, -1)),
        (TRUTH + 1, np.array([1, 2, 2])),
        (np.where(TRUTH, "spam", "ham"), None),
        (np.where(TRUTH, "spam", "ham").tolist(), ["spam", "ham"]),
        (np.where(TRUTH, "spam", "ham").astype(object), None),
        (pd.Series(TRUTH), None),
        (pd.Series(np.where(TRUTH, "spam", "ham")), None),
    ],
    ids="ints list bools floats signs turned repeated strings listed objects series words".split(),
)
def test_classes_may_be_named_in_many_ways(y_true, labels):
    assert_near(log_loss(y_true, PROBABILITIES, labels=labels), exact())


@pytest.mark.parametrize(
    "y_proba",
    [
        PROBABILITIES.tolist(),
        PROBABILITIES[:, np.newaxis],
        TWO_COLUMNS,
        TWO_COLUMNS.tolist(),
        np.asfortranarray(TWO_COLUMNS),
        pd.Series(PROBABILITIES),
        pd.DataFrame(TWO_COLUMNS),
    ],
    ids="list column columns lists fortran series frame".split(),
)
def test_probabilities_may_be_those_of_the_positive_class_or_of_both(y_proba):
    assert_near(log_loss(TRUTH, y_proba), exact())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", [np.asarray, list, pd.Series, np.float32])
def test_samples_have_weights_which_the_mean_divides_by(kind, normalize):
    loss = log_loss(TRUTH, PROBABILITIES, sample_weight=kind(WEIGHTS), normalize=normalize)
    assert_near(loss, exact(weights=WEIGHTS, normalize=normalize))
    assert_near(log_loss(TRUTH, PROBABILITIES, normalize=normalize), exact(normalize=normalize))


def test_float32_is_added_up_in_float64():
    # 0.1 is rounded up to float32 by 2^-26 of itself; of a hundred thousand of these a float32 sum is off by far more.
    p, weights = np.full(100_000, 0.75, "f4"), np.full(100_000, 0.1, "f4")
    y = np.zeros(100_000, bool)
    loss = log_loss(y, p, sample_weight=weights)
    # All elements are equal, so the loss is that of one, -log(1 - 0.75): weights cancel.
    assert abs(loss / float(reference.mp.log(4)) - 1) < 2**-24


def test_labels_that_are_all_alike_and_soft_ones_have_a_loss():
    assert_near(log_loss(np.ones(5), PROBABILITIES), exact(np.ones(5)))
    soft = np.array([0.25, 0.5, 0.0, 1.0, 0.125])
    assert_near(log_loss(soft, PROBABILITIES), exact(soft))
    assert_near(log_loss(["ham"] * 5, PROBABILITIES, labels=["ham", "spam"]), exact(np.zeros(5)))


def test_wrong_probability_of_0_costs_100_and_not_infinity():
    assert log_loss([1, 0], [0.0, 0.0], normalize=False) == 100.0


def test_arrays_that_are_not_of_numpy_are_read_where_they_are():
    dask = pytest.importorskip("dask.array")
    loss = log_loss(dask.from_array(TRUTH, 2), dask.from_array(PROBABILITIES, 2))
    assert abs(loss - float(exact())) < 1e-15
    weighted = log_loss(
        dask.from_array(TRUTH, 2), dask.from_array(PROBABILITIES, 2), sample_weight=dask.from_array(WEIGHTS, 2)
    )
    assert abs(weighted - float(exact(weights=WEIGHTS))) < 1e-15


def of_torch():
    return pytest.importorskip("torch").from_numpy


def of_jax():
    return pytest.importorskip("jax.numpy").asarray


def of_dask():
    return pytest.importorskip("dask.array").from_array


@pytest.mark.parametrize("kind", [of_torch, of_jax, of_dask])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_of_any_library_are_added_up_in_float64(kind, dtype):
    # 200,000 of 1 are more than float16 holds; 1 + 2^-10 are added up to more than 2^24, behind which float32 rounds.
    array = kind()
    p, y = np.full(200_000, 0.75, "f4"), np.zeros(200_000, bool)
    weights = np.full(200_000, 1 + 2**-10, dtype)
    weights[::2] = 1
    loss = log_loss(array(y), array(p), sample_weight=array(weights))
    assert abs(loss / float(reference.mp.log(4)) - 1) < 2**-25


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (TypeError, "'y_true' must be an array or a list; got 1", (1, [0.5]), {}),
        (TypeError, "'y_proba' must be an array or a list; got NoneType", ([1], None), {}),
        (TypeError, "'sample_weight' must be an array or a list; got 2.0", ([1], [0.5]), {"sample_weight": 2.0}),
        (
            TypeError,
            "classes must be of one kind, which can be sorted; got several",
            ([1], [0.5]),
            {"labels": ["a", None]},
        ),
        (
            ValueError,
            "'y_true' must hold the classes 'a' and 'b' alone; got another",
            ([1], [0.5]),
            {"labels": ["a", "b"]},
        ),
        (ValueError, "values must be in [0, 1]; got y_true[1] = 2", ([1, 2], [0.5, 0.5]), {}),
        (ValueError, "values must be in [0, 1]; got y_proba[0] = 1.5", ([1, 0], [1.5, 0.5]), {}),
        (ValueError, "'y_true' must have the shape of 'y_proba', (2,); got (3,)", ([1, 0, 1], [0.5, 0.5]), {}),
        (ValueError, "'y_proba' must have one column or two; got shape (2, 3)", ([1, 0], np.ones((2, 3))), {}),
        (ValueError, "'y_proba' must have a sample; got none", ([], []), {}),
        (ValueError, "there must be two classes; got ['ham']", (["ham"], [0.5]), {}),
        (ValueError, "there must be two classes; got [0, 1, 2]", ([0, 1], [0.5, 0.5]), {"labels": [0, 1, 2]}),
        (
            ValueError,
            "'y_true' must hold the classes -1 and 1 alone; got another",
            ([-1, 0], [0.5, 0.5]),
            {"labels": [-1, 1]},
        ),
        (
            ValueError,
            "'sample_weight' must have the shape of 'y_proba', (2,); got (1,)",
            ([1, 0], [0.5, 0.5]),
            {"sample_weight": [1.0]},
        ),
        (
            ValueError,
            "'sample_weight' must not add up to 0; got 0.0",
            ([1, 0], [0.5, 0.5]),
            {"sample_weight": [1, -1]},
        ),
        (
            TypeError,
            "'y_proba' must have dtype float16, bfloat16, float32, float64; got int64",
            ([1, 0], np.array([1, 0])),
            {},
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_named(error, message, arguments, options):
    with pytest.raises(error, match=f"^{re.escape(f'{NAME}: {message}')}$"):
        log_loss(*arguments, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"sample_weight": True}], ids=str)
def test_scikit_learn_says_the_same(dtype, options, rng):
    metrics = pytest.importorskip("sklearn.metrics")
    y = rng.random(1000) < 0.5
    p = np.clip(rng.random(1000), 0.01, 0.99).astype(dtype)
    options = {"sample_weight": rng.random(1000)} if "sample_weight" in options else options
    for labels in (y, np.where(y, "b", "a")):
        assert np.isclose(log_loss(labels, p, **options), metrics.log_loss(labels, p, **options), rtol=1e-5)
