"""Label tables (CSV, Raven selection tables, Audacity labels) as segments of recordings."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from qbee.audio import load
from qbee.data import tables
from qbee.errors import LabelError, ParameterError
from qbee.records import Segment

Unannotated = Literal["no_buzz", "uncertain", "ignore"]
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
RAVEN_LABEL_COLUMNS = ("Annotation", "Label", "Species")
TABLE_SUFFIXES = (".txt", ".tsv")
RAVEN_BEGIN, RAVEN_END = "Begin Time (s)", "End Time (s)"


def read(
    path: Path,
    *,
    recording: Path | None = None,
    location: str | None = None,
    unannotated: Unannotated = "ignore",
) -> list[Segment]:
    """Segments of a table, or of a folder of tables; kinds are told by suffix and header.

    ``.csv`` is read by :func:`read_csv`, a header with ``Begin Time (s)`` by
    :func:`read_raven`, anything else by :func:`read_audacity`.

    Raven and Audacity tables belong to ``recording`` (the audio file beside the table that
    shares its stem unless given) made at ``location`` (else the name of the table's folder).

    Of a folder, ``labels.csv`` is read; without it all .txt and .tsv tables directly in it that
    have a recording of their stem beside them, sorted by name.

    Parameters
    ----------
    unannotated : label of what the events leave out, as in :func:`read_raven`; a CSV table
        says it itself and takes only 'ignore'

    Raises
    ------
    LabelError
        naming table, row and value; if a folder has no such table, or two for one recording
        while what they leave out gets a label.
    ParameterError
        if an argument that a CSV table answers itself is given with one, or ``recording``
        with a folder.
    """
    path = Path(path)
    if path.is_dir():
        if recording is not None:
            raise ParameterError(f"{path}: recording must not be given with a folder")
        segments = []
        for table in _tables_in(path, unannotated):
            segments += read(table, location=location, unannotated=unannotated)
        return segments
    if path.suffix.lower() == ".csv":
        if recording is not None or location is not None or unannotated != "ignore":
            raise ParameterError(
                f"{path}: recording, location and unannotated must not be given with a CSV table"
            )
        return read_csv(path)
    is_raven = RAVEN_BEGIN in tables.text(path).partition("\n")[0]
    return (read_raven if is_raven else read_audacity)(
        path,
        recording=_recording_beside(path) if recording is None else recording,
        location=path.resolve().parent.name if location is None else location,
        unannotated=unannotated,
    )


def read_all(paths: Sequence[Path], *, unannotated: Unannotated = "ignore") -> list[Segment]:
    """Segments of several tables or folders, as of :func:`read`.

    Of several, CSV tables say themselves what is not annotated; ``unannotated`` is for the others.
    """
    segments = []
    for path in paths:
        is_csv = len(paths) > 1 and Path(path).suffix.lower() == ".csv"
        segments += read(path, unannotated="ignore" if is_csv else unannotated)
    return segments


def read_csv(path: Path) -> list[Segment]:
    """Segments of a CSV table with one row per segment.

    Columns: file (relative to the table's folder and inside it), start_s, end_s or duration_s
    (end_s is used when both are there), label (buzz, no_buzz or uncertain), location and
    optionally recorded_at; others and blank rows are ignored. UTF-8, with or without a byte
    order mark.

    Raises
    ------
    LabelError
        naming table, row (the line in the file; the header is 1) and value.
    """
    path = Path(path)
    segments = []
    needed = ("file",), ("start_s",), ("end_s", "duration_s"), ("label",), ("location",)
    for row in tables.rows(path, needed=needed, optional=("recorded_at",)):
        start_s = row.seconds("start_s")
        has_end = "end_s" in row.cells
        end_s = row.seconds("end_s") if has_end else start_s + row.seconds("duration_s")
        recorded_at = row.cells.get("recorded_at") or None
        place = _inside_folder(row), row.cells["location"], recorded_at
        segments.append(row.segment(*place, start_s=start_s, end_s=end_s, label=row.cells["label"]))
    if not segments:
        raise LabelError(f"{path}: row 1: the table has a header but no segments")
    return segments


def read_raven(
    path: Path,
    *,
    recording: Path,
    location: str,
    label_column: str | None = None,
    unannotated: Unannotated = "ignore",
) -> list[Segment]:
    """Segments of a Raven selection table; a selection listed for several views counts once.

    Parameters
    ----------
    label_column : holds buzz, no_buzz or uncertain. Unless given, the first present of
        Annotation, Label and Species; without any of them every selection is a buzz.
    unannotated : label of the stretches between the selections; 'ignore' leaves them out.
        Their ``row`` is that of the selection before them (or the first one).

    Raises
    ------
    LabelError
        naming table, row and value.
    AudioError
        if the duration is needed and the recording cannot be read.
    """
    path = Path(path)
    selections: dict[tuple, Segment] = {}
    begin_files = set()
    needed = (RAVEN_BEGIN,), (RAVEN_END,), (label_column or RAVEN_BEGIN,)
    optional = "Selection", "Begin File", *RAVEN_LABEL_COLUMNS
    layout = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    for row in tables.rows(path, needed=needed, optional=optional, **layout):
        begin_files.add(row.cells.get("Begin File"))
        if len(begin_files) > 1:
            raise row.error(f"Begin File={row.cells['Begin File']!r} is a second recording")
        present = [name for name in (label_column, *RAVEN_LABEL_COLUMNS) if name in row.cells]
        label = row.cells[present[0]] if present else "buzz"
        span_s = row.seconds(RAVEN_BEGIN), row.seconds(RAVEN_END)
        event = row.segment(recording, location, start_s=span_s[0], end_s=span_s[1], label=label)
        selections.setdefault((row.cells.get("Selection", row.number), span_s), event)
    return _with_gaps(path, list(selections.values()), recording, location, unannotated)


def read_audacity(
    path: Path, *, recording: Path, location: str, unannotated: Unannotated = "ignore"
) -> list[Segment]:
    r"""Segments of an Audacity label file: start, end and label between tabs, no header.

    Lines that begin with a backslash (frequency ranges) are skipped; ``unannotated`` and the
    errors are those of :func:`read_raven`.
    """
    path = Path(path)
    events = []
    for number, line in enumerate(tables.text(path).split("\n"), start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        row = tables.Row(path, number, dict(zip(("start", "end", "label"), cells, strict=False)))
        if len(cells) != 3:
            raise row.error(f"{line.strip()!r} must be start, end and label separated by tabs")
        span_s = {"start_s": row.seconds("start"), "end_s": row.seconds("end")}
        events.append(row.segment(recording, location, **span_s, label=row.cells["label"]))
    return _with_gaps(path, events, recording, location, unannotated)


def _tables_in(folder: Path, unannotated: Unannotated) -> list[Path]:
    """``labels.csv``, or else the tables that have a recording, at most one each if it matters."""
    if (folder / "labels.csv").exists():
        return [folder / "labels.csv"]
    candidates = (
        path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES
    )
    # macOS leaves ._name files beside name on disks of other systems
    found = [
        path for path in candidates if path.name[0] != "." and path.is_file() and _namesakes(path)
    ]
    if not found:
        raise LabelError(
            f"{folder}: neither labels.csv nor a table ({', '.join(TABLE_SUFFIXES)}) with a "
            f"recording of the same stem ({', '.join(AUDIO_SUFFIXES)}) beside it"
        )
    owners: dict[str, Path] = {}
    for path in found:
        owner = owners.setdefault(_stem(path), path)
        # what one table leaves out may be an event in the other
        if owner != path and unannotated != "ignore":
            raise LabelError(
                f"{path}: {owner.name} is of the same recording; with "
                f"unannotated={unannotated!r} a recording must have one table"
            )
    return found


def _inside_folder(row: tables.Row) -> Path:
    name = row.cells["file"]
    if not name:
        raise row.error("file must not be empty")
    try:
        folder = row.table.parent.resolve()
        path = (folder / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise row.error(f"file={name!r} is not a usable path: {error}") from error
    if Path(name).is_absolute() or folder not in path.parents:
        raise row.error(f"file={name!r} must be a relative path that stays inside {folder}")
    return path


def _stem(table: Path) -> str:
    """Stem of the recording of a table; Raven adds to it when it saves a selection table."""
    return re.sub(r"(\.Table\.\d+)?(\.selections?)?$", "", table.stem)


def _namesakes(table: Path) -> list[Path]:
    stem = _stem(table)
    namesakes = (path for path in table.resolve().parent.iterdir() if path.stem == stem)
    return sorted(path for path in namesakes if path.suffix.lower() in AUDIO_SUFFIXES)


def _recording_beside(table: Path) -> Path:
    found = _namesakes(table)
    if len(found) != 1:
        raise LabelError(
            f"{table}: one recording {_stem(table)} ({', '.join(AUDIO_SUFFIXES)}) must lie beside "
            f"the table, found {', '.join(path.name for path in found) or 'none'}; or name it"
        )
    return found[0]


def _with_gaps(table, events, recording, location, unannotated) -> list[Segment]:
    """Events and, unless they are ignored, the stretches between them, in order of time."""
    if unannotated not in get_args(Unannotated):
        allowed = ", ".join(get_args(Unannotated))
        raise ParameterError(f"unannotated={unannotated!r} must be one of {allowed}")
    if unannotated == "ignore":
        if not events:
            raise LabelError(f"{table}: row 1: the table has no segments")
        return events
    ordered = sorted(events, key=lambda event: event.start_s)
    row = tables.Row(table, events[0].row if events else 1, {})
    segments, reached_s = [], 0.0
    for event in [*ordered, None]:
        until_s = event.start_s if event else load.info(Path(recording)).duration_s
        if until_s > reached_s:
            span_s = {"start_s": reached_s, "end_s": until_s}
            segments.append(row.segment(recording, location, **span_s, label=unannotated))
        if event:
            segments.append(event)
            reached_s, row = max(reached_s, event.end_s), tables.Row(table, event.row, {})
    return segments
