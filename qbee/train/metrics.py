"""Scores of a detector: always on stated windows, always with the number of positives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic.dataclasses import dataclass
from sklearn import metrics

from qbee.errors import DataError
from qbee.registry import Registry

# Scores are kept this far from 0 and 1, so that their logits are finite.
PROBABILITY_FLOOR = 1e-12


@dataclass(frozen=True)
class Scores:
    """Scores of the class buzz at one threshold; None where the windows do not define it."""

    windows: int
    positives: int
    threshold: float
    f1: float | None
    precision: float | None
    recall: float | None
    auc: float | None
    average_precision: float | None
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Probability of buzz [n], float64, from class logits [n, 2]: sigmoid of the difference."""
    return sigmoid(margins(logits))


def sigmoid(margin: np.ndarray) -> np.ndarray:
    """Probability of buzz, float64, from its logit."""
    return 0.5 * (1 + np.tanh(np.asarray(margin, np.float64) / 2))


def evaluate(labels: np.ndarray, probability: np.ndarray, *, threshold: float) -> Scores:
    """Scores of ``probability >= threshold`` against ``labels`` (1 is buzz).

    F1 and recall are None without buzz windows, precision without detections, AUC and average
    precision with one class only.
    """
    labels = np.asarray(labels, bool)
    found = np.asarray(probability) >= threshold
    tp, fp = int(np.sum(found & labels)), int(np.sum(found & ~labels))
    fn, tn = int(np.sum(~found & labels)), int(np.sum(~found & ~labels))
    both = 0 < labels.sum() < len(labels)
    return Scores(
        windows=len(labels),
        positives=int(labels.sum()),
        threshold=float(threshold),
        f1=2 * tp / (2 * tp + fp + fn) if labels.any() else None,
        precision=tp / (tp + fp) if tp + fp else None,
        recall=tp / (tp + fn) if labels.any() else None,
        auc=float(metrics.roc_auc_score(labels, probability)) if both else None,
        average_precision=(
            float(metrics.average_precision_score(labels, probability)) if both else None
        ),
        true_positives=tp,
        false_positives=fp,
        false_negatives=fn,
        true_negatives=tn,
    )


def margins(logits: np.ndarray) -> np.ndarray:
    """Logit of buzz [n], float64, from class logits [n, 2]."""
    return logits[:, 1].astype(np.float64) - logits[:, 0].astype(np.float64)


