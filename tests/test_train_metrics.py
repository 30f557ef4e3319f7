"""Scores: the best threshold against brute force, everything else against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from qbee.errors import DataError
from qbee.train import metrics

# Few distinct values make ties; the extremes are what saturated logits give.
SCORES = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nextafter(0.5, 1), np.nextafter(1, 0)]),
    st.floats(0, 1),
)
WINDOWS = st.lists(st.tuples(st.booleans(), SCORES), min_size=1, max_size=12).filter(
    lambda pairs: any(label for label, _ in pairs)
)


def f1_of(labels, found):
    return 2 * np.sum(labels & found) / (np.sum(labels) + np.sum(found))


@given(WINDOWS)
@settings(max_examples=500, deadline=None)
def test_no_threshold_beats_the_best_one(pairs):
    labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
    chosen = metrics.best_threshold(labels, scores)
    found = f1_of(labels, scores >= chosen)
    assert found == max(f1_of(labels, scores >= threshold) for threshold in scores)
    assert metrics.best_f1(labels, scores) == found


def test_a_half_is_taken_if_it_has_the_highest_f1():
    labels = np.array([1, 0, 0, 1, 0], bool)
    # F1 is 2/3 with one detection and with four: from 0.1 to 0.5, and from 0.8 to 0.9.
    assert metrics.best_threshold(labels, np.array([0.9, 0.8, 0.7, 0.5, 0.1])) == 0.5


def test_otherwise_the_threshold_is_the_middle_of_the_gap_nearest_to_a_half():
    labels = np.array([1, 0, 0, 1, 0], bool)
    assert metrics.best_threshold(labels, np.array([0.9, 0.8, 0.7, 0.375, 0.125])) == 0.25
    assert metrics.best_threshold(labels, np.array([0.9, 0.6, 0.55, 0.2, 0.1])) == 0.75


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
