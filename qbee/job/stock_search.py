"""Stock AutoQKeras as the search of a job: for comparison, and for who wants exactly it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from qbee.errors import ParameterError
from qbee.job.searching import Search
from qbee.job.settings import SearchSettings
from qbee.quantize.scheme import Scheme
from qbee.search import cost
from qbee.search.autoqkeras import StockSettings, StockTrial, search
from qbee.search.choice import measured_of
from qbee.search.journal import Journal
from qbee.search.score import ForgivingFactor
from qbee.search.space import SearchSpace
from qbee.search.strategy import STOCK
from qbee.search.trial import Measured, Proposal, Trial

NAME = STOCK


def check(settings: SearchSettings, space: SearchSpace, *, workers: int) -> None:
    """Refuse what AutoQKeras does not know.

    Raises
    ------
    ParameterError
        naming it.
    """
    rules = {
        "workers": workers == 1,
        "limits": not settings.limits.at_most,
        "across": settings.across == "holdout",
        "score": isinstance(space.score, ForgivingFactor),
        "fixed, bounds or widths": not space.fixed and not space.bounds and space.widths == (100,),
    }
    for what, holds in rules.items():
        if not holds:
            raise ParameterError(f"strategy={STOCK!r} does not know the {what} asked for")


class StockSearch(Search):
    """AutoQKeras with its own model, tuner and score; its trials in a journal of their own.

    AutoQKeras cannot go on with a search: a stopped one begins again, and what it finds again is
    not written twice. The trial of its highest score wins.
    """

    @cached_property
    def journal(self) -> Journal:
        """Trials so far; points are bits by slot, as every layer has its own."""
        return self._journal(NAME, cost.scheme_of)

    @property
    def _settings(self) -> StockSettings:
        space = self.space
        assert isinstance(space.score, ForgivingFactor)
        score = space.score.model_dump(include={"delta_p", "delta_n", "rate", "stress"})
        return StockSettings(
            kernel_bits=space.kernel_bits,
            map_bits=space.map_bits,
            bias_bits=space.bias_bits,
            maps_after="pool",
            **score,
        )

    def run(self, *, logs: Path | None = None) -> None:
        """Let AutoQKeras do all its trials, unless they are all there."""
        tell = self._listener(logs)
        for trial in self.journal.trials:
            tell(trial)
        ended = [trial for trial in self.journal.trials if trial.state != "running"]
        if len(ended) >= self.settings.trials:
            return

        def heard(stock: StockTrial, model) -> None:
            trial = self._kept(stock, model)
            if trial is not None:
                tell(trial)

        space, split = self.space, self.split
        train = np.random.default_rng(split.settings.seed).permutation(split.indices("train"))
        sets = [
            (split.examples.inputs(part), split.examples.labels[part].astype(int))
            for part in (train[: space.trial_windows], split.indices("validation"))
        ]
        search(
            self.network().trained[0],
            *sets,
            settings=self._settings,
            trials=self.settings.trials,
            epochs=max(space.trial_epochs, 1),
            batch=split.train_settings(epochs=1, max_rate=1).batch_windows,
            learning_rate=space.trial_max_rate,
            seed=split.settings.seed,
            folder=split.work,
            on_trial=heard,
        )

    def _kept(self, stock: StockTrial, model) -> Trial | None:
        """A trial written to the journal; None if it is there."""
        proposal = Proposal(point=cost.slots(stock.scheme), fidelity=self.fidelity, origin=NAME)
        while trial := self.journal.begin(
            lambda _trials: proposal, max_trials=self.settings.trials
        ):
            if trial.point == proposal.point:
                break
            # One that a killed search left: its model is gone.
            self.journal.fail(trial.number, "the search was killed in this trial")
        if trial is None:
            return None
        if stock.failure is not None:
            return self.journal.fail(trial.number, stock.failure)
        return self.journal.finish(trial.number, self._measured(stock, model))

    def _measured(self, stock: StockTrial, model) -> Measured:
        """Metrics of its own model, costs of our file of its scheme, and its own score."""
        ground = self.grounds(100)[0]
        found = self.evaluator.measured(
            [(ground, self.split.logits(model, "validation"))],
            self._costs(stock.scheme),
            cpu_seconds=lambda: stock.cpu_seconds,
        )
        return found.model_copy(update={"score": stock.score})

    def _costs(self, scheme: Scheme) -> dict[str, float]:
        supernet = self.grounds(100)[0].supernet
        supernet.assign(scheme)
        return self.evaluator.cost_model.costs(supernet.to_fixed_point(), scheme)

    def chosen(self) -> Trial:
        """The trial of AutoQKeras' highest score."""
        return max(self.eligible, key=lambda trial: measured_of(trial).score)

    def contenders(self) -> list[Trial]:
        """That trial alone: AutoQKeras has the last word."""
        return [self.chosen()]

    def choose_again(self, tuned: Sequence[Trial]) -> Trial:
        """The same trial."""
        return tuned[0]

    def rule_of(self, winner: Trial) -> str:
        """In words, why it won."""
        return "highest score of AutoQKeras"
