"""What the benchmarks of searches share: soundscapes, a trained BeeNet, and searches on it."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.embedded_data import FRONT_END, make_data
from qbee.job.settings import default_space
from qbee.keras import keras, make_repeatable
from qbee.models import registry
from qbee.quantize.calibrate import Maps, calibrate
from qbee.quantize.fold import FoldedNet, fold
from qbee.records import Fold
from qbee.search import cost, strategies
from qbee.search.cost import CostModel
from qbee.search.domain import Domain
from qbee.search.evaluate import Evaluator, Ground
from qbee.search.journal import Journal
from qbee.search.run import work
from qbee.search.space import SearchSpace
from qbee.search.strategy import Task
from qbee.search.trial import Trial
from qbee.train.fit import Examples, TrainSettings, fit, predict

CALIBRATION_WINDOWS = 256


@dataclass
class Trained:
    """A float network with its windows, and its calibrated maps."""

    examples: Examples
    fold: Fold
    model: keras.Model
    net: FoldedNet
    maps: Maps


@contextmanager
def soundscapes() -> Iterator[tuple[Examples, list[Fold]]]:
    """Windows of the default soundscapes and one fold per location."""
    with tempfile.TemporaryDirectory() as folder:
        yield make_data(Path(folder))


def trained(name: str, examples: Examples, fold_: Fold, *, epochs: int, seed: int) -> Trained:
    """A network trained in floating point on a fold."""
    make_repeatable(seed)
    model = registry.build(name, n_mels=FRONT_END.n_mels, n_frames=FRONT_END.n_frames)
    fit(
        model,
        examples,
        train=fold_.train,
        validation=fold_.validation,
        settings=TrainSettings(epochs=epochs, epoch_windows=1024),
        seed=seed,
    )
    net = fold(model)
    chosen = np.random.default_rng(seed).permutation(fold_.train)[:CALIBRATION_WINDOWS]
    return Trained(examples, fold_, model, net, calibrate(net, examples.inputs(chosen), seed=seed))


def space(**changes) -> SearchSpace:
    """The space that comes with qbee, with whole trials of one epoch of 1024 windows."""
    return default_space().model_copy(update={"trial_epochs": 1, "trial_windows": 1024} | changes)


def evaluator(on: Trained, of: SearchSpace, *, seed: int) -> Evaluator:
    """A new shared network for a trained one, scored on its validation windows."""
    ground = Ground(
        on.net,
        on.maps,
        on.examples,
        train=on.fold.train,
        validation=on.fold.validation,
        float_logits=predict(on.model, on.examples, on.fold.validation),
    )
    settings = TrainSettings(epochs=1, max_rate=of.trial_max_rate)
    model = CostModel(tuple(cost.names()))
    return Evaluator(of, Domain(of, on.net), lambda _width: [ground], model, settings, seed=seed)


@dataclass(frozen=True)
class Timed:
    """A trial, and the CPU seconds of its search until it was over."""

    trial: Trial
    cpu_seconds: float


def searched(
    on: Trained,
    of: SearchSpace,
    *,
    strategy: str,
    trials: int,
    seed: int,
    on_trial: Callable[[Timed], None] = lambda timed: None,
) -> list[Timed]:
    """A search by one strategy; its time includes building and tracing the shared network."""
    begun, found = time.process_time(), []

    def heard(trial: Trial) -> None:
        found.append(Timed(trial, time.process_time() - begun))
        on_trial(found[-1])

    measures = evaluator(on, of, seed=seed)
    task = Task(
        domain=measures.domain,
        fidelity=of.fidelity,
        objectives=("loss", "tflite_bytes"),
        max_trials=trials,
        search_seed=seed,
        probe=measures,
        repaired=lambda point: point,
    )
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(
            Path(folder) / "search.db",
            name="search",
            identity={},
            scheme_of=measures.domain.scheme,
            seed=seed,
        )
        work(
            journal,
            strategies.get(strategy)(task),
            measures.measure,
            max_trials=trials,
            on_trial=heard,
        )
    return found


def points(found: list[Timed]) -> list[tuple[float, float]]:
    """Validation cross-entropy and bytes of finished trials."""
    measured = [timed.trial.measured for timed in found if timed.trial.measured is not None]
    return [(m.metrics["loss"], m.costs["tflite_bytes"]) for m in measured]
