"""Frozen records that cross the border of a stage; JSON both ways where they are configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from qbee.errors import ModelFileError, ParameterError
from qbee.files import read_text, write_text

T = TypeVar("T")
Label = Literal["buzz", "no_buzz", "uncertain"]
# What to do with a recording that cannot be used.
OnError = Literal["stop", "skip"]


def read_as(path: Path, kind: TypeAdapter[T]) -> T:
    """Content of a JSON file that must be of one kind.

    Raises
    ------
    ModelFileError
        naming the file, the field and what is wrong with it.
    """
    try:
        return kind.validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ModelFileError(f"{path}: {where}: {first['msg']}") from error


class Record(BaseModel):
    """A frozen, validated record that is equal after a trip through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Record stored in a JSON file.

        Raises
        ------
        ModelFileError
            naming the file, the field and what is wrong with it.
        """
        return read_as(path, TypeAdapter(cls))

    def save(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


R = TypeVar("R", bound=Record)


def validated(kind: type[R], given: dict[str, Any]) -> R:
    """Record of values by name.

    Raises
    ------
    ParameterError
        naming the first value that is wrong.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ParameterError(f"{where}={first['input']!r}: {first['msg']}") from error


class FrontEnd(Record):
    """How sound becomes a mel image; travels with every model and is checked when it is used.

    A window is ``n_frames`` STFT frames, ``hop_samples`` apart; windows start
    ``window_hop_frames`` frames apart. Power is clipped below at ``power_floor`` and given
    in dB re full scale squared. ``standardize='window'`` removes each window's own mean and
    divides by its standard deviation (recorders differ in level); ``'fold'`` uses
    ``mean_db`` and ``std_db``, taken from the training fold only, or by ``adapt`` from windows of
    a new recorder.
    """

    sample_rate_hz: int = 4000
    n_fft: int = 512
    hop_samples: int = 125
    n_mels: int = 128
    n_frames: int = 128
    window_hop_frames: int = 64
    fmin_hz: float = 50.0
    fmax_hz: float = 1450.0
    power_floor: float = 1e-10
    standardize: Literal["window", "fold"] = "window"
    mean_db: float | None = None
    std_db: float | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not 0 <= self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            raise ValueError(
                f"fmin_hz={self.fmin_hz}, fmax_hz={self.fmax_hz} must satisfy "
                f"0 <= fmin_hz < fmax_hz <= sample_rate_hz/2={self.sample_rate_hz / 2}"
            )
        if not self.power_floor > 0:
            raise ValueError(f"power_floor={self.power_floor} must be positive")
        if min(self.n_fft, self.hop_samples, self.n_mels, self.n_frames) < 1:
            raise ValueError("n_fft, hop_samples, n_mels and n_frames must be at least 1")
        if self.window_hop_frames < 1:
            raise ValueError(f"window_hop_frames={self.window_hop_frames} must be at least 1")
        if (self.mean_db is None) != (self.std_db is None):
            raise ValueError("mean_db and std_db must be given together")
        if self.std_db is not None and self.std_db <= 0:
            raise ValueError(f"std_db={self.std_db} must be positive")
        return self

    @property
    def window_s(self) -> float:
        """Length of a window in seconds."""
        return self.n_frames * self.hop_samples / self.sample_rate_hz

    @property
    def window_hop_s(self) -> float:
        """Distance between the starts of consecutive windows in seconds."""
        return self.window_hop_frames * self.hop_samples / self.sample_rate_hz


@dataclass(frozen=True)
class Recording:
    """A readable audio file."""

    path: Path
    sample_rate_hz: int
    channels: int
    duration_s: float


@dataclass(frozen=True)
class Segment:
    """A labelled stretch of a recording; ``row`` is its line in ``table`` (the header is 1)."""

    path: Path
    start_s: float
    end_s: float
    label: Label
    location: str
    recorded_at: str | None
    table: Path
    row: int


@dataclass(frozen=True)
class Window:
    """One window of a recording with a certain label: ``is_buzz``."""

    path: Path
    start_s: float
    is_buzz: bool
    location: str


@dataclass(frozen=True)
class Fold:
    """Indices into a list of windows; the three parts share no window and no neighbours.

    ``dropped`` windows neighbour windows of another part and are used nowhere.
    """

    name: str
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    dropped: tuple[int, ...]
