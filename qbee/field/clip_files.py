"""The surest events of a detection as sound files with their spectrograms."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qbee.audio import mel
from qbee.detect import clips
from qbee.detect.events import Event, EventRule, Span
from qbee.detect.label_files import safe_name
from qbee.detect.run import Detection
from qbee.detect.tables import time_text, write_rows
from qbee.errors import AudioError
from qbee.files import make_folder, write_bytes
from qbee.records import FrontEnd
from qbee.report import clip_plot
from qbee.train import metrics

FOLDER, TABLE = "clips", "clips.csv"
HEADER = "clip", "file", "start_s", "end_s", "start_time", "location", "peak_probability"


def write_clips(
    detection: Detection, events: Sequence[Event], rule: EventRule, count: int
) -> Iterator[str]:
    """Write ``clips/`` anew: FLAC, PNG and a table of the surest events.

    Yields
    ------
    one line for every recording that cannot be read any more
    """
    folder = make_folder(detection.folder / FOLDER)
    rows, kept = [], set()
    for rank, event in enumerate(clips.top(events, count), start=1):
        span = clips.stretch(event)
        recording = span.listened.placed.recording
        name = f"{rank:04d}_{safe_name(recording.location)}_{safe_name(recording.path.stem)}"
        sound, picture = folder / f"{name}.flac", folder / f"{name}.png"
        try:
            clip = clips.cut(span)
            write_bytes(sound, clip.audio)
            _draw(sound, picture, clip, span, detection.settings.front_end, rule)
        except AudioError as error:
            yield f"no clip: {error}"
            continue
        kept |= {sound, picture}
        rows.append(_row(sound.name, clip, span, event))
    # Only what the table of before has: others may have put files here.
    for old in _listed(folder / TABLE):
        for path in (folder / old, (folder / old).with_suffix(".png")):
            if path not in kept:
                path.unlink(missing_ok=True)
    write_rows(folder / TABLE, HEADER, rows)


def _listed(table: Path) -> list[str]:
    """Names of clips in a table that was written before."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        names = [row[0] for row in csv.reader(file) if row][1:]
    return [name for name in names if safe_name(name) == name]


def _row(name: str, clip: clips.Clip, span: Span, event: Event) -> tuple:
    recording = span.listened.placed.recording
    return (
        name,
        recording.name,
        round(clip.start_s, 3),
        round(clip.start_s + clip.duration_s, 3),
        time_text(span.listened, clip.start_s),
        recording.location,
        round(event.peak_probability, 6),
    )


def _draw(
    sound: Path, picture: Path, clip: clips.Clip, span: Span, front_end: FrontEnd, rule: EventRule
) -> None:
    image = np.concatenate([*mel.stream(sound, front_end)], axis=1)
    recording = span.listened.placed.recording
    starts_s = span.listened.starts_s(front_end)
    clip_plot.clip(
        image,
        front_end,
        picture,
        title=f"{recording.location}: {safe_name(recording.path.name)}",
        start_s=clip.start_s,
        window_starts_s=starts_s,
        probability=metrics.sigmoid(span.listened.part.margins),
        threshold=rule.threshold,
    )
