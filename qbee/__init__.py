"""From field recordings to a bee-buzz detector on a microcontroller.

The verbs: ``synth``, ``mix``, ``build``, ``train``, ``search``, ``export``, ``verify``, ``run``,
``demo``, ``evaluate``, ``detect``, ``review`` and ``adapt``. Each is imported when first used, so
that ``import qbee`` is quick and does not load TensorFlow.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_VERBS = {
    "synth": ("qbee.audio.synth", "soundscapes"),
    "mix": ("qbee.audio.mixing", "mix"),
    "build": ("qbee.models.registry", "build"),
    "evaluate": ("qbee.detector", "evaluate"),
    "detect": ("qbee.field.detecting", "detect"),
    "review": ("qbee.field.reviewing", "review"),
    "adapt": ("qbee.field.adapting", "adapt"),
    "demo": ("qbee.job.verbs", "demo"),
    "run": ("qbee.job.verbs", "run"),
    "train": ("qbee.job.verbs", "train"),
    "search": ("qbee.job.verbs", "search"),
    "export": ("qbee.job.deployment", "export"),
    "verify": ("qbee.job.verbs", "verify"),
}
__all__ = sorted(_VERBS)


class _Package(ModuleType):
    """The package, whose verbs ``train``, ``search``, ``export`` and ``verify`` stay functions.

    Importing a submodule sets it as an attribute of its package, and those verbs have the names
    of stages. ``from qbee.train import fit`` finds the stage all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _VERBS:
            raise AttributeError(f"module 'qbee' has no attribute {name!r}")
        module, function = _VERBS[name]
        return getattr(import_module(module), function)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *__all__]


sys.modules[__name__].__class__ = _Package
