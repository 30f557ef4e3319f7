"""Recordings to listen to: found, dated, placed, and in the order they were made."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit
from zoneinfo import ZoneInfo

from qbee.audio import load
from qbee.data import tables
from qbee.data.labels import AUDIO_SUFFIXES
from qbee.detect import clock
from qbee.errors import AudioError, ParameterError
from qbee.records import FrontEnd, Record

# Names give whole seconds, so the end of one recording and the start of the next differ by less.
CONTINUES_WITHIN = timedelta(seconds=1)


class FieldRecording(Record):
    """A recording of a recorder in the field, as it was found.

    ``uri`` is its address (names of files need not be text). ``started_at`` is ISO 8601, with an
    offset if that is known, and ``zone`` the name of its time zone, if it has one. The rate and
    the duration are None if it cannot be read.
    """

    uri: str
    location: str
    started_at: str | None
    zone: str | None
    size_bytes: int
    modified_ns: int
    sample_rate_hz: int | None
    duration_s: float | None

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(os.fsdecode(unquote_to_bytes(urlsplit(self.uri).path)))

    @property
    def name(self) -> str:
        """Path as it is written to tables, which are UTF-8."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")

    @property
    def start(self) -> datetime | None:
        """When it began, in its time zone."""
        if self.started_at is None:
            return None
        start = datetime.fromisoformat(self.started_at)
        return start if self.zone is None else start.astimezone(clock.zone(self.zone))

    @property
    def order(self) -> tuple:
        """Key that sorts recordings by place and time, those without a time by name."""
        start = self.start
        moment = None if start is None else start.replace(tzinfo=start.tzinfo or UTC).timestamp()
        return self.location, moment is None, moment or 0.0, self.name


def find(arguments: Sequence[str | Path]) -> list[Path]:
    """Sound files of files, folders and patterns (``**`` is any depth); each once, sorted.

    Of a folder, all files at any depth with the suffix of a sound file, but none whose name
    begins with a dot.

    Raises
    ------
    ParameterError
        naming an argument that is no file, folder or pattern of any.
    """
    found: dict[Path, None] = {}
    for argument in [os.fspath(given) for given in arguments]:
        is_there = os.path.lexists(argument)
        # Path.glob takes no absolute pattern.
        matches = [argument] if is_there else sorted(glob.glob(argument, recursive=True))  # noqa: PTH207
        if not matches:
            raise ParameterError(f"{argument}: no such file or folder")
        for match in map(Path, matches):
            files = _below(match) if match.is_dir() else [match]
            if is_there and not files:
                kinds = ", ".join(AUDIO_SUFFIXES)
                raise ParameterError(f"{argument}: the folder has no sound files ({kinds})")
            found.update((path.resolve(), None) for path in files)
    return sorted(found)


def _below(folder: Path) -> list[Path]:
    def is_wanted(path: Path) -> bool:
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        return path.suffix.lower() in AUDIO_SUFFIXES and not is_hidden and path.is_file()

    return [path for path in folder.rglob("*") if is_wanted(path)]


class Told(NamedTuple):
    """What a table says of a recording."""

    started_at: datetime | None
    location: str | None


@dataclass(frozen=True)
class RecordingTable:
    """A CSV table of recordings: file, recorded_at (ISO 8601) and location, one of them at least.

    ``file`` is a path relative to the table's folder, an absolute path, or only a name.
    """

    folder: Path
    rows: dict[str, Told]

    @classmethod
    def read(cls, path: Path) -> RecordingTable:
        """Table of a CSV file.

        Raises
        ------
        LabelError
            naming file, row and value.
        """
        found: dict[str, Told] = {}
        for row in tables.rows(path, needed=(("file",), ("recorded_at", "location")), optional=()):
            name, text = row.cells["file"], row.cells.get("recorded_at", "")
            try:
                start = clock.of_table(text) if text else None
            except ParameterError as error:
                raise row.error(str(error)) from error
            if not name or name in found:
                what = "must not be empty" if not name else "is in the table twice"
                raise row.error(f"file={name!r} {what}")
            found[name] = Told(start, row.cells.get("location") or None)
        return cls(Path(path).resolve().parent, found)

    def of(self, path: Path) -> Told:
        """What the table says of a recording: by its path before its name."""
        for name in (os.path.relpath(path, self.folder), str(path), path.name):
            if name in self.rows:
                return self.rows[name]
        return Told(None, None)


