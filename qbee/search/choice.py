"""Which trial of a search wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qbee.errors import ParameterError
from qbee.search import pareto
from qbee.search.limits import Limits, as_text
from qbee.search.strategy import objective
from qbee.search.trial import Fidelity, Measured, Trial


def eligible(
    trials: Sequence[Trial], *, fidelity: Fidelity, limits: Limits | None = None
) -> list[Trial]:
    """Finished whole trials within the limits, without collapsed ones unless all are.

    Raises
    ------
    ParameterError
        if there is none; the message has the lowest of each limited cost.
    """
    whole = [t for t in trials if t.measured is not None and t.proposal.fidelity == fidelity]
    if not whole:
        raise ParameterError("no whole trial is finished; search with more trials")
    fitting = _within(whole, limits or Limits())
    return [trial for trial in fitting if not measured_of(trial).is_collapsed] or fitting


def _within(trials: Sequence[Trial], limits: Limits) -> list[Trial]:
    """Trials within the limits; an error if there is none."""
    fitting = [trial for trial in trials if limits.are_met(measured_of(trial).costs)]
    if fitting:
        return fitting
    lowest = [
        f"{name}={as_text(min(measured_of(trial).costs[name] for trial in trials))}"
        for name in limits.at_most
    ]
    raise ParameterError(f"no whole trial has {limits}; the lowest are {', '.join(lowest)}")


def front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Trials that no other beats in all objectives, by falling quality of the last."""
    values = [[objective(trial, name) for name in objectives] for trial in trials]
    return [trials[i] for i in pareto.front(values)]


def contenders(
    trials: Sequence[Trial], winner: Trial, objectives: Sequence[str], count: int
) -> list[Trial]:
    """The winner and its neighbours on the front, ``count`` in all.

    First come smaller files, the nearest first: fine-tuning does most for them.
    """
    size = measured_of(winner).costs["tflite_bytes"]

    def order(trial: Trial) -> tuple[bool, float]:
        other = measured_of(trial).costs["tflite_bytes"]
        return other > size, abs(math.log(other / size))

    others = [trial for trial in front(trials, objectives) if trial != winner]
    return [winner, *sorted(others, key=order)[: count - 1]]


def best_within(trials: Sequence[Trial], limits: Limits, *, metric: str) -> Trial:
    """Trial of the best metric within limits.

    Raises
    ------
    ParameterError
        if there is none; the message has the lowest of each limited cost.
    """
    return min(_within(trials, limits), key=lambda trial: objective(trial, metric))


def measured_of(trial: Trial) -> Measured:
    """What a finished trial found."""
    assert trial.measured is not None
    return trial.measured


# F1 alone would let a scheme win by chance: on a few hundred windows its difference has an error
# of two or three points. Average precision depends on the order of all windows, not on a threshold.
COMPARED = ("f1", "average_precision")


def _is_good(trial: Trial, *, floats: Mapping[str, float], max_f1_drop: float) -> bool:
    """Whether a trial is nearly as good as float on the validation windows."""
    found = measured_of(trial).metrics
    return all(found[name] >= floats[name] - max_f1_drop for name in COMPARED)


def rule_of(winner: Trial, *, floats: Mapping[str, float], max_f1_drop: float) -> str:
    """In words, why ``choose`` chose this trial."""
    points = f"{100 * max_f1_drop:.1f} points below the float model's"
    if _is_good(winner, floats=floats, max_f1_drop=max_f1_drop):
        return f"smallest .tflite with validation F1 and average precision at most {points}"
    return f"highest validation F1, as no trial's F1 and average precision were at most {points}"


def choose(trials: Sequence[Trial], *, floats: Mapping[str, float], max_f1_drop: float) -> Trial:
    """The winner: smallest file that is nearly as good as float on the validation windows.

    That is, F1 and average precision at most ``max_f1_drop`` below float's. Among equal sizes the
    higher score wins. If no trial is that good, the one of highest F1 wins.

    Parameters
    ----------
    floats : metrics of the float network on the same windows, by name
    """
    good = [t for t in trials if _is_good(t, floats=floats, max_f1_drop=max_f1_drop)]
    if not good:
        return max(trials, key=lambda t: (measured_of(t).metrics["f1"], measured_of(t).score))
    return min(good, key=lambda t: (measured_of(t).costs["tflite_bytes"], -measured_of(t).score))
