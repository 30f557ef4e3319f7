"""Detection from end to end: recordings in, tables, labels, activity and clips out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from qbee.detect import activity, clock, events, label_files, tables
from qbee.detect.crew import OpenEars
from qbee.detect.ears import FileEars
from qbee.detect.events import Event, EventRule, Listened
from qbee.detect.recordings import Dating, RecordingTable, find, inspect_all
from qbee.detect.run import Detection, DetectSettings, Progress
from qbee.detector import MODEL, Detector, Engine, network_digest
from qbee.errors import ParameterError
from qbee.field.clip_files import write_clips
from qbee.files import read_bytes, write_text
from qbee.job.settings import FILE as JOB_FILE
from qbee.job.watcher import Watcher
from qbee.records import OnError, Record, validated
from qbee.report import activity_plot
from qbee.train import metrics

AnyEngine = Engine | Literal["keras"]
SUMMARY = "summary.json"
RECORDERS_CLOCK = "of the recorder's clock"
# Of the threshold: hysteresis as usual in voice activity detection, wide enough to bridge a dip.
KEEP_SHARE = 0.5


class Summary(Record):
    """What a detection found, and what of it could be used."""

    model: str
    engine: str
    rule: EventRule
    zone: str | None
    recordings: int
    used: int
    used_partly: int
    left_out: int
    warnings: int
    without_start_time: int
    heard_hours: float
    windows: int
    buzz_windows: int
    events: int
    events_per_hour: float | None
    cuts: int


def detect(
    recordings: Sequence[str | Path],
    model: Path,
    out: Path,
    *,
    engine: AnyEngine = "litert",
    workers: int = 1,
    on_error: OnError = "stop",
    start_times: Path | None = None,
    name_pattern: str | None = None,
    recorder_zone: str | None = None,
    zone: str | None = None,
    threshold: float | None = None,
    keep_threshold: float | None = None,
    min_event_s: float = 0.0,
    max_gap_s: float = 0.0,
    clip_count: int = 20,
    watcher: Watcher | None = None,
) -> Summary:
    """Hear recordings with the detector of a result folder and write what it found to ``out``.

    Recordings that were heard before into the same folder, and are as they were then, are not
    heard again; new ones are added. Tables are of all that was ever heard into it, so that other
    thresholds take seconds.

    Parameters
    ----------
    recordings : files, folders (with all below them) and patterns
    model : result folder of a job
    engine : 'tflm' runs the exported file as the device does; 'litert' is over ten times faster
        and moves few outputs by one step; 'keras' is the quantized Keras model of a job, which
        equals 'tflm'
    start_times : CSV table of files, recorded_at and location
    name_pattern : of strptime, in names of files; without it AudioMoth's comments and names count
    recorder_zone : time zone of times that have none
    zone : time zone of all tables; that of the recorder if not given
    threshold, keep_threshold : a window that reaches the first begins an event, and those beside
        it belong to it that reach the second; by default the model's, and half of it
    min_event_s, max_gap_s : the shortest event that counts, and the gap that joins two
    clip_count : surest events that are cut out

    Raises
    ------
    QbeeError
        with one line, if anything about the input is wrong, or a recording is damaged and
        ``on_error='stop'``.
    """
    watcher = watcher or Watcher()
    settings, detector = _settings(Path(model), engine)
    rule = _rule(detector, threshold, keep_threshold, min_event_s, max_gap_s)
    dating = _dating(start_times, name_pattern, recorder_zone)
    if zone:
        clock.zone(zone)
    paths = find(recordings)
    detection = Detection(Path(out), settings, zone=zone)
    with detection.locked():
        watcher.stage("Looking at recordings")
        found = inspect_all(paths, dating, on_progress=lambda n, of: watcher.progress(n, of, ""))
        watcher.stage("Listening")
        detection.hear(
            found,
            _ears(Path(model).resolve(), engine),
            workers=workers,
            on_error=on_error,
            on_progress=_Clock(watcher).progress,
        )
        # With it the tables are whole; they are not while they are being written.
        (detection.folder / SUMMARY).unlink(missing_ok=True)
        watcher.stage("Writing tables")
        heard = _written(detection, rule, zone or recorder_zone)
        watcher.stage("Cutting clips")
        for problem in write_clips(detection, heard.events, rule, clip_count):
            watcher.note(problem)
        summary = _summary(detection, rule, zone or recorder_zone, heard)
        write_text(detection.folder / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    return summary


def _ears(folder: Path, engine: AnyEngine) -> OpenEars:
    if engine == "keras":
        # The others do without TensorFlow.
        from qbee.field.keras_ears import KerasEars

        return KerasEars(folder)
    return FileEars(folder, engine)


def _settings(folder: Path, engine: AnyEngine) -> tuple[DetectSettings, Detector]:
    detector = Detector.load(folder, engine="tflm" if engine == "keras" else engine)
    if engine == "keras" and not (folder / JOB_FILE).exists():
        raise ParameterError(f"{folder}: engine='keras' needs the folder of a whole job")
    return (
        DetectSettings(
            model=str(folder.resolve()),
            model_sha256=network_digest(read_bytes(folder / MODEL), source=str(folder / MODEL)),
            engine=engine,
            front_end=detector.card.front_end,
        ),
        detector,
    )


def _rule(
    detector: Detector,
    threshold: float | None,
    keep_threshold: float | None,
    min_event_s: float,
    max_gap_s: float,
) -> EventRule:
    high = detector.card.threshold if threshold is None else threshold
    given = {
        "threshold": high,
        "keep_threshold": KEEP_SHARE * high if keep_threshold is None else keep_threshold,
        "min_event_s": min_event_s,
        "max_gap_s": max_gap_s,
    }
    return validated(EventRule, given)


def _dating(table: Path | None, pattern: str | None, recorder_zone: str | None) -> Dating:
    return Dating(
        table=RecordingTable.read(table) if table else None,
        pattern=clock.check_pattern(pattern) if pattern else None,
        recorder_zone=clock.zone(recorder_zone) if recorder_zone else None,
    )


class _Clock:
    """Tells a watcher how fast is listened."""

    def __init__(self, watcher: Watcher):
        self.watcher, self.begun = watcher, time.monotonic()

    def progress(self, now: Progress) -> None:
        elapsed = max(time.monotonic() - self.begun, 1e-9)
        speed = now.heard_s / 3600 / elapsed
        text = f"{now.recordings}/{now.all_recordings} files, {speed:.2f} audio-hours a second"
        self.watcher.progress(round(now.heard_s), max(1, round(now.total_s)), text)


@dataclass(frozen=True)
class Found:
    """All that was heard, and the events in it."""

    listened: list[Listened]
    events: list[Event]
    cuts: int


def _written(detection: Detection, rule: EventRule, zone: str | None) -> Found:
    """Write all tables, plots and labels."""
    out, front_end = detection.folder, detection.settings.front_end
    listened = detection.listened
    chains = events.chains(listened)
    found = [event for chain in chains for event in events.find(chain, front_end, rule)]
    tables.write_windows(
        listened,
        front_end,
        rule.threshold,
        parquet_path=out / "windows.parquet",
        csv_path=out / "windows.csv",
    )
    hours = activity.by_hour(listened, found, front_end)
    cuts = tables.cut_rows(chains, front_end)
    of_recordings = tables.recording_rows(listened, rule.threshold, found)
    for name, header, rows in (
        ("events", tables.EVENTS, tables.event_rows(found)),
        ("recordings", tables.RECORDINGS, of_recordings),
        ("problems", tables.PROBLEMS, tables.problem_rows(listened)),
        ("cuts", tables.CUTS, cuts),
        ("activity_by_hour", activity.HOURS, activity.rows(hours)),
        ("activity_by_day", activity.DAYS, activity.rows(activity.by_day(hours))),
    ):
        tables.write_rows(out / f"{name}.csv", header, rows)
    label_files.write(out, found, front_end)
    activity_plot.heat_map(hours, out / "activity.png", zone=zone or RECORDERS_CLOCK)
    return Found(listened, found, len(cuts))


def _summary(detection: Detection, rule: EventRule, zone: str | None, found: Found) -> Summary:
    front_end, listened = detection.settings.front_end, found.listened
    effects = [{problem.effect for problem in one.part.problems} for one in listened]
    left_out = sum("left_out" in some for some in effects)
    partly = sum("left_out" not in some and "used_partly" in some for some in effects)
    counts = [len(one.part.margins) for one in listened]
    heard_s = sum(
        (count - 1) * front_end.window_hop_s + front_end.window_s for count in counts if count
    )
    return Summary(
        model=detection.settings.model,
        engine=detection.settings.engine,
        rule=rule,
        zone=zone,
        recordings=len(listened),
        used=len(listened) - left_out - partly,
        used_partly=partly,
        left_out=left_out,
        warnings=sum(p.effect == "used" for one in listened for p in one.part.problems),
        without_start_time=sum(one.placed.recording.start is None for one in listened),
        heard_hours=heard_s / 3600,
        windows=sum(counts),
        buzz_windows=sum(
            int(np.sum(metrics.sigmoid(one.part.margins) >= rule.threshold)) for one in listened
        ),
        events=len(found.events),
        events_per_hour=len(found.events) / (heard_s / 3600) if heard_s else None,
        cuts=found.cuts,
    )
