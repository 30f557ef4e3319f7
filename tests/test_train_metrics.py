"""Scores: the best threshold against brute force, everything else against scikit-learn."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn import metrics as sklearn_metrics

from qbee.errors import DataError
from qbee.train import metrics

# Few distinct values make ties; the extremes are what saturated logits give.
SCORES = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nextafter(0.5, 1), np.nextafter(1, 0)]),
    st.floats(0, 1),
)


def f1_of(labels, found):
    return 2 * np.sum(labels & found) / (np.sum(labels) + np.sum(found))


def expected_f1(labels, scores, threshold):
    noisy = expit(logit(np.clip(scores, 1e-9, 1 - 1e-9)) - logit(threshold))
    return 2 * noisy[labels].sum() / (noisy.sum() + labels.sum())


@given(st.lists(st.tuples(st.booleans(), st.floats(0.05, 0.95)), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_the_threshold_is_the_nearest_to_a_half_within_a_standard_error_of_the_best(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    assume(labels.any())
    chosen = metrics.best_threshold(labels, scores)
    cuts = np.arange(logit(scores).min(), logit(scores).max() + 0.01, 0.01)
    f1 = np.array([expected_f1(labels, scores, expit(cut)) for cut in cuts])
    good = cuts[f1 >= f1.max() - np.sqrt(f1.max() * (1 - f1.max()) / labels.sum())]
    # Thresholds are tried in steps of 0.05 logit, between which expected F1 hardly changes.
    assert abs(logit(chosen)) == pytest.approx(np.abs(good).min(), abs=0.15)


def test_with_many_windows_the_threshold_is_that_of_highest_f1():
    rng = np.random.default_rng(0)
    labels = rng.random(20_000) < 0.2
    scores = expit(rng.normal(np.where(labels, 4.0, -1.0), 2.0))
    highest = max(f1_of(labels, scores >= t) for t in expit(np.arange(-6, 6, 0.1)))
    # One standard error is 0.006 here.
    assert metrics.best_f1(labels, scores) > highest - 0.01
    assert metrics.best_threshold(labels, scores) > 0.7


def test_a_half_is_kept_if_nothing_is_clearly_better():
    labels = np.arange(133) < 13
    logits = np.where(labels, 6.0, -5.0)
    logits[-1] = 0.5
    assert metrics.best_threshold(labels, expit(logits)) == 0.5


def test_one_odd_buzz_does_not_move_the_threshold_into_the_other_class():
    labels = np.arange(133) < 13
    logits = np.where(labels, 4.0, -6.0 + np.arange(133) % 3)
    logits[0] = -5.5
    assert -3 < logit(metrics.best_threshold(labels, expit(logits))) < 3


def test_the_threshold_of_separated_classes_lies_between_them():
    labels = np.array([True] * 10 + [False] * 100)
    scores = expit(np.where(labels, 3.0, -5.0))
    assert -4 < logit(metrics.best_threshold(labels, scores)) < 2


def test_a_threshold_needs_buzz():
    with pytest.raises(DataError, match="validation windows with buzz"):
        metrics.best_threshold(np.zeros(3, bool), np.array([0.1, 0.2, 0.3]))


@given(st.lists(st.tuples(st.booleans(), SCORES), min_size=1, max_size=12), SCORES)
@settings(max_examples=200, deadline=None)
def test_scores_are_scikit_learns_where_they_are_defined(pairs, threshold):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    found = metrics.evaluate(labels, scores, threshold=threshold)
    detected = scores >= threshold
    matrix = sklearn_metrics.confusion_matrix(labels, detected, labels=[False, True])
    assert [
        [found.true_negatives, found.false_positives],
        [found.false_negatives, found.true_positives],
    ] == matrix.tolist()
    assert (found.windows, found.positives) == (len(labels), labels.sum())
    has_buzz, has_both = labels.any(), len(set(labels)) == 2
    for value, is_defined, oracle, given_scores in (
        (found.f1, has_buzz, sklearn_metrics.f1_score, detected),
        (found.recall, has_buzz, sklearn_metrics.recall_score, detected),
        (found.precision, detected.any(), sklearn_metrics.precision_score, detected),
        (found.auc, has_both, sklearn_metrics.roc_auc_score, scores),
        (found.average_precision, has_both, sklearn_metrics.average_precision_score, scores),
    ):
        expected = oracle(labels, given_scores) if is_defined else None
        assert value == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_a_probability_is_the_sigmoid_of_the_margin_without_overflow():
    logits = np.array([[0, 0], [1, 3], [5, 1], [1e4, -1e4], [-1e4, 1e4]], np.float32)
    expected = [0.5, 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(4)), 0, 1]
    # 1e-15: tanh instead of exp costs a few ulps.
    np.testing.assert_allclose(metrics.probabilities(logits), expected, rtol=0, atol=1e-15)
