"""What a network may cost at most: given by hand or by a board (no TensorFlow)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import field_validator

from qbee.errors import ParameterError
from qbee.export import boards
from qbee.records import Record
from qbee.search import cost

_UNITS = {"": 1, "k": 1000, "M": 1000**2, "Ki": 1024, "Mi": 1024**2}
_LIMIT = re.compile(r"\s*(\w+)\s*<=\s*(\d+(?:\.\d+)?)\s*(\w*)\s*")


def as_text(value: float) -> str:
    """A cost with its thousands apart, as in 41 200; fractions have three digits."""
    return f"{value:,.0f}".replace(",", " ") if value == round(value) else f"{value:.3f}"


class Limits(Record):
    """Highest value of some costs, by their names in ``search.cost``."""

    at_most: dict[str, float] = {}

    @field_validator("at_most")
    @classmethod
    def _are_known_and_positive(cls, at_most):
        for name, limit in at_most.items():
            cost.get(name)
            if limit <= 0:
                raise ValueError(f"{name}<={limit} must be positive")
        return at_most

    def merged(self, other: Limits) -> Limits:
        """Both limits at once: of each cost the tighter one."""
        both = {**self.at_most, **other.at_most}
        return Limits(
            at_most={
                name: min(limit, self.at_most.get(name, limit)) for name, limit in both.items()
            }
        )

    def broken(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Costs that exceed their limit.

        Raises
        ------
        ParameterError
            if a limited cost is not among ``costs``.
        """
        missing = [name for name in self.at_most if name not in costs]
        if missing:
            raise ParameterError(f"costs must have {', '.join(missing)}, of which there is a limit")
        return {n: costs[n] for n, limit in self.at_most.items() if costs[n] > limit}

    def are_met(self, costs: Mapping[str, float]) -> bool:
        """Whether no cost exceeds its limit."""
        return not self.broken(costs)

    def __str__(self) -> str:
        return ", ".join(f"{name}<={as_text(limit)}" for name, limit in self.at_most.items())


def of_board(name: str) -> Limits:
    """What a board has left for a detector: arena in RAM and file in flash.

    Raises
    ------
    ParameterError
        listing the known boards.
    """
    board = boards.get(name)
    return Limits(
        at_most={"arena_bytes": board.max_arena_bytes, "tflite_bytes": board.max_tflite_bytes}
    )


def parse(text: str) -> Limits:
    """Limit as written by hand: ``tflite_bytes<=48k``.

    Numbers may end in k or M (1000 and its square) or in Ki or Mi (1024 and its square).

    Raises
    ------
    ParameterError
        if the text is not of this form, the cost unknown or the number not positive.
    """
    match = _LIMIT.fullmatch(text)
    if match is None or match[3] not in _UNITS:
        raise ParameterError(
            f"limit={text!r} must look like tflite_bytes<=48k, with a number that may end in "
            f"{', '.join(unit for unit in _UNITS if unit)}"
        )
    cost.get(match[1])
    value = float(match[2]) * _UNITS[match[3]]
    if value <= 0:
        raise ParameterError(f"limit={text!r} must be positive")
    return Limits(at_most={match[1]: value})
