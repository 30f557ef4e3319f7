"""Tables of a detection: windows (Parquet and CSV), events, recordings, problems and cuts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from qbee.detect import clock
from qbee.detect.events import Event, Listened, Span
from qbee.files import replacing, write_text
from qbee.records import FrontEnd
from qbee.train import metrics

WINDOWS = pa.schema(
    [
        ("file", pa.string()),
        ("location", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("start_time", pa.string()),
        ("probability", pa.float32()),
        ("is_buzz", pa.bool_()),
    ]
)
EVENTS = (
    "location",
    "start_time",
    "end_time",
    "duration_s",
    "peak_probability",
    "mean_probability",
    "windows",
    "file",
    "start_s",
    "end_file",
    "end_s",
)
RECORDINGS = (
    "file",
    "location",
    "start_time",
    "duration_s",
    "sample_rate_hz",
    "continues",
    "windows",
    "buzz_windows",
    "events",
    "used",
)
PROBLEMS = "file", "kind", "effect", "at_s", "reason"
CUTS = (
    "file_before",
    "file_after",
    "time",
    "last_start_s",
    "first_start_s",
    "missing_windows",
)
USED = {"left_out": "no", "used_partly": "partly", "used": "yes"}


def time_text(listened: Listened, seconds: float) -> str:
    """When something in a recording was, ISO 8601; empty if it is not known."""
    start = listened.placed.recording.start
    return "" if start is None else clock.after(start, seconds).isoformat(timespec="milliseconds")


def _times(listened: Listened, starts_s: np.ndarray) -> list[str | None]:
    """``time_text`` of many windows."""
    if listened.placed.recording.start is None:
        return [None] * len(starts_s)
    return [time_text(listened, seconds) for seconds in starts_s.tolist()]


def _batch(listened: Listened, front_end: FrontEnd, threshold: float) -> pa.RecordBatch:
    recording, starts_s = listened.placed.recording, listened.starts_s(front_end)
    probability = metrics.sigmoid(listened.part.margins)
    count = len(starts_s)
    columns = [
        pa.array([recording.name] * count, pa.string()),
        pa.array([recording.location] * count, pa.string()),
        pa.array(starts_s.round(6)),
        pa.array((starts_s + front_end.window_s).round(6)),
        pa.array(_times(listened, starts_s), pa.string()),
        pa.array(probability.astype(np.float32)),
        pa.array(probability >= threshold),
    ]
    return pa.record_batch(columns, schema=WINDOWS)


def write_windows(
    listened: Iterable[Listened],
    front_end: FrontEnd,
    threshold: float,
    *,
    parquet_path: Path,
    csv_path: Path,
) -> None:
    """Write all windows, recording after recording, so that memory does not grow with them."""
    with ExitStack() as stack:
        paths = [stack.enter_context(replacing(path)) for path in (parquet_path, csv_path)]
        columns = stack.enter_context(parquet.ParquetWriter(paths[0], WINDOWS, compression="zstd"))
        lines = stack.enter_context(arrow_csv.CSVWriter(paths[1], WINDOWS))
        for one in listened:
            if len(one.part.margins):
                batch = _batch(one, front_end, threshold)
                columns.write_batch(batch)
                lines.write_batch(batch)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _time(span: Span, seconds: float) -> str:
    return time_text(span.listened, seconds)


def event_rows(events: Iterable[Event]) -> list[tuple]:
    """Rows of the table of events."""
    rows = []
    for event in events:
        first, last = event.spans[0], event.spans[-1]
        rows.append(
            (
                event.location,
                _time(first, first.start_s),
                _time(last, last.end_s),
                round(event.duration_s, 3),
                round(event.peak_probability, 6),
                round(event.mean_probability, 6),
                event.windows,
                first.listened.placed.recording.name,
                round(first.start_s, 6),
                last.listened.placed.recording.name,
                round(last.end_s, 6),
            )
        )
    return rows


def recording_rows(
    listened: Iterable[Listened], threshold: float, events: Sequence[Event]
) -> list[tuple]:
    """Rows of the table of recordings; an event counts where it begins."""
    begun: dict[str, int] = {}
    for event in events:
        uri = event.spans[0].listened.placed.recording.uri
        begun[uri] = begun.get(uri, 0) + 1
    rows = []
    for one in listened:
        recording, margins = one.placed.recording, one.part.margins
        effects = {problem.effect for problem in one.part.problems}
        used = next((text for effect, text in USED.items() if effect in effects), "yes")
        rows.append(
            (
                recording.name,
                recording.location,
                recording.started_at or "",
                "" if recording.duration_s is None else round(recording.duration_s, 6),
                recording.sample_rate_hz or "",
                "yes" if one.placed.continues else "no",
                len(margins),
                int(np.sum(metrics.sigmoid(margins) >= threshold)),
                begun.get(recording.uri, 0),
                used,
            )
        )
    return rows


def problem_rows(listened: Iterable[Listened]) -> list[tuple]:
    """Rows of the table of problems."""
    return [
        (one.placed.recording.name, p.kind, p.effect, round(p.at_s, 3), p.text)
        for one in listened
        for p in one.part.problems
    ]


def cut_rows(chains: Iterable[Sequence[Listened]], front_end: FrontEnd) -> list[tuple]:
    """Rows of the table of cuts between recordings that continue each other.

    The windows that one long recording would have had over a cut are missing; the last one
    before and the first one behind see nothing beyond it.
    """
    rows = []
    for chain in chains:
        for before, after in zip(chain, chain[1:], strict=False):
            starts = before.starts_s(front_end), after.starts_s(front_end)
            length_s = before.placed.recording.duration_s or 0.0
            missing = 0
            if len(starts[0]) and len(starts[1]):
                apart_s = length_s + starts[1][0] - starts[0][-1]
                missing = max(0, round(apart_s / front_end.window_hop_s) - 1)
            rows.append(
                (
                    before.placed.recording.name,
                    after.placed.recording.name,
                    after.placed.recording.started_at,
                    *(
                        round(float(s[i]), 6) if len(s) else ""
                        for s, i in zip(starts, (-1, 0), strict=True)
                    ),
                    missing,
                )
            )
    return rows
