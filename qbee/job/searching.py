"""The search of a job: its journal, its strategy, its winner, and the front fine-tuned."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from qbee.data import folds
from qbee.errors import DataError, QbeeError
from qbee.export.delivery import ExportSettings
from qbee.files import write_text
from qbee.job.network import WHOLE_WIDTH, Network
from qbee.job.settings import SearchSettings
from qbee.job.training import Split
from qbee.quantize import convert
from qbee.quantize.scheme import KernelBits, MapBits, Scheme, uniform
from qbee.records import Fold, Window, read_as
from qbee.search import choice, cost, strategies
from qbee.search.board_logs import BoardLogs
from qbee.search.cost import CostModel
from qbee.search.domain import Domain
from qbee.search.evaluate import Evaluator, Ground
from qbee.search.journal import Journal
from qbee.search.repair import repair
from qbee.search.run import work
from qbee.search.strategy import Task, check_objectives
from qbee.search.trial import WIDTH, Fidelity, Measured, Point, Proposal, Trial

JOURNAL, NAME = "search.db", "search"
ARENA = "arena_bytes"
NARROW = 8
# Widths of kernels and maps of schemes to compare with.
BASELINES: dict[str, tuple[KernelBits, MapBits]] = {
    "uniform 4": (4, 4),
    "kernels 4, maps 8": (4, 8),
    "uniform 8": (8, 8),
}


class Search:
    """One search in a job's folder; trials of it may be measured by several workers.

    Parameters
    ----------
    network, windows : the job's
    metadata : of the files whose bytes are counted
    store : journal to use instead of the folder's own
    """

    def __init__(
        self,
        network: Network,
        windows: Sequence[Window],
        settings: SearchSettings,
        metadata: dict[str, bytes],
        *,
        store: str | None = None,
    ):
        self.split = split = network.split
        self.windows, self.settings = windows, settings
        self.metadata = metadata
        self.store = store or (split.work / JOURNAL)
        self.space = split.settings.space
        check_objectives(settings.objectives)
        self._networks = {(split.fold.name, network.width): network}
        self._grounds: dict[int, list[Ground]] = {}

    def network(self, width: int = WHOLE_WIDTH) -> Network:
        """The job's network with a percentage of its channels."""
        return self._network(self.split, width)

    def _network(self, split: Split, width: int) -> Network:
        key = (split.fold.name, width)
        if key not in self._networks:
            self._networks[key] = Network(split, width)
        return self._networks[key]

    def network_of(self, trial: Trial) -> Network:
        """The network of a trial's width."""
        return self.network(self.domain.width(trial.point))

    @cached_property
    def domain(self) -> Domain:
        """The space for this network; without wide maps, if the limits have no RAM for them."""
        net = self.network(max(self.space.widths)).folded
        return Domain(self.space, net, widest_map=NARROW if self._is_short_of_ram else 16)

    @cached_property
    def _is_short_of_ram(self) -> bool:
        """Whether a network of 16-bit maps needs more than the limit of the arena."""
        limit = self.settings.limits.at_most.get(ARENA)
        return limit is not None and self._arena_of(16) > limit

    def _arena_of(self, bits: int) -> float:
        network = self.network(max(self.space.widths))
        scheme = uniform(network.folded, bits=8 if bits == NARROW else 16)
        net = convert.to_fixed_point(network.quantized(scheme))
        return CostModel((ARENA,)).costs(net, scheme)[ARENA]

    @cached_property
    def export_settings(self) -> ExportSettings:
        """How trials are priced and the winner is exported, unless something else was asked for."""
        limit = self.settings.limits.at_most.get(ARENA)
        if limit is None or self._arena_of(NARROW) <= limit:
            return ExportSettings()
        return ExportSettings(max_arena_bytes=max(int(limit), 1))

    @cached_property
    def evaluator(self) -> Evaluator:
        """What measures and probes."""
        training = self.split.train_settings(
            epochs=max(self.space.trial_epochs, 1),
            max_rate=self.space.trial_max_rate,
            epoch_windows=1,
        )
        model = CostModel(tuple(cost.names()), self.export_settings, self.metadata)
        return Evaluator(
            self.space, self.domain, self.grounds, model, training, seed=self.split.settings.seed
        )

    def grounds(self, width: int) -> list[Ground]:
        """Where schemes for a width are scored: the validation windows, or inner folds."""
        if width not in self._grounds:
            part = "validation" if self.settings.across == "holdout" else "test"
            references = self._scored_networks(self._reference_width)
            self._grounds[width] = [
                network.ground(reference, part)
                for network, reference in zip(self._scored_networks(width), references, strict=True)
            ]
        return self._grounds[width]

    @property
    def scored_on(self) -> str:
        """In words, the windows that score trials."""
        return "validation windows" if self.settings.across == "holdout" else "inner folds"

    @property
    def _reference_width(self) -> int:
        """Width of the float network that all schemes are compared with."""
        widths = self.space.widths
        return WHOLE_WIDTH if WHOLE_WIDTH in widths else max(widths)

    def _scored_networks(self, width: int) -> list[Network]:
        """The float networks whose quantization is scored, one for each fold."""
        is_one = self.settings.across == "holdout"
        splits = [self.split] if is_one else self._inner_splits
        return [self._network(split, width) for split in splits]

    @cached_property
    def _inner_splits(self) -> list[Split]:
        """Folds of all windows but the job's own test windows, each with a float network."""
        known = [*self.split.fold.train, *self.split.fold.validation]
        windows, settings = [self.windows[i] for i in known], self.split.settings
        if self.settings.across == "lolo":
            inner = folds.by_location(windows, settings.front_end, seed=settings.seed)
        else:
            inner = folds.cross_validation(
                windows, settings.front_end, n_folds=settings.folds, seed=settings.seed
            )
        splits = [self._inner_split(fold, known, number) for number, fold in enumerate(inner)]
        scored = [split for split in splits if split.has_both_classes]
        if not scored:
            raise DataError(f"across={self.settings.across!r}: no inner fold has both classes")
        if len(scored) < len(splits):
            left_out = len(splits) - len(scored)
            self.split.watcher.note(f"{left_out} inner folds have one class only and are left out")
        return scored

    def _inner_split(self, fold: Fold, known: Sequence[int], number: int) -> Split:
        parts = {
            part: tuple(known[i] for i in getattr(fold, part))
            for part in ("train", "validation", "test", "dropped")
        }
        folder = self.split.work / f"{self.settings.across}_{number}"
        renamed = Fold(name=folder.name, **parts)
        watcher = self.split.watcher
        return Split(folder, self.split.examples, renamed, self.split.settings, watcher)

    @cached_property
    def fidelity(self) -> Fidelity:
        """Training of a whole trial: as the space has it, of as many windows as there are."""
        splits = [self.split] if self.settings.across == "holdout" else self._inner_splits
        fewest = min(len(split.fold.train) for split in splits)
        wanted = self.space.fidelity
        return wanted.model_copy(update={"windows": min(wanted.windows, fewest)})

    @cached_property
    def task(self) -> Task:
        """What the strategy works on."""
        return Task(
            domain=self.domain,
            fidelity=self.fidelity,
            objectives=self.settings.objectives,
            max_trials=self.settings.trials,
            search_seed=self.split.settings.seed,
            probe=self.evaluator,
            repaired=self._repaired,
        )

    def _repaired(self, point: Point) -> Point:
        if not self.settings.limits.at_most:
            return point
        return repair(
            point,
            menus=self.domain.menus,
            costs_of=self.evaluator.costs,
            limits=self.settings.limits,
            elements=self.domain.elements,
        )

    @cached_property
    def journal(self) -> Journal:
        """Trials so far, of all workers."""
        return self._journal(f"{NAME}{self._suffix}", self.domain.scheme)

    @property
    def _suffix(self) -> str:
        """Tells searches apart whose trials cannot be compared, in one folder."""
        across, plan = self.settings.across, self.export_settings.max_arena_bytes
        return ("" if across == "holdout" else f"_{across}") + ("" if plan is None else f"_{plan}")

    def _journal(self, name: str, scheme_of: Callable[[Point], Scheme]) -> Journal:
        return Journal(
            self.store,
            name=name,
            identity=self._identity(),
            scheme_of=scheme_of,
            seed=self.split.settings.seed,
        )

    def _identity(self) -> dict[str, str]:
        """What decides the result of a trial; limits and strategy do not."""
        weights = hashlib.sha256()
        for net in (n.folded for n in self._scored_networks(max(self.space.widths))):
            for values in (net.kernels, net.biases):
                for name in net.weighted:
                    weights.update(np.ascontiguousarray(values[name]).tobytes())
        settings = hashlib.sha256(self.split.settings.model_dump_json().encode())
        return {
            "settings of the job": settings.hexdigest()[:16],
            "float weights": weights.hexdigest()[:16],
            "folds": self.settings.across,
            "memory plan": str(self.export_settings.max_arena_bytes),
        }

    def check_limits(self) -> None:
        """Check that the lowest widths keep the limits.

        Raises
        ------
        ParameterError
            naming the lowest value of what exceeds its limit.
        """
        self._repaired({name: menu[0] for name, menu in self.domain.menus.items()})

    def prepare(self) -> None:
        """Train and calibrate every float network that the search needs."""
        for width in self.space.widths:
            for network in self._scored_networks(width):
                _ = network.maps

    def run(self, *, logs: Path | None = None) -> None:
        """Measure trials until the journal has as many as were asked for.

        Parameters
        ----------
        logs : folder for TensorBoard
        """
        strategy = strategies.get(self.settings.strategy)(self.task)
        work(
            self.journal,
            strategy,
            self.evaluator.measure,
            max_trials=self.settings.trials + self._outside,
            on_trial=self._listener(logs),
        )

    @property
    def _outside(self) -> int:
        """Trials of an earlier search that the present limits or menus exclude."""
        points = [trial.point for trial in self.journal.trials]
        return sum(not self.domain.has(p) or self._repaired(p) != p for p in points)

    def _listener(self, logs: Path | None) -> Callable[[Trial], None]:
        """What hears of every trial that is over."""
        board = None if logs is None else BoardLogs(logs)

        def heard(trial: Trial) -> None:
            self.split.watcher.progress(trial.number + 1, self.settings.trials, described(trial))
            if trial.state == "failed":
                self.split.watcher.note(f"trial {trial.number} failed: {trial.failure}")
            if board is not None:
                board.add(trial)

        return heard

    def baselines(self) -> dict[str, Measured]:
        """Uniform schemes, measured as whole trials are; kept in the folder."""
        stored, adapter = (
            self.split.work / f"baselines{self._suffix}.json",
            TypeAdapter(dict[str, Measured]),
        )
        if stored.exists():
            return read_as(stored, adapter)
        net = self.network(max(self.space.widths)).folded
        found = {}
        for name, (bits, maps) in BASELINES.items():
            try:
                scheme = uniform(net, bits=bits, map_bits=maps)
                found[name] = self.evaluator.measure(self._uniform(scheme))
            except QbeeError as error:
                self.split.watcher.note(f"{name} is not drawn: {error}")
        write_text(stored, adapter.dump_json(found).decode())
        return found

    def _uniform(self, scheme: Scheme) -> Trial:
        point = {WIDTH: max(self.space.widths)}
        proposal = Proposal(point=point, fidelity=self.fidelity, origin="uniform")
        seed = self.split.settings.seed
        return Trial(number=0, proposal=proposal, scheme=scheme, seed=seed, state="running")

    @cached_property
    def trials(self) -> list[Trial]:
        """All trials that were measured when they were first asked for, also failed ones."""
        return self.journal.trials

    @property
    def float_metrics(self) -> dict[str, float]:
        """Metrics of the float network on the windows that score trials; means over folds."""
        grounds = self.grounds(self._reference_width)
        names = grounds[0].float_metrics
        return {name: float(np.mean([g.float_metrics[name] for g in grounds])) for name in names}

    @property
    def eligible(self) -> list[Trial]:
        """Trials that may win."""
        return choice.eligible(self.trials, fidelity=self.fidelity, limits=self.settings.limits)

    @property
    def front(self) -> list[Trial]:
        """Trials that may win and that no other of these beats in all objectives."""
        return choice.front(self.eligible, self.settings.objectives)

    def chosen(self) -> Trial:
        """The trial that wins by its own scores."""
        drop = self.space.max_f1_drop
        return choice.choose(self.eligible, floats=self.float_metrics, max_f1_drop=drop)

    def choose_again(self, tuned: Sequence[Trial]) -> Trial:
        """The winner of fine-tuned contenders, by the same rule on the validation windows."""
        fitting = choice.eligible(tuned, fidelity=self.fidelity, limits=self.settings.limits)
        drop = self.space.max_f1_drop
        return choice.choose(fitting, floats=self._holdout.float_metrics, max_f1_drop=drop)

    def rule_of(self, winner: Trial) -> str:
        """In words, why a fine-tuned trial won."""
        drop = self.space.max_f1_drop
        return choice.rule_of(winner, floats=self._holdout.float_metrics, max_f1_drop=drop)

    @cached_property
    def _holdout(self) -> Ground:
        """The float network on the job's validation windows."""
        network = self.network(self._reference_width)
        return network.ground(network, "validation")

    def contenders(self) -> list[Trial]:
        """The winner and its neighbours on the front, as many as are asked for."""
        settings = self.settings
        return choice.contenders(self.eligible, self.chosen(), settings.objectives, settings.top)

    def tuned_name(self, trial: Trial) -> str:
        """What the weights of a trial's fine-tuning are called: by its point."""
        point = json.dumps(trial.point, sort_keys=True)
        return f"tuned_{hashlib.sha256(point.encode()).hexdigest()[:12]}"

    def measured_again(self, trial: Trial, model, metadata: dict[str, bytes]) -> Trial:
        """The trial with what a quantized model of its scheme gives on the validation windows.

        Parameters
        ----------
        metadata : of its file, which the costs are those of
        """
        begun = time.process_time()
        prices = replace(self.evaluator.cost_model, metadata=metadata)
        costs = prices.costs(convert.to_fixed_point(model), trial.scheme)
        measured = self.evaluator.measured(
            [(self._holdout, self.split.logits(model, "validation"))],
            costs,
            cpu_seconds=lambda: time.process_time() - begun,
        )
        return trial.model_copy(update={"measured": measured})


def described(trial: Trial) -> str:
    """A trial in a few words."""
    if trial.measured is None:
        return f"failed ({trial.proposal.origin})"
    m = trial.measured
    return (
        f"F1 {m.metrics['f1']:.3f}, {m.costs['tflite_bytes']:.0f} B, "
        f"score {m.score:.3f} ({trial.proposal.origin})"
    )
