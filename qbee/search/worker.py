"""Who measures a trial, and whether that process is still alive (no TensorFlow)."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

from qbee.records import Record


class Worker(Record):
    """A process that measures trials.

    Attributes
    ----------
    place : host, boot, process namespace and user, within which ``pid`` can be looked up
    started : when the process began, in clock ticks since the boot; tells it from a later one
        with the same ``pid``
    token : a name no other worker has
    """

    place: str
    pid: int
    started: int
    token: str

    @classmethod
    def here(cls) -> Worker:
        """A new worker in this process."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        place = f"{socket.gethostname()} {boot} {namespace} {os.getuid()}"
        started = _process_start(os.getpid()) or 0
        return cls(place=place, pid=os.getpid(), started=started, token=uuid.uuid4().hex)

    def is_dead(self, *, seen_from: Worker) -> bool:
        """Whether the process has ended; of another machine's nothing is known."""
        return self.place == seen_from.place and _process_start(self.pid) != self.started


def _process_start(pid: int) -> int | None:
    """Clock ticks since the boot at which a process began; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may contain spaces; proc(5): state is field 3, starttime field 22.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class Lease(Record):
    """Who measures a trial, and until when (Unix time) nobody else will."""

    worker: Worker
    until: float

    def is_over(self, *, seen_from: Worker) -> bool:
        """Whether the trial may be given out again."""
        return self.until <= time.time() or self.worker.is_dead(seen_from=seen_from)
