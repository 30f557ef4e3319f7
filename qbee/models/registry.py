"""Float models by name: ``register`` with one decorator, ``build`` with one call."""

from __future__ import annotations

from collections.abc import Callable

from qbee.errors import ParameterError

_BUILDERS: dict[str, Callable] = {}


def register(name: str) -> Callable:
    """Decorator that makes ``f(n_mels, n_frames, width) -> keras.Model`` known as ``name``."""

    def remember(builder: Callable) -> Callable:
        _BUILDERS[name] = builder
        return builder

    return remember


def names() -> list[str]:
    """Names of all models, sorted."""
    return sorted(_BUILDERS)


def check(name: str) -> str:
    """``name`` itself, if a model has it.

    Raises
    ------
    ParameterError
        listing the known names.
    """
    if name not in _BUILDERS:
        raise ParameterError(f"model={name!r} must be one of {', '.join(names())}")
    return name


def build(name: str, *, n_mels: int = 128, n_frames: int = 128, width: int = 100):
    """Untrained float Keras model: mel images [n, n_mels, n_frames, 1] to class logits [n, 2].

    ``width`` is the percentage of every layer's channels.

    Raises
    ------
    ParameterError
        if no model has this name; the message lists the known ones.
    """
    return _BUILDERS[check(name)](n_mels=n_mels, n_frames=n_frames, width=width)
