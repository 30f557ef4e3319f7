"""Front of a search against that of stock AutoQKeras: hypervolume over CPU seconds.

Run with ``python -m benchmarks.search_hypervolume [SEED ...]``; ten minutes a seed on two cores,
seeds 0 to 4 by default. BeeNet1 on 128 x 128 mel images of the default soundscapes, trained in
floating point on two locations. Theirs is AutoQKeras as QKeras has it (Bayesian, its own
quantizers with power-of-two steps), 20 trials of one epoch of 1024 windows; ours is the default
strategy with whole trials of the same length. Points are the cross-entropy on all validation
windows and the real bytes of the .tflite; the volume is that below guessing (log 2) and the file
of 16 bits everywhere. Time is CPU time of the process, with building, tracing and probing.
The last line is JSON.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import outcome
from benchmarks.search_ground import Trained, evaluator, searched, soundscapes, space, trained
from qbee.quantize.scheme import Scheme, uniform
from qbee.search import autoqkeras, pareto
from qbee.search.autoqkeras import StockSettings, StockTrial

SEEDS = (0, 1, 2, 3, 4)
THEIR_TRIALS, OUR_TRIALS = 20, 16
FLOAT_EPOCHS, TRIAL_WINDOWS, BATCH_WINDOWS = 8, 1024, 64
LEAST_RATIO, WANTED_RATIO = 15.0, 30.0

Curve = list[tuple[float, float, float]]


def theirs(on: Trained, size_of: Callable[[Scheme], float], *, seed: int) -> Curve:
    """CPU seconds so far, cross-entropy and bytes of each stock trial."""
    begun, found = time.process_time(), []

    def heard(trial: StockTrial, _model) -> None:
        if trial.failure is None:
            seconds = time.process_time() - begun
            found.append((seconds, trial.metrics["loss"], size_of(trial.scheme)))

    train = np.random.default_rng(seed).permutation(on.fold.train)[:TRIAL_WINDOWS]
    sets = [
        (on.examples.inputs(part), on.examples.labels[np.asarray(part)].astype(int))
        for part in (train, on.fold.validation)
    ]
    with tempfile.TemporaryDirectory() as folder:
        autoqkeras.search(
            on.model,
            *sets,
            settings=StockSettings(),
            trials=THEIR_TRIALS,
            epochs=1,
            batch=BATCH_WINDOWS,
            learning_rate=space().trial_max_rate,
            seed=seed,
            folder=Path(folder),
            on_trial=heard,
        )
    return found


def ours(on: Trained, *, seed: int) -> Curve:
    """As ``theirs``, of the default strategy."""
    found = searched(on, space(), strategy="sensitivity", trials=OUR_TRIALS, seed=seed)
    return [
        (
            timed.cpu_seconds,
            timed.trial.measured.metrics["loss"],
            timed.trial.measured.costs["tflite_bytes"],
        )
        for timed in found
        if timed.trial.measured is not None
    ]


def volumes(points: list[tuple[float, float]], largest: float) -> np.ndarray:
    """Share of the volume after each trial, given as cross-entropy and bytes."""
    reference = (math.log(2), largest)
    return pareto.hypervolume_over(points, reference) / math.prod(reference)


def sizes(on: Trained, *, seed: int) -> Callable[[Scheme], float]:
    """Bytes of the .tflite of a scheme with the float network's weights."""
    prices = evaluator(on, space(), seed=seed)
    supernet = prices.grounds(100)[0].supernet

    def size_of(scheme: Scheme) -> float:
        supernet.assign(scheme)
        return prices.cost_model.costs(supernet.to_fixed_point(), scheme)["tflite_bytes"]

    return size_of


def largest_bytes(on: Trained, *, seed: int) -> float:
    """Bytes of the .tflite of 16 bits everywhere."""
    return sizes(on, seed=seed)(uniform(on.net, bits=16))


def until(curve: Curve, shares: np.ndarray, wanted: float) -> float:
    """CPU seconds until a share was reached; infinite if it never was."""
    reached = np.flatnonzero(shares >= wanted)
    return curve[reached[0]][0] if len(reached) else math.inf


def measure(on: Trained, *, seed: int) -> dict[str, float]:
    """Volumes and times of one seed."""
    size_of = sizes(on, seed=seed)
    largest = size_of(uniform(on.net, bits=16))
    mine = ours(on, seed=seed)
    stock = theirs(on, size_of, seed=seed)
    my_shares, their_shares = (
        volumes([(loss, size) for _, loss, size in curve], largest) for curve in (mine, stock)
    )
    found = {
        "their_volume": float(their_shares[-1]),
        "their_seconds": stock[-1][0],
        "our_volume": float(my_shares[-1]),
        "our_seconds": mine[-1][0],
        "our_seconds_to_theirs": until(mine, my_shares, their_shares[-1]),
    }
    print(f"  seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    for name, curve, shares in (("ours", mine, my_shares), ("theirs", stock, their_shares)):
        rows = zip(curve, shares, strict=True)
        shown = "; ".join(f"{s:.0f} s {loss:.3f} {b:.0f} B -> {v:.3f}" for (s, loss, b), v in rows)
        print(f"    {name}: {shown}", flush=True)
    return found


def main() -> None:
    """Measure, print a line a seed and the JSON line; exit with 1 if a bar is missed."""
    seeds = [int(text) for text in sys.argv[1:]] or list(SEEDS)
    with soundscapes() as (examples, by_location):
        rows = []
        for seed in seeds:
            fold_ = by_location[seed % len(by_location)]
            on = trained("beenet1", examples, fold_, epochs=FLOAT_EPOCHS, seed=seed)
            rows.append(measure(on, seed=seed))
    ratios = [row["their_seconds"] / row["our_seconds_to_theirs"] for row in rows]
    ratio = float(np.median(ratios))
    # Volumes never fall, so one that is larger after less time is larger at equal time.
    is_larger = [
        row["our_volume"] > row["their_volume"] and row["our_seconds"] <= row["their_seconds"]
        for row in rows
    ]
    outcome.finish(
        "search_hypervolume",
        ours=float(np.median([row["our_seconds_to_theirs"] for row in rows])),
        theirs=float(np.median([row["their_seconds"] for row in rows])),
        unit="CPU seconds to the hypervolume of 20 stock trials, median of the seeds",
        missed={
            f"{ratio:.1f} x less time than stock, not {LEAST_RATIO}": ratio < LEAST_RATIO,
            f"larger volume at equal time on {sum(is_larger)} of {len(rows)} seeds": not all(
                is_larger
            ),
        },
        times_less=ratios,
        aimed_at=WANTED_RATIO,
        seeds=seeds,
    )


if __name__ == "__main__":
    main()
