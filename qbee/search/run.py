"""The loop of a worker: a trial from the journal, measured, written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from qbee.errors import QbeeError
from qbee.keras import tf
from qbee.search.journal import Journal
from qbee.search.strategy import Strategy
from qbee.search.trial import Measured, Trial

logger = logging.getLogger(__name__)

# How a trial may fail without ending the search; a disk that is full ends it.
FAILURES = (QbeeError, ValueError, ArithmeticError, MemoryError, tf.errors.OpError)


def work(
    journal: Journal,
    strategy: Strategy,
    measure: Callable[[Trial], Measured],
    *,
    max_trials: int,
    on_trial: Callable[[Trial], None],
    wait_s: float = 0.5,
) -> None:
    """Measure trials until there are none left, also none that another worker might give back.

    Parameters
    ----------
    on_trial : called with every trial that is over, also with those of other workers
    """
    heard: set[int] = set()

    def tell() -> None:
        for trial in journal.trials:
            if trial.state != "running" and trial.number not in heard:
                heard.add(trial.number)
                on_trial(trial)

    tell()
    while (trial := journal.begin(strategy.propose, max_trials=max_trials)) or journal.is_waiting:
        if trial is None:
            time.sleep(wait_s)
        else:
            _measure(journal, trial, measure)
        tell()
    tell()


def _measure(journal: Journal, trial: Trial, measure: Callable[[Trial], Measured]) -> None:
    with journal.leased(trial.number):
        try:
            measured = measure(trial)
        except FAILURES as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            journal.fail(trial.number, f"{type(error).__name__}: {lines[0]}")
        else:
            journal.finish(trial.number, measured)
