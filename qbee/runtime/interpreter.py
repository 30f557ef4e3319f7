"""A .tflite on TFLite Micro: outputs, arena bytes and metadata."""

from __future__ import annotations

import json
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tflite_micro import runtime

from qbee.errors import ModelFileError
from qbee.files import read_bytes
from qbee.runtime import checks
from qbee.runtime.flatbuffer import OFFLINE_PLAN
from qbee.streams import captured_stderr

_FIRST_ARENA, _LARGEST_ARENA = 1 << 20, 1 << 28
_REFUSAL = "TFLite Micro refuses it: "


def read_metadata(content: bytes, *, key: str, source: str) -> dict[str, Any]:
    """JSON object stored in a .tflite file under ``key``.

    Raises
    ------
    ModelFileError
        if there is none or it is damaged.
    """
    model = checks.parsed(content, source)
    for entry in model.metadata or []:
        if entry.name == key.encode():
            try:
                return json.loads(bytes(model.buffers[entry.buffer].data))
            except (ValueError, TypeError, IndexError) as error:
                raise ModelFileError(f"{source}: metadata {key!r} is damaged") from error
    raise ModelFileError(f"{source}: has no {key!r} metadata: it was not exported by qbee")


def without_batch(output: np.ndarray) -> np.ndarray:
    """An output without its first axis, if that is the only entry of a batch."""
    return output[0] if output.ndim > 1 and output.shape[0] == 1 else output


def require_one_input(inputs: int, source: str) -> None:
    """Refuse a model of which inputs would stay unset.

    Raises
    ------
    ModelFileError
        if there is more than one.
    """
    if inputs != 1:
        raise ModelFileError(f"{source}: it has {inputs} inputs, and can only be run with one")


def _without_plan(content: bytes) -> bytes:
    """The file with its offline plan under a name that says nothing to TFLite Micro.

    Where all tensors are kept they lie one behind the other, which a plan contradicts.
    """
    name = OFFLINE_PLAN.encode()
    return content.replace(name, name[:-1] + b"_")


def _first(text: str, error: Exception) -> str:
    """First line that TFLite Micro wrote, or else what the error says."""
    return (text.strip().splitlines() or [str(error)])[0]


@dataclass(frozen=True)
class Quantization:
    """Step, zero point and type of a tensor: ``value = step * (integer - zero_point)``.

    Numbers of a tensor that is not quantized are the values themselves.
    """

    step: float = 1.0
    zero_point: int = 0
    dtype: np.dtype = np.dtype(np.int8)

    @classmethod
    def of(cls, details: dict[str, Any]) -> Quantization:
        """What an interpreter says of an input or output."""
        numbers, dtype = details["quantization_parameters"], np.dtype(details["dtype"])
        if len(numbers["scales"]) == 0 or len(numbers["zero_points"]) == 0:
            return cls(dtype=dtype)
        return cls(float(numbers["scales"][0]), int(numbers["zero_points"][0]), dtype)

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Numbers of the tensor for real values: rounded half up, saturated."""
        if not np.issubdtype(self.dtype, np.integer):
            return np.asarray(values, self.dtype)
        limits = np.iinfo(self.dtype)
        # In place, as fresh memory costs more than the arithmetic.
        codes = np.asarray(np.true_divide(values, self.step, dtype=np.float64))
        codes += 0.5
        np.floor(codes, out=codes)
        codes += self.zero_point
        np.maximum(codes, limits.min, out=codes)
        np.minimum(codes, limits.max, out=codes)
        return codes.astype(self.dtype)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Real values of the numbers of the tensor, float32."""
        return ((codes.astype(np.float64) - self.zero_point) * self.step).astype(np.float32)


