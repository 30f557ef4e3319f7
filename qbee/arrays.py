"""Named numpy arrays and JSON in one .npz file: whole or not at all, without pickle."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from qbee.errors import ModelFileError
from qbee.files import replacing

_JSON = "json"
# What numpy, zipfile and json raise on flipped or missing bytes (RuntimeError: "encrypted").
_DAMAGE = (KeyError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile)


def save(path: Path, arrays: dict[str, np.ndarray], values: dict[str, Any] | None = None) -> None:
    """Write ``arrays`` and the JSON object ``values``."""
    text = np.frombuffer(json.dumps(values or {}).encode(), np.uint8)
    with replacing(path) as partial:
        np.savez(partial, allow_pickle=False, **{_JSON: text, **arrays})


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON object of a file written by ``save``.

    Raises
    ------
    ModelFileError
        if the file is missing, damaged or of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        values = json.loads(arrays.pop(_JSON).tobytes())
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise ModelFileError(f"{path}: damaged, or not a file of weights") from error
    return arrays, values
