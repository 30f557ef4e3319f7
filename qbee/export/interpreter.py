"""A .tflite on TFLite Micro: outputs, arena bytes and metadata."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tflite_micro import runtime

from qbee.errors import ModelFileError
from qbee.export import checks
from qbee.streams import captured_stderr

_FIRST_ARENA, _LARGEST_ARENA = 1 << 20, 1 << 28


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


@dataclass(frozen=True)
class Quantization:
    """Step, zero point and type of a tensor: ``value = step * (integer - zero_point)``."""

    step: float
    zero_point: int
    dtype: np.dtype = np.dtype(np.int8)


class MicroModel:
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
        checks.parsed(content, source)
        config = runtime.InterpreterConfig
        self._config = config.kPreserveAllTensors if keep_all else config.kAllocationRecording
        self._interpreter = self._allocated()
        self.input = self._quantization(self._interpreter.get_input_details(0))
        self.output = self._quantization(self._interpreter.get_output_details(0))
        shape = self._interpreter.get_input_details(0)["shape"]
        self.input_shape = tuple(int(length) for length in shape)

    @classmethod
    def load(cls, path: Path) -> MicroModel:
        """Model of a file."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ModelFileError(f"{path}: {error.strerror}") from error
        return cls(content, source=str(path))

    def _allocated(self):
        """Interpreter with the smallest arena of 2^n bytes that works."""
        size = _FIRST_ARENA
        while True:
            with captured_stderr() as said:
                try:
                    return runtime.Interpreter.from_bytes(
                        self.content, arena_size=size, intrepreter_config=self._config
                    )
                except RuntimeError as error:
                    lines = said().strip().splitlines() or [str(error)]
            if size >= _LARGEST_ARENA or not any("Failed to resize" in s for s in lines):
                raise ModelFileError(f"{self.source}: TFLite Micro refuses it: {lines[0]}")
            size *= 4

    @staticmethod
    def _quantization(details: dict[str, Any]) -> Quantization:
        numbers = details["quantization_parameters"]
        step, zero_point = float(numbers["scales"][0]), int(numbers["zero_points"][0])
        return Quantization(step, zero_point, np.dtype(details["dtype"]))

    def run(self, codes: np.ndarray) -> np.ndarray:
        """Raw integer outputs [n, *shape] for raw integer inputs [n, *input_shape]."""
        outputs = []
        for window in np.asarray(codes, self.input.dtype):
            self._interpreter.set_input(window[None], 0)
            self._interpreter.invoke()
            outputs.append(self._interpreter.get_output(0)[0].copy())
        return np.array(outputs)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Real-valued outputs [n, *shape] for real-valued inputs, quantized half up, float32."""
        scaled = np.floor(np.asarray(inputs, np.float64) / self.input.step + 0.5)
        limits = np.iinfo(self.input.dtype)
        raw = self.run(np.clip(scaled + self.input.zero_point, limits.min, limits.max))
        return ((raw.astype(np.float64) - self.output.zero_point) * self.output.step).astype("f4")

    def tensor(self, index: int) -> np.ndarray:
        """An intermediate tensor of the last run (``keep_all`` only)."""
        return self._interpreter.GetTensor(index, 0)["tensor_data"]

    def arena_bytes(self) -> int:
        """Bytes of the arena that TFLite Micro reports as used, after one run.

        Measured on this machine; the persistent part is a little smaller on a 32-bit device.
        """
        self._interpreter.invoke()
        with captured_stderr() as said:
            self._interpreter.print_allocations()
            text = said()
        found = re.search(r"Arena allocation total (\d+) bytes", text)
        if found is None:
            raise ModelFileError(f"{self.source}: TFLite Micro reports no arena size")
        return int(found.group(1))
