"""What a job was asked to do, kept in its folder so that it can only be continued as it began."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

import qbee
from qbee.data import labels
from qbee.errors import LabelError, ParameterError
from qbee.quantize.sharing import Steps
from qbee.records import FrontEnd, Record
from qbee.search.limits import Limits
from qbee.search.space import SearchSpace

FILE, SEARCH_FILE = "job.json", "search.json"
# numpy and TensorFlow take 32 bits.
MAX_SEED = 2**32 - 1


class JobSettings(Record):
    """All that determines the result of a job besides the recordings themselves."""

    labels: tuple[str, ...]
    labels_sha256: str
    model: str
    front_end: FrontEnd
    space: SearchSpace
    epochs: int = Field(ge=1)
    fine_tune_epochs: int = Field(ge=1)
    folds: int = Field(ge=3)
    seed: int = Field(ge=0, le=MAX_SEED)
    augment: bool
    balance_classes: bool
    stop_after_epochs: int | None = Field(ge=1)
    on_error: Literal["stop", "skip"]
    unannotated: Literal["ignore", "no_buzz", "uncertain"]
    test_location: str | None
    steps: Steps = "channel"


class SearchSettings(Record):
    """What is asked of a search, kept as it was last asked for; trials are kept whatever it is.

    Attributes
    ----------
    trials : as many are measured in all
    objectives : a metric and a cost, or more, whose front is looked for
    across : folds on which a trial is scored: the job's validation windows, or inner folds of
        all but its test windows, by recordings ('cv') or leaving one location out ('lolo')
    top : trials of the front that are fine-tuned, of which the best wins
    """

    strategy: str = "sensitivity"
    trials: int = Field(16, ge=1)
    objectives: tuple[str, ...] = ("loss", "tflite_bytes")
    limits: Limits = Limits()
    across: Literal["holdout", "cv", "lolo"] = "holdout"
    top: int = Field(3, ge=1)


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 of label tables, those of a folder together.

    Raises
    ------
    LabelError
        if one cannot be read.
    """
    found = hashlib.sha256()
    for path in paths:
        tables = [path]
        if path.is_dir():
            kinds = {".csv", *labels.TABLE_SUFFIXES}
            tables = sorted(p for p in path.iterdir() if p.suffix.lower() in kinds)
        try:
            for table in tables:
                found.update(table.read_bytes())
        except OSError as error:
            raise LabelError(f"{path}: {error.strerror}") from error
    return found.hexdigest()


def check(folder: Path, settings: JobSettings) -> None:
    """Check that a job which was begun in ``folder``, if any, has the same settings.

    Raises
    ------
    ParameterError
        naming the first setting that differs.
    """
    path = folder / FILE
    if not path.exists():
        _check_no_leftovers(folder)
        return
    stored = JobSettings.load(path)
    for name, value in settings.model_dump().items():
        before = getattr(stored, name)
        if stored.model_dump()[name] != value:
            shown = "" if isinstance(value, dict) else f": {before!r} then, {value!r} now"
            raise ParameterError(
                f"{folder}: this job was begun with another {name}{shown}; "
                "give the same settings to continue it, or another folder"
            )


def _check_no_leftovers(folder: Path) -> None:
    """Results without the settings they belong to must not be taken up."""
    kept = sorted(path.name for path in folder.glob("work/*.npz"))
    if kept:
        raise ParameterError(
            f"{folder}: holds {kept[0]} of a job whose {FILE} is missing; give another folder"
        )


def default_space() -> SearchSpace:
    """The search space for BeeNets that comes with qbee: kernels and maps of 4, 8 or 16 bits."""
    beside_package = Path(qbee.__file__).parents[1] / "search_spaces"
    installed = Path(sys.prefix) / "share" / "qbee" / "search_spaces"
    folder = beside_package if beside_package.is_dir() else installed
    return SearchSpace.load(folder / "beenet_4_8_16.json")
