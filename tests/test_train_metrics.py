"""Scores: the best threshold against brute force, everything else against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from qbee.errors import DataError
from qbee.train import metrics

# Thousandths make ties; scores nearer to 0, 1 or each other do not come out of 8-bit logits.
SCORES = st.integers(1, 999).map(lambda n: n / 1000)
WINDOWS = st.lists(st.tuples(st.booleans(), SCORES), min_size=1, max_size=12).filter(
    lambda pairs: any(label for label, _ in pairs)
)


def f1_of(labels, found):
    return 2 * np.sum(labels & found) / (np.sum(labels) + np.sum(found))


@given(WINDOWS)
@settings(max_examples=300, deadline=None)
def test_best_f1_is_the_highest_of_all_thresholds(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    highest = max(f1_of(labels, scores >= threshold) for threshold in scores)
    assert metrics.best_f1(labels, scores) == pytest.approx(highest)


@given(WINDOWS)
@settings(max_examples=300, deadline=None)
def test_the_threshold_costs_at_most_a_standard_error(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    chosen = metrics.best_threshold(labels, scores)
    highest, n_buzz = metrics.best_f1(labels, scores), labels.sum() + 4
    share = (highest * labels.sum() + 2) / n_buzz
    error = np.sqrt(share * (1 - share) / n_buzz)
    assert f1_of(labels, scores >= chosen) >= highest - error - 1e-12


def test_a_half_is_kept_if_nothing_is_clearly_better():
    labels = np.arange(133) < 13
    logits = np.where(labels, 6.0, -5.0)
    logits[-1] = 0.5
    assert metrics.best_threshold(labels, expit(logits)) == 0.5


def test_one_odd_buzz_does_not_move_the_threshold_into_the_other_class():
    labels = np.arange(133) < 13
    logits = np.where(labels, 4.0, -6.0 + np.arange(133) % 3)
    logits[0] = -5.5
    assert metrics.best_threshold(labels, expit(logits)) == 0.5


@pytest.mark.parametrize(("buzz", "other"), [(-0.6, -1.4), (-1.0, -4.0), (1.4, 0.6)])
def test_separated_classes_are_separated_however_unsure_the_scores(buzz, other):
    labels = np.arange(400) < 100
    rng = np.random.default_rng(0)
    scores = expit(np.where(labels, buzz, other) + rng.normal(0, 0.1, 400))
    chosen = metrics.best_threshold(labels, scores)
    assert f1_of(labels, scores >= chosen) > 0.95


def test_scores_that_are_no_numbers_are_an_error():
    with pytest.raises(DataError, match="diverged"):
        metrics.best_threshold(np.array([True, False]), np.array([np.nan, 0.2]))


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


def test_detectors_that_agree_have_no_error_in_their_difference():
    labels = np.array([True, False, True, False])
    found = np.array([True, True, False, False])
    assert metrics.f1_difference_error(labels, found, found) == 0


def test_the_error_of_a_difference_in_f1_is_that_of_resampled_windows():
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.3
    reference = labels ^ (rng.random(2000) < 0.1)
    found = reference ^ (rng.random(2000) < 0.03)
    drawn = rng.integers(0, 2000, (400, 2000))
    differences = [f1_of(labels[i], found[i]) - f1_of(labels[i], reference[i]) for i in drawn]
    # 400 resamples know a standard deviation to 4 %; the delta method is of first order.
    estimate = metrics.f1_difference_error(labels, found, reference)
    assert estimate == pytest.approx(np.std(differences), rel=0.15)
