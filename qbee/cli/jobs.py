"""Commands that do a job or a stage of it, from recordings to the winner of the search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from qbee.cli.options import (
    AsJson,
    Augment,
    Balance,
    Board,
    Epochs,
    Errors,
    FineTune,
    Folder,
    Folds,
    GoalText,
    HowToStandardize,
    KernelSteps,
    Labels,
    Limit,
    ManyLabels,
    MaxArena,
    MaxBytes,
    Model,
    OnError,
    Out,
    Rest,
    Seed,
    Space,
    Standardize,
    Steps,
    StopAfter,
    Strategy,
    TestLocation,
    Top,
    Trials,
    Unannotated,
    Workers,
    popped_limits,
)
from qbee.cli.terminal import Terminal, app, console, percent, print_line


def summary(results: dict[str, Any], out: Path) -> None:
    """Print what a finished job found."""
    test = results["data"]["splits"]["test"]
    title = f"F1 on {test['windows']} test windows, {test['positives']} with buzz"
    table = Table("", "F1", "bytes", title=title)
    table.add_row("float", percent(results["float"]["f1"]), str(results["float"]["size_bytes"]))
    table.add_row("int8", percent(results["int8"]["f1"]), str(results["int8"]["tflite_bytes"]))
    winner = results["winner"]
    table.add_row(
        "mixed precision, on TFLite Micro",
        percent(winner["f1_tflm"]),
        str(winner["tflite_bytes"]),
    )
    console.print(table)
    check = results["verify"]
    console.print(
        f"numpy == Keras == TFLite Micro on {check['windows']} windows: "
        f"{check['mismatches']} mismatches. Arena: {winner['arena_bytes']} bytes."
    )
    print_alarms(results)
    left_out = results["data"]
    console.print(
        f"Left out: {left_out['uncertain']} uncertain windows, {left_out['too_short']} segments "
        f"too short, {len(left_out['skipped'])} recordings skipped."
    )
    for message in left_out["skipped"]:
        console.print(f"  skipped: {message}", markup=False)
    print_line(f"Report: {out / 'report.html'}")
    in_layers = sum(
        layer["tflm_mismatches"] + (layer["keras_mismatches"] or 0) for layer in check["layers"]
    )
    if check["mismatches"] or in_layers:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Out = Path("demo_out"),
    epochs: Epochs = 20,
    trials: Trials = None,
    seed: Seed = 0,
) -> None:
    """Do the whole job on generated soundscapes: the quickest way to see what qbee does."""
    from qbee.job import verbs

    with Terminal() as watcher:
        results = verbs.demo(out, epochs=epochs, trials=trials, seed=seed, watcher=watcher)
    summary(results, out)


@app.command()
def synth(
    out: Out,
    seed: Seed = 0,
    recordings: Annotated[int, typer.Option(min=1, help="Recordings per location.")] = 8,
    duration_s: Annotated[float, typer.Option(min=8, help="Length of a recording, s.")] = 180.0,
    buzzes: Annotated[
        Path | None, typer.Option(help="Folder of real buzz clips to mix (with --backgrounds).")
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="Folder of real backgrounds to mix the buzzes into.")
    ] = None,
) -> None:
    """Make labelled recordings: soundscapes of nest boxes, or mixtures of real sounds."""
    from qbee.audio import mixing
    from qbee.audio import synth as generator

    if (buzzes is None) != (backgrounds is None):
        raise typer.BadParameter("--buzzes and --backgrounds go together")
    if buzzes is None or backgrounds is None:
        table = generator.soundscapes(
            out, seed=seed, recordings_per_location=recordings, duration_s=duration_s
        )
    else:
        table = mixing.mix(
            buzzes, backgrounds, out, seed=seed, recordings=recordings, duration_s=duration_s
        )
    console.print(f"Labels: {table}", markup=False, soft_wrap=True)


@app.command()
def run(
    ctx: typer.Context,
    labels: ManyLabels,
    model: Model,
    out: Out,
    epochs: Epochs = 20,
    trials: Trials = None,
    strategy: Strategy = None,
    max_bytes: MaxBytes = None,
    max_arena: MaxArena = None,
    limit: Limit = None,
    board: Board = None,
    top: Top = None,
    workers: Workers = 1,
    fine_tune_epochs: FineTune = 10,
    folds: Folds = 5,
    seed: Seed = 0,
    space: Space = None,
    standardize: HowToStandardize = Standardize.window,
    augment: Augment = True,
    balance_classes: Balance = False,
    stop_after_epochs: StopAfter = None,
    on_error: Errors = OnError.stop,
    unannotated: Unannotated = Rest.ignore,
    test_location: TestLocation = None,
    steps: Steps = KernelSteps.channel,
    goal: GoalText = None,
) -> None:
    """Do the whole job: labelled recordings in, a verified .tflite out. Resumes if interrupted."""
    from qbee.job import verbs
    from qbee.train import goals

    given = dict(ctx.params)
    limits = popped_limits(given)
    given["goal"] = goals.parse(goal) if goal else None
    with Terminal() as watcher:
        results = verbs.run(**given, limits=limits, watcher=watcher)
    summary(results, out)


@app.command()
def train(
    ctx: typer.Context,
    labels: ManyLabels,
    model: Model,
    out: Out,
    epochs: Epochs = 20,
    fine_tune_epochs: FineTune = 10,
    folds: Folds = 5,
    seed: Seed = 0,
    space: Space = None,
    standardize: HowToStandardize = Standardize.window,
    augment: Augment = True,
    balance_classes: Balance = False,
    stop_after_epochs: StopAfter = None,
    on_error: Errors = OnError.stop,
    unannotated: Unannotated = Rest.ignore,
    test_location: TestLocation = None,
    steps: Steps = KernelSteps.channel,
) -> None:
    """First stage: read the recordings and train the float model."""
    from qbee.job import verbs

    with Terminal() as watcher:
        job = verbs.train(**ctx.params, watcher=watcher)
        scores = job.float_scores[0]
    console.print(
        f"Float F1 {percent(scores.f1)} on {scores.windows} test windows, "
        f"{scores.positives} with buzz."
    )


@app.command()
def threshold(
    folder: Folder,
    goal: Annotated[
        str,
        typer.Option(
            help="f1, precision>=0.9 or false_alarms<=2 (an hour), on validation windows."
        ),
    ],
) -> None:
    """Choose the threshold of a finished job anew; its files and report follow."""
    from qbee.job import verbs
    from qbee.train import goals

    with Terminal() as watcher:
        results = verbs.choose_threshold(folder, goals.parse(goal), watcher=watcher)
    winner = results["winner"]
    print_line(f"Threshold {results['threshold']:.4f} for {results['goal']} on validation windows.")
    print_line(
        f"On {winner['windows']} test windows, {winner['positives']} with buzz: "
        f"precision {percent(winner['precision'])}, recall {percent(winner['recall'])}."
    )
    print_alarms(results)


def print_alarms(results: dict[str, Any]) -> None:
    """Print false alarms per hour."""
    for part, found in results["false_alarms"].items():
        rate = "–" if found["per_hour"] is None else f"{found['per_hour']:.2f}"
        where = "recordings without buzz"
        if not found["of_quiet_recordings"]:
            where = "stretches without buzz, as no recording is without"
        print_line(
            f"False alarms on {part} windows: {rate} an hour ({found['alarms']} in "
            f"{found['hours']:.2f} hours of {where})."
        )


@app.command()
def evaluate(
    folder: Folder,
    labels: Labels,
    on_error: Errors = OnError.stop,
    unannotated: Unannotated = Rest.ignore,
    as_json: AsJson = False,
) -> None:
    """Score a finished detector on other labelled recordings, through TFLite Micro."""
    from qbee import detector

    with Progress(console=console, transient=True, disable=as_json) as bars:
        task = bars.add_task("Listening", total=None)
        found = detector.evaluate(
            folder,
            labels,
            on_error=on_error.value,
            unannotated=unannotated.value,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    print_scores(found)


def print_scores(found: dict[str, Any]) -> None:
    """Print the scores of a detector on a label table, by location."""
    title = f"{found['model']} on {found['table']}, threshold {found['threshold']:.3f}"
    table = Table(title=escape(title))
    # Names of locations are folded, never cut.
    table.add_column("", overflow="fold")
    for heading in ("windows", "with buzz", "F1", "precision", "recall", "AUC"):
        table.add_column(heading)
    rows = {**found["locations"], "all": found}
    for place, scores in rows.items():
        table.add_row(
            escape(place),
            str(scores["windows"]),
            str(scores["positives"]),
            *(percent(scores[name]) for name in ("f1", "precision", "recall", "auc")),
        )
    console.print(table)
    console.print(
        f"Left out: {found['uncertain']} uncertain windows, {found['too_short']} segments too "
        f"short, {len(found['skipped'])} recordings skipped."
    )
    for message in found["skipped"]:
        console.print(f"  skipped: {message}", markup=False)