@dataclass(frozen=True)
class Dating:
    """How it is told when recordings began.

    Parameters
    ----------
    table : goes before everything else
    pattern : of strptime, in names of files; without it comments and names of AudioMoth count
    recorder_zone : of times without a zone
    shown_zone : in which times with a zone are given
    """

    table: RecordingTable | None = None
    pattern: str | None = None
    recorder_zone: tzinfo | None = None
    shown_zone: tzinfo | None = None

    def start_of(self, path: Path, comment: str) -> datetime | None:
        """When a recording began, or None if nothing says it."""
        told = self.table.of(path).started_at if self.table else None
        if told is not None:
            return clock.in_zone(told, self.recorder_zone, self.shown_zone)
        return clock.start_of(
            path,
            comment,
            pattern=self.pattern,
            recorder_zone=self.recorder_zone,
            shown_zone=self.shown_zone,
        )

    def location_of(self, path: Path) -> str:
        """Location by the table, or the name of the folder."""
        told = self.table.of(path).location if self.table else None
        name = told or path.parent.name or "/"
        return os.fsencode(name).decode("utf-8", "backslashreplace")


def inspect(path: Path, dating: Dating) -> FieldRecording:
    """A recording by its header; one that cannot be read has no duration.

    Raises
    ------
    ParameterError
        if the file is gone.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise ParameterError(f"{path}: {error.strerror}") from error
    try:
        found, comment = load.info(path, allow_cut=True), load.comment(path)
    except AudioError:
        found, comment = None, ""
    start = dating.start_of(path, comment)
    return FieldRecording(
        uri=path.as_uri(),
        location=dating.location_of(path),
        started_at=None if start is None else start.isoformat(),
        zone=start.tzinfo.key if start and isinstance(start.tzinfo, ZoneInfo) else None,
        size_bytes=state.st_size,
        modified_ns=state.st_mtime_ns,
        sample_rate_hz=found.sample_rate_hz if found else None,
        duration_s=found.duration_s if found else None,
    )


@dataclass(frozen=True)
class Placed:
    """A recording among the others.

    ``continues`` means that it goes on where the one before it in the list ends;
    ``skip_samples`` are left out at its beginning, so that its windows begin where they would in
    one long file.
    """

    recording: FieldRecording
    continues: bool
    skip_samples: int


def in_order(recordings: Sequence[FieldRecording], front_end: FrontEnd) -> list[Placed]:
    """Recordings by location and time, and which of them continue the one before."""
    placed: list[Placed] = []
    before: FieldRecording | None = None
    elapsed = 0
    for recording in sorted(recordings, key=lambda one: one.order):
        continues = before is not None and _continues(before, recording)
        elapsed = elapsed + _samples(before) if continues and before else 0
        skip = 0
        if continues and recording.sample_rate_hz:
            hop = front_end.window_hop_s * recording.sample_rate_hz
            # Rounded first: an elapsed time on the grid must not be missed by a float's error.
            skip = round(math.ceil(round(elapsed / hop, 6)) * hop - elapsed)
        placed.append(Placed(recording, continues, skip))
        before = recording
    return placed


def _samples(recording: FieldRecording) -> int:
    return round((recording.duration_s or 0) * (recording.sample_rate_hz or 0))


def _continues(before: FieldRecording, after: FieldRecording) -> bool:
    """Whether a recorder cut one sound into these two files."""
    if before.start is None or after.start is None or before.duration_s is None:
        return False
    has_zones = (before.start.tzinfo is None) == (after.start.tzinfo is None)
    is_alike = before.location == after.location and before.sample_rate_hz == after.sample_rate_hz
    if not (has_zones and is_alike):
        return False
    end = clock.after(before.start, before.duration_s)
    return abs(after.start - end) <= CONTINUES_WITHIN


def inspect_all(
    paths: Sequence[Path], dating: Dating, *, on_progress: Callable[[int, int], None] | None = None
) -> list[FieldRecording]:
    """``inspect`` of many files."""
    found = []
    for number, path in enumerate(paths, start=1):
        found.append(inspect(path, dating))
        if on_progress:
            on_progress(number, len(paths))
    return found
