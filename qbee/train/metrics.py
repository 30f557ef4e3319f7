"""Scores of a detector: always on stated windows, always with the number of positives."""

from __future__ import annotations

import numpy as np
from pydantic.dataclasses import dataclass
from sklearn import metrics

from qbee.errors import DataError


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
    """Threshold of highest F1 on these (validation) windows, the one nearest to 0.5.

    A few validation windows leave wide gaps between scores, and every threshold in a gap has the
    same F1. Training by cross-entropy makes 0.5 the best guess without any data, so 0.5 itself is
    taken if it has the highest F1, and otherwise the middle of the nearest gap that has it.

    Raises
    ------
    DataError
        if the windows have no buzz.
    """
    labels = np.asarray(labels, bool)
    if not labels.any():
        raise DataError("the threshold needs validation windows with buzz, there are none")
    order = np.argsort(-np.asarray(probability), kind="stable")
    score, hit = np.asarray(probability, np.float64)[order], labels[order]
    f1 = 2 * np.cumsum(hit) / (np.arange(1, len(hit) + 1) + hit.sum())
    below = np.append(score[1:], 0.0)
    # A cut inside a run of equal scores is no threshold; the one below all scores always is.
    f1 = np.where(np.append(score[:-1] > below[:-1], True), f1, -1.0)
    best = f1 == f1.max()
    # A threshold t has the F1 of the cut with below < t <= score.
    if np.any(best & (below < 0.5) & (score >= 0.5)):
        return 0.5
    middle = (score + below) / 2
    # Half-way between neighbouring floats rounds to one of them.
    threshold = np.where(middle > below, middle, score)
    distance = np.where(best, np.abs(threshold - 0.5), np.inf)
    return float(threshold[np.argmin(distance)])


def best_f1(labels: np.ndarray, probability: np.ndarray) -> float:
    """Highest F1 that any threshold reaches on these windows."""
    threshold = best_threshold(labels, probability)
    found = evaluate(labels, probability, threshold=threshold).f1
    return 0.0 if found is None else found
