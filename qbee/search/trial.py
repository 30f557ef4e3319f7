"""Trials of a search: what was tried, how thoroughly, and what came out (no TensorFlow)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qbee.quantize.scheme import Scheme
from qbee.records import Record

# Value of every hyperparameter by name: "<group>.kernel", "<group>.bias", "<group>.map", and
# "width", the percentage of every layer's channels.
Point = dict[str, int]
# Name of the hyperparameter of a network's channels, in percent.
WIDTH = "width"


class Fidelity(Record):
    """How long a trial trains: epochs over so many training windows; 0 is calibrated only."""

    epochs: int = Field(ge=0)
    windows: int = Field(ge=0)

    @property
    def steps(self) -> int:
        """Windows seen in training."""
        return self.epochs * self.windows


class Measured(Record):
    """What a trial found out about its scheme, on validation windows.

    Attributes
    ----------
    metrics : by name, as ``train.metrics`` registers them; means over the folds
    interval : 90 % bootstrap interval of the metric that is scored
    costs : by name, as ``search.cost`` registers them
    score : what the search maximises
    is_collapsed : all windows are given to one class
    """

    metrics: dict[str, float]
    interval: tuple[float, float]
    costs: dict[str, float]
    score: float
    is_collapsed: bool
    cpu_seconds: float


class Proposal(Record):
    """What a strategy wants to have measured.

    ``origin`` says where it comes from ("uniform 8", "sensitivity", ...); ``notes`` is what the
    strategy wants to find again in the trial.
    """

    point: Point
    fidelity: Fidelity
    origin: str
    notes: dict[str, str] = {}


class Trial(Record):
    """One entry of a journal; numbers count from 0 without gaps."""

    number: int
    proposal: Proposal
    scheme: Scheme
    seed: int
    state: Literal["running", "finished", "failed"]
    measured: Measured | None = None
    failure: str | None = None

    @property
    def point(self) -> Point:
        """Hyperparameters of the scheme."""
        return self.proposal.point
