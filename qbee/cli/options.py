"""Options that several commands share."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import typer


class OnError(StrEnum):
    """What to do with a recording that cannot be read."""

    stop = "stop"
    skip = "skip"


class Rest(StrEnum):
    """What the stretches of a recording are that no event covers."""

    ignore = "ignore"
    no_buzz = "no_buzz"
    uncertain = "uncertain"


class Bits(StrEnum):
    """Bit widths a scheme can have."""

    four = "4"
    eight = "8"
    sixteen = "16"


class KernelSteps(StrEnum):
    """Which values of a kernel share a step."""

    channel = "channel"
    similar = "similar"
    kernel = "kernel"


class Standardize(StrEnum):
    """How mel images are brought to one level."""

    window = "window"
    fold = "fold"


_UNITS = {"": 1, "k": 1000, "ki": 1024, "m": 1000**2, "mi": 1024**2}


def parsed_bytes(text: str) -> int:
    """Number of bytes in a text such as 200k."""
    found = re.fullmatch(r"(\d+)\s*(k|ki|m|mi|)b?", text.strip().lower())
    if found is None or not int(found.group(1)):
        raise typer.BadParameter(f"{text!r} is no number of bytes such as 200000, 200k or 256Ki")
    return int(found.group(1)) * _UNITS[found.group(2)]


def _bytes_option(text: str) -> Any:
    return typer.Option(parser=parsed_bytes, metavar="BYTES", help=text)


MaxArena = Annotated[
    int | None, _bytes_option("Largest arena on the device, such as 200000, 200k or 256Ki.")
]
MaxBytes = Annotated[int | None, _bytes_option("Largest .tflite, such as 20000, 20k or 48Ki.")]
_LABELS_HELP = (
    "Table of labelled segments: a CSV (file, start_s, end_s or duration_s, label, location), a "
    "Raven selection table, Audacity labels, or a folder of these."
)
Labels = Annotated[Path, typer.Option(help=_LABELS_HELP)]
ManyLabels = Annotated[
    list[Path], typer.Option("--labels", help=f"{_LABELS_HELP} May be given several times.")
]
GoalText = Annotated[
    str | None,
    typer.Option(
        "--goal",
        help="What the threshold is for: f1, precision>=0.9 or false_alarms<=2 (an hour).",
    ),
]
Model = Annotated[str, typer.Option(help="Network: beenet1 (largest), beenet2 or beenet3.")]
Out = Annotated[Path, typer.Option(help="Folder for all results; made if it does not exist.")]
Epochs = Annotated[
    int, typer.Option(min=1, help="Epochs of float training, of 1024 windows at least.")
]
FineTune = Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning of the winner.")]
Folds = Annotated[
    int,
    typer.Option(min=3, help="Parts the recordings are cut into: one validates, one is scored."),
]
Trials = Annotated[
    int | None,
    typer.Option(min=1, help="Trials in all; 16 if never said, and more continue a search."),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        help="What proposes trials: sensitivity, bayesian, nsga2, tpe, random or autoqkeras."
    ),
]
Objectives = Annotated[
    list[str] | None,
    typer.Option("--objective", help="A metric or a cost, given twice or more: the front's axes."),
]
NONE = "none"
Limit = Annotated[
    list[str] | None,
    typer.Option(
        help="Highest cost, such as 'tflite_bytes<=48k' or 'macs<=10M'; 'none' forgets all limits."
    ),
]
Board = Annotated[
    str | None, typer.Option(help="Keep within the RAM and flash of a microcontroller's board.")
]
Top = Annotated[
    int | None, typer.Option(min=1, help="Trials of the front to fine-tune; the best wins.")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes that measure trials.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Equal seeds give equal results on one machine.")
]
Space = Annotated[
    Path | None, typer.Option(help="Search space (JSON); the one for BeeNets by default.")
]
HowToStandardize = Annotated[
    Standardize,
    typer.Option(help="Level each window by itself, or all by the training windows."),
]
Augment = Annotated[bool, typer.Option(help="Vary the training images (for small data).")]
Balance = Annotated[bool, typer.Option(help="Weigh the rarer class up in training.")]
StopAfter = Annotated[
    int | None,
    typer.Option(min=1, help="End a training that has not got better for so many epochs."),
]
Errors = Annotated[
    OnError, typer.Option(help="Stop at a recording that cannot be read, or skip and report it.")
]
Unannotated = Annotated[
    Rest,
    typer.Option(help="What the stretches are that a Raven or Audacity table leaves out."),
]
Steps = Annotated[
    KernelSteps,
    typer.Option(
        help="One step for each channel of a kernel; one in all where channels are similar; or "
        "one for every kernel: ever smaller files."
    ),
]
TestLocation = Annotated[
    str | None,
    typer.Option(help="Score on this location and train on the others."),
]
Folder = Annotated[Path, typer.Argument(help="Result folder of a job.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def limits_of(
    limit: list[str] | None,
    board: str | None,
    *,
    max_bytes: int | None = None,
    max_arena: int | None = None,
):
    """All limits that were given; None if there are none.

    Raises
    ------
    ParameterError
        naming what is wrong with one.
    """
    from qbee.search import limits

    given = [limits.Limits() if text == NONE else limits.parse(text) for text in limit or []]
    given += [limits.of_board(board)] if board else []
    sizes = {"tflite_bytes": max_bytes, "arena_bytes": max_arena}
    given += [limits.Limits(at_most={name: at}) for name, at in sizes.items() if at is not None]
    return reduce(limits.Limits.merged, given) if given else None


def popped_limits(given: dict[str, Any]):
    """``limits_of`` a command's arguments, which lose them."""
    sizes = {name: given.pop(name) for name in ("max_bytes", "max_arena")}
    return limits_of(given.pop("limit"), given.pop("board"), **sizes)
