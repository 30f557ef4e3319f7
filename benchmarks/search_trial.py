"""What one trial of a search costs: ours, stock AutoQKeras', and the same epoch in float.

Run with ``python -m benchmarks.search_trial``; about ten minutes on two cores. A trial is one
epoch of 1024 windows in batches of 64 and the scores of 512 validation windows, of a random
scheme for each of the seeds 0 to 4, in CPU seconds of the process. BeeNet1 has 128 x 128 images,
BeeNet2 64 x 64; images are noise, as only time is measured. Stock is QKeras' AutoQKeras with its
own quantizers and with the thesis' feature-map quantizer (each sample has its range); its trials
include building and tracing, as they do in every trial of it. Ours is traced once a search, which
is given apart. Theirs is stock with its own quantizers. The last line is JSON.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import outcome
from benchmarks.search_ground import Trained, evaluator, space
from qbee.keras import make_repeatable
from qbee.models import registry
from qbee.quantize.calibrate import calibrate
from qbee.quantize.fold import fold
from qbee.records import Fold, FrontEnd
from qbee.search import autoqkeras
from qbee.search.autoqkeras import StockSettings
from qbee.search.trial import Proposal, Trial
from qbee.train.fit import Examples, Trainer, TrainSettings, predict

SEEDS = (0, 1, 2, 3, 4)
TRAIN_WINDOWS, VALIDATION_WINDOWS, BATCH_WINDOWS = 1024, 512, 64
NETS = {"beenet1": 128, "beenet2": 64}
# Ratio to ours: of stock with its own quantizers and with the thesis', at least.
LEAST = {"beenet1": (3.0, 6.0), "beenet2": (8.0, 15.0)}
MOST_OF_FLOAT = 1.5


def ground(name: str) -> Trained:
    """An untrained network with noise for windows."""
    make_repeatable(0)
    size, count = NETS[name], TRAIN_WINDOWS + VALIDATION_WINDOWS
    rng = np.random.default_rng(0)
    images = rng.normal(-60, 10, (count, size, size)).astype(np.float32)
    front_end = FrontEnd(n_mels=size, n_frames=size)
    examples = Examples(images, rng.integers(0, 2, count) > 0, front_end)
    model = registry.build(name, n_mels=size, n_frames=size)
    net = fold(model)
    parts = (tuple(range(TRAIN_WINDOWS)), tuple(range(TRAIN_WINDOWS, count)), (), ())
    maps = calibrate(net, examples.inputs(range(64)), seed=0)
    return Trained(examples, Fold("noise", *parts), model, net, maps)


def timed(action: Callable[[], object]) -> float:
    """CPU seconds of an action."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def float_seconds(on: Trained) -> list[float]:
    """An epoch and the scores in float, compiled before."""
    trainer = Trainer(on.model, clip_value=0.1)

    def trial() -> None:
        trainer.run(on.examples, train=on.fold.train, settings=TrainSettings(epochs=1), seed=0)
        predict(on.model, on.examples, on.fold.validation)

    return [timed(trial) for _ in range(len(SEEDS) + 1)][1:]


def our_seconds(on: Trained) -> tuple[list[float], float]:
    """Trials, and what the first one took longer."""
    measures = evaluator(on, space(), seed=0)
    domain, fidelity = measures.domain, space().fidelity

    def trial(seed: int) -> float:
        point = domain.random(np.random.default_rng(seed))
        proposal = Proposal(point=point, fidelity=fidelity, origin="random")
        scheme = domain.scheme(point)
        begun = Trial(number=0, proposal=proposal, scheme=scheme, seed=seed, state="running")
        return timed(lambda: measures.measure(begun))

    first = trial(SEEDS[0])
    rest = [trial(seed) for seed in SEEDS]
    return rest, first - rest[0]


def stock_seconds(on: Trained, quantizers: str) -> list[float]:
    """Trials of AutoQKeras; the first of a process, which loads libraries, is left out."""
    sets = [
        (on.examples.inputs(part), on.examples.labels[np.asarray(part)].astype(int))
        for part in (on.fold.train, on.fold.validation)
    ]
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        autoqkeras.search(
            on.model,
            *sets,
            settings=StockSettings.model_validate({"quantizers": quantizers, "mode": "random"}),
            trials=len(SEEDS) + 1,
            epochs=1,
            batch=BATCH_WINDOWS,
            learning_rate=1e-4,
            seed=0,
            folder=Path(folder),
            on_trial=lambda trial, _model: found.append(trial.cpu_seconds),
        )
    return found[1:]


def measure(name: str) -> dict[str, float]:
    """Median CPU seconds of a trial by what does it."""
    on = ground(name)
    floats = float_seconds(on)
    ours, once = our_seconds(on)
    found = {"float": float(np.median(floats)), "ours": float(np.median(ours)), "once": once}
    for quantizers in ("qkeras", "featuremap"):
        found[quantizers] = float(np.median(stock_seconds(on, quantizers)))
    for what, seconds in found.items():
        print(f"  {name:<9}{what:<12}{seconds:8.2f} CPU s{seconds / found['ours']:8.2f} x ours")
    return found


def main() -> None:
    """Measure, print a table and the JSON line; exit with 1 if a bar is missed."""
    found = {name: measure(name) for name in NETS}
    missed = {}
    for name, seconds in found.items():
        for stock, least in zip(("qkeras", "featuremap"), LEAST[name], strict=True):
            ratio = seconds[stock] / seconds["ours"]
            missed[f"{name}: stock with {stock} takes {ratio:.1f} x ours, not {least}"] = (
                ratio < least
            )
        share = seconds["ours"] / seconds["float"]
        missed[f"{name}: ours takes {share:.2f} x float, more than {MOST_OF_FLOAT}"] = (
            share > MOST_OF_FLOAT
        )
    outcome.finish(
        "search_trial",
        ours=found["beenet1"]["ours"],
        theirs=found["beenet1"]["qkeras"],
        unit="CPU seconds per trial of BeeNet1, median of five",
        missed=missed,
        seconds=found,
    )


if __name__ == "__main__":
    main()
