"""The po2 doctor: what each quantizer of a Keras model does to what it rounds, and what is wrong.

It knows models of QKeras' layers, with any of their quantizers, and our own quantized models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from qbee.doctor import rules
from qbee.doctor.grids import quantized
from qbee.doctor.layers import check, layer_inputs, readers, unknown, weights_of
from qbee.doctor.measures import measures
from qbee.doctor.records import Examination, Kind, Update
from qbee.doctor.tensors import Reader
from qbee.errors import ParameterError
from qbee.quantize.layers import QuantizedLayer

# Maps of so many inputs fit into memory, and show what a range does.
EXAMINED_INPUTS = 32


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
    reader = Reader(model, layer_inputs(model, x, readers(model)))
    tensors = tuple(measures(tensor) for tensor in reader.tensors())
    if not tensors:
        raise ParameterError(f"model {model.name!r} has no quantized layers")
    findings = rules.findings(tensors)
    snapshots = list(history or ())
    updates = tuple(update_ratios(model, a, b) for a, b in pairwise(snapshots))
    if updates:
        findings += rules.frozen(update_ratios(model, snapshots[0], snapshots[-1]))
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
        codes_changed=float(np.mean(old_grid.rounded(old) != new_grid.rounded(new))),
        steps_changed=float(np.mean(old_grid.steps != new_grid.steps)),
    )
