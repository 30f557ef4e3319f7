"""Which trial of a search wins."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qbee.errors import ParameterError
from qbee.search import pareto
from qbee.search.limits import Limits
from qbee.search.strategy import objective
from qbee.search.trial import Fidelity, Measured, Trial


def eligible(
    trials: Sequence[Trial], *, fidelity: Fidelity, limits: Limits | None = None
) -> list[Trial]:
    """Finished whole trials within the limits, without collapsed ones unless all are."""
    finished = [
        trial
        for trial in trials
        if trial.measured is not None
        and trial.proposal.fidelity == fidelity
        and (limits is None or limits.are_met(trial.measured.costs))
    ]
    return [trial for trial in finished if not _measured(trial).is_collapsed] or finished


def front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Trials that no other beats in all objectives, by falling quality of the last."""
    values = [[objective(trial, name) for name in objectives] for trial in trials]
    return [trials[i] for i in pareto.front(values)]


def best_within(trials: Sequence[Trial], limits: Limits, *, metric: str) -> Trial:
    """Trial of the best metric within limits.

    Raises
    ------
    ParameterError
        if there is none; the message has the lowest of each limited cost.
    """
    fitting = [t for t in trials if t.measured and limits.are_met(t.measured.costs)]
    if fitting:
        return min(fitting, key=lambda trial: objective(trial, metric))
    lowest = {
        name: min((_measured(t).costs[name] for t in trials), default=math.nan)
        for name in limits.at_most
    }
    found = ", ".join(f"{name}={value:.0f}" for name, value in lowest.items())
    raise ParameterError(f"no whole trial has {limits}; the lowest are {found}")


def _measured(trial: Trial) -> Measured:
    assert trial.measured is not None
    return trial.measured


def _worst_f1(trial: Trial) -> float:
    """F1 less its standard error."""
    return _measured(trial).metrics["f1"] - _measured(trial).f1_error


def rule_of(winner: Trial, *, float_f1: float, max_f1_drop: float) -> str:
    """In words, why ``choose`` chose this trial."""
    points = f"{100 * max_f1_drop:.1f} points below the float model's"
    if _worst_f1(winner) >= float_f1 - max_f1_drop:
        return f"smallest .tflite with a validation F1, less its standard error, at most {points}"
    return f"highest validation F1 less its standard error, as no trial was at most {points}"


def choose(trials: Sequence[Trial], *, float_f1: float, max_f1_drop: float) -> Trial:
    """The winner: smallest file whose F1 is surely at most ``max_f1_drop`` below float's.

    Surely means with one standard error of the difference to spare, on the validation windows: a
    scheme that decides many windows differently may have the same F1 there by chance. Among
    equal sizes the higher score wins. If no trial is that good, the best of them wins.
    """
    good = [t for t in trials if _worst_f1(t) >= float_f1 - max_f1_drop]
    if not good:
        return max(trials, key=lambda t: (_worst_f1(t), _measured(t).score))
    return min(good, key=lambda t: (_measured(t).costs["tflite_bytes"], -_measured(t).score))
