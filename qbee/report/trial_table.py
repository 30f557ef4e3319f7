"""What came of running a .tflite, as a table and as sentences for a terminal or a notebook."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qbee.runtime.bench import Comparison, Seen
from qbee.runtime.trial import Trial

RUNTIMES = {"xnnpack": "LiteRT with XNNPACK", "builtin": "LiteRT without XNNPACK"}
# A share of saturated numbers that deserves a look.
MANY_AT_HIGHEST = 0.05


def _number(value: int | float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _row(seen: Seen) -> list[str]:
    return [
        str(seen.operator),
        seen.op,
        seen.type,
        _number(seen.lowest),
        _number(seen.highest),
        _percent(seen.at_lowest),
        _percent(seen.at_highest),
    ]


def table(found: Trial) -> Table:
    """A row for each operator's result; those that often reach the highest code are coloured."""
    title = f"{escape(Path(found.source).name)}, {found.windows} inputs"
    drawn = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    drawn.add_column("#", justify="right", no_wrap=True)
    drawn.add_column("operator", overflow="fold", min_width=10)
    drawn.add_column("type", no_wrap=True)
    for heading in ("lowest", "highest", "at the\nlowest %", "at the\nhighest %"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for seen in found.ranges:
        is_full = (seen.at_highest or 0) > MANY_AT_HIGHEST
        drawn.add_row(*_row(seen), style="yellow" if is_full else None)
    return drawn


def sentences(found: Trial) -> list[str]:
    """Memory, time and agreement in plain language."""
    counts = "; ".join(f"{count} × {kind}" for kind, count in found.operators.items())
    said = [
        f"Operators: {counts}.",
        f"Arena on TFLite Micro: {found.arena_bytes:,} bytes measured on this machine, "
        f"{found.predicted_arena_bytes:,} predicted.",
        f"CPU time of an input on this machine: {found.median_ms:.3g} ms on TFLite Micro's "
        "reference kernels (median).",
    ]
    if found.seed is not None:
        said.append(
            f"The {found.windows} inputs are random numbers (seed {found.seed}): give recorded "
            "ones to see ranges and classes that matter."
        )
    if found.windows > 1 and not found.outputs_vary:
        said.append("Warning: all inputs have the same output.")
    if found.ranges_refused is not None:
        said.append(f"Ranges are not known: {found.ranges_refused}.")
    is_float = any(kind.startswith("float") for kind in found.output_types)
    return [*said, *(comparison(one, is_float=is_float) for one in found.litert)]


def comparison(one: Comparison, *, is_float: bool = False) -> str:
    """A runtime beside TFLite Micro."""
    name = RUNTIMES[one.runtime]
    if one.refused is not None:
        return f"{name} does not run it: {one.refused}."
    text = f"{name}: {one.differing:,} of {one.numbers:,} numbers differ from TFLite Micro"
    if one.differing:
        unit = "" if is_float else " LSB"
        text += f", by at most {one.largest_difference:.3g}{unit}"
    if one.class_agreement is not None:
        text += f"; same class in {100 * one.class_agreement:.1f} %"
    return f"{text}." if one.median_ms is None else f"{text}; {one.median_ms:.3g} ms."
