"""Pictures and report of a finished job."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qbee.job.stages import Job
from qbee.report import html, plots, search_plots
from qbee.train import metrics

REPORT = "report.html"
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


def _trials(job: Job) -> list[dict[str, Any]]:
    return [
        {"number": t.number, "origin": t.origin, **t.measured.model_dump()} for t in job.searched
    ]


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
    names = ("mel_examples", "training_curves", "trial_scores", "pareto", "bits_per_layer",
             "confusion_and_pr")  # fmt: skip
    paths = {name: job.folder / f"{name}.png" for name in names}
    trials, winner = _trials(job), job.winner.number
    histories = {"float": job.trained[1], "winner, quantized": job.fine_tuned[1]}
    _draw_examples(job, probability, paths["mel_examples"])
    plots.training_curves(
        {name: [asdict(e) for e in history] for name, history in histories.items()},
        paths["training_curves"],
        title=f"{job.settings.model}: training, validated on {len(job.fold.validation)} windows",
    )
    search_plots.trial_scores(trials, paths["trial_scores"], winner)
    # Trials are scored on validation windows, so float is drawn beside them as scored there.
    beside = {"float": (job.float_scores[1], results["float"]["size_bytes"])}
    search_plots.pareto(trials, paths["pareto"], winner, references=beside)
    search_plots.bits_per_layer(results["winner"]["bits"], paths["bits_per_layer"])
    labels = job.labels_of("test")
    scores = metrics.evaluate(labels, probability, threshold=job.threshold)
    plots.confusion_and_pr(labels, probability, job.threshold, scores, paths["confusion_and_pr"])
    html.write(results, paths, job.folder / REPORT)
