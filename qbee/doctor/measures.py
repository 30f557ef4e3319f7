"""What the doctor measures on a tensor and its quantized values."""

from __future__ import annotations

from typing import Any

import numpy as np

from qbee.doctor.grids import (
    bias_remedy,
    depends_on_call,
    finest_step,
    is_uniform,
    kernel_remedy,
    map_remedy,
    quantized,
)
from qbee.doctor.records import Measures
from qbee.doctor.tensors import Tensor
from qbee.quantize.graph import Op
from qbee.quantize.layers import kernel_quantizer
from qbee.quantize.power_of_two import best_exponent
from qbee.quantize.quantizers import quantized_kernel

# Float32 values have 24 bits: nothing is better than this.
EXACT_DB = 150.0
# Channels this far below the largest are switched off, as by a batch norm with a gain of 0.
OFF = 2.0**-16


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


def measures(tensor: Tensor) -> Measures:
    """All measures of a tensor."""
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
    elif tensor.is_on_device:
        remedy = _device_remedy(tensor.quantizer, tensor.op)
    else:
        remedy = kernel_remedy(tensor.quantizer, tensor.op)
    return None if remedy is None else str(remedy)


def _device_remedy(quantizer: quantized_kernel, op: Op) -> quantized_kernel | None:
    """One step per channel where the device has that, else the next width."""
    default = kernel_quantizer(op, quantizer.bits, quantizer.alpha)
    if default.scale_axis != quantizer.scale_axis:
        return default
    wider = 8 if quantizer.bits < 8 else 16
    return kernel_quantizer(op, wider, quantizer.alpha) if quantizer.bits < 16 else None


def _of_channels(tensor: Tensor) -> dict[str, Any]:
    """Measures of the channels; those of a bias are its values."""
    before, after = (np.moveaxis(x, tensor.axis, -1) for x in (tensor.before, tensor.after))
    peaks, kept = (np.max(np.abs(x).reshape(-1, x.shape[-1]), 0) for x in (before, after))
    is_on = peaks > _faintest(tensor) * np.max(peaks)
    return {
        "channels": len(peaks),
        "dead_channels": int(np.sum(is_on & (kept == 0))),
        "silent_channels": int(np.sum(peaks == 0)),
        "spread": float(np.max(peaks) / np.min(peaks[is_on])) if is_on.any() else None,
    }


def _faintest(tensor: Tensor) -> float:
    """Smallest peak of a channel that is missed if it becomes 0, as a share of the largest peak.

    The one step of a map can be four times the finest that covers it.
    """
    bits = getattr(tensor.quantizer, "bits", None)
    return max(OFF, 2.0 ** (2 - bits)) if tensor.kind == "map" and bits else OFF


def _of_codes(tensor: Tensor) -> dict[str, Any]:
    """Measures of the grid, as far as it is uniform and known."""
    grid, before = tensor.grid, tensor.before
    if grid is None:
        return {}
    codes = grid.codes(tensor.after)
    spanned = max(np.max(codes), 0) - min(np.min(codes), 0) + 1
    step, std = float(np.median(grid.steps)), np.std(before)
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
