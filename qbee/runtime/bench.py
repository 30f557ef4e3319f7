"""One model on several runtimes: its outputs, its time, its ranges and what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from qbee.errors import ModelFileError
from qbee.records import Record
from qbee.runtime.facts import Inspection
from qbee.runtime.sandbox import Engine, Sandbox

# Of one request to the child.
CHUNK_WINDOWS = 16

Progress = Callable[[int, int], None]


class Seen(Record):
    """Numbers that an operator's result took.

    Attributes
    ----------
    lowest, highest : int, float or None
        as stored: integers if the type is one; None if no number was finite
    at_lowest, at_highest : float or None
        share of the numbers at the limits of an integer type
    """

    operator: int
    op: str
    tensor: int
    type: str
    lowest: int | float | None
    highest: int | float | None
    at_lowest: float | None
    at_highest: float | None


class Comparison(Record):
    """LiteRT beside TFLite Micro, on the same inputs.

    Attributes
    ----------
    runtime : 'xnnpack' (LiteRT's default kernels) or 'builtin' (TensorFlow Lite's own)
    refused : str or None
        why it does not run the file; everything else is None then
    numbers, differing : int
        numbers compared, of all outputs and inputs, and those that are not the same
    largest_difference : float
        in steps (LSB) of an integer output, else the values' difference
    class_agreement : float or None
        share of the inputs whose largest number is the same one; None if there is one only
    median_ms : float
        CPU time of an input
    """

    runtime: Literal["xnnpack", "builtin"]
    refused: str | None = None
    numbers: int | None = None
    differing: int | None = None
    largest_difference: float | None = None
    class_agreement: float | None = None
    median_ms: float | None = None


class Bench:
    """One model and its inputs, in a sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        content: bytes,
        codes: np.ndarray,
        source: str,
        on_progress: Progress | None,
        passes: int,
    ):
        self.sandbox, self.content, self.codes, self.source = sandbox, content, codes, source
        self.on_progress, self.total, self.done = on_progress, passes * len(codes), 0

    def _chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.codes), CHUNK_WINDOWS):
            chunk = self.codes[start : start + CHUNK_WINDOWS]
            yield chunk
            self.done += len(chunk)
            if self.on_progress is not None:
                self.on_progress(self.done, self.total)

    def run(self, engine: Engine) -> tuple[list[np.ndarray], list[float], int]:
        """Outputs, CPU times and, of TFLite Micro, bytes of the arena."""
        parts, durations_s, arena_bytes = [], [], 0
        for chunk in self._chunks():
            outputs, measured = self.sandbox.run(
                self.content, chunk, source=self.source, engine=engine
            )
            parts.append(outputs)
            durations_s += measured["durations_s"]
            arena_bytes = measured.get("arena_bytes", 0)
        joined = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        return joined, durations_s, arena_bytes

    def ranges(self, facts: Inspection) -> tuple[tuple[Seen, ...], str | None]:
        """What every operator's results were, or why that is not known."""
        parts: list[np.ndarray] = []
        tensors: list[int] = []
        try:
            for chunk in self._chunks():
                tensors, found = self.sandbox.ranges(self.content, chunk, source=self.source)
                parts.append(found)
        except ModelFileError as error:
            return (), str(error)
        whole = np.concatenate(parts, axis=1)
        return tuple(_seen(facts, tensors, whole)), None

    def compared(self, engine: Engine, expected: list[np.ndarray]) -> Comparison:
        """A runtime of LiteRT beside TFLite Micro's outputs."""
        assert engine != "tflm"
        try:
            outputs, durations_s, _ = self.run(engine)
        except ModelFileError as error:
            return Comparison(runtime=engine, refused=str(error))
        differences = [_difference(a, b) for a, b in zip(outputs, expected, strict=True)]
        first, other = (o[0].reshape(len(o[0]), -1) for o in (outputs, expected))
        agrees = np.argmax(first, axis=1) == np.argmax(other, axis=1)
        return Comparison(
            runtime=engine,
            numbers=sum(d.size for d in differences),
            differing=sum(int(np.sum(d != 0)) for d in differences),
            largest_difference=float(max(np.max(d, initial=0.0) for d in differences)),
            class_agreement=float(np.mean(agrees)) if first.shape[1] > 1 else None,
            median_ms=1e3 * float(np.median(durations_s)),
        )


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances of numbers; two that are no numbers are the same."""
    both = np.isnan(a) & np.isnan(b)
    found = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.where(both, 0.0, np.nan_to_num(found, nan=np.finfo(np.float64).max))


def _seen(facts: Inspection, tensors: list[int], found: np.ndarray) -> Iterator[Seen]:
    """Ranges of all inputs together; an array [tensors, n, 5] as of ``Sandbox.ranges``."""
    position = 0
    for op in facts.operators:
        for output in op.outputs:
            rows = found[position]
            numbers = rows[:, 4].sum()
            is_integer = not output.type.startswith(("float", "bool"))
            # Where there was no finite number at all, these are none.
            ends = np.fmin.reduce(rows[:, 0]), np.fmax.reduce(rows[:, 1])
            yield Seen(
                operator=op.number,
                op=op.op,
                tensor=tensors[position],
                type=output.type,
                lowest=_number(ends[0], is_integer=is_integer),
                highest=_number(ends[1], is_integer=is_integer),
                at_lowest=float(rows[:, 2].sum() / numbers) if is_integer else None,
                at_highest=float(rows[:, 3].sum() / numbers) if is_integer else None,
            )
            position += 1


def _number(value: float, *, is_integer: bool) -> int | float | None:
    if np.isnan(value):
        return None
    return int(value) if is_integer else float(value)
