"""A .tflite of anybody on trial: run in a child process, on TFLite Micro and on LiteRT."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from qbee.errors import ModelFileError, ParameterError
from qbee.records import Record
from qbee.runtime.bench import Bench, Comparison, Progress, Seen
from qbee.runtime.facts import Inspection, OperatorFacts, TensorFacts
from qbee.runtime.inspection import inspect
from qbee.runtime.interpreter import Quantization
from qbee.runtime.sandbox import Engine, Sandbox
from qbee.runtime.worker import noise

RANDOM_WINDOWS, SEED = 8, 0
# CPU time for the windows of one request.
LIMIT_S = 300.0
_COMPARED: tuple[Engine, ...] = ("xnnpack", "builtin")


class Trial(Record):
    """What came of running a .tflite.

    Attributes
    ----------
    inputs : 'given' or 'random' (with ``seed``)
    operators : dict of kind with types to count
    arena_bytes, predicted_arena_bytes : int
        on TFLite Micro, on this machine
    outputs_vary : bool
        whether different inputs gave different outputs
    median_ms : float
        CPU time of an input on TFLite Micro's reference kernels, on this machine
    ranges_refused : str or None
        why no ranges are known
    """

    source: str
    inputs: Literal["given", "random"]
    seed: int | None
    windows: int
    input_type: str
    output_types: tuple[str, ...]
    operators: dict[str, int]
    arena_bytes: int
    predicted_arena_bytes: int
    outputs_vary: bool
    median_ms: float
    ranges: tuple[Seen, ...]
    ranges_refused: str | None
    litert: tuple[Comparison, ...]


def read_windows(path: Path) -> np.ndarray:
    """Array of a .npy file.

    Raises
    ------
    ParameterError
        if there is none.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ParameterError(f"{path}: no .npy file of numbers: {error}") from error
    if not isinstance(found, np.ndarray):
        raise ParameterError(f"{path}: holds several arrays; a .npy file has one")
    return found


def run(
    content: bytes,
    *,
    source: str,
    windows: np.ndarray | None = None,
    seed: int = SEED,
    limit_s: float = LIMIT_S,
    on_progress: Progress | None = None,
) -> Trial:
    """Run a model in a child process and compare its runtimes.

    Parameters
    ----------
    windows : array [n, *input shape], optional
        real values, or integers of the input's type; random ones by default.
    limit_s : float
        CPU time that 16 windows may take.
    on_progress : callable (done, total), optional

    Raises
    ------
    ModelFileError
        if the file is damaged, or TFLite Micro cannot run it.
    ParameterError
        if the windows do not fit the model's input.
    """
    facts = inspect(content, source)
    codes = codes_of(facts, windows, seed=seed)
    with Sandbox(limit_s=limit_s) as sandbox:
        bench = Bench(sandbox, content, codes, source, on_progress, 2 + len(_COMPARED))
        outputs, durations_s, arena_bytes = bench.run("tflm")
        ranges, refused = bench.ranges(facts)
        compared = tuple(bench.compared(engine, outputs) for engine in _COMPARED)
    return Trial(
        **_expected(facts),
        inputs="random" if windows is None else "given",
        seed=seed if windows is None else None,
        windows=len(codes),
        arena_bytes=arena_bytes,
        outputs_vary=any(np.any(output != output[:1]) for output in outputs),
        median_ms=1e3 * float(np.median(durations_s)),
        ranges=ranges,
        ranges_refused=refused,
        litert=compared,
    )


def _expected(facts: Inspection) -> dict[str, Any]:
    """Fields of a trial that are known before it."""
    return {
        "source": facts.source,
        "input_type": facts.inputs[0].type,
        "output_types": tuple(output.type for output in facts.outputs),
        "operators": dict(Counter(kind_of(op) for op in facts.operators)),
        "predicted_arena_bytes": facts.arena.total_bytes,
    }


def kind_of(op: OperatorFacts) -> str:
    """Kind of an operator and its types."""
    kernel = "" if op.kernel is None else f" with {op.kernel.type} kernel"
    return f"{op.op} {op.output.type if op.output else ''}{kernel}".rstrip()


def _dtype_of(tensor: TensorFacts, source: str) -> np.dtype:
    try:
        return np.dtype(tensor.type)
    except TypeError as error:
        message = f"{source}: its input is of type {tensor.type}, which cannot be fed"
        raise ModelFileError(message) from error


def codes_of(facts: Inspection, windows: np.ndarray | None, *, seed: int) -> np.ndarray:
    """Raw inputs [n, *input shape] for given windows, or random ones.

    Raises
    ------
    ParameterError
        if windows do not fit.
    """
    tensor = facts.inputs[0]
    dtype = _dtype_of(tensor, facts.source)
    if windows is None:
        return noise(dtype, (RANDOM_WINDOWS, *tensor.shape), seed=seed)
    wanted = tuple(n for n in tensor.shape if n > 1)
    if windows.ndim == 0 or not len(windows):
        raise ParameterError("windows must be an array of one window or more")
    # Axes of length 1, such as the batch, may be there or not.
    if tuple(n for n in windows.shape[1:] if n > 1) != wanted:
        raise ParameterError(
            f"windows={list(windows.shape)} must be [n, *{list(tensor.shape)}], the model's input"
        )
    shaped = windows.reshape(len(windows), *tensor.shape)
    if np.issubdtype(windows.dtype, np.floating):
        if not np.all(np.isfinite(windows)):
            raise ParameterError("windows must be finite")
        step = 1.0 if tensor.scale is None else tensor.scale
        return Quantization(step, tensor.zero_point or 0, dtype).codes(shaped)
    if windows.dtype != dtype:
        raise ParameterError(f"windows of type {windows.dtype} must be real numbers or {dtype}")
    return shaped
