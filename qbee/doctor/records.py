"""What the doctor writes down: measures of tensors, updates in training, findings, changes."""

from __future__ import annotations

from typing import Literal

from qbee.errors import ParameterError
from qbee.quantize.graph import Op
from qbee.records import Record

Kind = Literal["kernel", "bias", "map"]
Severity = Literal["severe", "warning", "note"]
Measure = Literal[
    "bias_zero",
    "epsilon",
    "clipped",
    "one_step",
    "sqnr",
    "dead_channels",
    "silent_channels",
    "unused_codes",
    "call_range",
    "overflow",
    "inexact",
    "constraint",
    "frozen",
]
# Figure 4.3 of the thesis: updates inside this band count as vanishing.
UPDATE_BAND = 1e-4


class Measures(Record):
    """One quantized tensor: how it is rounded and what it lost. Shares are between 0 and 1.

    Attributes
    ----------
    quantizer, remedy : str
        the quantizer, and the one of ours that would replace it (None: none would).
    op : of the layer; None for maps
    values : int
        numbers measured
    codes_used, codes_spanned, codes_available : int or None
        distinct codes, lowest to highest code with 0, and all codes; None if there is no
        uniform grid.
    clipped, clipped_channels : float or None
        share of the values beyond the last code, and of the channels that have such values.
    zeroed : float
        share of the values other than 0 that became 0.
    step, wanted_step, finest_step : float or None
        median step; the finest that covers the peak; the finest QKeras' epsilon allows.
    step_to_std : float or None
        median step by the standard deviation of the values.
    sqnr_db, reference_db : float or None
        signal to rounding error, and that of our power-of-two quantizer of the same bits; at
        most that of float32. None if all values are 0, or nothing is comparable.
    dead_channels, silent_channels : int
        channels that became 0 though they were not, and those that were 0 before.
    spread : float or None
        largest by smallest peak of the channels.
    accumulator : int or None
        bound of the sums of products of codes, with the bias.
    has_int64, is_exact_in_keras : bool
        whether the device adds in 64 bits, and whether Keras adds without rounding.
    constrained : float
        share of the values that a constraint changes in the first training step.
    """

    layer: str
    tensor: Kind
    quantizer: str
    remedy: str | None = None
    op: Op | None = None
    bits: int | None = None
    values: int = 1
    channels: int = 1
    codes_used: int | None = None
    codes_spanned: int | None = None
    codes_available: int | None = None
    clipped: float | None = None
    clipped_channels: float | None = None
    zeroed: float = 0.0
    step: float | None = None
    wanted_step: float | None = None
    finest_step: float | None = None
    step_to_std: float | None = None
    sqnr_db: float | None = None
    reference_db: float | None = None
    dead_channels: int = 0
    silent_channels: int = 0
    spread: float | None = None
    has_one_step: bool = False
    is_positive: bool = False
    depends_on_call: bool = False
    accumulator: int | None = None
    has_int64: bool = False
    is_exact_in_keras: bool = True
    constrained: float = 0.0

    @property
    def missing_db(self) -> float:
        """How far the SQNR is below the reference; 0 where there is none."""
        if self.sqnr_db is None or self.reference_db is None:
            return 0.0
        return self.reference_db - self.sqnr_db


class Update(Record):
    """How training moved one tensor between two snapshots of the weights.

    Attributes
    ----------
    mean_update, largest_update : float
        of the absolute raw updates
    step, ratio : float or None
        median step before, and the mean update by that step.
    codes_changed, steps_changed : float or None
        share of the weights whose code changed, and of the steps that did.
    """

    layer: str
    tensor: Kind
    mean_update: float
    largest_update: float
    step: float | None = None
    ratio: float | None = None
    codes_changed: float | None = None
    steps_changed: float | None = None

    @property
    def is_in_band(self) -> bool:
        """Whether the mean raw update lies in the band of the thesis' figure 4.3."""
        return self.mean_update < UPDATE_BAND


class Finding(Record):
    """Something that is wrong with a tensor, in plain language, with the way out."""

    layer: str
    tensor: Kind
    measure: Measure
    value: float
    severity: Severity
    sentence: str


class Examination(Record):
    """All measures of a model, what the rules find in them, and what could not be examined.

    Attributes
    ----------
    inputs : int
        how many inputs the maps were measured on.
    updates : tuple of tuple of Update
        one entry for each pair of neighbours in the history.
    skipped : tuple of str
        quantized layers of kinds the doctor does not know.
    """

    model: str
    inputs: int
    tensors: tuple[Measures, ...]
    findings: tuple[Finding, ...]
    updates: tuple[tuple[Update, ...], ...] = ()
    skipped: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Number of findings of this severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def of(self, layer: str, tensor: Kind) -> Measures:
        """Measures of one tensor.

        Raises
        ------
        ParameterError
            if there is no such tensor.
        """
        for found in self.tensors:
            if (found.layer, found.tensor) == (layer, tensor):
                return found
        raise ParameterError(f"layer={layer!r} of model {self.model!r} has no quantized {tensor}")


class Change(Record):
    """What ``fix`` replaced: one quantizer, width or constraint by another, and why."""

    layer: str
    tensor: Kind
    before: str
    after: str
    reasons: tuple[Measure, ...]
