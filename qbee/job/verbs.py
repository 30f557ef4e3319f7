"""The job's verbs, as the command line and notebooks call them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from qbee.audio import synth
from qbee.detector import MODEL
from qbee.errors import ModelFileError
from qbee.files import make_folder, read_json
from qbee.job import outputs, results, stock_search
from qbee.job.helpers import helping
from qbee.job.settings import (
    FILE,
    SEARCH_FILE,
    JobSettings,
    SearchSettings,
    check,
    default_space,
    digest,
)
from qbee.job.stages import CHOSEN, GOAL, REPORTS, Job
from qbee.job.watcher import Watcher
from qbee.models import registry
from qbee.quantize import fold
from qbee.quantize.sharing import Steps
from qbee.records import validated
from qbee.search import choice, strategies
from qbee.search.domain import Domain
from qbee.search.limits import Limits
from qbee.search.space import SearchSpace
from qbee.search.strategy import check_objectives
from qbee.search.trial import Trial
from qbee.train import metrics
from qbee.train.goals import Goal

SEARCH_ARGUMENTS = {*SearchSettings.model_fields, "workers", "logs"}
DEMO_MODEL = "beenet3"
# Large validation and test parts, as recordings cost nothing here; so epochs have many windows.
DEMO_FOLDS, DEMO_RECORDINGS_PER_LOCATION = 4, 16
DEMO_FINE_TUNE_EPOCHS = 6


def begun(
    labels: Path | Sequence[Path],
    model: str,
    out: Path,
    *,
    epochs: int = 20,
    fine_tune_epochs: int = 10,
    folds: int = 5,
    seed: int = 0,
    space: Path | None = None,
    standardize: Literal["window", "fold"] = "window",
    augment: bool = True,
    balance_classes: bool = False,
    stop_after_epochs: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    unannotated: Literal["ignore", "no_buzz", "uncertain"] = "ignore",
    test_location: str | None = None,
    steps: Steps = "channel",
    watcher: Watcher | None = None,
) -> Job:
    """Begin a job in ``out``, or take up the one of the same settings that is there.

    Parameters
    ----------
    labels : Path or several
        table of labelled segments, or a folder of tables; recordings are relative to it.
    model : str
        name of a float model.
    space : Path, optional
        search space; the one for BeeNets by default.
    unannotated : label of what Raven or Audacity tables leave out
    folds : int >= 3
        one of so many parts of the recordings is for validation, one for scoring.
    stop_after_epochs : int, optional
        end a training whose validation F1 has not risen for so many epochs.
    test_location : str, optional
        score on this location and train on the others, instead.
    steps : 'channel', 'similar' or 'kernel'
        which values of a kernel share a step, as for ``quantize``.

    Raises
    ------
    QbeeError
        with one line, if anything about the input is wrong.
    """
    several = [labels] if isinstance(labels, str | Path) else labels
    tables = [Path(table).resolve() for table in several]
    given = {
        "labels": [str(table) for table in tables],
        "labels_sha256": digest(tables),
        "model": registry.check(model),
        "front_end": {"standardize": standardize},
        "space": default_space() if space is None else SearchSpace.load(space),
        "epochs": epochs,
        "fine_tune_epochs": fine_tune_epochs,
        "folds": folds,
        "seed": seed,
        "augment": augment,
        "balance_classes": balance_classes,
        "stop_after_epochs": stop_after_epochs,
        "on_error": on_error,
        "unannotated": unannotated,
        "test_location": test_location,
        "steps": steps,
    }
    settings = validated(JobSettings, given)
    network = registry.build(model, n_mels=settings.front_end.n_mels)
    Domain(settings.space, fold.fold(network))
    metrics.get(settings.space.metric)
    folder = make_folder(out)
    check(folder, settings)
    return Job(folder, settings, watcher)


def asked(job: Job, wanted: dict[str, Any], *, workers: int) -> SearchSettings:
    """What is asked of the job's search; what is None stays as it was.

    Raises
    ------
    ParameterError
        naming the first value that is wrong.
    """
    given = {name: value for name, value in wanted.items() if value is not None}
    settings = validated(SearchSettings, job.search_settings.model_dump() | given)
    if settings.strategy == stock_search.NAME:
        stock_search.check(settings, job.settings.space, workers=workers)
    else:
        strategies.get(settings.strategy)
    check_objectives(settings.objectives)
    return settings


def keep(job: Job, settings: SearchSettings) -> None:
    """Keep what is asked of the job's search, unless no network keeps its limits.

    Raises
    ------
    ParameterError
        naming the lowest value of what exceeds its limit.
    """
    before = job.search_settings
    if settings.limits != before.limits:
        job.search_for(settings).check_limits()
    if settings != before:
        # They belong to another search.
        (job.folder / results.FILE).unlink(missing_ok=True)
    settings.save(job.folder / SEARCH_FILE)


def resumed(out: Path, watcher: Watcher | None = None, *, store: str | None = None) -> Job:
    """Job that was begun in ``out``.

    Parameters
    ----------
    store : str, optional
        journal of the search, if not the folder's own: "grpc://<host>:<port>"

    Raises
    ------
    ModelFileError
        if there is none.
    """
    path = Path(out) / FILE
    if not path.exists():
        raise ModelFileError(f"{path}: no job was begun in this folder; begin one with 'train'")
    return Job(Path(out), JobSettings.load(path), watcher, store=store)


def train(labels: Path | Sequence[Path], model: str, out: Path, **settings) -> Job:
    """Read the recordings and train the float model; arguments as of ``run``."""
    job = begun(labels, model, out, **settings)
    _train(job)
    return job


def search(
    out: Path,
    *,
    workers: int = 1,
    store: str | None = None,
    logs: Path | None = None,
    watcher: Watcher | None = None,
    **wanted,
) -> Job:
    """Search bit widths for the float model in ``out`` and fine-tune the winner.

    Continues the search that is there, also with another strategy, more trials or other limits.

    Parameters
    ----------
    workers : processes on this machine that measure trials
    store : journal to use instead of the folder's own, as of ``resumed``
    logs : folder for TensorBoard
    wanted : ``strategy``, ``trials``, ``objectives``, ``limits``, ``across`` and ``top``, as
        ``SearchSettings`` has them; by default as last asked for
    """
    job = resumed(out, watcher, store=store)
    keep(job, asked(job, wanted, workers=workers))
    _search(job, workers=workers, logs=logs)
    outputs.draw_search(job)
    return job


def pick(out: Path, limits: Limits, *, metric: str = "f1") -> Trial:
    """The whole trial of highest metric within limits; its scheme can be exported or read.

    Raises
    ------
    ParameterError
        if no trial keeps the limits; the message has the smallest cost found.
    """
    metrics.get(metric)
    search = resumed(out).search
    whole = choice.eligible(search.journal.trials, fidelity=search.fidelity)
    return choice.best_within(whole, limits, metric=metric)


def verify(out: Path, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Verify the exported model in ``out`` on its test windows, score it and write the report."""
    return _verify(resumed(out, watcher))


