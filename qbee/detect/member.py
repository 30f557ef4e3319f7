"""How a process that listens begins; it ends with its parent at any moment, whatever it does.

Nothing but the standard library is imported here, so that its first seconds, in which it imports
all that it needs, belong to that too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread


def begin(connection: Connection, parts: Path) -> None:
    """Take the detector that comes first through the pipe, then recordings to be heard."""
    # An interrupt is the parent's, who ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    # Taking the detector imports what it is made of.
    with suppress(EOFError, ConnectionResetError):
        open_ears = connection.recv()
        from qbee.detect.crew import serve

        serve(connection, open_ears, parts)


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone; files are written whole or not at all."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
