"""The fidelity of an exported file for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

from qbee.export import boards
from qbee.export.delivery import Delivery
from qbee.export.fidelity import Fidelity, LayerFidelity
from qbee.report.trial_table import comparison
from qbee.runtime.bench import Comparison


def table(found: Fidelity) -> Table:
    """One row for each layer: bits asked for and their containers, bytes, largest sums."""
    shown = Table(title=f"{found.file_bytes} bytes", caption=_caption(found))
    shown.add_column("layer", overflow="fold")
    for heading in ("kernel", "bytes", "bias", "map", "sums"):
        shown.add_column(heading, justify="right")
    for row in found.layers:
        shown.add_row(escape(row.layer), *_cells(row))
    return shown


def _cells(row: LayerFidelity) -> tuple[str, ...]:
    maps = f"{row.map_bits} in {row.map_stored}"
    if row.kernel_bits is None or row.largest_sum is None:
        return ("", "", "", maps, "")
    sums = f"< 2^{row.largest_sum.bit_length()}"
    return (
        f"{row.kernel_bits} in {row.kernel_stored}",
        str(row.kernel_bytes),
        row.bias_stored or "",
        maps,
        sums if row.is_exact_in_float32 else f"{sums} (!)",
    )


def _caption(found: Fidelity) -> str:
    return (
        f"Bytes: kernels {found.kernel_bytes}, biases {found.bias_bytes}, metadata "
        f"{found.metadata_bytes}, graph and scales {found.other_bytes}. "
        "(!) marks sums that float32 does not hold exactly."
    )


def sentences(delivery: Delivery) -> Iterator[str]:
    """What was widened, and what the memory costs."""
    yield from delivery.fidelity.widened
    layout = delivery.layout
    parts = [f"layers up to {s.end} in {s.strips} strips" for s in layout.segments]
    if layout.groups > 1:
        parts.append(f"first convolution in {layout.groups} groups of channels")
    if layout.has_dense:
        parts.append("1x1 convolutions of one step as dense layers")
    if parts:
        text = "; ".join(parts)
        yield f"{text[0].upper()}{text[1:]}: {delivery.recompute:.2f} x the multiplications."


def fits(*, arena_bytes: int, tflite_bytes: int) -> str:
    """Boards that the model leaves enough RAM and flash."""
    names = boards.fitting(arena_bytes=arena_bytes, tflite_bytes=tflite_bytes)
    return f"Leaves a quarter of RAM and flash free on: {', '.join(names) or 'no known board'}."


def verification(found: dict[str, Any]) -> Table:
    """One row for each layer: values compared, and those that differ from the specification.

    Parameters
    ----------
    found : content of a job's verify.json
    """
    shown = Table(title=f"Every feature map on {found['layer_windows']} test windows")
    shown.add_column("layer", overflow="fold")
    for heading in ("values", "Keras differs", "TFLite Micro differs", "sums"):
        shown.add_column(heading, justify="right")
    for row in found["layers"]:
        bits = row["largest_sum"]
        sums = "" if bits is None else f"< 2^{bits.bit_length()}"
        shown.add_row(
            escape(row["layer"]),
            str(row["values"]),
            "" if row["keras_mismatches"] is None else str(row["keras_mismatches"]),
            str(row["tflm_mismatches"]),
            sums if row["is_exact_in_float32"] else f"{sums} (!)",
        )
    return shown


def comparisons(found: dict[str, Any]) -> Iterator[str]:
    """How close LiteRT comes to TFLite Micro."""
    if found["litert_refused"]:
        yield f"Not compared with LiteRT: {found['litert_refused']}."
    for one in found["litert"]:
        yield f"On {found['litert_windows']} test windows, {comparison(Comparison(**one))}"
