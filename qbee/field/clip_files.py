"""The surest events of a detection as sound files with their spectrograms."""

from __future__ import annotations

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

FOLDER = "clips"
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
        except AudioError as error:
            yield f"no clip: {error}"
            continue
        write_bytes(sound, clip.audio)
        _draw(sound, picture, clip, span, detection.settings.front_end, rule)
        kept |= {sound, picture}
        rows.append(_row(sound.name, clip, span, event))
    write_rows(folder / "clips.csv", HEADER, rows)
    for old in (*folder.glob("*.flac"), *folder.glob("*.png")):
        if old not in kept:
            old.unlink()


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
