"""What the doctor found, as a table and as sentences for a terminal or a notebook."""

from __future__ import annotations

import math
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qbee.doctor.records import Examination, Finding, Measures

SEVERITIES = ("severe", "warning", "note")
COLORS = {"severe": "red", "warning": "yellow", "note": "dim"}
# Names in a row after the first; the others are counted.
NAMED = 6


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _db(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    """Ratio in at most five characters."""
    if value is None:
        return "–"
    if 100 <= value < 1e5:
        return f"{value:.0f}"
    return f"{value:.2g}" if 0.01 <= value < 100 else f"{value:.0e}"


def _codes(t: Measures) -> str:
    if t.codes_used is None:
        return "–"
    if t.codes_available is None:
        return str(t.codes_used)
    return f"{t.codes_used}/2^{round(math.log2(t.codes_available))}"


def _row(t: Measures) -> list[str]:
    sums = "–" if not t.accumulator else f"2^{t.accumulator.bit_length()}"
    return [
        escape(t.layer),
        t.tensor,
        "–" if t.bits is None else str(t.bits),
        _codes(t),
        _percent(t.clipped),
        _percent(t.zeroed),
        _ratio(t.step_to_std),
        _db(t.sqnr_db),
        _db(t.reference_db),
        str(t.dead_channels or ""),
        sums,
    ]


def table(found: Examination) -> Table:
    """A row for each tensor; those with a severe finding or a warning are coloured."""
    title = f"{escape(found.model)}, maps of {found.inputs} inputs"
    drawn = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    # Names of layers are folded, never cut.
    drawn.add_column("layer", overflow="fold", min_width=12)
    drawn.add_column("tensor", no_wrap=True)
    drawn.add_column("bits", justify="right", no_wrap=True)
    drawn.add_column("codes used", justify="right", no_wrap=True)
    headings = ("clip\n%", "zero\n%", "step/\nstd", "SQNR\ndB", "of\ndB", "dead", "sums\n<")
    for heading in headings:
        drawn.add_column(heading, justify="right", no_wrap=True)
    worst = {}
    for finding in sorted(found.findings, key=_rank, reverse=True):
        worst[finding.layer, finding.tensor] = finding.severity
    for t in found.tensors:
        severity = worst.get((t.layer, t.tensor), "note")
        drawn.add_row(*_row(t), style=COLORS[severity] if severity != "note" else None)
    return drawn


def _rank(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def _group(finding: Finding) -> tuple[int, str, str]:
    return _rank(finding), finding.measure, finding.tensor


def _sentence(group: list[Finding]) -> str:
    first, others = group[0], [finding.layer for finding in group[1:]]
    text = f"{first.severity}: {first.layer}, {first.tensor}: {first.sentence}."
    if not others:
        return text
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    return f"{text} Likewise {', '.join(others[:NAMED])}{more}."


def sentences(found: Examination) -> list[str]:
    """Findings in plain language, the severe ones first; findings of one kind are one sentence."""
    ordered = sorted(found.findings, key=_group)
    said = [_sentence(list(group)) for _, group in groupby(ordered, key=_group)]
    if found.skipped:
        said.append(f"note: not examined: {', '.join(found.skipped)}.")
    return said


def summary(found: Examination) -> str:
    """How many findings there are."""
    counts = ", ".join(f"{found.count(severity)} {severity}" for severity in SEVERITIES)  # type: ignore[arg-type]
    return f"{len(found.findings)} findings: {counts}."
