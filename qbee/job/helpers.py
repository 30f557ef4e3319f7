"""Processes that help to measure the trials of a search on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qbee.errors import QbeeError

POLL_S = 1.0


@contextmanager
def helping(folder: Path, count: int, *, store: str | None = None) -> Iterator[None]:
    """Let other processes measure trials of the job in ``folder`` while the block runs.

    They end when there are no trials left, and when this process does.
    """
    context = multiprocessing.get_context("spawn")
    helpers = [
        context.Process(target=_help, args=(folder, store, os.getpid()), daemon=True)
        for _ in range(count)
    ]
    for helper in helpers:
        helper.start()
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()


def _help(folder: Path, store: str | None, parent: int) -> None:
    from qbee.job.verbs import resumed

    # An interrupt is the parent's, who ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        resumed(folder, store=store).search.run()
    except QbeeError as error:
        print(f"qbee: a worker stopped: {error}", file=sys.stderr)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone; its trial is then given out again."""
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)
