"""A detection: recordings heard by a detector into one folder, where it can be continued."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from qbee.detect import clock
from qbee.detect.crew import Done, Heard, OpenEars, Task, listen_to
from qbee.detect.events import Listened
from qbee.detect.parts import Identity, Part, Parts, Problem
from qbee.detect.recordings import FieldRecording, Placed, in_order
from qbee.errors import AudioError, ParameterError
from qbee.files import make_folder, write_text
from qbee.records import FrontEnd, OnError, Record, read_as

FILE = "detect.json"
_INDEX = TypeAdapter(tuple[FieldRecording, ...])


class DetectSettings(Record):
    """What determines the probabilities of a detection; one folder holds those of one detector."""

    model: str
    model_sha256: str
    engine: str
    front_end: FrontEnd


@dataclass(frozen=True)
class Progress:
    """Seconds of sound that were heard, of all, and recordings that are over, of all."""

    heard_s: float
    total_s: float
    recordings: int
    all_recordings: int


class Detection:
    """What was heard so far in a folder.

    Parameters
    ----------
    zone : name of the time zone of all times that have one; without it, that of each recorder

    Raises
    ------
    ParameterError
        if the folder holds the detection of another detector.
    """

    def __init__(self, folder: Path, settings: DetectSettings, *, zone: str | None = None):
        self.folder, self.settings, self.zone = make_folder(folder), settings, zone
        self.parts = Parts(self.folder / "work" / "parts")
        self._index_path = make_folder(self.folder / "work") / "recordings.json"
        stored = self.folder / FILE
        if stored.exists():
            _check_same(stored, DetectSettings.load(stored), settings)
        settings.save(stored)

    @property
    def recordings(self) -> tuple[FieldRecording, ...]:
        """All recordings this detection was ever asked to hear."""
        found = read_as(self._index_path, _INDEX) if self._index_path.exists() else ()
        return tuple(one.shown_in(self.zone) for one in found)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder.

        Raises
        ------
        ParameterError
            if there is one.
        """
        with (self.folder / "work" / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ParameterError(f"{self.folder}: another run is at work here") from error
            yield

    def _add(self, recordings: Sequence[FieldRecording]) -> None:
        found = read_as(self._index_path, _INDEX) if self._index_path.exists() else ()
        known = {one.uri: one for one in found}
        known |= {one.uri: one for one in recordings}
        write_text(self._index_path, _INDEX.dump_json(tuple(known.values()), indent=1).decode())

    def hear(
        self,
        recordings: Sequence[FieldRecording],
        open_ears: OpenEars,
        *,
        workers: int,
        on_error: OnError,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Hear those recordings that were not heard before, as they are now.

        Raises
        ------
        AudioError
            naming the first recording with damage, if ``on_error='stop'``.
        """
        self._add(recordings)
        named = {one.uri for one in recordings}
        placed = [p for p in in_order(self.recordings, self._front_end) if p.recording.uri in named]
        tasks = []
        for one in placed:
            if not self.parts.has(Identity.of(one.recording, one.skip_samples)):
                tasks.append(Task(one.recording, one.skip_samples))
            elif on_error == "stop":
                self._require_whole(one.recording)
        # Closed, so that its processes end with an error here.
        with closing(self._heard(tasks, open_ears, workers, on_progress)) as news:
            for done in news:
                if done.death:
                    self._keep_death(done)
                if on_error == "stop":
                    self._require_whole(done.task.recording)

    def _heard(
        self, tasks: Sequence[Task], open_ears: OpenEars, workers: int, on_progress
    ) -> Generator[Done]:
        """Recordings that are over, while the progress is reported."""
        total_s = sum(task.recording.duration_s or 0.0 for task in tasks)
        heard_s, over = 0.0, 0
        with closing(listen_to(tasks, open_ears, self.parts.folder, workers=workers)) as listening:
            for news in listening:
                if isinstance(news, Heard):
                    heard_s += news.seconds
                else:
                    over += 1
                    yield news
                on_progress(Progress(heard_s, max(total_s, heard_s), over, len(tasks)))

    @property
    def _front_end(self) -> FrontEnd:
        return self.settings.front_end

    def _keep_death(self, done: Done) -> None:
        """Keep that a process died, so that the tables say it; the next run tries once more."""
        task, text = done.task, done.death or ""
        problem = Problem(kind="crashed", effect="left_out", at_s=0.0, text=text)
        identity = Identity.of(task.recording, task.skip_samples)
        self.parts.save(Part.nothing(identity, (problem,)))

    def _require_whole(self, recording: FieldRecording) -> None:
        part = self.parts.load(recording.uri)
        if part is not None and part.is_damaged:
            worst = next(problem for problem in part.problems if problem.effect != "used")
            raise AudioError(f"{recording.name}: {worst.text} (--on-error skip goes on)")

    @property
    def listened(self) -> list[Listened]:
        """Recordings that were heard, in order, with problems that show only beside the others."""
        found = []
        for placed in in_order(self.recordings, self._front_end):
            part = self.parts.load(placed.recording.uri)
            identity = Identity.of(placed.recording, placed.skip_samples)
            if part is None or not part.identity.is_same_file(identity):
                # Of a run that did not end, which was not continued.
                text = "it was not heard to its end, or has changed since: name it again"
                problem = Problem(kind="not_heard", effect="left_out", at_s=0.0, text=text)
                part = Part.nothing(identity, (problem,))
            found.append(Listened(placed, part))
        return with_common_problems(found)


def _check_same(path: Path, stored: DetectSettings, settings: DetectSettings) -> None:
    for name in ("model_sha256", "engine", "front_end"):
        before, now = getattr(stored, name), getattr(settings, name)
        if before != now:
            shown = f": {before} then, {now} now" if name == "engine" else ""
            raise ParameterError(
                f"{path}: this folder holds what {stored.model} detected, with another "
                f"{name}{shown}; give another folder"
            )


def with_common_problems(listened: Sequence[Listened]) -> list[Listened]:
    """Recordings of a location compared with the one before: rates and times that do not fit."""
    found: list[Listened] = []
    rates: dict[str, int] = {}
    for number, one in enumerate(listened):
        recording = one.placed.recording
        problems = []
        rate = recording.sample_rate_hz
        if rate is not None and rates.setdefault(recording.location, rate) != rate:
            text = f"{rate} Hz; recordings before it at this location have another rate"
            text = f"{text} ({rates[recording.location]} Hz)"
            problems.append(("rate_change", text))
            rates[recording.location] = rate
        if recording.start is None:
            text = "neither a table nor its name or comment says when it was made"
            problems.append(("no_start_time", f"{text}: it does not count in the activity"))
        elif number and (over_s := _overlap_s(listened[number - 1].placed, one.placed)) > 0:
            name = listened[number - 1].placed.recording.name
            problems.append(("overlap", f"it begins {over_s:.1f} s before {name} ends"))
        found.append(
            Listened(
                one.placed,
                one.part.with_problems(
                    [Problem(kind=k, effect="used", at_s=0.0, text=t) for k, t in problems]
                ),
            )
        )
    return found


def _overlap_s(before: Placed, after: Placed) -> float:
    """Seconds by which a recording begins before the other, at the same place, ends."""
    one, other = before.recording, after.recording
    if one.location != other.location or after.continues:
        return 0.0
    if one.start is None or other.start is None or one.duration_s is None:
        return 0.0
    if (one.start.tzinfo is None) != (other.start.tzinfo is None):
        return 0.0
    return one.duration_s - clock.between(one.start, other.start)
