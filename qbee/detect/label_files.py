"""Events as selection tables of Raven and labels of Audacity, one file for every recording."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from qbee.detect.events import Event, Span
from qbee.detect.tables import time_text
from qbee.files import make_folder, write_text
from qbee.records import FrontEnd, read_as

RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin File",
    "Begin Date Time",
    "Annotation",
    "Probability",
)
LABEL = "buzz"
LONGEST_NAME_BYTES = 120
# Tables that were written, with the SHA-256 of each.
MANIFEST = "label_files.json"


def safe_name(text: str) -> str:
    """``text`` as the name of one file or folder, which stays where it is put."""
    plain = re.sub(r"[^\w .+@=-]", "_", text).strip(" .")
    # File systems count bytes.
    cut = plain.encode("utf-8", "replace")[:LONGEST_NAME_BYTES].decode("utf-8", "ignore")
    return cut.strip(" .") or "_"


def write(
    folder: Path, events: Sequence[Event], front_end: FrontEnd
) -> tuple[list[Path], list[Path]]:
    """Write ``raven/LOCATION/NAME.Table.1.selections.txt`` and ``audacity/LOCATION/NAME.txt``.

    Tables that were written before give way, unless they were edited since: those stay, and the
    new one gets another name.

    Returns
    -------
    the paths of Raven's and of Audacity's files, for recordings with events only
    """
    by_recording: dict[str, list[tuple[Event, Span]]] = {}
    for event in events:
        for span in event.spans:
            uri = span.listened.placed.recording.uri
            by_recording.setdefault(uri, []).append((event, span))
    _remove_written(folder)
    raven, audacity = [], []
    for found in by_recording.values():
        tables = _tables(folder, _plain_name(found[0][1]))
        _write(tables[0], _raven_lines(found, front_end))
        _write(tables[1], (f"{s.start_s:.6f}\t{s.end_s:.6f}\t{LABEL}" for _, s in found))
        raven.append(tables[0])
        audacity.append(tables[1])
    written = {path.relative_to(folder).as_posix(): _digest(path) for path in [*raven, *audacity]}
    make_folder(folder / "work")
    write_text(folder / "work" / MANIFEST, json.dumps(written, indent=1))
    return raven, audacity


def _remove_written(folder: Path) -> None:
    """Remove tables of before that nobody has edited."""
    manifest = folder / "work" / MANIFEST
    if not manifest.exists():
        return
    for name, digest in read_as(manifest, TypeAdapter(dict[str, str])).items():
        path = folder / name
        is_ours = ".." not in path.parts and path.is_file() and _digest(path) == digest
        if is_ours:
            path.unlink()
    manifest.unlink()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain_name(span: Span) -> str:
    recording = span.listened.placed.recording
    return f"{safe_name(recording.location)}/{safe_name(recording.path.stem)}"


def _tables(folder: Path, plain: str) -> tuple[Path, Path]:
    """Paths of both tables of a recording, under a name that is free."""
    name, number = plain, 1
    while True:
        raven = folder / "raven" / f"{name}.Table.1.selections.txt"
        audacity = folder / "audacity" / f"{name}.txt"
        if not raven.exists() and not audacity.exists():
            return raven, audacity
        number += 1
        name = f"{plain} ({number})"


def _write(path: Path, lines: Iterable[str]) -> None:
    make_folder(path.parent)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _raven_lines(found: Sequence[tuple[Event, Span]], front_end: FrontEnd) -> Iterable[str]:
    yield "\t".join(RAVEN_COLUMNS)
    for number, (event, span) in enumerate(found, start=1):
        cells = (
            number,
            "Spectrogram 1",
            1,
            f"{span.start_s:.6f}",
            f"{span.end_s:.6f}",
            f"{front_end.fmin_hz:g}",
            f"{front_end.fmax_hz:g}",
            safe_name(span.listened.placed.recording.path.name),
            time_text(span.listened, span.start_s),
            LABEL,
            f"{event.peak_probability:.6f}",
        )
        yield "\t".join(map(str, cells))
