"""Trials of a search as flat rows, and what several plots and tables compute from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qbee.errors import ParameterError
from qbee.search import pareto
from qbee.search.trial import Trial
from qbee.train import metrics

METRIC_LABELS = {
    "f1": "F1",
    "auc": "AUC",
    "pauc": "partial AUC",
    "average_precision": "average precision",
    "loss": "cross-entropy in nats",
}


# Losses whose highest is so many times the lowest are drawn on a logarithmic axis.
WIDE_LOSSES = 10


class Unit(NamedTuple):
    """How a cost is written: what is measured, the unit, and how much of the cost is one unit."""

    quantity: str
    symbol: str
    one: float


UNITS = {
    "tflite_bytes": Unit("model file", "kB", 1000),
    "arena_bytes": Unit("arena", "kB", 1000),
    "bits": Unit("parameters and maps", "kbit", 1000),
    "macs": Unit("multiply-accumulates", "million", 1e6),
    "energy_uj": Unit("energy", "µJ", 1),
}


def unit_of(cost: str) -> Unit:
    """Unit in which a cost is drawn."""
    return UNITS.get(cost, Unit(cost, "", 1))


def label_of(metric: str) -> str:
    """What a metric is called on an axis."""
    return METRIC_LABELS.get(metric, metric)


def name_of(metric: str) -> str:
    """The same without its unit, for texts with values."""
    return label_of(metric).removesuffix(" in nats")


def is_better_high(objective: str) -> bool:
    """Whether more of it is better: true for metrics other than losses, false for costs."""
    return objective in metrics.names() and objective not in metrics.LOSSES


def trial_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One flat row for each trial that has ended, by number.

    A row holds ``number``, ``origin``, ``state``, ``failure``, ``steps``, ``score``,
    ``is_collapsed``, ``cpu_seconds``, every metric and cost by its
    name, and

    - ``is_whole``: no other trial that was measured trained more steps;
    - ``is_candidate``: it was measured, is whole and not collapsed;
    - ``spent_cpu_seconds``: CPU time of this trial and all before it.

    What a trial does not have is None; a trial that failed has no CPU time.
    """
    ended = sorted((t for t in trials if t.state != "running"), key=lambda t: t.number)
    most_steps = max((t.proposal.fidelity.steps for t in ended if t.measured), default=0)
    names = [n for t in ended if t.measured for n in (*t.measured.metrics, *t.measured.costs)]
    rows, spent = [], 0.0
    for trial in ended:
        spent += trial.measured.cpu_seconds if trial.measured else 0.0
        row: dict[str, Any] = dict.fromkeys(names) | _row(trial) | {"spent_cpu_seconds": spent}
        row["is_whole"] = row["steps"] >= most_steps
        row["is_candidate"] = bool(trial.measured) and row["is_whole"] and not row["is_collapsed"]
        rows.append(row)
    return rows


def _row(trial: Trial) -> dict[str, Any]:
    measured = trial.measured
    values = measured.model_dump(exclude={"metrics", "costs"}) if measured else {}
    return {
        "number": trial.number,
        "origin": trial.proposal.origin,
        "state": trial.state,
        "failure": trial.failure,
        "steps": trial.proposal.fidelity.steps,
        **dict.fromkeys(("score", "is_collapsed", "cpu_seconds")),
        **values,
        **(measured.metrics | measured.costs if measured else {}),
    }


def column(rows: Sequence[dict], name: str) -> np.ndarray:
    """Values of a row's entry as floats; NaN for trials without it.

    Raises
    ------
    ParameterError
        listing the entries, if trials were measured and none has it.
    """
    if any(row["score"] is not None for row in rows) and name not in rows[0]:
        raise ParameterError(f"trials have no {name!r}; they have {', '.join(rows[0])}")
    found = (row.get(name) for row in rows)
    return np.array([np.nan if value is None else value for value in found], float)


def minimised(rows: Sequence[dict], objective: str) -> np.ndarray:
    """Values of an objective [shape=(rows,)], negated if more of it is better."""
    values = column(rows, objective)
    return -values if is_better_high(objective) else values


def front_of(rows: Sequence[dict], objectives: Sequence[str]) -> np.ndarray:
    """Indices of the rows on the front of all candidates, as ``pareto.front`` sorts them."""
    points = np.column_stack([minimised(rows, objective) for objective in objectives])
    usable = _candidates(rows) & np.isfinite(points).all(axis=1)
    return np.flatnonzero(usable)[pareto.front(points[usable])]


def without_collapsed(rows: Sequence[dict], values: np.ndarray) -> np.ndarray:
    """Values with NaN for trials that collapsed; all of them if no other was measured."""
    regular = np.where(column(rows, "is_collapsed") == 0, values, np.nan)
    return regular if np.isfinite(regular).any() else values


def _candidates(rows: Sequence[dict]) -> np.ndarray:
    return np.array([row["is_candidate"] for row in rows], bool)


def hypervolume_curve(
    trials: Sequence[Trial], *, objectives: Sequence[str], reference: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """CPU seconds spent, and which share of the volume that counts is dominated by then.

    The volume lies between ``reference`` and the ideal, which is 1 for metrics other than losses
    and 0 otherwise. Only candidates (`trial_rows`) dominate; the time of all trials counts.

    Parameters
    ----------
    objectives : names of metrics and costs
    reference : value of each objective that must be surpassed

    Returns
    -------
    two np.ndarrays [shape=(ended trials + 1,)], which begin with 0

    Raises
    ------
    ParameterError
        if an objective is unknown or the reference is no better than the ideal.
    """
    rows = trial_rows(trials)
    is_high = np.array([is_better_high(objective) for objective in objectives])
    corner = np.where(is_high, -np.asarray(reference, float), reference)
    sides = corner + is_high
    if not np.all(sides > 0):
        raise ParameterError(f"reference={tuple(reference)!r} must be worse than the ideal")
    points = np.column_stack([minimised(rows, objective) for objective in objectives])
    # What is not a candidate lies on the corner and adds nothing.
    usable = _candidates(rows) & np.isfinite(points).all(axis=1)
    points = np.where(usable[:, np.newaxis], points, corner)
    shares = pareto.hypervolume_over(points, corner.tolist()) / np.prod(sides)
    return np.append(0.0, column(rows, "spent_cpu_seconds")), np.append(0.0, shares)
