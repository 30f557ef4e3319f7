"""From integers to the file for a target: laid out in memory, written, checked for fidelity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from qbee.export import fidelity, order, planner, targets, tflite
from qbee.export.fidelity import Fidelity
from qbee.export.planner import Layout
from qbee.export.tflite import Exported
from qbee.quantize.fixed_net import FixedNet
from qbee.records import Record

# Multiplications allowed for strips if nothing is said, as in the help of the command line.
MAX_RECOMPUTE = 1.3


class ExportSettings(Record):
    """How a network is exported.

    Layers are cut into strips if one of the two limits is given: with the least computation that
    keeps the arena within ``max_arena_bytes``, or, without it, for the smallest arena. A detector
    needs its metadata (front end, labels, threshold), firmware does not.
    """

    target: str = targets.TFLM.name
    max_arena_bytes: int | None = Field(default=None, ge=1)
    max_recompute: float | None = Field(default=None, ge=1)
    is_strict: bool = False
    has_metadata: bool = True

    @property
    def has_limit(self) -> bool:
        """Whether the memory is to be planned."""
        return self.max_arena_bytes is not None or self.max_recompute is not None


@dataclass(frozen=True)
class Delivery:
    """A finished file.

    Attributes
    ----------
    net : FixedNet
        as verified with Keras
    laid_out : FixedNet
        the same function, as the file computes it
    recompute : float
        multiplications of ``laid_out``, as a multiple of those of ``net``
    """

    net: FixedNet
    laid_out: FixedNet
    layout: Layout
    recompute: float
    exported: Exported
    fidelity: Fidelity

    def summary(self) -> dict[str, Any]:
        """What the delivery is, as JSON."""
        return {
            "predicted_arena_bytes": self.exported.arena.total_bytes,
            "recompute": round(self.recompute, 4),
            "groups": self.layout.groups,
            "segments": [{"end": s.end, "strips": s.strips} for s in self.layout.segments],
            "has_dense_pointwise": self.layout.has_dense,
            **self.fidelity.model_dump(),
        }


def deliver(
    net: FixedNet, settings: ExportSettings, *, metadata: dict[str, bytes] | None = None
) -> Delivery:
    """The file of a network, as asked for.

    Raises
    ------
    ExportError
        if the target cannot run a layer, no arena found is small enough, or something would be
        stored in more bits than asked for and ``settings.is_strict``.
    """
    target = targets.get(settings.target)
    net, layout, recompute = order.with_lowest_peak(net), Layout(), 1.0
    if settings.has_limit:
        planned = planner.plan(
            net,
            max_arena_bytes=settings.max_arena_bytes,
            max_recompute=settings.max_recompute or MAX_RECOMPUTE,
            target=target,
        )
        layout, recompute = planned.layout, planned.recompute
    laid_out = layout.of(net)
    exported = tflite.write(
        laid_out,
        target=target,
        plan_memory=settings.has_limit,
        metadata=metadata if settings.has_metadata else None,
    )
    found = fidelity.table(net, exported)
    if settings.is_strict:
        found.check_strictly()
    return Delivery(net, laid_out, layout, recompute, exported, found)
