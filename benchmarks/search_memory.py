"""Memory of a search: resident set from its tenth to its 200th trial, beside stock AutoQKeras'.

Run with ``python -m benchmarks.search_memory``; about six minutes on two cores. BeeNet2 on 64 x 64
images of noise, trials of one epoch of 128 windows. Theirs is the growth of stock AutoQKeras from
its third to its eighth trial, for as many trials. The last line is JSON.
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks import outcome
from benchmarks.search_ground import searched, space
from benchmarks.search_trial import ground
from qbee.search import autoqkeras
from qbee.search.autoqkeras import StockSettings

FROM_TRIAL, TO_TRIAL, WINDOWS = 10, 200, 128
THEIR_FROM, THEIR_TO = 3, 8
LARGEST_GROWTH_MB = 50.0


def resident_mb() -> float:
    """Resident set of this process in MB (1e6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def our_growth_mb(on) -> float:
    """Growth from trial to trial of a search by random schemes, which repeats none."""
    sizes: list[float] = []

    def heard(_timed) -> None:
        sizes.append(resident_mb())
        if len(sizes) % 20 == 0:
            print(f"  ours: trial {len(sizes)}, {sizes[-1]:.0f} MB", flush=True)

    of = space(trial_windows=WINDOWS)
    searched(on, of, strategy="random", trials=TO_TRIAL, seed=0, on_trial=heard)
    return sizes[TO_TRIAL - 1] - sizes[FROM_TRIAL - 1]


def their_growth_mb(on) -> float:
    """Growth of stock AutoQKeras, for as many trials."""
    sizes: list[float] = []

    def heard(_trial, _model) -> None:
        sizes.append(resident_mb())
        print(f"  theirs: trial {len(sizes)}, {sizes[-1]:.0f} MB", flush=True)

    part = np.asarray(on.fold.train[:WINDOWS])
    data = (on.examples.inputs(part), on.examples.labels[part].astype(int))
    with tempfile.TemporaryDirectory() as folder:
        autoqkeras.search(
            on.model,
            data,
            data,
            settings=StockSettings(mode="random"),
            trials=THEIR_TO,
            epochs=1,
            batch=64,
            learning_rate=1e-4,
            seed=0,
            folder=Path(folder),
            on_trial=heard,
        )
    each = (sizes[THEIR_TO - 1] - sizes[THEIR_FROM - 1]) / (THEIR_TO - THEIR_FROM)
    return each * (TO_TRIAL - FROM_TRIAL)


def main() -> None:
    """Measure and print the JSON line; exit with 1 if the bar is missed."""
    on = ground("beenet2")
    ours = our_growth_mb(on)
    outcome.finish(
        "search_memory",
        ours=ours,
        theirs=their_growth_mb(on),
        unit=f"MB from trial {FROM_TRIAL} to trial {TO_TRIAL}",
        missed={f"{ours:.0f} MB, more than {LARGEST_GROWTH_MB:.0f}": ours > LARGEST_GROWTH_MB},
    )


if __name__ == "__main__":
    main()
