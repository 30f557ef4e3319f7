"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["one_cycle", "constant"]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle(step: int, *, total_steps: int, max_rate: float, warm_share: float = 0.3) -> float:
    """Learning rate of the 1-cycle policy: cosine from max/25 up to max, then down to max/250 000.

    The shape and constants are those of ``torch.optim.lr_scheduler.OneCycleLR``, which the
    bee paper's training used; Adam's momentum is left alone.
    """
    warm_steps = max(1.0, warm_share * total_steps - 1)
    if step <= warm_steps:
        return _cosine(max_rate / 25, max_rate, step / warm_steps)
    share = (step - warm_steps) / max(1.0, total_steps - 1 - warm_steps)
    return _cosine(max_rate, max_rate / 250_000, min(1.0, share))


def rate(schedule: Schedule, step: int, *, total_steps: int, max_rate: float) -> float:
    """Learning rate of a step, counted from 0, by the name of its schedule."""
    if schedule == "constant":
        return max_rate
    return one_cycle(step, total_steps=total_steps, max_rate=max_rate)
