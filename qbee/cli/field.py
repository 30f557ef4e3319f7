"""Commands for field use: detect, review and adapt."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qbee.cli.options import Errors, Folder, OnError, Out, Seed
from qbee.cli.terminal import Terminal, app, console, print_line

if TYPE_CHECKING:
    from qbee.field.adapting import Adaptation
    from qbee.field.detecting import Summary

Recordings = Annotated[
    list[str], typer.Argument(help="Files, folders (with all below), or quoted patterns.")
]


class Engine(StrEnum):
    """What runs a model."""

    litert = "litert"
    tflm = "tflm"
    keras = "keras"


@app.command()
def detect(
    ctx: typer.Context,
    recordings: Recordings,
    model: Annotated[Path, typer.Option(help="Result folder of a detector.")],
    out: Out,
    engine: Annotated[
        Engine,
        typer.Option(help="LiteRT (fast), TFLite Micro (the device's integers), or Keras."),
    ] = Engine.litert,
    workers: Annotated[int, typer.Option(min=1, help="Processes that listen.")] = 1,
    on_error: Errors = OnError.stop,
    start_times: Annotated[
        Path | None, typer.Option(help="CSV table: file, recorded_at (ISO 8601), location.")
    ] = None,
    name_pattern: Annotated[
        str | None,
        typer.Option(help="When a file began, by its name, such as 'box_%Y-%m-%d_%H%M%S'."),
    ] = None,
    recorder_zone: Annotated[
        str | None,
        typer.Option(help="Zone of the recorder's clock: UTC, +02:00 or Europe/Ljubljana."),
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Zone of all tables; the recorder's if not given.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="A window of it begins an event.")
    ] = None,
    keep_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Windows of it go on with an event.")
    ] = None,
    min_event_s: Annotated[
        float, typer.Option(min=0, help="Shorter events do not count, seconds.")
    ] = 0.0,
    max_gap_s: Annotated[
        float, typer.Option(min=0, help="Events less far apart are one, seconds.")
    ] = 0.0,
    clips: Annotated[int, typer.Option(min=0, help="Surest events to cut out.")] = 20,
) -> None:
    """Hear days of recordings with a detector: tables, labels, activity and clips of buzzes.

    Continues where it was stopped. Exit code 1 says that some recordings could not be used, or
    only in part: problems.csv has them.
    """
    from qbee.field.detecting import detect as verb

    given = {**ctx.params, "engine": engine.value, "on_error": on_error.value}
    given["clip_count"] = given.pop("clips")
    with Terminal() as watcher:
        found = verb(**given, watcher=watcher)
    print_summary(found, out)
    if found.left_out or found.used_partly:
        raise typer.Exit(1)


@app.command()
def review(
    detection: Annotated[Path, typer.Argument(help="Folder that 'qbee detect' wrote.")],
    out: Out,
    top: Annotated[int, typer.Option(min=0, help="Surest buzzes.")] = 30,
    uncertain: Annotated[int, typer.Option(min=0, help="Windows nearest to the threshold.")] = 40,
    bottom: Annotated[int, typer.Option(min=0, help="Windows that surely have no buzz.")] = 30,
) -> None:
    """Make a page to listen to windows of a detection and correct them, for training again."""
    from qbee.field.reviewing import review as verb

    with Terminal() as watcher:
        page = verb(detection, out, top=top, uncertain=uncertain, bottom=bottom, watcher=watcher)
    print_line(f"Page: {page}")
    print_line(f"Save its labels.csv into {out}, and train again with the command it shows.")


@app.command()
def adapt(
    job: Folder,
    recordings: Recordings,
    out: Out,
    windows: Annotated[int, typer.Option(min=8, help="Windows to take at most.")] = 512,
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="Fine-tune towards the float network, too (FAT).")
    ] = False,
    on_error: Errors = OnError.stop,
    seed: Seed = 0,
) -> None:
    """Adapt a finished detector to a new recorder, by its recordings without any labels.

    Levels are taken anew (of a job with --standardize fold), and with --fine-tune the quantized
    network comes closer to the float network on the new sound. The threshold stays the job's.
    """
    from qbee.field.adapting import adapt as verb

    with Terminal() as watcher:
        found = verb(
            job,
            recordings,
            out,
            windows=windows,
            fine_tune=fine_tune,
            on_error=on_error.value,
            seed=seed,
            watcher=watcher,
        )
    print_adaptation(found, out)


def print_adaptation(found: Adaptation, out: Path) -> None:
    """Print what an adaptation changed."""
    used = f"{found.windows} windows of {len(found.recordings)} recordings"
    table = Table("", "before", "after", title=escape(f"Adapted to {used}"))
    rows = [
        ("mean level, dB", found.mean_db_before, found.mean_db, ".2f"),
        ("standard deviation, dB", found.std_db_before, found.std_db, ".2f"),
        ("RMSE of logits to the float network", found.rmse_before, found.rmse_after, ".4f"),
    ]
    for name, before, after, form in rows[0 if found.mean_db is not None else 2 :]:
        table.add_row(name, *("–" if v is None else format(v, form) for v in (before, after)))
    console.print(table)
    if found.skipped:
        print_line(f"Left out: {len(found.skipped)} recordings that cannot be used")
    held_out = found.held_out_windows
    print_line(f"The RMSE is of {held_out} windows that were held out from fine-tuning")
    print_line(f"TFLite Micro equals numpy and Keras on {held_out - found.mismatches} of them")
    if found.rmse_after is not None and found.rmse_after >= found.rmse_before:
        print_line("Fine-tuning did not help on those; do without --fine-tune")
    print_line(
        f"Threshold {found.threshold:.3f} is the job's, chosen on labelled windows of the old "
        "recorder: score it with 'qbee evaluate' as soon as some windows are labelled"
    )
    print_line(f"Detector: {out}")


def print_summary(found: Summary, out: Path) -> None:
    """Print what a detection found."""
    from qbee.field.detecting import RECORDERS_CLOCK

    table = Table(title=escape(f"{found.heard_hours:.2f} hours heard, {found.windows} windows"))
    table.add_column("")
    table.add_column("", justify="right")
    rate = "–" if found.events_per_hour is None else f"{found.events_per_hour:.2f}"
    for name, value in (
        ("windows with buzz", found.buzz_windows),
        ("events", found.events),
        ("events per hour heard", rate),
        ("recordings used", found.used),
        ("used in part", found.used_partly),
        ("left out", found.left_out),
        ("warnings", found.warnings),
        ("without a start time", found.without_start_time),
        ("cuts between recordings", found.cuts),
    ):
        table.add_row(name, str(value))
    console.print(table)
    if found.left_out or found.used_partly or found.warnings:
        print_line(f"Problems: {out / 'problems.csv'}")
    print_line(f"Times: {found.zone or RECORDERS_CLOCK}. Tables: {out}")