def cross_entropy(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean cross-entropy of class logits [n, 2]."""
    return float(np.logaddexp(0, margins(logits) * np.where(labels, -1, 1)).mean())


def _cuts(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds in logits, falling; order of the scores; and which of the ordered are the last.

    A threshold lies in the middle, in logits, of the gap between two scores.
    """
    bounded = np.clip(np.asarray(probability, np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    order = np.argsort(-bounded, kind="stable")
    logit = np.log(bounded / (1 - bounded))[order]
    below = np.append(logit[1:], logit[-1] - 2)
    # A cut inside a run of equal scores is no threshold; the one below all scores always is.
    is_cut = np.append(logit[:-1] - below[:-1] > 1e-9, True)
    return ((logit + below) / 2)[is_cut], order, is_cut


def cuts(probability: np.ndarray) -> list[float]:
    """Thresholds that split the scores differently, falling; the last is 0, which all reach."""
    return [*sigmoid(_cuts(probability)[0][:-1]).tolist(), 0.0]


def detections(
    labels: np.ndarray, probability: np.ndarray
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Thresholds as of ``cuts``, how many windows reach each, and how many of these have buzz."""
    _, order, is_cut = _cuts(probability)
    found = np.arange(1, len(order) + 1)[is_cut]
    return cuts(probability), found, np.cumsum(np.asarray(labels, bool)[order])[is_cut]


def _f1_by_cut(labels: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds in logits that split the scores differently, and the F1 of each."""
    found, order, is_cut = _cuts(probability)
    f1 = 2 * np.cumsum(labels[order]) / (np.arange(1, len(order) + 1) + labels.sum())
    return found, f1[is_cut]


def best_threshold(labels: np.ndarray, probability: np.ndarray) -> float:
    """Threshold nearest to 0.5 that is as good as the best on these (validation) windows.

    As good means an F1 of at most one standard error below the highest (the rule of Breiman et
    al., 1984): with few buzz windows F1 is flat over wide gaps between scores and one odd window
    moves its maximum far, while 0.5 is the best guess for a network trained by cross-entropy
    before any window is seen. The standard error of F1 is that of a share of the buzz windows,
    with Agresti and Coull's correction (two hits and two misses more).

    Raises
    ------
    DataError
        if the windows have no buzz or a score is not a number.
    """
    labels = np.asarray(labels, bool)
    if not labels.any():
        raise DataError("the threshold needs validation windows with buzz, there are none")
    if not np.all(np.isfinite(probability)):
        raise DataError("a score of a validation window is not a number: training has diverged")
    cuts, f1 = _f1_by_cut(labels, probability)
    n_buzz = labels.sum() + 4
    share = (f1.max() * labels.sum() + 2) / n_buzz
    error = np.sqrt(share * (1 - share) / n_buzz)
    if evaluate(labels, probability, threshold=0.5).f1 >= f1.max() - error:
        return 0.5
    good = cuts[f1 >= f1.max() - error]
    return float(1 / (1 + np.exp(-good[np.argmin(np.abs(good))])))


def best_f1(labels: np.ndarray, probability: np.ndarray) -> float:
    """Highest F1 that any threshold reaches on these windows; there must be buzz among them."""
    return float(_f1_by_cut(np.asarray(labels, bool), probability)[1].max())


Metric = Callable[[np.ndarray, np.ndarray], float]
# Of labels [n], bool, and logits [n, 2].
_METRICS: Registry[Metric] = Registry("metric")
register, names, get = _METRICS.register, _METRICS.names, _METRICS.get
# Highest share of false alarms that counts for the partial AUC (thesis, S3-9).
MAX_FALSE_ALARMS = 0.1
# Lower is better for these, higher for all others.
LOSSES = ("loss",)


register("loss")(cross_entropy)


@register("f1")
def _f1(labels: np.ndarray, logits: np.ndarray) -> float:
    """Highest F1 of all thresholds."""
    return best_f1(labels, probabilities(logits))


@register("accuracy")
def _accuracy(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(np.mean((margins(logits) >= 0) == labels))


@register("auc")
def _auc(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(metrics.roc_auc_score(labels, margins(logits)))


@register("pauc")
def _pauc(labels: np.ndarray, logits: np.ndarray) -> float:
    """AUC up to ``MAX_FALSE_ALARMS``, standardised as of McClish: 0.5 is guessing."""
    found = metrics.roc_auc_score(labels, margins(logits), max_fpr=MAX_FALSE_ALARMS)
    return float(found)


@register("average_precision")
def _average_precision(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(metrics.average_precision_score(labels, margins(logits)))


@register("bounded_loss")
def _bounded_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """``1 / (1 + loss^10)``, which is in (0, 1] (thesis, S3-8)."""
    return 1 / (1 + cross_entropy(labels, logits) ** 10)


def has_collapsed(labels: np.ndarray, logits: np.ndarray) -> bool:
    """Whether a detector says the same of every window, at its best threshold or at 0.5.

    One that gives all windows to one class still has an F1, and a good accuracy on rare buzzes
    (bee paper, S0-16: 57.8 %).
    """
    margin = margins(logits)
    threshold = best_threshold(labels, probabilities(logits))
    found = probabilities(logits) >= threshold
    return bool(np.ptp(margin) == 0 or found.all() or not found.any())


def bootstrap_interval(
    metric: Metric,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    seed: int,
    resamples: int = 200,
    confidence: float = 0.9,
) -> tuple[float, float]:
    """Interval of the mean of a metric over folds, from windows drawn again with replacement.

    Windows of one recording are alike, so the interval is rather too narrow.

    Parameters
    ----------
    folds : labels [n] bool and logits [n, 2] of each
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = [rng.integers(0, len(labels), len(labels)) for labels, _ in folds]
        # A sample without both classes has no score.
        parts = [
            (y[i], z[i]) for i, (y, z) in zip(drawn, folds, strict=True) if 0 < y[i].sum() < len(i)
        ]
        if parts:
            found.append(np.mean([metric(y, z) for y, z in parts]))
    tail = (1 - confidence) / 2
    lowest, highest = np.quantile(found, [tail, 1 - tail])
    return float(lowest), float(highest)
