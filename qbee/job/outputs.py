"""Pictures and report of a finished job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qbee.job.stages import Job
from qbee.report import bits_plot, front_plot, html, plots, search_plots
from qbee.report.front_plot import Beside
from qbee.search.score import Bomp
from qbee.search.strategy import objective
from qbee.search.trial import Trial
from qbee.train import metrics

REPORT = "report.html"
SIZE = "tflite_bytes"
SMALLEST_LOSS, LARGEST_METRIC = 1e-6, 0.99
EXAMPLES = 8


def _examples(probability: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """Windows worth a look: the surest of each class, and the worst mistakes, at most eight."""
    found = probability >= threshold
    groups = [
        (labels & found, -1),
        (~labels & ~found, 1),
        (labels & ~found, 1),
        (~labels & found, -1),
    ]
    chosen: list[int] = []
    for members, sign in groups:
        indices = np.flatnonzero(members)
        order = np.argsort(sign * probability[indices], kind="stable")
        chosen += indices[order[: EXAMPLES // len(groups)]].tolist()
    return np.array(chosen, int)


def draw_search(job: Job) -> dict[str, Path]:
    """Draw what a search found; pictures by name."""
    names = ("trial_scores", "accuracy_vs_size", "bits_per_point", "hypervolume")
    paths = {name: job.folder / f"{name}.png" for name in names}
    search, space = job.search, job.settings.space
    trials, winner = search.trials, job.winner.number
    search_plots.trial_scores(trials, paths["trial_scores"], metric=space.metric, winner=winner)
    front_plot.accuracy_vs_size(
        trials,
        paths["accuracy_vs_size"],
        metric=space.metric,
        winner=winner,
        beside=_beside(job),
        scored_on=search.scored_on,
    )
    bits_plot.bits_per_point(trials, paths["bits_per_point"], metric=space.metric)
    objectives = search.settings.objectives[:2]
    references = [_worst(search.trials, name) for name in objectives]
    search_plots.hypervolume(
        {search.settings.strategy: trials},
        paths["hypervolume"],
        objectives=objectives,
        reference=references,
    )
    return paths


def _worst(trials: list[Trial], name: str) -> float:
    """Worst value of a metric or cost among finished trials."""
    finished = [trial for trial in trials if trial.measured is not None]
    worst = max((objective(trial, name) for trial in finished), default=1.0)
    # Off the best there is, where all trials have it.
    return max(worst, SMALLEST_LOSS) if worst >= 0 else min(-worst, LARGEST_METRIC)


def _beside(job: Job) -> Beside:
    """Uniform schemes, float, and fine-tuned trials, all scored on validation windows."""
    metric, search = job.settings.space.metric, job.search
    baselines = search.baselines()
    references = {n: (m.metrics[metric], m.costs[SIZE]) for n, m in baselines.items()}
    if search.settings.across != "holdout":
        # The others are scored on other windows.
        return Beside(references=references, score=_score_of_size(job))
    parameters = sum(int(np.prod(w.shape)) for w in job.trained[0].trainable_weights)
    validation = job.split.logits(job.trained[0], "validation")
    floats = metrics.get(metric)(job.labels_of("validation"), validation)
    tuned = {one.trial.number: one.again.measured for one in job.contenders}
    return Beside(
        references=references,
        float_model=(floats, 4 * parameters),
        tuned={n: (m.metrics[metric], m.costs[SIZE]) for n, m in tuned.items() if m},
        score=_score_of_size(job),
    )


def _score_of_size(job: Job) -> Callable[[float, float], float] | None:
    """Score of a metric and bytes, where it depends on nothing else."""
    score = job.settings.space.score
    if not isinstance(score, Bomp):
        return None
    return lambda metric, size_bytes: score.score(metric, size_bits=8 * size_bytes)


def _draw_examples(job: Job, probability: np.ndarray, path: Path) -> None:
    test, windows = np.asarray(job.fold.test), job.windows_of("test")
    labels = job.labels_of("test")
    shown = _examples(probability, labels, job.threshold)
    plots.mel_examples(
        np.array(job.examples.images[test[shown]]),
        job.front_end,
        labels[shown].tolist(),
        probability[shown].tolist(),
        job.threshold,
        [f"{windows[i].path.name} {windows[i].start_s:.0f} s" for i in shown],
        path,
    )


def draw(job: Job, results: dict[str, Any], probability: np.ndarray) -> None:
    """Write all PNGs and report.html.

    Parameters
    ----------
    probability : np.ndarray [shape=(test windows,)]
        of the exported model, from TFLite Micro.
    """
    names = ("mel_examples", "training_curves", "bits_per_layer", "confusion_and_pr")
    paths = {name: job.folder / f"{name}.png" for name in names}
    histories = {"float": job.trained[1], "winner, quantized": job.fine_tuned[1]}
    _draw_examples(job, probability, paths["mel_examples"])
    plots.training_curves(
        {name: [asdict(e) for e in history] for name, history in histories.items()},
        paths["training_curves"],
        title=f"{job.settings.model}: training, validated on {len(job.fold.validation)} windows",
    )
    search_plots.bits_per_layer(results["winner"]["bits"], paths["bits_per_layer"])
    labels = job.labels_of("test")
    scores = metrics.evaluate(labels, probability, threshold=job.threshold)
    plots.confusion_and_pr(labels, probability, job.threshold, scores, paths["confusion_and_pr"])
    html.write(results, paths | draw_search(job), job.folder / REPORT)
