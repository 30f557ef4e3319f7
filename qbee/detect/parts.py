"""What was heard in one recording, kept in a file of its own: the journal of a detection."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from qbee import arrays
from qbee.audio.faults import FaultKind
from qbee.detect.recordings import FieldRecording
from qbee.errors import ModelFileError
from qbee.files import make_folder
from qbee.records import Record

ProblemKind = (
    FaultKind
    | Literal[
        "unreadable",
        "too_short",
        "rate_too_low",
        "changed",
        "crashed",
        "not_heard",
        "cut_short",
        "rate_change",
        "overlap",
        "no_start_time",
    ]
)
TRIED_AGAIN = ("crashed", "changed", "unreadable")
Effect = Literal["left_out", "used_partly", "used"]


class Problem(Record):
    """Something wrong with a recording, where it begins, and what was done about it."""

    kind: ProblemKind
    effect: Effect
    at_s: float
    text: str


class Identity(Record):
    """Of which state of which file a part is, and from which sample on."""

    uri: str
    size_bytes: int
    modified_ns: int
    skip_samples: int

    def is_same_file(self, other: Identity) -> bool:
        """Whether both are of one state of a file, heard from any sample on."""
        return self.model_copy(update={"skip_samples": other.skip_samples}) == other

    @classmethod
    def of(cls, recording: FieldRecording, skip_samples: int) -> Identity:
        """Identity of a recording as it was found."""
        return cls(
            uri=recording.uri,
            size_bytes=recording.size_bytes,
            modified_ns=recording.modified_ns,
            skip_samples=skip_samples,
        )


class Stored(Record):
    """The part of a file that is no array."""

    identity: Identity
    first_s: float
    problems: tuple[Problem, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """Windows of a recording.

    Parameters
    ----------
    margins : np.ndarray [shape=(n,)], float32, logit of buzz of each window
    first_s : seconds from the file's beginning to the first window
    """

    identity: Identity
    first_s: float
    margins: np.ndarray
    problems: tuple[Problem, ...]

    @classmethod
    def nothing(cls, identity: Identity, problems: tuple[Problem, ...]) -> Part:
        """Part of a recording of which nothing could be used."""
        return cls(identity, 0.0, np.empty(0, np.float32), problems)

    @property
    def is_damaged(self) -> bool:
        """Whether some of the recording could not be used."""
        return any(problem.effect != "used" for problem in self.problems)

    def with_problems(self, problems: Sequence[Problem]) -> Part:
        """The same with further problems."""
        return replace(self, problems=(*self.problems, *problems))


class Parts:
    """All parts of a detection, one file for every recording."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, uri: str) -> Path:
        return self.folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.npz"

    def save(self, part: Part) -> None:
        """Keep a part, in place of any before it of the same file."""
        make_folder(self.folder)
        stored = Stored(identity=part.identity, first_s=part.first_s, problems=part.problems)
        values = stored.model_dump(mode="json")
        arrays.save(self._path(part.identity.uri), {"margins": part.margins}, values)

    def load(self, uri: str) -> Part | None:
        """Part of a file; None if there is none.

        Raises
        ------
        ModelFileError
            if it is damaged.
        """
        path = self._path(uri)
        if not path.exists():
            return None
        try:
            found, values = arrays.load(path)
            stored = Stored.model_validate(values)
            margins = found["margins"]
        except (ModelFileError, ValidationError, KeyError) as error:
            raise ModelFileError(f"{path}: damaged; name its recording again") from error
        return Part(stored.identity, stored.first_s, margins.astype(np.float32), stored.problems)

    def has(self, identity: Identity) -> bool:
        """Whether this state of a file was heard to its end, or to its damage."""
        try:
            part = self.load(identity.uri)
        except ModelFileError:
            return False
        if part is None or part.identity != identity:
            return False
        # A process may have died of something else, and a disk that was gone may be back.
        return not any(problem.kind in TRIED_AGAIN for problem in part.problems)