def run(
    labels: Path | Sequence[Path],
    model: str,
    out: Path,
    *,
    goal: Goal | None = None,
    **settings,
) -> dict[str, Any]:
    """Do the whole job and give its results; an interrupted one continues where it stopped.

    Takes the keyword arguments of ``begun``, such as ``epochs``, ``seed`` and ``on_error``, and
    those of ``search``, such as ``trials`` and ``workers``.

    Parameters
    ----------
    goal : of the decision threshold; without it as last asked for, and at first the highest F1
    """
    of_search = {name: settings.pop(name) for name in SEARCH_ARGUMENTS & settings.keys()}
    workers, logs = of_search.pop("workers", 1), of_search.pop("logs", None)
    job = begun(labels, model, out, **settings)
    keep_goal(job, goal)
    return _finished(job, asked(job, of_search, workers=workers), workers=workers, logs=logs)


def keep_goal(job: Job, goal: Goal | None) -> None:
    """Keep what the decision threshold is for; results of another goal do not stay."""
    if goal is None or goal == job.goal:
        return
    for name in REPORTS:
        (job.folder / name).unlink(missing_ok=True)
    goal.save(job.folder / GOAL)


def choose_threshold(out: Path, goal: Goal, *, watcher: Watcher | None = None) -> dict[str, Any]:
    """Choose the threshold of a finished job anew, and export and verify it with that.

    Raises
    ------
    ModelFileError
        if the job is not finished.
    DataError
        if no threshold reaches the goal on the validation windows; all stays as it was.
    """
    job = resumed(out, watcher)
    if not (job.work / CHOSEN).exists():
        raise ModelFileError(f"{out}: this job is not finished; continue it with 'search'")
    job.threshold_for(goal)
    keep_goal(job, goal)
    if (job.folder / results.FILE).exists():
        return read_json(job.folder / results.FILE)
    _export(job)
    return _verify(job)


def demo(out: Path, **settings) -> dict[str, Any]:
    """Do the whole job for BeeNet3 on generated soundscapes."""
    recordings = make_folder(out) / "recordings"
    labels = recordings / "labels.csv"
    if not labels.exists():
        if settings.get("watcher"):
            settings["watcher"].stage("Generating soundscapes of nest boxes")
        synth.soundscapes(
            recordings,
            seed=settings.get("seed", 0),
            recordings_per_location=DEMO_RECORDINGS_PER_LOCATION,
        )
    epochs = {"fine_tune_epochs": DEMO_FINE_TUNE_EPOCHS}
    return run(labels, DEMO_MODEL, out, folds=DEMO_FOLDS, **epochs | settings)


def _finished(
    job: Job, settings: SearchSettings, *, workers: int, logs: Path | None
) -> dict[str, Any]:
    finished = (FILE, results.FILE, MODEL, outputs.REPORT)
    is_same = settings == job.search_settings
    if is_same and all((job.folder / name).exists() for name in finished):
        job.watcher.note("This job is finished; its results are shown again.")
        return read_json(job.folder / results.FILE)
    _train(job)
    keep(job, settings)
    _search(job, workers=workers, logs=logs)
    _export(job)
    return _verify(job)


def _train(job: Job) -> None:
    job.watcher.stage("Reading recordings")
    _ = job.examples
    job.watcher.stage(f"Training {job.settings.model} in float")
    _ = job.trained


def _search(job: Job, *, workers: int, logs: Path | None) -> None:
    settings = job.search_settings
    job.watcher.stage(f"Searching bit widths, {settings.trials} trials by {settings.strategy}")
    job.search.prepare()
    with helping(job.folder, workers - 1, store=job.store):
        job.search.run(logs=logs)
    job.watcher.stage(f"Fine-tuning {settings.top} of the front")
    _ = job.winner


def _export(job: Job) -> None:
    job.watcher.stage("Exporting the .tflite")
    _ = job.micro


def _verify(job: Job) -> dict[str, Any]:
    job.watcher.stage("Verifying: numpy == Keras == TFLite Micro")
    found, probability = results.collect(job)
    results.save(job, found)
    job.watcher.stage("Drawing the report")
    outputs.draw(job, found, probability)
    return found
