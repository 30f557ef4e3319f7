"""Scores of a detector: always on stated windows, always with the number of positives."""

from __future__ import annotations

import numpy as np
from pydantic.dataclasses import dataclass
from sklearn import metrics

from qbee.errors import DataError

# Standard uncertainty of a score when the threshold is chosen. Cross-entropy gives logits their
# unit: one logit is a factor e in the odds.
LOGIT_NOISE = 1.0
LOGIT_STEP = 0.05


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
    margin = logits[:, 1].astype(np.float64) - logits[:, 0].astype(np.float64)
    return 0.5 * (1 + np.tanh(margin / 2))


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


def best_threshold(labels: np.ndarray, probability: np.ndarray) -> float:
    """Threshold nearest to 0.5 that is as good as the best on these (validation) windows.

    With few buzz windows the F1 of the windows themselves is a bad guide: it is flat over wide
    gaps between scores, and one odd window moves its maximum by many logits. So every score
    counts as if it were noisy by ``LOGIT_NOISE``: a window is detected with probability
    ``sigmoid((logit - threshold) / LOGIT_NOISE)``, which gives an expected F1. Of the thresholds
    whose expected F1 is at most one standard error, ``sqrt(F1 (1 - F1) / buzz windows)``, below
    the highest, the one nearest to 0.5 is taken, the best guess of a network trained by
    cross-entropy before any window is seen (the one-standard-error rule of Breiman et al., 1984).

    Raises
    ------
    DataError
        if the windows have no buzz.
    """
    labels = np.asarray(labels, bool)
    if not labels.any():
        raise DataError("the threshold needs validation windows with buzz, there are none")
    bounded = np.clip(np.asarray(probability, np.float64), 1e-9, 1 - 1e-9)
    logit = np.log(bounded / (1 - bounded))
    # Multiples of the step, so that 0 is one of them.
    steps = np.arange(np.floor(logit.min() / LOGIT_STEP), np.ceil(logit.max() / LOGIT_STEP) + 1)
    cuts = steps * LOGIT_STEP
    f1 = np.empty(len(cuts))
    for i, cut in enumerate(cuts):
        found = 0.5 * (1 + np.tanh((logit - cut) / (2 * LOGIT_NOISE)))
        f1[i] = 2 * found[labels].sum() / (found.sum() + labels.sum())
    error = np.sqrt(f1.max() * (1 - f1.max()) / labels.sum())
    good = cuts[f1 >= f1.max() - error]
    return float(1 / (1 + np.exp(-good[np.argmin(np.abs(good))])))


def best_f1(labels: np.ndarray, probability: np.ndarray) -> float:
    """F1 at the best threshold of these windows."""
    threshold = best_threshold(labels, probability)
    found = evaluate(labels, probability, threshold=threshold).f1
    return 0.0 if found is None else found
