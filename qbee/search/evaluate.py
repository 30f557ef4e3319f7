"""What a trial is: widths assigned, a short training, scores on whole validation folds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from qbee.keras import tf
from qbee.quantize import ops
from qbee.quantize.calibrate import Maps
from qbee.quantize.fold import FoldedNet
from qbee.quantize.scheme import Scheme
from qbee.quantize.sharing import OneStep
from qbee.search import cost
from qbee.search.cost import CostModel
from qbee.search.domain import Domain
from qbee.search.score import ForgivingFactor
from qbee.search.space import SearchSpace
from qbee.search.supernet import Supernet
from qbee.search.trial import Fidelity, Measured, Point, Trial
from qbee.train import metrics
from qbee.train.fit import Examples, Trainer, TrainSettings, predict

# Training windows whose logits tell the damage of a scheme that is not trained.
PROBE_WINDOWS = 64


class Ground:
    """A float network with the windows on which schemes for it are tuned and scored.

    Parameters
    ----------
    train, validation : indices into ``examples``
    float_logits : np.ndarray [shape=(validation windows, 2)]
        of the float network, which a scheme's are compared with
    """

    def __init__(
        self,
        net: FoldedNet,
        maps: Maps,
        examples: Examples,
        *,
        train: Sequence[int],
        validation: Sequence[int],
        float_logits: np.ndarray,
        one_step: OneStep = False,
    ):
        self.net, self.examples = net, examples
        self.train, self.validation = np.asarray(train, int), np.asarray(validation, int)
        self.labels = examples.labels[self.validation]
        self.maps, self.one_step = maps, one_step
        self.float_metrics = {
            name: metrics.get(name)(self.labels, float_logits) for name in metrics.names()
        }

    @cached_property
    def supernet(self) -> Supernet:
        """The network of all schemes."""
        return Supernet(self.net, self.maps, one_step=self.one_step)

    @cached_property
    def _trainer(self) -> Trainer:
        return Trainer(self.supernet, clip_value=TrainSettings().clip_value)

    def logits(
        self, scheme: Scheme, fidelity: Fidelity, settings: TrainSettings, *, seed: int
    ) -> np.ndarray:
        """Logits [n, 2] of the validation windows after a training of this fidelity."""
        self.supernet.assign(scheme)
        if fidelity.steps:
            train = self.drawn(fidelity.windows, seed=seed)
            self._trainer.run(self.examples, train=train.tolist(), settings=settings, seed=seed)
        return predict(self.supernet, self.examples, self.validation)

    def drawn(self, count: int, *, seed: int) -> np.ndarray:
        """So many training windows, with as large a share of buzz as all have, and at least one."""
        shuffled = np.random.default_rng(seed).permutation(self.train)
        is_buzz = self.examples.labels[shuffled]
        share = min(count / len(shuffled), 1)
        parts = [
            shuffled[is_buzz == one][: max(round(share * np.sum(is_buzz == one)), 1)]
            for one in (False, True)
        ]
        return np.concatenate(parts)


class Evaluator:
    """Measures trials, and probes points without one.

    Parameters
    ----------
    grounds : callable (percent of channels) -> grounds, one for each fold
    train_settings : training of a trial; its epochs are those of the fidelity
    """

    def __init__(
        self,
        space: SearchSpace,
        domain: Domain,
        grounds: Callable[[int], Sequence[Ground]],
        cost_model: CostModel,
        train_settings: TrainSettings,
        *,
        seed: int,
    ):
        self.space, self.domain, self.grounds = space, domain, grounds
        self.cost_model, self.train_settings, self.seed = cost_model, train_settings, seed
        self.metric = metrics.get(space.metric)
        self._costs: dict[tuple[int, str], dict[str, float]] = {}

    def measure(self, trial: Trial) -> Measured:
        """Tune and score the scheme of a trial, on every ground.

        Raises
        ------
        QbeeError
            if the scheme cannot be built or scored.
        """
        begun = time.process_time()
        fidelity = trial.proposal.fidelity
        settings = self.train_settings.model_copy(update={"epochs": max(fidelity.epochs, 1)})
        grounds = self.grounds(self.domain.width(trial.point))
        found = [
            (ground, ground.logits(trial.scheme, fidelity, settings, seed=self.seed))
            for ground in grounds
        ]
        costs = self.cost_model.costs(grounds[0].supernet.to_fixed_point(), trial.scheme)
        return self.measured(found, costs, cpu_seconds=lambda: time.process_time() - begun)

    def measured(
        self,
        found: Sequence[tuple[Ground, np.ndarray]],
        costs: dict[str, float],
        *,
        cpu_seconds: Callable[[], float],
    ) -> Measured:
        """The record of logits [n, 2] that a network of these costs gave on every ground."""
        scores = self._scores(found)
        return Measured(
            metrics=scores,
            interval=self._interval(found),
            costs=costs,
            score=self._score(scores[self.space.metric], costs),
            is_collapsed=any(metrics.has_collapsed(g.labels, z) for g, z in found),
            cpu_seconds=cpu_seconds(),
        )

    def _scores(self, found: Sequence[tuple[Ground, np.ndarray]]) -> dict[str, float]:
        """Mean of every metric over the folds."""
        return {
            name: float(np.mean([metrics.get(name)(g.labels, logits) for g, logits in found]))
            for name in metrics.names()
        }

    def _interval(self, found: Sequence[tuple[Ground, np.ndarray]]) -> tuple[float, float]:
        folds = [(ground.labels, logits) for ground, logits in found]
        return metrics.bootstrap_interval(self.metric, folds, seed=self.seed)

    def _score(self, metric: float, costs: dict[str, float]) -> float:
        return self.space.score.of(metric, costs, reference_bits=self._reference_bits)

    @cached_property
    def _reference_bits(self) -> int:
        """Bits of the widest network at the reference's widths."""
        elements = cost.elements(self._widest.net)
        score = self.space.score
        factor = score if isinstance(score, ForgivingFactor) else ForgivingFactor()
        return cost.total_bits(elements, cost.reference_slots(elements, factor))

    @property
    def _widest(self) -> Ground:
        return self.grounds(max(self.space.widths))[0]

    def costs(self, point: Point) -> dict[str, float]:
        """Costs of a point with the float network's weights."""
        scheme, width = self.domain.scheme(point), self.domain.width(point)
        key = (width, scheme.model_dump_json())
        if key not in self._costs:
            supernet = self.grounds(width)[0].supernet
            supernet.assign(scheme)
            self._costs[key] = self.cost_model.costs(supernet.to_fixed_point(), scheme)
        return self._costs[key]

    def damage(self, point: Point) -> float:
        """Mean squared difference to the float network's logits of training windows."""
        inputs, wanted = self._probe
        supernet = self.grounds(self.domain.width(point))[0].supernet
        supernet.assign(self.domain.scheme(point))
        return float(np.mean((supernet.approximate(inputs).numpy() - wanted) ** 2))

    @cached_property
    def _probe(self):
        """Inputs and the widest float network's logits."""
        ground = self._widest
        chosen = np.random.default_rng(self.seed).permutation(ground.train)[:PROBE_WINDOWS]
        inputs = tf.constant(ground.examples.inputs(chosen))
        return inputs, ops.output(ground.net, inputs).numpy()
