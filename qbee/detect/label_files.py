"""Events as selection tables of Raven and labels of Audacity, one file for every recording."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from qbee.detect.events import Event, Span
from qbee.detect.tables import time_text
from qbee.files import make_folder, write_text
from qbee.records import FrontEnd

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
LONGEST_NAME = 120


def safe_name(text: str) -> str:
    """``text`` as the name of one file or folder, which stays where it is put."""
    plain = re.sub(r"[^\w .+@=-]", "_", text).strip(" .")[:LONGEST_NAME]
    return plain or "_"


def write(
    folder: Path, events: Sequence[Event], front_end: FrontEnd
) -> tuple[list[Path], list[Path]]:
    """Write ``raven/LOCATION/NAME.Table.1.selections.txt`` and ``audacity/LOCATION/NAME.txt``.

    Tables of events that are none any more are removed.

    Returns
    -------
    the paths of Raven's and of Audacity's files, for recordings with events only
    """
    by_recording: dict[str, list[tuple[Event, Span]]] = {}
    for event in events:
        for span in event.spans:
            uri = span.listened.placed.recording.uri
            by_recording.setdefault(uri, []).append((event, span))
    raven, audacity = [], []
    taken: set[str] = set()
    for found in by_recording.values():
        name = _free_name(found[0][1], taken)
        raven.append(folder / "raven" / f"{name}.Table.1.selections.txt")
        audacity.append(folder / "audacity" / f"{name}.txt")
        _write(raven[-1], _raven_lines(found, front_end))
        _write(audacity[-1], (f"{s.start_s:.6f}\t{s.end_s:.6f}\t{LABEL}" for _, s in found))
    for kind, paths in (("raven", raven), ("audacity", audacity)):
        for old in set((folder / kind).rglob("*.txt")) - set(paths):
            old.unlink()
    return raven, audacity


def _free_name(span: Span, taken: set[str]) -> str:
    """Location and name of a recording as a relative path that no other recording has."""
    recording = span.listened.placed.recording
    plain = f"{safe_name(recording.location)}/{safe_name(recording.path.stem)}"
    name, number = plain, 1
    while name.casefold() in taken:
        number += 1
        name = f"{plain} ({number})"
    taken.add(name.casefold())
    return name


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
