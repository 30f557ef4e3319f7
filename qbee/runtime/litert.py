"""A .tflite on LiteRT (TensorFlow Lite): the runtime of phones and single-board computers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from qbee.errors import ModelFileError
from qbee.runtime import checks
from qbee.runtime.interpreter import Quantization, Runner, require_one_input, without_batch
from qbee.streams import captured_stderr


class LiteRtModel(Runner):
    """A .tflite loaded by LiteRT, on one thread.

    Parameters
    ----------
    content : bytes
    xnnpack : bool
        with XNNPACK's kernels, which round in another way, or with TensorFlow Lite's own
    source : str
        file name for messages.

    Raises
    ------
    ModelFileError
        if LiteRT refuses the file.
    """

    def __init__(self, content: bytes, *, xnnpack: bool, source: str = "model"):
        self.source = source
        checks.parsed(content, source)
        with captured_stderr():
            try:
                self._interpreter = _interpreter(content, xnnpack=xnnpack)
                self._interpreter.allocate_tensors()
                details, *others = self._interpreter.get_input_details()
                self._outputs = self._interpreter.get_output_details()
            # Names that are no text are ValueErrors too.
            except (RuntimeError, ValueError) as error:
                raise self._refusal(error) from error
        self._inputs = 1 + len(others)
        self._input_index = details["index"]
        self.input, self.output = Quantization.of(details), Quantization.of(self._outputs[0])
        self.input_shape = tuple(int(length) for length in details["shape"])

    def _refusal(self, error: Exception) -> ModelFileError:
        lines = str(error).strip().splitlines() or ["without a reason"]
        return ModelFileError(f"{self.source}: LiteRT refuses it: {lines[0]}")

    def run_all(self, codes: np.ndarray) -> list[np.ndarray]:
        """See ``Runner``."""
        require_one_input(self._inputs, self.source)
        found: list[list[np.ndarray]] = [[] for _ in self._outputs]
        self.durations_s = []
        try:
            for window in np.asarray(codes, self.input.dtype):
                begin = time.thread_time()
                self._interpreter.set_tensor(self._input_index, window.reshape(self.input_shape))
                self._interpreter.invoke()
                self.durations_s.append(time.thread_time() - begin)
                for details, kept in zip(self._outputs, found, strict=True):
                    kept.append(without_batch(self._interpreter.get_tensor(details["index"])))
        except (RuntimeError, ValueError) as error:
            raise self._refusal(error) from error
        return [np.array(outputs) for outputs in found]


def _interpreter(content: bytes, *, xnnpack: bool) -> Any:
    """LiteRT's interpreter; the package, which takes a while, is imported where it is used."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    resolver = OpResolverType.AUTO if xnnpack else plain
    return Interpreter(model_content=content, experimental_op_resolver_type=resolver, num_threads=1)
