"""Whole-or-nothing file writing: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qbee.errors import ModelFileError, ParameterError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Temporary path that becomes ``path`` when the block ends without an error.

    The temporary name keeps the suffix of ``path``, which some writers look at.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_replaceable(folder: Path, *, mark: Path, kind: str) -> None:
    """Refuse a folder that holds something else than what is to be replaced.

    Parameters
    ----------
    mark : file that every folder of this kind has
    kind : in a word, for the message

    Raises
    ------
    ParameterError
        if it exists, is not empty and has no such file.
    """
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not (folder / mark).exists() and not is_empty:
        raise ParameterError(f"{folder}: exists and is no {kind} folder, so it is not replaced")


@contextmanager
def replacing_folder(folder: Path, *, mark: Path, kind: str) -> Iterator[Path]:
    """New folder that takes the place of ``folder`` when the block ends without an error.

    Parameters and errors are those of ``check_replaceable``; ParameterError also if it cannot be
    written.
    """
    check_replaceable(folder, mark=mark, kind=kind)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            fresh, old = Path(scratch) / "new", Path(scratch) / "old"
            fresh.mkdir()
            yield fresh
            if folder.exists():
                folder.rename(old)
            try:
                fresh.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise ParameterError(f"{folder}: cannot write this folder: {error.strerror}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` whole or not at all."""
    write_bytes(path, text.encode())


def read_bytes(path: Path) -> bytes:
    """Content of a file.

    Raises
    ------
    ModelFileError
        if the file is missing or unreadable.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error


def read_text(path: Path) -> str:
    """UTF-8 text of a file.

    Raises
    ------
    ModelFileError
        if the file is missing, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ModelFileError(f"{path}: {reason}") from error


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises
    ------
    ModelFileError
        if the file is missing or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ModelFileError(f"{path}: damaged JSON: {error}") from error


def check_output(path: Path, suffix: str) -> None:
    """Refuse a file that could not be written in the end.

    Raises
    ------
    ParameterError
        if its folder does not exist or is read-only, or the name does not end in ``suffix``.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ParameterError(f"{path}: the name must end in {suffix}")
    if not path.parent.is_dir():
        raise ParameterError(f"{path}: the folder does not exist")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ParameterError(f"{path}: cannot be written")


def make_folder(path: Path) -> Path:
    """Create a folder that can be written to and return it.

    Raises
    ------
    ParameterError
        if it cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        name = path / f".writable.{os.getpid()}"
        with replacing(name) as probe:
            probe.touch()
        name.unlink()
    except OSError as error:
        raise ParameterError(f"{path}: cannot write to this folder: {error.strerror}") from error
    return path
