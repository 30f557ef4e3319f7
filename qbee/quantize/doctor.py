"""The po2 doctor: what each quantizer of a Keras model does to what it rounds, and what is wrong.

It knows models of QKeras' layers, with any of their quantizers, and our own quantized models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from qbee.errors import ParameterError
from qbee.quantize import doctor_rules
from qbee.quantize.doctor_grids import (
    bias_remedy,
    depends_on_call,
    finest_step,
    is_uniform,
    kernel_remedy,
    map_remedy,
    quantized,
)
from qbee.quantize.doctor_layers import check, layer_inputs, unknown, weights_of
from qbee.quantize.doctor_records import Examination, Kind, Measures, Update
from qbee.quantize.doctor_tensors import Reader, Tensor
from qbee.quantize.layers import QuantizedLayer, kernel_quantizer
from qbee.quantize.power_of_two import best_exponent
from qbee.quantize.quantizers import quantized_kernel

# Maps of so many inputs fit into memory, and show what a range does.
EXAMINED_INPUTS = 32
# Float32 values have 24 bits: nothing is better than this.
EXACT_DB = 150.0
# Channels this far below the largest are switched off, as by a batch norm with a gain of 0.
OFF = 2.0**-16


def examine(
    model, inputs: np.ndarray, *, history: Sequence[Sequence[np.ndarray]] | None = None
) -> Examination:
    """Measure all quantized tensors of a model and say what is wrong with them.

    Parameters
    ----------
    model : keras.Model
        of QConv2D, QDepthwiseConv2D (both also with batch norm), QDense and QActivation layers,
        or made by ``convert.quantized_model``.
    inputs : np.ndarray [shape=(n, *input_shape)]
        as the model takes them; maps are measured on at most 32, evenly spread.
    history : sequence of ``model.get_weights()``, oldest first, optional
        snapshots taken in training, to find weights that move without an effect.

    Raises
    ------
    ParameterError
        if nothing in the model is quantized, the inputs do not suit it, or a map has no range.
    """
    check(model)
    x = spread(model, inputs)
    reader = Reader(model, layer_inputs(model, x))
    tensors = tuple(_measures(tensor) for tensor in reader.tensors())
    if not tensors:
        raise ParameterError(f"model {model.name!r} has no quantized layers")
    findings = doctor_rules.findings(tensors)
    snapshots = list(history or ())
    updates = tuple(update_ratios(model, a, b) for a, b in pairwise(snapshots))
    if updates:
        findings += doctor_rules.frozen(update_ratios(model, snapshots[0], snapshots[-1]))
    return Examination(
        model=model.name,
        inputs=len(x),
        tensors=tensors,
        findings=findings,
        updates=updates,
        skipped=unknown(model),
    )


def spread(model, inputs: np.ndarray) -> np.ndarray:
    """At most 32 of the inputs, evenly spread, float32.

    Raises
    ------
    ParameterError
        if they do not have the model's input shape, or are not finite.
    """
    expected, shape = model.input_shape[1:], np.shape(inputs)
    fits = len(shape) == len(expected) + 1 and all(
        wanted in (None, length) for wanted, length in zip(expected, shape[1:], strict=True)
    )
    if not fits or not shape[0]:
        wanted = ", ".join("any" if length is None else str(length) for length in expected)
        raise ParameterError(f"inputs.shape={shape} must be (n, {wanted}) with n >= 1")
    chosen = np.linspace(0, shape[0] - 1, min(shape[0], EXAMINED_INPUTS)).round().astype(int)
    x = np.asarray(inputs[chosen])
    if x.dtype.kind not in "fiub" or not np.all(np.isfinite(x)):
        raise ParameterError(f"inputs of type {x.dtype} must be finite numbers")
    return x.astype(np.float32)


def sqnr_db(before: np.ndarray, after: np.ndarray) -> float | None:
    """Energy of the signal by that of the rounding error, at most 150 dB; None without signal."""
    signal = np.sum(np.square(before, dtype=np.float64))
    error = np.sum(np.square(np.subtract(after, before, dtype=np.float64)))
    if signal == 0:
        return None
    return float(min(10 * np.log10(signal / error), EXACT_DB)) if error else EXACT_DB


def reference_db(tensor: Tensor) -> float | None:
    """SQNR of our power-of-two quantizer of the same bits on the same values.

    The bias of a device has the step of the accumulator, however many bits it has, and half a
    step of that is nothing to any map: no reference.
    """
    if not is_uniform(tensor.quantizer) or (tensor.kind == "bias" and tensor.is_on_device):
        return None
    bits = tensor.quantizer.bits
    if tensor.kind == "kernel" and tensor.op is not None:
        ours = kernel_remedy(tensor.quantizer, tensor.op)
        if tensor.is_on_device:
            ours = kernel_quantizer(tensor.op, bits)
        assert ours is not None
        ours = quantized_kernel(ours.bits, scale_axis=ours.scale_axis)
        return sqnr_db(tensor.before, quantized(ours, tensor.before)[0])
    is_unsigned = tensor.kind == "map" and np.min(tensor.before) >= 0
    highest = 2**bits - 1 if is_unsigned else 2 ** (bits - 1) - 1
    if tensor.kind == "map":
        highest = min(highest, 2**15 - 1)
    lowest = 0 if is_unsigned else -highest
    step = 2.0 ** best_exponent(tensor.before, lowest=lowest, highest=highest)
    return sqnr_db(
        tensor.before, np.clip(np.floor(tensor.before / step + 0.5), lowest, highest) * step
    )


def _measures(tensor: Tensor) -> Measures:
    before, after = tensor.before, tensor.after
    is_set = before != 0
    measured: dict[str, Any] = {
        "layer": tensor.layer,
        "tensor": tensor.kind,
        "quantizer": str(tensor.quantizer),
        "remedy": _remedy(tensor),
        "op": tensor.op,
        "bits": getattr(tensor.quantizer, "bits", None),
        "values": before.size,
        "zeroed": float(np.mean(after[is_set] == 0)) if is_set.any() else 0.0,
        "finest_step": finest_step(tensor.quantizer),
        "sqnr_db": sqnr_db(before, after),
        "reference_db": reference_db(tensor),
        "is_positive": bool(np.min(before) >= 0),
        "depends_on_call": tensor.kind == "map"
        and not tensor.is_on_device
        and depends_on_call(tensor.quantizer, before),
        "accumulator": tensor.accumulator,
        "has_int64": tensor.has_int64,
        "is_exact_in_keras": tensor.is_on_device,
        "constrained": tensor.constrained,
    }
    return Measures(**measured, **_of_channels(tensor), **_of_codes(tensor))


def _remedy(tensor: Tensor) -> str | None:
    if tensor.kind == "map":
        return map_remedy(tensor.quantizer, is_positive=bool(np.min(tensor.before) >= 0))
    if tensor.kind == "bias" or tensor.op is None:
        remedy: Any = bias_remedy(tensor.quantizer)
    elif tensor.is_on_device and tensor.quantizer.scale_axis is not None:
        wider = [bits for bits in (8, 16) if bits > tensor.quantizer.bits]
        remedy = quantized_kernel(wider[0], scale_axis=tensor.axis) if wider else None
    else:
        remedy = kernel_remedy(tensor.quantizer, tensor.op)
    return None if remedy is None else str(remedy)


def _of_channels(tensor: Tensor) -> dict[str, Any]:
    """Measures of the channels; those of a bias are its values."""
    before, after = (np.moveaxis(x, tensor.axis, -1) for x in (tensor.before, tensor.after))
    peaks, kept = (np.max(np.abs(x).reshape(-1, x.shape[-1]), 0) for x in (before, after))
    is_on = peaks > OFF * np.max(peaks)
    return {
        "channels": len(peaks),
        "dead_channels": int(np.sum(is_on & (kept == 0))),
        "silent_channels": int(np.sum(peaks == 0)),
        "spread": float(np.max(peaks) / np.min(peaks[is_on])) if is_on.any() else None,
    }


def _of_codes(tensor: Tensor) -> dict[str, Any]:
    """Measures of the grid, as far as it is uniform and known."""
    grid, before = tensor.grid, tensor.before
    if grid is None:
        return {}
    codes = grid.codes(tensor.after)
    spanned, step, std = np.ptp(codes) + 1, float(np.median(grid.steps)), np.std(before)
    found = {
        "codes_used": len(np.unique(codes)),
        "codes_spanned": int(spanned),
        "step": step,
        "step_to_std": float(step / std) if std else None,
        "has_one_step": grid.steps.size == 1,
    }
    excess = grid.excess(before)
    if excess is None or grid.highest is None or grid.lowest is None:
        bits = getattr(tensor.quantizer, "bits", None)
        return found | {"codes_available": None if bits is None else 2**bits}
    clipped = np.moveaxis(excess, tensor.axis, -1).reshape(-1, excess.shape[tensor.axis])
    peak = float(np.max(np.abs(before)))
    return found | {
        "codes_available": int(grid.highest - grid.lowest + 1),
        "clipped": float(np.mean(clipped)),
        "clipped_channels": float(np.mean(np.any(clipped, axis=0))),
        "wanted_step": peak / grid.highest or None,
    }


def update_ratios(
    model, before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> tuple[Update, ...]:
    """How training moved each kernel and bias, raw and in steps.

    The thesis' figure 4.3 shows raw updates beside a band of 1e-4 (``Update.is_in_band``). What
    counts for the network is the step: updates far below it change no code for a long time.

    Parameters
    ----------
    before, after : ``model.get_weights()`` before and after one or more training steps

    Raises
    ------
    ParameterError
        if they are not weights of this model.
    """
    shapes = [tuple(weight.shape) for weight in model.weights]
    for name, snapshot in (("before", before), ("after", after)):
        if [np.shape(values) for values in snapshot] != shapes:
            raise ParameterError(f"{name} must be the weights of model {model.name!r}")
    place = {id(weight): number for number, weight in enumerate(model.weights)}
    found = []
    for layer in model.layers:
        for kind, weight, quantizer in _trained(layer):
            if id(weight) in place:
                number = place[id(weight)]
                pair = np.asarray(before[number]), np.asarray(after[number])
                found.append(_update(layer.name, kind, quantizer, *pair))
    return tuple(found)


def _trained(layer) -> list[tuple[Kind, Any, Any]]:
    """Kind, variable and quantizer of what a layer trains."""
    if isinstance(layer, QuantizedLayer):
        return [("kernel", layer.kernel, layer.kernel_quantizer)]
    weights = weights_of(layer)
    return [] if weights is None else [part[:3] for part in weights.parts]


def _update(layer: str, kind: Kind, quantizer, before: np.ndarray, after: np.ndarray) -> Update:
    moved = np.abs(np.subtract(after, before, dtype=np.float64))
    mean = float(np.mean(moved))
    raw = {"mean_update": mean, "largest_update": float(np.max(moved))}
    (old, old_grid), (new, new_grid) = quantized(quantizer, before), quantized(quantizer, after)
    if old_grid is None or new_grid is None:
        return Update(layer=layer, tensor=kind, **raw)
    step = float(np.median(old_grid.steps))
    return Update(
        layer=layer,
        tensor=kind,
        **raw,
        step=step,
        ratio=mean / step,
        codes_changed=float(np.mean(old_grid.codes(old) != new_grid.codes(new))),
        steps_changed=float(np.mean(old_grid.steps != new_grid.steps)),
    )
