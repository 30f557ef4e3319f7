"""The child process of ``sandbox``: runs models of unknown origin, one request after the other.

A message is its length in eight bytes and a .npz: a JSON header and arrays. Nothing that is read
is ever executed.
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from qbee.errors import ModelFileError
from qbee.runtime import checks
from qbee.runtime.interpreter import MicroModel, Runner
from qbee.runtime.litert import LiteRtModel
from qbee.runtime.operations import operations_of, tensors_of

HEADER, LENGTH_BYTES = "header", 8
# What the child may write to a file, which are messages only.
_MOST_FILE_BYTES = 1 << 26
_PROBES_SEED = 0

Arrays = dict[str, np.ndarray]
Header = dict[str, Any]


def packed(header: Header, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A message with its length."""
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{HEADER: text}, **arrays)
    return len(content.getvalue()).to_bytes(LENGTH_BYTES, "little") + content.getvalue()


def unpacked(content: bytes) -> tuple[Header, Arrays]:
    """Header and arrays of a message without its length."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return json.loads(arrays.pop(HEADER).tobytes()), arrays


def _loaded(engine: str, content: bytes, source: str) -> Runner:
    if engine == "tflm":
        return MicroModel(content, source=source)
    return LiteRtModel(content, xnnpack=engine == "xnnpack", source=source)


class _Worker:
    """Answers requests; keeps the last model of each kind."""

    def __init__(self) -> None:
        self._content = b""
        self._models: dict[str, Any] = {}

    def answer(self, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        """What the named task finds, or the error it ends in."""
        content = arrays.pop("content").tobytes()
        if content != self._content:
            self._content, self._models = content, {}
        try:
            return _TASKS[header["task"]](self, header, arrays)
        except ModelFileError as error:
            return {"error": str(error)}, {}
        except MemoryError:
            return {"error": f"{header['source']}: it needs too much memory", "is_stack": False}, {}

    def _model(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._models:
            self._models[name] = make()
        return self._models[name]

    def probe(self, header: Header, _: Arrays) -> tuple[Header, Arrays]:
        """Run on zeros and on noise."""
        model = MicroModel(self._content, source=header["source"])
        model.run_all(np.zeros((1, *model.input_shape)))
        model.run_all(noise(model.input.dtype, (1, *model.input_shape), seed=_PROBES_SEED))
        return {}, {}

    def run(self, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        """Every output for given inputs, the time it takes and the arena."""
        engine, source = header["engine"], header["source"]
        model = self._model(engine, lambda: _loaded(engine, self._content, source))
        outputs = model.run_all(arrays["codes"])
        found: Header = {"durations_s": model.durations_s}
        if engine == "tflm":
            found["arena_bytes"] = model.arena_bytes()
        return found, {f"output{i}": output for i, output in enumerate(outputs)}

    def ranges(self, header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
        """Range of every operator's results for given inputs: see ``range_of``."""
        source = header["source"]
        model = self._model(
            "keep_all", lambda: MicroModel(self._content, source=source, keep_all=True)
        )
        parsed = checks.parsed(self._content, source)
        graph = parsed.subgraphs[0]
        tensors = tensors_of(parsed, graph)
        results = [t for op in operations_of(parsed, graph, tensors) for t in op.outputs]
        found: list[list[np.ndarray]] = [[] for _ in results]
        for window in arrays["codes"]:
            model.run_all(window[None])
            for result, kept in zip(results, found, strict=True):
                kept.append(range_of(model.tensor(result.index)))
        return {"tensors": [t.index for t in results]}, {
            "ranges": np.array(found, np.float64).reshape(len(results), -1, 5)
        }


_TASKS = {"probe": _Worker.probe, "run": _Worker.run, "ranges": _Worker.ranges}


def noise(dtype: np.dtype, shape: tuple[int, ...], *, seed: int) -> np.ndarray:
    """Random numbers for an input: all codes of narrow integers, 0 and 1 of wide ones, else normal.

    Wide integers are often indices, of which no others are sure to exist.
    """
    rng = np.random.default_rng(seed)
    if not np.issubdtype(dtype, np.integer):
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    low, high = (0, 1) if limits.bits > 16 else (limits.min, limits.max)
    return rng.integers(low, high, shape, dtype, endpoint=True)


def range_of(numbers: np.ndarray) -> np.ndarray:
    """Lowest and highest finite number, how many are at each limit of the type, and how many."""
    finite = numbers[np.isfinite(numbers)]
    ends = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
    at_limits = (0, 0)
    if np.issubdtype(numbers.dtype, np.integer):
        limits = np.iinfo(numbers.dtype)
        at_limits = np.sum(numbers == limits.min), np.sum(numbers == limits.max)
    return np.array([*ends, *at_limits, numbers.size], np.float64)


def _limit(kind: int, most: int) -> None:
    """Set a soft limit, which the hard one bounds."""
    hard = resource.getrlimit(kind)[1]
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (soft, hard))


def _request(stream: BinaryIO) -> tuple[Header, Arrays] | None:
    """Next request; None at the end."""
    length = stream.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    return unpacked(stream.read(int.from_bytes(length, "little")))


def serve(memory_bytes: int) -> None:
    """Answer requests from the standard input until it ends, within limits.

    A request's ``limit_s`` bounds its CPU time; beyond it the system ends this process.
    """
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, _MOST_FILE_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What C code prints must not mix with the answers.
    os.dup2(2, 1)
    worker = _Worker()
    while (request := _request(requests)) is not None:
        header, arrays = request
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + header["limit_s"]))
        answers.write(packed(*worker.answer(header, arrays)))
        answers.flush()
