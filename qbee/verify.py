"""The proof: numpy == Keras == TFLite Micro, integer for integer, on the same windows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qbee.export.interpreter import MicroModel
from qbee.quantize import fixed_net
from qbee.quantize.fixed_net import FixedNet
from qbee.records import Record

BATCH_WINDOWS = 16


class Verification(Record):
    """Windows compared, and windows whose output codes differ anywhere between the three."""

    windows: int
    mismatches: int
    keras_mismatches: int
    tflm_mismatches: int


def compare(
    net: FixedNet,
    keras_model,
    micro: MicroModel,
    inputs: Callable[[int, int], np.ndarray],
    windows: int,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Verification, np.ndarray]:
    """Compare the three implementations; returns also TFLite Micro's logits [windows, 2].

    Parameters
    ----------
    net : FixedNet
        the specification, run by ``fixed_net``.
    keras_model : quantized Keras model, run in inference mode
    micro : the exported file on TFLite Micro
    inputs : callable (start, stop) -> standardised inputs [stop - start, height, width, 1]
    """
    wrong_keras = wrong_tflm = wrong = 0
    logits = []
    for start in range(0, windows, BATCH_WINDOWS):
        stop = min(start + BATCH_WINDOWS, windows)
        x = inputs(start, stop)
        expected = fixed_net.predict(net, x)
        on_device = micro.predict(x)
        differs_keras = np.any(keras_model(x, training=False).numpy() != expected, axis=1)
        differs_tflm = np.any(on_device != expected, axis=1)
        wrong_keras += int(differs_keras.sum())
        wrong_tflm += int(differs_tflm.sum())
        wrong += int((differs_keras | differs_tflm).sum())
        logits.append(on_device)
        if on_progress is not None:
            on_progress(stop, windows)
    found = Verification(
        windows=windows,
        mismatches=wrong,
        keras_mismatches=wrong_keras,
        tflm_mismatches=wrong_tflm,
    )
    return found, np.concatenate(logits)
