"""Keras models and input arrays from files of anybody: checked before they are loaded."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from qbee.errors import DataError, ModelFileError
from qbee.keras import keras, qkeras
from qbee.quantize import custom_objects

# Where a model's classes may come from; anything else could be any code.
TRUSTED_PACKAGES = ("keras", "tf_keras", "qkeras", "qbee", "builtins")
REFUSED_CLASSES = ("Lambda", "TFOpLambda")


def _configuration(path: Path) -> Any:
    """The model's own description, as parsed JSON."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: there is no such file") from error
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path}: not a Keras model (.keras or .h5)") from error
    if text is None:
        raise ModelFileError(f"{path}: holds weights only; a whole model is needed (model.save)")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"{path}: the model's description is damaged") from error


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every described object in a description."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for part in value.values():
            yield from _objects(part)
    elif isinstance(value, list):
        for part in value:
            yield from _objects(part)


def _check_trust(path: Path, description: Any) -> None:
    for item in _objects(description):
        name = item["class_name"]
        package = str(item.get("module") or "keras").partition(".")[0]
        if name in REFUSED_CLASSES:
            raise ModelFileError(f"{path}: has a {name} layer, which may hold any code")
        if package not in TRUSTED_PACKAGES:
            raise ModelFileError(f"{path}: {name} comes from {package!r}, which is not trusted")


def load_model(path: Path) -> keras.Model:
    """A Keras-2 or QKeras model of a .keras or .h5 file, without its optimizer.

    Raises
    ------
    ModelFileError
        if it is no such file, damaged, of classes that are not known, or could run code.
    """
    path = Path(path)
    _check_trust(path, _configuration(path))
    known: dict[str, Any] = {}
    qkeras.utils._add_supported_quantized_objects(known)
    try:
        return keras.models.load_model(
            path, custom_objects={**known, **custom_objects()}, compile=False, safe_mode=True
        )
    except (ValueError, TypeError, KeyError, AttributeError, OSError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ModelFileError(f"{path}: Keras cannot load it: {reason}") from error


def load_inputs(path: Path, model: keras.Model) -> np.ndarray:
    """Inputs of a model, float32 [n, *input_shape], of a .npy file.

    Raises
    ------
    DataError
        if it is no array of finite numbers of that shape.
    """
    path = Path(path)
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a .npy array of numbers") from error
    shape = tuple(model.input_shape[1:])
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        raise DataError(f"{path}: not a .npy array of numbers")
    if found.shape[1:] != shape or len(found) == 0:
        wanted = ", ".join(str(n) for n in ("n", *shape))
        raise DataError(f"{path}: its shape is {found.shape}, the model takes ({wanted})")
    found = found.astype(np.float32)
    if not np.all(np.isfinite(found)):
        raise DataError(f"{path}: has values that are not finite")
    return found
