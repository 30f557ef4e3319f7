"""Which strategy finds the best front: hypervolume of equally many trials.

Run with ``python -m benchmarks.search_strategies [SEED ...]``; five minutes a seed on two cores,
seeds 0 to 4 by default. BeeNet3 on the default soundscapes, trained in floating point on two
locations; whole trials of one epoch of 1024 windows. Points are the cross-entropy on all
validation windows and the bytes of the .tflite; the volume is that below guessing (log 2) and the
file of 16 bits everywhere, as a share. Ours is the default strategy, theirs the best of the
others, both as medians of the seeds. The last line is JSON.
"""

import sys

import numpy as np

from benchmarks import outcome
from benchmarks.search_ground import points, searched, soundscapes, space, trained
from benchmarks.search_hypervolume import largest_bytes, volumes

STRATEGIES = ("sensitivity", "bayesian", "nsga2", "tpe", "random")
SEEDS, TRIALS, FLOAT_EPOCHS = (0, 1, 2, 3, 4), 16, 8


def main() -> None:
    """Measure, print a line a search and the JSON line; exit with 1 if the default loses."""
    seeds = [int(text) for text in sys.argv[1:]] or list(SEEDS)
    shares: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    with soundscapes() as (examples, by_location):
        for seed in seeds:
            fold_ = by_location[seed % len(by_location)]
            on = trained("beenet3", examples, fold_, epochs=FLOAT_EPOCHS, seed=seed)
            largest = largest_bytes(on, seed=seed)
            for name in STRATEGIES:
                found = searched(on, space(), strategy=name, trials=TRIALS, seed=seed)
                shares[name].append(float(volumes(points(found), largest)[-1]))
                spent = found[-1].cpu_seconds
                print(
                    f"  seed {seed} {name:<12} volume {shares[name][-1]:.4f} {spent:6.0f} CPU s",
                    flush=True,
                )
    medians = {name: float(np.median(values)) for name, values in shares.items()}
    best = max(medians[name] for name in STRATEGIES[1:])
    outcome.finish(
        "search_strategies",
        ours=medians[STRATEGIES[0]],
        theirs=best,
        unit=f"share of the volume after {TRIALS} trials, median of the seeds",
        missed={"another strategy is better": best > medians[STRATEGIES[0]]},
        medians=medians,
        seeds=seeds,
    )


if __name__ == "__main__":
    main()
