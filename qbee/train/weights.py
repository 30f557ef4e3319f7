"""Weights of a Keras model as named arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qbee import arrays
from qbee.errors import ModelFileError


def _key(number: int) -> str:
    return f"weight_{number:03d}"


def to_arrays(weights: list[np.ndarray]) -> dict[str, np.ndarray]:
    """List of arrays under numbered names."""
    return {_key(i): w for i, w in enumerate(weights)}


def from_arrays(stored: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The list that ``to_arrays`` was given."""
    return [stored[_key(i)] for i in range(len(stored))]


def save(model, path: Path) -> None:
    """Write the weights of ``model``, in Keras' order."""
    arrays.save(path, to_arrays(model.get_weights()), {"model": model.name})


def load(model, path: Path) -> None:
    """Set the weights of ``model`` from a file.

    Raises
    ------
    ModelFileError
        if the file is damaged or belongs to a model of other shapes.
    """
    stored, _ = arrays.load(path)
    expected = {name: w.shape for name, w in to_arrays(model.get_weights()).items()}
    if {name: w.shape for name, w in stored.items()} != expected:
        raise ModelFileError(f"{path}: holds the weights of another model than {model.name}")
    model.set_weights(from_arrays(stored))
