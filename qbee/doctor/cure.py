"""Replaces the quantizers that the doctor finds fault with, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from qbee.doctor.copies import Key, copied, device_copy, no_constraint, weight_keys
from qbee.doctor.examination import examine, spread
from qbee.doctor.grids import bias_remedy, is_relu, kernel_remedy
from qbee.doctor.layers import (
    before_activation,
    layer_inputs,
    map_quantizer,
    weights_of,
)
from qbee.doctor.records import Change, Examination, Kind, Measure, Measures
from qbee.keras import tf
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.layers import QuantizedOp

# What another quantizer cures.
CURABLE: tuple[Measure, ...] = (
    "bias_zero",
    "epsilon",
    "clipped",
    "one_step",
    "sqnr",
    "dead_channels",
    "unused_codes",
    "call_range",
)
# In our own models the sign of a map is that of the operation, and no range is taken anew.
CURABLE_IN_OURS: tuple[Measure, ...] = ("clipped", "one_step", "sqnr", "dead_channels")
# Maps may come alive, and show what is wrong with them, when layers before them are fixed.
ROUNDS = 4
Reasons = Mapping[Key, tuple[Measure, ...]]


def fix(model, inputs: np.ndarray) -> tuple[Any, tuple[Change, ...]]:
    """Copy of a model in which our quantizers replace those with findings.

    Weights are kept as they are, and so are quantizers without a finding. In models of QKeras'
    layers, kernels and biases get ``quantized_kernel`` and ``quantized_bias``; maps get a
    ``quantized_bits_featuremap`` with the static step that suits ``inputs``; constraints that
    would cut weights off are lifted. In our own models, kernels get a step per channel or the
    next width, and maps the range that suits ``inputs``.

    Parameters
    ----------
    model, inputs : as of ``doctor.examine``

    Returns
    -------
    keras.Model
        not compiled
    tuple of Change
        empty if there is nothing to fix.

    Raises
    ------
    ParameterError
        as of ``doctor.examine``.
    """
    x = spread(model, inputs)
    fixed = copied(model, {})
    changes: dict[Key, Change] = {}
    is_ours = any(isinstance(layer, QuantizedOp) for layer in model.layers)
    for _ in range(ROUNDS):
        found = examine(fixed, x)
        measured = {(t.layer, t.tensor): t for t in found.tensors}
        reasons = _reasons(found, measured, CURABLE_IN_OURS if is_ours else CURABLE)
        if not reasons:
            break
        if is_ours:
            fixed, texts = device_copy(fixed, x, set(reasons))
        else:
            fixed, texts = _qkeras_copy(fixed, x, reasons, measured)
        for key, why in reasons.items():
            before = measured[key].quantizer
            changes[key] = _change(key, changes.get(key), before, texts[key], why)
    return fixed, tuple(change for change in changes.values() if change.before != change.after)


def _change(key: Key, first: Change | None, before: str, after: str, why: tuple[Measure, ...]):
    """A change, which began with that of an earlier round if there is one."""
    if first is not None:
        before, why = first.before, first.reasons
    return Change(layer=key[0], tensor=key[1], before=before, after=after, reasons=why)


def _reasons(
    found: Examination, measured: Mapping[Key, Measures], curable: tuple[Measure, ...]
) -> Reasons:
    """What can be cured, by tensor."""
    grouped: dict[Key, list[Measure]] = defaultdict(list)
    for finding in found.findings:
        key = finding.layer, finding.tensor
        is_curable = finding.measure in curable and measured[key].remedy is not None
        if is_curable or finding.measure == "constraint":
            grouped[key].append(finding.measure)
    return {key: tuple(why) for key, why in grouped.items()}


def _qkeras_copy(model, x: np.ndarray, reasons: Reasons, measured: Mapping[Key, Measures]):
    """Copy with other quantizers, and what each changed tensor has now."""
    weights, texts = _changed_weights(model, reasons)
    names = [name for name, kind in reasons if kind == "map"]
    # The ranges are those of maps that no other quantizer has spoilt.
    through = {
        name: {"activation": "relu" if is_relu(map_quantizer(model.get_layer(name))) else "linear"}
        for name in names
    }
    unrounded = copied(model, _merged(weights, through))
    found = layer_inputs(unrounded, x, names)
    calibrated = {}
    for name in names:
        bits = measured[name, "map"].bits
        assert bits is not None
        text = _calibrated(unrounded.get_layer(name), found[name][0], min(bits, 16))
        calibrated[name] = {"activation": text}
        texts[name, "map"] = text
    return copied(model, _merged(weights, calibrated)), texts


def _merged(first: Mapping[str, dict], second: Mapping[str, dict]) -> dict[str, dict]:
    return {name: first.get(name, {}) | second.get(name, {}) for name in {**first, **second}}


def _calibrated(layer, x: np.ndarray, bits: int) -> str:
    """String of the static quantizer for the map that an unrounded layer writes."""
    y = layer(x) if weights_of(layer) is None else layer.activation(before_activation(layer, x))
    y = np.asarray(y)
    quantizer = quantized_bits_featuremap(bits, keep_negative=bool(np.min(y) < 0))
    return str(quantized_bits_featuremap.of(quantizer.calibrate(tf.constant(y))))


def _changed_weights(model, reasons: Reasons) -> tuple[dict[str, dict], dict[Key, str]]:
    """Arguments of layers that get other quantizers of weights, and what these are."""
    changed: dict[str, dict] = defaultdict(dict)
    texts: dict[Key, str] = {}
    for (name, kind), why in reasons.items():
        layer = model.get_layer(name)
        if kind == "map":
            continue
        quantizer_key, constraint_key = weight_keys(layer, kind)
        changed[name][constraint_key] = no_constraint()
        texts[name, kind] = "the same, without a constraint"
        if any(reason in CURABLE for reason in why):
            remedy = _remedy(layer, kind)
            changed[name][quantizer_key] = remedy
            texts[name, kind] = str(remedy)
    return dict(changed), texts


def _remedy(layer, kind: Kind):
    weights = weights_of(layer)
    assert weights is not None
    if kind == "bias":
        return bias_remedy(weights.bias_quantizer)
    return kernel_remedy(weights.kernel_quantizer, weights.op)
