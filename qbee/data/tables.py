"""Rows of text tables, and their cells as checked segments."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from qbee.errors import LabelError
from qbee.records import Label, Segment


@dataclass(frozen=True)
class Row:
    """One row of a table: its line in the file and its stripped cells."""

    table: Path
    number: int
    cells: dict[str, str]

    def error(self, what: str) -> LabelError:
        """Error that names the table and the row."""
        return LabelError(f"{self.table}: row {self.number}: {what}")

    def seconds(self, name: str) -> float:
        """Finite number in a cell, or a LabelError."""
        try:
            seconds = float(self.cells[name])
        except ValueError as error:
            raise self.error(f"{name}={self.cells[name]!r} must be a number of seconds") from error
        if not math.isfinite(seconds):
            raise self.error(f"{name}={self.cells[name]!r} must be finite")
        return seconds

    def segment(self, recording, location, recorded_at=None, *, start_s, end_s, label) -> Segment:
        """Segment with the times, label and location checked, or a LabelError."""
        if start_s < 0:
            raise self.error(f"the start {start_s} s must not be negative")
        if end_s <= start_s:
            raise self.error(f"the end {end_s} s must be after the start {start_s} s")
        if label not in get_args(Label):
            raise self.error(f"label={label!r} must be one of {', '.join(get_args(Label))}")
        if not location:
            raise self.error("location must not be empty")
        # one recording has one path, however the tables spell it
        path = Path(recording).resolve()
        return Segment(path, start_s, end_s, label, location, recorded_at, self.table, self.number)


def text(table: Path) -> str:
    """UTF-8 text of a table, with or without a byte order mark; or a LabelError."""
    try:
        return table.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise LabelError(f"{table}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        row = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise LabelError(f"{table}: row {row}: byte {byte:#x} is not UTF-8") from error


def rows(
    table: Path, *, needed: tuple[tuple[str, ...], ...], optional: tuple[str, ...], **layout
) -> Iterator[Row]:
    """Rows that are not blank, under a header with one of each group of ``needed`` names.

    Parameters
    ----------
    optional : names that may be absent; neither they nor the needed ones may appear twice
    layout : arguments of csv.DictReader

    Raises
    ------
    LabelError
        naming table, row and what is wrong.
    """
    reader = csv.DictReader(io.StringIO(text(table), newline=""), strict=True, **layout)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        _check_header(Row(table, 1, {}), header, needed, optional)
        for cells in reader:
            further = cells.pop(None, ())
            present = [name for name in header if cells[name] is not None]
            # spreadsheets write rows of nothing but commas
            if not any(cell and cell.strip() for cell in (*cells.values(), *further)):
                continue
            if further or len(present) < len(header):
                what = f"{len(present) + len(further)} cells, but the header has {len(header)}"
                raise Row(table, reader.line_num, {}).error(what)
            yield Row(table, reader.line_num, {k: v.strip() for k, v in cells.items()})
    except csv.Error as error:
        # the reader counts up to the row before, which an open quote may leave far behind
        raise Row(table, reader.line_num + 1, {}).error(str(error)) from error


def _check_header(row: Row, header, needed, optional) -> None:
    for names in needed:
        if not set(names) & set(header):
            found = ", ".join(header) or "none"
            raise row.error(f"missing column {' or '.join(names)}; found: {found}")
    for name in (*(name for names in needed for name in names), *optional):
        if header.count(name) > 1:
            raise row.error(f"column {name} appears {header.count(name)} times")
