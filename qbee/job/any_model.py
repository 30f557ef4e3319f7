"""Anybody's trained Keras model to an integer .tflite: from two files to a folder of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from qbee.errors import DataError, ModelFileError
from qbee.export import tflite
from qbee.files import make_folder, replacing, write_bytes, write_text
from qbee.job.watcher import Watcher
from qbee.keras import make_repeatable
from qbee.quantize import convert, stored, thresholds
from qbee.quantize.calibrate import calibrate
from qbee.quantize.fixed_net import FixedNet
from qbee.quantize.fold import fold
from qbee.quantize.layers import QuantizedOp
from qbee.quantize.quantizers import Alpha
from qbee.quantize.scheme import Scheme, uniform
from qbee.quantize.sharing import Steps, one_step_of
from qbee.quantize.thresholds import FatSettings
from qbee.records import Record
from qbee.runtime.interpreter import MicroModel
from qbee.verify import compare

CALIBRATION_INPUTS, HELD_OUT_SHARE, LARGEST_HELD_OUT = 100, 0.25, 256
MODEL, KERAS_MODEL = "model.tflite", "quantized.keras"
SCHEME, REPORT = "scheme.json", "quantize.json"


class Quantized(Record):
    """What quantizing a model gave; agreement is measured on inputs not used for anything else.

    ``rms_error`` is that of the outputs before a softmax, relative to the RMS of the float
    model's; ``same_class`` the share of inputs whose largest output is the same.
    """

    float_bytes: int
    tflite_bytes: int
    arena_bytes: int
    held_out_inputs: int
    rms_error: float
    same_class: float
    mismatches: int


def _split(inputs: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs to calibrate and tune with, and held-out ones."""
    if len(inputs) < 4:
        raise DataError(f"{len(inputs)} inputs: at least 4 are needed, about 100 are enough")
    order = np.random.default_rng(seed).permutation(len(inputs))
    held_out = min(LARGEST_HELD_OUT, int(np.ceil(HELD_OUT_SHARE * len(inputs))))
    return inputs[order[held_out:]], inputs[order[:held_out]]


def integers(path: Path) -> FixedNet:
    """Integers of a quantized Keras model file.

    Raises
    ------
    ModelFileError
        if it cannot be read, or is not a model that qbee quantized.
    """
    model = stored.load_model(path)
    if not any(isinstance(layer, QuantizedOp) for layer in model.layers):
        raise ModelFileError(f"{path}: is no model that qbee quantized")
    return convert.to_fixed_point(convert.logits_model(model))


def quantize_file(
    model: Path,
    inputs: Path,
    out: Path,
    *,
    kernels: Literal[4, 8, 16] = 8,
    maps: Literal[4, 8, 16] = 8,
    scheme: Path | None = None,
    free_steps: bool = False,
    steps: Steps = "channel",
    calibration: str = "mse",
    fine_tune: bool = False,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> Quantized:
    """Quantize a trained Keras model and write what was made of it to ``out``.

    The folder gets model.tflite, quantized.keras (to train or examine further), scheme.json and
    quantize.json (the result).

    Parameters
    ----------
    model : Path
        .keras or .h5 file
    inputs : Path
        .npy array [n, *input_shape] of typical inputs, without labels; a quarter is held out.
    kernels, maps : int
        bits of all kernels and of all feature maps, unless ``scheme`` names a file.
    free_steps : bool
        any steps instead of powers of two.
    steps : 'channel', 'similar' or 'kernel'
        one step for each output channel of a kernel; one in all for kernels whose channels have
        similar ranges; one for every kernel, which makes the smallest file.
    calibration : str
        name of a method in ``ranges``, such as mse, minmax, kl or octav
    fine_tune : bool
        label-free fine-tuning towards the float model (FAT); thresholds too with free steps.

    Raises
    ------
    QbeeError
        if a file cannot be used or the model cannot be quantized.
    """
    watcher = watcher or Watcher()
    make_repeatable(seed)
    loaded = stored.load_model(model)
    net = fold(loaded)
    used, held_out = _split(stored.load_inputs(inputs, loaded), seed)
    widths = Scheme.load(scheme) if scheme else uniform(net, bits=kernels, map_bits=maps)
    widths.check(net)
    folder = make_folder(out)
    alpha: Alpha = "auto" if free_steps else "auto_po2"
    one_step = one_step_of(steps, net)
    watcher.stage("Calibrate")
    few = used[:CALIBRATION_INPUTS]
    formats = calibrate(net, few, seed=seed, method=calibration, alpha=alpha)
    teacher = net
    if fine_tune:
        watcher.stage("Fine-tune")
        tuned = thresholds.tune(
            net,
            widths,
            formats,
            used,
            settings=FatSettings(thresholds=free_steps),
            seed=seed,
            alpha=alpha,
            is_per_tensor=one_step,
            on_progress=lambda done, total, loss: watcher.progress(
                done, total, f"RMSE of outputs {loss:.3g}"
            ),
        )
        net, formats = tuned.net, tuned.maps
    watcher.stage("Export and verify")
    whole = convert.quantized_model(net, widths, formats, alpha=alpha, is_per_tensor=one_step)
    quantized = convert.logits_model(whole)
    fixed = convert.to_fixed_point(quantized)
    micro = MicroModel(tflite.write(fixed).content, source=MODEL)
    proof, found = compare(
        fixed,
        quantized,
        micro,
        lambda start, stop: held_out[start:stop],
        len(held_out),
        on_progress=lambda done, total: watcher.progress(done, total, ""),
    )
    wanted = thresholds.logits(teacher, held_out)
    result = Quantized(
        float_bytes=4 * sum(v.size for v in (*net.kernels.values(), *net.biases.values())),
        tflite_bytes=len(micro.content),
        arena_bytes=micro.arena_bytes(),
        held_out_inputs=len(held_out),
        rms_error=float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))),
        same_class=float(np.mean(found.argmax(-1) == wanted.argmax(-1))),
        mismatches=proof.mismatches,
    )
    widths.save(folder / SCHEME)
    with replacing(folder / KERAS_MODEL) as partial:
        whole.save(partial)
    write_bytes(folder / MODEL, micro.content)
    write_text(folder / REPORT, json.dumps(result.model_dump(), indent=2))
    return result
