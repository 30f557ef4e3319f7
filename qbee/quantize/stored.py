"""Keras models and input arrays in files of anybody, read without running their code."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from qbee.errors import DataError, ModelFileError
from qbee.files import replacing
from qbee.keras import keras, qkeras, tf
from qbee.quantize import custom_objects

# They run code, or read files, that the model names.
REFUSED = {"Lambda", "TFSMLayer", "TextVectorization", "StringLookup", "IntegerLookup"}
PLAIN = {"__tuple__", "__tensor__", "__numpy__", "Functional", "Sequential", "Model"}
MODULES = re.compile(
    r"keras(\.(layers|initializers|regularizers|constraints))?"
    r"|tf_keras\.src\.engine\.(functional|sequential|training)"
    r"|qkeras\.\w+|qbee\.quantize\.\w+"
)
CALL = re.compile(r"(\w+)\(")
# What h5py, zipfile, JSON and Keras raise on damaged or unknown content.
_DAMAGE = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    tf.errors.OpError,
)


@contextmanager
def without_hints() -> Iterator[None]:
    """Silence of Keras about QKeras, which serializes quantizers as if they were constraints."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*keras.constraints.serialize.*")
        yield


def _classes(module) -> dict[str, type]:
    return {name: value for name, value in vars(module).items() if isinstance(value, type)}


def _known_objects() -> dict[str, Any]:
    """QKeras' and our classes, by name."""
    theirs = {
        name: value
        for name, value in _classes(qkeras).items()
        if value.__module__.startswith("qkeras.")
    }
    return theirs | custom_objects()


def _known_names() -> set[str]:
    modules = (keras.layers, keras.initializers, keras.regularizers, keras.constraints)
    names = {name for module in modules for name in _classes(module)}
    return (names | PLAIN | set(_known_objects())) - REFUSED


def _check_object(value: dict[str, Any], known: set[str], path: Path) -> None:
    name, module = value["class_name"], value.get("module")
    registered = value.get("registered_name")
    is_known = name in known and (module is None or MODULES.fullmatch(str(module)) is not None)
    if not is_known or (registered is not None and str(registered).split(">")[-1] != name):
        where = "" if module is None else f" of {module}"
        raise ModelFileError(
            f"{path}: {name!r}{where} is not loaded: only layers and quantizers of Keras, QKeras "
            "and qbee are, and no Lambda layers"
        )


def _check_config(value: Any, known: set[str], path: Path) -> None:
    """Refuse a configuration that names anything but known classes."""
    if isinstance(value, dict):
        if "class_name" in value:
            _check_object(value, known, path)
        for part in value.values():
            _check_config(part, known, path)
    elif isinstance(value, list):
        for part in value:
            _check_config(part, known, path)
    elif isinstance(value, str):
        call = CALL.match(value)
        if call is not None and call[1] not in known:
            raise ModelFileError(f"{path}: {value!r} is no quantizer of QKeras or qbee")


def _stored_config(path: Path) -> dict[str, Any]:
    """Configuration in a .keras or HDF5 file, without what it was compiled with."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as stored:
            config = json.loads(stored.read("config.json"))
        return {key: part for key, part in config.items() if key != "compile_config"}
    with h5py.File(path, "r") as stored:
        return json.loads(stored.attrs["model_config"])


def load_model(path: Path):
    """Keras model of a .keras or .h5 file, not compiled.

    Raises
    ------
    ModelFileError
        if it is missing, damaged, no model, or needs any code but that of Keras, QKeras and qbee.
    """
    path = Path(path)
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise ModelFileError(f"{path}: must be a .keras or .h5 file of a Keras model")
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file")
    try:
        config = _stored_config(path)
        _check_config(config, _known_names(), path)
        with without_hints():
            return keras.models.load_model(
                path, custom_objects=_known_objects(), compile=False, safe_mode=True
            )
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path}: damaged, or not a Keras model: {reason}") from error


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


def save_model(model, path: Path) -> None:
    """Write a .keras file, whole or not at all."""
    with replacing(path) as partial, without_hints():
        model.save(partial)
