"""Models of unknown origin in a child process: a crash, an abort or a hang is one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from qbee.errors import ModelFileError
from qbee.runtime import checks
from qbee.runtime.child import Child, ChildError
from qbee.runtime.worker import Arrays, Header, packed

Engine = Literal["tflm", "xnnpack", "builtin"]
RUNTIMES: dict[Engine, str] = {
    "tflm": "TFLite Micro",
    "xnnpack": "LiteRT with XNNPACK",
    "builtin": "LiteRT",
}
# CPU time of one request. A BeeNet1 takes a tenth of a second on a laptop.
LIMIT_S = 60.0
# The largest arena is 256 MiB; Python, numpy and LiteRT reserve the most.
MEMORY_BYTES = 4 << 30


class Sandbox:
    """A child process that runs models, started when first asked and again after a crash.

    Parameters
    ----------
    limit_s : float
        CPU time that a request may take.
    memory_bytes : int
        address space of the child.
    """

    def __init__(self, *, limit_s: float = LIMIT_S, memory_bytes: int = MEMORY_BYTES):
        self.limit_s, self.memory_bytes = limit_s, memory_bytes
        self._child: Child | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def probe(self, content: bytes, *, source: str) -> None:
        """Run a model on TFLite Micro, on zeros and on noise.

        Raises
        ------
        ModelFileError
            naming the file and why it cannot be run.
        """
        self._ask("probe", content, {}, source=source)

    def run(
        self, content: bytes, codes: np.ndarray, *, source: str, engine: Engine = "tflm"
    ) -> tuple[list[np.ndarray], Header]:
        """Every output [n, *shape] for raw inputs [n, *input_shape], and measurements.

        Returns
        -------
        list of arrays, and a dict with ``durations_s`` (CPU time of each window) and, on
        TFLite Micro, ``arena_bytes``

        Raises
        ------
        ModelFileError
            naming the file and why it cannot be run.
        """
        found, arrays = self._ask("run", content, {"codes": codes}, source=source, engine=engine)
        return [arrays[f"output{i}"] for i in range(len(arrays))], found

    def ranges(
        self, content: bytes, codes: np.ndarray, *, source: str
    ) -> tuple[list[int], np.ndarray]:
        """What the operators' results were on TFLite Micro for raw inputs [n, *input_shape].

        Returns
        -------
        list of tensors' indices, and an array [tensors, n, 5]: lowest and highest number, how
        many are at the lowest and at the highest limit of the type, and how many there are

        Raises
        ------
        ModelFileError
            naming the file and why it cannot be run.
        """
        found, arrays = self._ask("ranges", content, {"codes": codes}, source=source)
        return found["tensors"], arrays["ranges"]

    def _ask(
        self,
        task: str,
        content: bytes,
        arrays: Mapping[str, np.ndarray],
        *,
        source: str,
        engine: Engine = "tflm",
    ) -> tuple[Header, Arrays]:
        asked = {"task": task, "engine": engine, "source": source, "limit_s": self.limit_s}
        message = packed(asked, {**arrays, "content": np.frombuffer(content, np.uint8)})
        try:
            header, found = self._answered(message)
        except ChildError as error:
            raise ModelFileError(f"{source}: {RUNTIMES[engine]} {error}") from error
        if "error" in header:
            raise ModelFileError(header["error"])
        return header, found

    def _answered(self, message: bytes) -> tuple[Header, Arrays]:
        """The answer; a process that another model may have harmed gets no second chance."""
        is_fresh = self._child is None
        try:
            return self._started().ask(message, limit_s=self.limit_s)
        except ChildError as error:
            self.close()
            if is_fresh or not error.is_crash:
                raise
        try:
            return self._started().ask(message, limit_s=self.limit_s)
        except ChildError:
            self.close()
            raise

    def _started(self) -> Child:
        if self._child is None:
            self._child = Child(self.memory_bytes)
        return self._child


def probe(content: bytes, *, source: str, limit_s: float = LIMIT_S) -> None:
    """Run a model of unknown origin once in a child process, before it is trusted.

    Raises
    ------
    ModelFileError
        naming the file and why it cannot be run.
    """
    # What can be told without running it needs no process.
    checks.parsed(content, source)
    with Sandbox(limit_s=limit_s) as sandbox:
        sandbox.probe(content, source=source)
