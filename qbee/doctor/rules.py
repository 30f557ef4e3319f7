"""Rules that make findings of measures (no TensorFlow).

Their limits are measured ones. Our power-of-two quantizer of the same bits on the same values is
the reference: where a quantizer stays far below it, the bits are not the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qbee.doctor.records import Finding, Measure, Measures, Severity, Update

# 4-bit kernels have 18 dB and must be fine-tuned, 8-bit ones have 39 dB and need not be.
SEVERE_DB = 20.0
# Half a bit less than the reference may be a matter of taste, more than 10 dB is a defect:
# QKeras' auto_po2 misses 2, 12 and 60 dB at 4, 8 and 16 bits.
HALF_A_BIT_DB, DEFECT_DB = 3.0, 10.0
# QKeras clips 47-66 % of the channels, ours less than 10 % at 8 bits.
CLIPPED_CHANNELS = 0.3
# The smallest filter has lost 4 bits, so at 4 bits it is dead.
FILTER_SPREAD = 16.0
FLOAT32_EXACT, INT32_LIMIT = 2**24, 2**31


def shown(step: float | None) -> str:
    """Step as a power of two if it is one."""
    if step is None:
        return "unknown"
    mantissa, exponent = math.frexp(step)
    return f"2^{exponent - 1}" if mantissa == 0.5 else f"{step:.3g}"


def _found(t: Measures, measure: Measure, value: float, severity: Severity, text: str) -> Finding:
    return Finding(
        layer=t.layer,
        tensor=t.tensor,
        measure=measure,
        value=value,
        severity=severity,
        sentence=text,
    )


def _use(t: Measures) -> str:
    return "use another quantizer" if t.remedy is None else f"use {t.remedy}"


def _epsilon(t: Measures) -> str:
    assert t.finest_step is not None
    integer = round(math.log2(t.finest_step)) + 23
    divided = f" after dividing by 2^{integer}" if integer else ""
    return (
        f"QKeras adds 1e-7 to the scale{divided}, so no step is finer than {shown(t.finest_step)}"
    )


def _is_floored(t: Measures) -> bool:
    """Whether the epsilon decides the step: added five times, it also coarsens 4 times it."""
    return (
        t.finest_step is not None
        and t.wanted_step is not None
        and t.wanted_step < 4 * t.finest_step
    )


def _bias_zero(t: Measures) -> Finding | None:
    if t.tensor != "bias" or t.reference_db is None or t.zeroed < 1:
        return None
    why = _epsilon(t) if _is_floored(t) else f"the step of {shown(t.step)} is too coarse"
    which = "the only bias" if t.values == 1 else f"all {t.values} biases"
    text = f"{which} became 0: {why}; {_use(t)}"
    return _found(t, "bias_zero", t.zeroed, "severe", text)


def _floored(t: Measures) -> Finding | None:
    if not _is_floored(t) or t.missing_db <= DEFECT_DB or _bias_zero(t):
        return None
    wanted = f"while {shown(t.wanted_step)} would cover the peak"
    text = f"{_quality(t)}: {_epsilon(t)}, {wanted}; {_use(t)}"
    return _found(t, "epsilon", t.missing_db, "severe", text)


def _quality(t: Measures) -> str:
    return (
        f"{t.bits} bits have only {t.sqnr_db:.0f} dB of SQNR where {t.reference_db:.0f} dB "
        "are possible"
    )


def _clipped(t: Measures) -> Finding | None:
    share = t.clipped_channels or 0.0
    is_widespread = share > CLIPPED_CHANNELS and t.missing_db > HALF_A_BIT_DB
    # A bias has no neighbours that would make up for it.
    is_bad_bias = t.tensor == "bias" and share > 0 and t.missing_db > DEFECT_DB
    if not (is_widespread or is_bad_bias) or _floored(t) or _bias_zero(t):
        return None
    many = "of the biases saturate" if t.tensor == "bias" else "of the channels are clipped"
    why = (
        "QKeras rounds the exponent of the step to the nearest, which cuts peaks off"
        if t.finest_step is not None
        else "the range is too small"
    )
    text = f"{100 * share:.0f} % {many}: {why}; {_quality(t)}; {_use(t)}"
    return _found(t, "clipped", share, _severity(t), text)


def _severity(t: Measures) -> Severity:
    return "severe" if t.sqnr_db is not None and t.sqnr_db < SEVERE_DB else "warning"


def _one_step(t: Measures) -> Finding | None:
    if t.op != "depthwise" or t.tensor != "kernel" or not t.has_one_step:
        return None
    if t.spread is None or t.spread < FILTER_SPREAD:
        return None
    dead = f", and {t.dead_channels} of them are dead" if t.dead_channels else ""
    text = (
        f"one step for all {t.channels} filters though their peaks differ {t.spread:.0f} times"
        f"{dead}: they need one each; {_use(t)}"
    )
    return _found(t, "one_step", t.spread, "severe" if t.dead_channels else "warning", text)


def _sqnr(t: Measures) -> Finding | None:
    causes = (_bias_zero, _floored, _clipped, _one_step)
    if t.missing_db <= DEFECT_DB or any(cause(t) for cause in causes):
        return None
    clipped = f"{100 * (t.clipped or 0):.2g} % of the values are beyond the last code"
    text = f"{_quality(t)}: {clipped if t.clipped else f'the step is {shown(t.step)}'}; {_use(t)}"
    return _found(t, "sqnr", t.missing_db, _severity(t), text)


def _dead(t: Measures) -> Finding | None:
    if not t.dead_channels or t.tensor == "bias":
        return None
    text = f"{t.dead_channels} of {t.channels} channels became 0 though they are not; {_use(t)}"
    severity: Severity = "severe" if t.tensor == "kernel" else "warning"
    return _found(t, "dead_channels", t.dead_channels, severity, text)


def _silent(t: Measures) -> Finding | None:
    if not t.silent_channels or t.tensor != "map":
        return None
    if t.silent_channels == t.channels:
        text = "the whole map is 0 for all these inputs: look for the defect in a layer before it"
        return _found(t, "silent_channels", t.silent_channels, "severe", text)
    text = (
        f"{t.silent_channels} of {t.channels} channels stay 0 for all these inputs, even before "
        "rounding; prune them, or look for what starves them"
    )
    return _found(t, "silent_channels", t.silent_channels, "note", text)


def _unused(t: Measures) -> Finding | None:
    if t.tensor != "map" or not t.is_positive or not t.codes_spanned or not t.codes_available:
        return None
    is_silent = t.silent_channels == t.channels
    if 2 * t.codes_spanned > t.codes_available + 1 or _floored(t) or is_silent:
        return None
    text = (
        f"no value is negative, and {t.codes_spanned} of {t.codes_available} codes are in use; "
        f"{_use(t)}"
    )
    value = t.codes_spanned / t.codes_available
    return _found(t, "unused_codes", value, "warning", text)


def _call_range(t: Measures) -> Finding | None:
    if not t.depends_on_call:
        return None
    text = (
        "the range is taken anew from the data of every call, at inference too: no .tflite can "
        f"hold that, and an output depends on what it is computed with; {_use(t)}, calibrated"
    )
    return _found(t, "call_range", 1.0, "warning", text)


def _accumulator(t: Measures) -> Finding | None:
    if t.accumulator is None or t.accumulator < FLOAT32_EXACT:
        return None
    reach = f"sums of products can reach 2^{math.log2(t.accumulator):.1f}"
    if t.accumulator >= INT32_LIMIT and not t.has_int64:
        text = f"{reach}, more than int32 holds; use fewer bits, or fewer inputs per output"
        return _found(t, "overflow", t.accumulator, "severe", text)
    if t.accumulator >= INT32_LIMIT:
        text = (
            f"{reach}: more than int32 holds, so the device must add in 64 bits, as TFLite Micro "
            "does for 16-bit maps"
        )
        return _found(t, "overflow", t.accumulator, "note", text)
    if t.is_exact_in_keras:
        return None
    text = f"{reach}: above 2^24 Keras' float32 sums are not the integers of the device"
    return _found(t, "inexact", t.accumulator, "note", text)


def _constraint(t: Measures) -> Finding | None:
    if not t.constrained:
        return None
    text = (
        f"the first training step changes {100 * t.constrained:.1f} % of the values: QKeras "
        "constrains them to the range of a quantizer that scales them anyway; remove the constraint"
    )
    return _found(t, "constraint", t.constrained, "warning", text)


_RULES: tuple[Callable[[Measures], Finding | None], ...] = (
    _bias_zero,
    _floored,
    _clipped,
    _one_step,
    _sqnr,
    _dead,
    _silent,
    _unused,
    _call_range,
    _accumulator,
    _constraint,
)


def findings(tensors: Sequence[Measures]) -> tuple[Finding, ...]:
    """What the rules find, in the order of the tensors."""
    found = (rule(tensor) for tensor in tensors for rule in _RULES)
    return tuple(finding for finding in found if finding is not None)


def frozen(overall: Sequence[Update]) -> tuple[Finding, ...]:
    """Tensors that training moves out of the thesis' band while not one code changes."""
    found = []
    for update in overall:
        if update.codes_changed != 0 or update.is_in_band or update.step is None:
            continue
        text = (
            f"training moves these weights by {update.mean_update:.2g} on average and not one "
            f"code changes: the step of {shown(update.step)} swallows it; use a finer step"
        )
        found.append(
            Finding(
                layer=update.layer,
                tensor=update.tensor,
                measure="frozen",
                value=update.mean_update,
                severity="severe",
                sentence=text,
            )
        )
    return tuple(found)
