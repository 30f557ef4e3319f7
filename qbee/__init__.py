"""From field recordings to a bee-buzz detector on a microcontroller.

The verbs: ``synth``, ``mix``, ``build``, ``train``, ``search``, ``export``, ``verify``, ``run``,
``demo`` and ``evaluate``. Each is imported when first used, so that ``import qbee`` is quick and
does not load TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_VERBS = {
    "synth": ("qbee.audio.synth", "soundscapes"),
    "mix": ("qbee.audio.synth", "mix"),
    "build": ("qbee.models.registry", "build"),
    "evaluate": ("qbee.detector", "evaluate"),
    "demo": ("qbee.job.verbs", "demo"),
    "run": ("qbee.job.verbs", "run"),
    "train": ("qbee.job.verbs", "train"),
    "search": ("qbee.job.verbs", "search"),
    "export": ("qbee.job.verbs", "export"),
    "verify": ("qbee.job.verbs", "verify"),
}
__all__ = sorted(_VERBS)


def __getattr__(name: str) -> Any:
    """Import a verb when it is first asked for."""
    if name not in _VERBS:
        raise AttributeError(f"module 'qbee' has no attribute {name!r}")
    module, function = _VERBS[name]
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
