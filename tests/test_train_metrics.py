"""Scores: the best threshold against brute force, everything else against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from qbee.errors import DataError, ParameterError
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


LOGITS = st.integers(-400, 400).map(lambda n: n / 100)
BOTH_CLASSES = st.lists(st.tuples(st.booleans(), LOGITS, LOGITS), min_size=2, max_size=15).filter(
    lambda rows: len({label for label, _, _ in rows}) == 2
)
# Of three buzzes and two other windows; one buzz and one other are on the wrong side.
FEW = np.array([True, True, True, False, False])
FEW_LOGITS = np.array([[0, 2], [0, 1], [1, 0], [0, 0.5], [3, 0]], np.float32)


@given(BOTH_CLASSES)
@settings(max_examples=100, deadline=None)
def test_registered_metrics_are_scikit_learns_of_the_logits(rows):
    labels = np.array([label for label, _, _ in rows])
    logits = np.array([pair for _, *pair in rows], np.float32)
    margins = logits[:, 1].astype(float) - logits[:, 0]
    expected = {
        "loss": sklearn_metrics.log_loss(labels, expit(margins)),
        "accuracy": sklearn_metrics.accuracy_score(labels, margins >= 0),
        "auc": sklearn_metrics.roc_auc_score(labels, margins),
        "pauc": sklearn_metrics.roc_auc_score(labels, margins, max_fpr=0.1),
        "average_precision": sklearn_metrics.average_precision_score(labels, margins),
        "f1": max(sklearn_metrics.f1_score(labels, margins >= cut) for cut in margins),
    }
    for name, value in expected.items():
        assert metrics.get(name)(labels, logits) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Margins 2, 1, -1 of buzz and 0.5, -3 of the others.
        ("accuracy", 3 / 5),
        ("auc", 5 / 6),
        ("f1", 6 / 7),
        ("average_precision", (1 + 1 + 3 / 4) / 3),
        # Up to 10 % false alarms 2 of 3 buzzes are found; McClish's standardisation of that area.
        ("pauc", 0.5 * (1 + (0.1 * 2 / 3 - 0.1**2 / 2) / (0.1 - 0.1**2 / 2))),
    ],
)
def test_registered_metrics_are_what_a_hand_finds(name, value):
    assert metrics.get(name)(FEW, FEW_LOGITS) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("loss", "value"), [(0.0, 1.0), (1.0, 0.5), (2.0, 1 / 1025)])
def test_the_bounded_loss_is_one_for_no_loss_and_a_half_for_a_loss_of_one(loss, value):
    # A window of buzz whose margin m costs log(1 + e^-m).
    margin = -np.log(np.expm1(loss)) if loss else 1000.0
    logits = np.array([[0.0, margin]])
    found = metrics.get("bounded_loss")(np.array([True]), logits)
    assert found == pytest.approx(value, rel=1e-9)


def test_a_metric_of_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ParameterError, match="metric='mcc' must be one of loss, f1, accuracy, auc"):
        metrics.get("mcc")
    assert set(metrics.LOSSES) < set(metrics.names())


def test_a_metric_can_be_registered(monkeypatch):
    monkeypatch.setattr(metrics._METRICS, "_things", dict(metrics._METRICS._things))
    metrics.register("windows")(lambda labels, logits: float(len(labels)))
    assert metrics.names()[-1] == "windows"
    assert metrics.get("windows")(FEW, FEW_LOGITS) == 5


def random_windows(n, seed, *, gap=1.0):
    """Labels, and logits of a detector whose classes lie so many standard deviations apart."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    return labels, np.stack([np.zeros(n), gap * labels + rng.normal(0, 1, n)], axis=1)


@pytest.mark.parametrize("logits", [[0.0, 0.0], [3.0, -3.0], [-3.0, 3.0]])
def test_a_detector_that_says_one_thing_has_collapsed(logits):
    assert metrics.has_collapsed(FEW, np.tile(logits, (5, 1)))


def test_a_detector_that_calls_everything_buzz_has_collapsed_although_its_margins_differ():
    labels = np.arange(100) < 60
    margins = np.random.default_rng(0).uniform(3, 4, 100)
    assert metrics.has_collapsed(labels, np.stack([np.zeros(100), margins], axis=1))


def test_a_detector_that_tells_classes_apart_has_not_collapsed():
    assert not metrics.has_collapsed(*random_windows(200, 0, gap=4))
    # However far from 0.5 its scores are.
    labels, logits = random_windows(200, 0, gap=4)
    assert not metrics.has_collapsed(labels, logits - [0, 8])


@pytest.mark.parametrize("name", metrics.names())
def test_the_interval_contains_the_value_of_many_windows(name):
    labels, logits = random_windows(2000, 1)
    lowest, highest = metrics.bootstrap_interval(metrics.get(name), [(labels, logits)], seed=0)
    assert lowest < metrics.get(name)(labels, logits) < highest


def test_the_interval_of_an_accuracy_is_that_of_a_binomial():
    labels, logits = random_windows(2000, 1)
    share = metrics.get("accuracy")(labels, logits)
    lowest, highest = metrics.bootstrap_interval(
        metrics.get("accuracy"), [(labels, logits)], seed=0, resamples=1000
    )
    width = 2 * 1.645 * np.sqrt(share * (1 - share) / 2000)
    # 1000 resamples know a 5 % quantile to 0.07 standard deviations, its two to 3 % of the width.
    assert highest - lowest == pytest.approx(width, rel=0.1)


def test_equal_seeds_give_equal_intervals_and_others_other_ones():
    folds, auc = [random_windows(60, seed) for seed in (1, 2)], metrics.get("auc")
    found = metrics.bootstrap_interval(auc, folds, seed=0)
    assert found == metrics.bootstrap_interval(auc, folds, seed=0)
    assert found != metrics.bootstrap_interval(auc, folds, seed=1)


def test_two_folds_have_a_narrower_interval_than_one():
    folds, auc = [random_windows(100, seed) for seed in (1, 2)], metrics.get("auc")
    one, two = (
        np.ptp(metrics.bootstrap_interval(auc, some, seed=0)) for some in (folds[:1], folds)
    )
    assert two < one


def test_samples_without_both_classes_are_left_out_of_the_interval():
    labels = np.array([True, False, False, False])
    logits = np.array([[0, 2], [0, 1], [1, 0], [2, 0]], float)
    found = metrics.bootstrap_interval(metrics.get("auc"), [(labels, logits)], seed=0)
    assert found == (1, 1)


def test_a_narrower_interval_of_lower_confidence_lies_within():
    fold, auc = random_windows(200, 3), metrics.get("auc")
    wide = metrics.bootstrap_interval(auc, [fold], seed=0, confidence=0.9)
    narrow = metrics.bootstrap_interval(auc, [fold], seed=0, confidence=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