class Runner(ABC):
    """A .tflite that is loaded by some interpreter; integers in, integers out.

    Attributes
    ----------
    input, output : Quantization
        of the first input and of the first output.
    input_shape : tuple of int
        of one window, with the batch's axis if the model has one
    durations_s : list of float
        CPU time of every window of the last run; of this thread, on which all kernels run
    """

    input: Quantization
    output: Quantization
    input_shape: tuple[int, ...]
    durations_s: list[float]

    @abstractmethod
    def run_all(self, codes: np.ndarray) -> list[np.ndarray]:
        """Every output [n, *shape] for raw integer inputs [n, *input_shape].

        Raises
        ------
        ModelFileError
            if the interpreter cannot run the model.
        """

    def run(self, codes: np.ndarray) -> np.ndarray:
        """Raw integer outputs [n, *shape] for raw integer inputs [n, *input_shape]."""
        return self.run_all(codes)[0]

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Real-valued outputs [n, *shape] for real-valued inputs, quantized half up, float32."""
        return self.output.values(self.run(self.input.codes(inputs)))


class MicroModel(Runner):
    """A .tflite loaded by TFLite Micro's interpreter (reference kernels).

    Parameters
    ----------
    content : bytes
    source : str
        file name for messages.
    keep_all : bool
        keep every intermediate tensor for ``tensor``; the arena is then not measured.

    Raises
    ------
    ModelFileError
        if TFLite Micro refuses the file.
    """

    def __init__(self, content: bytes, *, source: str = "model", keep_all: bool = False):
        self.content, self.source = content, source
        model = checks.parsed(content, source)
        checks.refuse_on_micro(model, source)
        graph = model.subgraphs[0]
        config = runtime.InterpreterConfig
        self._config = config.kPreserveAllTensors if keep_all else config.kAllocationRecording
        self._interpreter = self._allocated(_without_plan(content) if keep_all else content)
        details = self._interpreter.get_input_details(0)
        self.input = Quantization.of(details)
        self.output = Quantization.of(self._interpreter.get_output_details(0))
        self.input_shape = tuple(int(length) for length in details["shape"])
        self.inputs, self.outputs = len(graph.inputs), len(graph.outputs)

    @classmethod
    def load(cls, path: Path) -> MicroModel:
        """Model of a file."""
        return cls(read_bytes(path), source=str(path))

    def _allocated(self, content: bytes):
        """Interpreter with the smallest arena of 2^n bytes that works."""
        size = _FIRST_ARENA
        while True:
            with captured_stderr() as said:
                try:
                    return runtime.Interpreter.from_bytes(
                        content, arena_size=size, intrepreter_config=self._config
                    )
                except RuntimeError as error:
                    text, first = said(), _first(said(), error)
            if size >= _LARGEST_ARENA or "Failed to resize" not in text:
                raise ModelFileError(f"{self.source}: {_REFUSAL}{first}")
            size *= 4

    def run_all(self, codes: np.ndarray) -> list[np.ndarray]:
        """See ``Runner``."""
        require_one_input(self.inputs, self.source)
        found: list[list[np.ndarray]] = [[] for _ in range(self.outputs)]
        self.durations_s = []
        with captured_stderr() as said:
            try:
                for window in np.asarray(codes, self.input.dtype):
                    begin = time.thread_time()
                    self._interpreter.set_input(window.reshape(self.input_shape), 0)
                    self._interpreter.invoke()
                    self.durations_s.append(time.thread_time() - begin)
                    for number, kept in enumerate(found):
                        kept.append(without_batch(self._interpreter.get_output(number)).copy())
            except (RuntimeError, ValueError) as error:
                raise ModelFileError(f"{self.source}: {_REFUSAL}{_first(said(), error)}") from error
        return [np.array(outputs) for outputs in found]

    def tensor(self, index: int) -> np.ndarray:
        """An intermediate tensor of the last run (``keep_all`` only)."""
        return self._interpreter.GetTensor(index, 0)["tensor_data"]

    def arena_bytes(self) -> int:
        """Bytes of the arena that TFLite Micro reports as used.

        Measured on this machine; the persistent part is a little smaller on a 32-bit device.
        """
        with captured_stderr() as said:
            self._interpreter.print_allocations()
            text = said()
        found = re.search(r"Arena allocation total (\d+) bytes", text)
        if found is None:
            raise ModelFileError(f"{self.source}: TFLite Micro reports no arena size")
        return int(found.group(1))
