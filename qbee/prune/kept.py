"""The record of a pruning: which channels of an unpruned model stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator

from qbee.records import Record


def _ascending(channels: tuple[int, ...]) -> tuple[int, ...]:
    is_ascending = all(a < b for a, b in zip(channels, channels[1:], strict=False))
    if not channels or channels[0] < 0 or not is_ascending:
        raise ValueError("kept channels must be at least one, from 0, and ascending")
    return channels


class Kept(Record):
    """Kept channels by group, numbered as in the unpruned model; other groups stay whole.

    A group has the name of the first layer that makes its channels (``network.Network``).
    """

    channels: dict[str, Annotated[tuple[int, ...], AfterValidator(_ascending)]] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Number of kept channels by group."""
        return {group: len(kept) for group, kept in self.channels.items()}

    def then(self, later: Self) -> Kept:
        """Both prunings in one, where ``later`` numbers the channels as this one left them."""
        return Kept(channels=_composed(self.channels, later.channels))


def _composed(
    first: Mapping[str, tuple[int, ...]], then: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    both = {g: tuple(first[g][i] for i in then[g]) for g in first if g in then}
    return {**first, **then, **both}
