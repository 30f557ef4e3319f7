"""Recordings to listen to: found, dated, placed, and in the order they were made."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
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
CONTINUES_WITHIN_S = 1.0


class FieldRecording(Record):
    """A recording of a recorder in the field, as it was found.

    ``uri`` is its address (names of files need not be text). ``started_at`` is ISO 8601, with an
    offset if that is known, and ``zone`` the name of the time zone it is shown in, if any. The
    rate and the duration are None if it cannot be read.
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
        """Path as it is written to tables."""
        return plain(self.path)

    @property
    def start(self) -> datetime | None:
        """When it began, in its time zone."""
        if self.started_at is None:
            return None
        start = datetime.fromisoformat(self.started_at)
        return clock.in_zone(start, clock.zone(self.zone) if self.zone else None)

    def shown_in(self, zone: str | None) -> FieldRecording:
        """The same, with times in another zone; as it is without one."""
        return self if zone is None else self.model_copy(update={"zone": zone})

    @property
    def order(self) -> tuple:
        """Key that sorts recordings by place, folder and time, those without a time by name."""
        start = self.start
        moment = None if start is None else start.replace(tzinfo=start.tzinfo or UTC).timestamp()
        return self.location, plain(self.path.parent), moment is None, moment or 0.0, self.name


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
            # Not resolved: names of links say what names of their targets need not.
            found.update((Path(os.path.abspath(path)), None) for path in files)  # noqa: PTH100
    return sorted(found)


def _below(folder: Path) -> list[Path]:
    def is_wanted(path: Path) -> bool:
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        return path.suffix.lower() in AUDIO_SUFFIXES and not is_hidden and path.is_file()

    # Links to folders are followed, as cards are often linked to; a loop ends with the path.
    return [path for path in _walked(folder) if is_wanted(path)]


def _walked(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links too; no folder twice."""
    seen: set[Path] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = Path(where).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(where, name) for name in files)


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
    pattern : of strptime, in names of files; then comments and names of AudioMoth count
    recorder_zone : of times without a zone
    """

    table: RecordingTable | None = None
    pattern: str | None = None
    recorder_zone: tzinfo | None = None

    def start_of(self, path: Path, comment: str) -> datetime | None:
        """When a recording began, or None if nothing says it."""
        told = self.table.of(path).started_at if self.table else None
        found = told or clock.start_of(path, comment, pattern=self.pattern)
        if found is None or found.tzinfo is not None:
            return found
        return found.replace(tzinfo=self.recorder_zone)

    def location_of(self, path: Path) -> str:
        """Location by the table, or the name of the folder."""
        told = self.table.of(path).location if self.table else None
        return plain(told or path.parent.name or "/")


def plain(name: str | os.PathLike[str]) -> str:
    """A path or name as text of UTF-8, which names of files need not be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def inspect(path: Path, dating: Dating) -> FieldRecording:
    """A recording by its header; one that cannot be read, or is gone, has no duration."""
    try:
        state = path.stat()
        size_bytes, modified_ns = state.st_size, state.st_mtime_ns
    except OSError:
        size_bytes = modified_ns = 0
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
        size_bytes=size_bytes,
        modified_ns=modified_ns,
        sample_rate_hz=found.sample_rate_hz if found else None,
        duration_s=found.duration_s if found else None,
    )


@dataclass(frozen=True)
class Placed:
    """A recording among the others.

    ``before`` is the address of the one that it continues, if any; ``skip_samples`` are left out
    at its beginning, so that its windows begin where they would in one long file.
    """

    recording: FieldRecording
    before: str | None
    skip_samples: int

    @property
    def continues(self) -> bool:
        """Whether it goes on where another one ends."""
        return self.before is not None


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
        placed.append(Placed(recording, before.uri if continues and before else None, skip))
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
    # One recorder writes into one folder; two may call theirs alike.
    if not (has_zones and is_alike and before.path.parent == after.path.parent):
        return False
    gap_s = clock.between(before.start, after.start) - before.duration_s
    return abs(gap_s) <= CONTINUES_WITHIN_S


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
