"""A child process that answers requests, within limits of time and memory."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO
from zipfile import BadZipFile

from qbee.runtime.worker import LENGTH_BYTES, Arrays, Header, unpacked

# A child that waits instead of computing, on a machine that does other work too.
_WAITS, _START_S = 8.0, 30.0
_MOST_ANSWER_BYTES = 1 << 31


class ChildError(Exception):
    """The child did not answer."""

    def __init__(self, problem: str, *, is_crash: bool):
        super().__init__(problem)
        self.is_crash = is_crash


class Child:
    """A process that runs ``worker``, and the pipes to it."""

    def __init__(self, memory_bytes: int):
        package = str(Path(__file__).resolve().parents[2])
        # The present folder must not be searched for modules, hence -P and no -m.
        code = (
            f"import sys; sys.path.append({package!r}); from qbee.runtime import worker; "
            f"worker.serve({memory_bytes})"
        )
        # Threads that numpy will not use would count as memory.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - see close
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
        )

    def ask(self, message: bytes, *, limit_s: float) -> tuple[Header, Arrays]:
        """Answer to a request.

        Raises
        ------
        ChildError
            if there is none.
        """
        assert self._process.stdin is not None
        deadline = time.monotonic() + _START_S + _WAITS * limit_s
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
            length = int.from_bytes(self._read(LENGTH_BYTES, deadline), "little")
            if length > _MOST_ANSWER_BYTES:
                raise ChildError("fails on it", is_crash=True)
            return unpacked(self._read(length, deadline))
        except BrokenPipeError:
            raise self._death() from None
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ChildError("fails on it", is_crash=True) from error

    def _read(self, count: int, deadline: float) -> bytes:
        """So many bytes of the answer."""
        assert self._process.stdout is not None
        pipe, parts = self._process.stdout.fileno(), []
        while count:
            rest = deadline - time.monotonic()
            if not select.select([pipe], [], [], max(rest, 0))[0]:
                raise ChildError("does not end on it", is_crash=False)
            part = os.read(pipe, min(count, 1 << 20))
            if not part:
                raise self._death()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _death(self) -> ChildError:
        """Why the process has ended."""
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return ChildError("does not end on it", is_crash=False)
        if code < 0:
            return ChildError(f"crashes on it ({signal.Signals(-code).name})", is_crash=True)
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return ChildError(f"fails on it: {(lines or ['it ends'])[-1]}", is_crash=True)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            # What a dead process has not read cannot be written any more.
            if stream is not None:
                _closed(stream)


def _closed(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        return
