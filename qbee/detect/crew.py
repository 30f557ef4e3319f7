"""Processes that listen to recordings; one that dies takes nothing with it but its recording."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from qbee.detect.listening import Logits, listen
from qbee.detect.member import begin
from qbee.detect.parts import Part, Parts
from qbee.detect.recordings import FieldRecording
from qbee.errors import QbeeError
from qbee.records import FrontEnd


@dataclass(frozen=True)
class Ears:
    """A detector that is ready: what it hears, and what it says of it."""

    front_end: FrontEnd
    logits: Logits


# Makes a detector ready; called once in every process, so it must be a function of a module or
# an object that can be copied to another process.
OpenEars = Callable[[], Ears]


@dataclass(frozen=True)
class Task:
    """A recording to be heard."""

    recording: FieldRecording
    skip_samples: int


@dataclass(frozen=True)
class Heard:
    """Seconds of a recording that were heard."""

    task: Task
    seconds: float


@dataclass(frozen=True)
class Done:
    """A recording is over, and its part is kept; with the reason if its process died instead."""

    task: Task
    death: str | None = None


class _Member:
    """A process that listens, and what it is doing."""

    def __init__(self, open_ears: OpenEars, parts: Path):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=begin, args=(theirs, parts), daemon=True)
        self.process.start()
        # Its end must be open in its process only, so that its death is the end of the pipe.
        theirs.close()
        self._send(open_ears)
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        """Give it a task."""
        self.task = task
        self._send(task)

    def _send(self, message: OpenEars | Task) -> None:
        # Should it be dead, the end of the pipe is read next.
        with suppress(BrokenPipeError):
            self.connection.send(message)

    def death(self) -> str:
        """Why it ended."""
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"the process that read it {how}"

    def close(self) -> None:
        """End it at once."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


def listen_to(
    tasks: Sequence[Task], open_ears: OpenEars, parts: Path, *, workers: int
) -> Generator[Heard | Done]:
    """Let ``workers`` processes hear recordings; what they find is kept in the folder ``parts``.

    Raises
    ------
    QbeeError
        if the detector cannot be made ready or a part cannot be written.
    """
    waiting = list(reversed(tasks))
    members = [_Member(open_ears, parts) for _ in range(min(workers, len(tasks)))]
    try:
        for member in members:
            member.give(waiting.pop())
        while busy := [member for member in members if member.task]:
            for connection in wait([member.connection for member in busy]):
                index = next(i for i, one in enumerate(members) if one.connection is connection)
                member = members[index]
                yield from _news(member)
                if member.task is None and not member.process.is_alive() and waiting:
                    member.close()
                    member = members[index] = _Member(open_ears, parts)
                if member.task is None and waiting:
                    member.give(waiting.pop())
    finally:
        for member in members:
            member.close()


def _news(member: _Member) -> Iterator[Heard | Done]:
    """What a process says next; it has no task any more when it is done, or dead."""
    task = member.task
    assert task is not None
    try:
        news = member.connection.recv()
    except (EOFError, ConnectionResetError):
        death = member.death()
        member.task = None
        yield Done(task, death)
        return
    if isinstance(news, str):
        raise QbeeError(news)
    if news is None:
        member.task = None
        yield Done(task)
    else:
        yield Heard(task, news)


def serve(connection: Connection, open_ears: OpenEars, parts: Path) -> None:
    """Hear one recording after the other; the end of the pipe is the end of the parent."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            ears, kept = open_ears(), Parts(parts)
            while True:
                task = connection.recv()
                _keep(kept, _heard(task, ears, connection))
                connection.send(None)
        except QbeeError as error:
            connection.send(str(error))


def _heard(task: Task, ears: Ears, connection: Connection) -> Part:
    return listen(
        task.recording,
        skip_samples=task.skip_samples,
        front_end=ears.front_end,
        logits=ears.logits,
        on_progress=connection.send,
    )


def _keep(kept: Parts, part: Part) -> None:
    try:
        kept.save(part)
    except OSError as error:
        raise QbeeError(f"{kept.folder}: cannot be written: {error.strerror or error}") from error
