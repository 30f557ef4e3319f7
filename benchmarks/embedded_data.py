"""The embedded soundscapes are neither trivial nor hopeless: BeeNet1 against mean spectra.

Run with ``python -m benchmarks.embedded_data``; it takes about twelve minutes on two cores. Each
of the three locations is left out once: trained on the others, threshold chosen on validation
windows of the others, scored on the one left out. Ours is BeeNet1 in float. Theirs is what can
be told without looking at time: logistic regression on the mean of each mel band over the
window, of raw or of per-window standardised dB images, whichever is better on average. The last
line is JSON.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import outcome
from qbee.audio import mel, synth
from qbee.data import folds, labels, windows
from qbee.keras import keras, make_repeatable
from qbee.models import registry
from qbee.records import Fold, FrontEnd
from qbee.train import metrics
from qbee.train.fit import Examples, TrainSettings, fit, predict

FRONT_END = FrontEnd()
SEED = 0
OURS = "BeeNet1"
THEIRS = ("means, raw dB", "means, standardised")
HIGHEST, LOWEST = 0.97, 0.80
LEAST_MARGIN_POINTS = 15.0


def make_data(folder: Path) -> tuple[Examples, list[Fold]]:
    """Images and labels of the default soundscapes, and one fold per location."""
    table = synth.soundscapes(folder, seed=SEED)
    found = windows.from_segments(labels.read(table), FRONT_END).windows
    is_buzz = np.array([window.is_buzz for window in found])
    examples = Examples(windows.images(found, FRONT_END).images, is_buzz, FRONT_END)
    return examples, folds.by_location(found, FRONT_END, seed=SEED)


def trained_beenet(examples: Examples, fold: Fold) -> keras.Model:
    """BeeNet1 in float, trained on the fold."""
    make_repeatable(SEED)
    model = registry.build("beenet1")
    fit(
        model,
        examples,
        train=fold.train,
        validation=fold.validation,
        settings=TrainSettings(epochs=15),
        seed=SEED,
    )
    return model


def beenet(examples: Examples, fold: Fold) -> np.ndarray:
    """Probability of buzz of all windows, from BeeNet1 trained on the fold."""
    model = trained_beenet(examples, fold)
    return metrics.probabilities(predict(model, examples, range(len(examples.labels))))


def regression(means_db: np.ndarray, examples: Examples, fold: Fold) -> np.ndarray:
    """Probability of buzz of all windows, from a logistic regression on 128 band means."""
    regressor = LogisticRegression(class_weight="balanced", max_iter=2000)
    model = make_pipeline(StandardScaler(), regressor)
    train = np.asarray(fold.train)
    model.fit(means_db[train], examples.labels[train])
    return model.predict_proba(means_db)[:, 1]


def score(probability: np.ndarray, examples: Examples, fold: Fold) -> float:
    """F1 of the location left out, at the threshold that is best on the validation windows."""
    validation, test = np.asarray(fold.validation), np.asarray(fold.test)
    truth = examples.labels
    threshold = metrics.best_threshold(truth[validation], probability[validation])
    f1 = metrics.evaluate(truth[test], probability[test], threshold=threshold).f1
    return 0.0 if f1 is None else f1


def detectors(examples: Examples) -> dict[str, Callable[[Examples, Fold], np.ndarray]]:
    """Ours and theirs by name."""
    raw = examples.images.mean(axis=2)
    standardised = mel.standardize(examples.images, FRONT_END).mean(axis=2)
    return {
        OURS: beenet,
        THEIRS[0]: lambda examples, fold: regression(raw, examples, fold),
        THEIRS[1]: lambda examples, fold: regression(standardised, examples, fold),
    }


def print_row(first: str, *cells: str) -> None:
    """Print a line of the table at once: the next one may take minutes."""
    print(f"  {first:<10}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def measure() -> dict[str, float]:
    """Mean F1 over the locations by detector; prints a line per location."""
    with tempfile.TemporaryDirectory() as folder:
        examples, by_location = make_data(Path(folder))
    compared = detectors(examples)
    print_row("left out", "windows, with buzz", *(f"F1 {name}" for name in compared))
    rows = []
    for fold in by_location:
        rows.append([score(probability(examples, fold), examples, fold)
                     for probability in compared.values()])  # fmt: skip
        count = f"{len(fold.test)}, {examples.labels[np.asarray(fold.test)].sum()}"
        print_row(fold.name, count, *(f"{f1:.3f}" for f1 in rows[-1]))
    means = np.mean(rows, axis=0).tolist()
    print_row("mean", "", *(f"{f1:.3f}" for f1 in means))
    return dict(zip(compared, means, strict=True))


def main() -> None:
    """Measure, print a table and the JSON line; exit with 1 if a bar is missed."""
    print("default soundscapes, one location left out, 4 s windows")
    means = measure()
    ours, theirs = means[OURS], max(means[name] for name in THEIRS)
    margin_points = 100 * (ours - theirs)
    print(f"  margin {margin_points:.1f} points (bar: {LEAST_MARGIN_POINTS:.0f}); ", end="")
    print(f"ours {ours:.3f} (bars: {LOWEST:.2f} to {HIGHEST:.2f})")
    missed = {
        f"hopeless: mean F1 {ours:.3f} is below {LOWEST}": ours < LOWEST,
        f"trivial: mean F1 {ours:.3f} is above {HIGHEST}": ours > HIGHEST,
        f"trivial: {margin_points:.1f} points above a mean spectrum, less than "
        f"{LEAST_MARGIN_POINTS:.0f}": margin_points < LEAST_MARGIN_POINTS,
    }
    outcome.finish(
        "embedded_data",
        ours=ours,
        theirs=theirs,
        unit="mean F1 of the location left out",
        missed=missed,
        margin_points=margin_points,
    )


if __name__ == "__main__":
    main()
