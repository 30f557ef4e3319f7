"""What is inside a .tflite, as a table and as sentences for a terminal or a notebook."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qbee.runtime.facts import Inspection, KernelFacts, OperatorFacts, TensorFacts


def shape_text(shape: tuple[int, ...]) -> str:
    """Lengths of the axes."""
    return "×".join(map(str, shape)) or "one number"


def scale_text(tensor: TensorFacts) -> str:
    """A scale as 2^k where it is, else as a number."""
    if tensor.scale is None:
        return "–"
    is_power = tensor.scale_exponent is not None
    return f"2^{tensor.scale_exponent}" if is_power else f"{tensor.scale:.3g}"


def _scales_text(kernel: KernelFacts) -> str:
    """How many scales a kernel has, and their range if they are powers of two."""
    if not kernel.scales:
        return "–"
    count = "one" if kernel.scales == 1 else str(kernel.scales)
    if kernel.exponents is None:
        return f"{count}, any"
    low, high = kernel.exponents
    return f"{count}, 2^{low}" if low == high else f"{count}, 2^{low}..{high}"


def _bytes_text(kernel: KernelFacts) -> str:
    return f"{kernel.bytes}+{kernel.bias_bytes}" if kernel.bias_type else str(kernel.bytes)


def _row(op: OperatorFacts) -> list[str]:
    output, kernel = op.output, op.kernel
    name = op.op if op.activation is None else f"{op.op} {op.activation.lower()}"
    return [
        str(op.number),
        name,
        "–" if output is None else f"{output.type} {shape_text(output.shape)}",
        "–" if output is None else scale_text(output),
        "–" if output is None or output.zero_point is None else str(output.zero_point),
        "" if kernel is None else kernel.type,
        "" if kernel is None else _scales_text(kernel),
        "" if kernel is None else _bytes_text(kernel),
        f"{op.macs:,}" if op.macs else "",
        f"{op.live_bytes:,}",
    ]


def table(found: Inspection) -> Table:
    """A row for each operator; the one with most of the arena in use is coloured."""
    drawn = Table(
        title=escape(found.source), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    drawn.add_column("#", justify="right", no_wrap=True)
    # Long ones are folded, never cut.
    drawn.add_column("operator", overflow="fold", min_width=17)
    drawn.add_column("result", overflow="fold", min_width=15)
    drawn.add_column("scale", justify="right", no_wrap=True)
    drawn.add_column("zero\npoint", justify="right", no_wrap=True)
    drawn.add_column("ker-\nnel", no_wrap=True)
    drawn.add_column("kernel's\nscales", overflow="fold", min_width=8)
    for heading in ("kernel+\nbias B", "MACs", "arena\nB"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for op in found.operators:
        style = "yellow" if op.number == found.arena.peak_operator else None
        drawn.add_row(*_row(op), style=style)
    return drawn


def _tensor_text(kind: str, tensor: TensorFacts) -> str:
    text = f"{kind} {tensor.name!r}: {tensor.type} {shape_text(tensor.shape)}"
    if tensor.scale is None:
        return f"{text}."
    return f"{text}, scale {scale_text(tensor)}, zero point {tensor.zero_point}."


def sentences(found: Inspection) -> list[str]:
    """Sizes, work, memory, inputs and outputs in plain language."""
    said = [
        f"File: {found.file_bytes:,} bytes, of which {found.constants_bytes:,} are constants and "
        f"{found.metadata_bytes:,} metadata.",
        f"Work: {found.macs:,} multiplications and additions (MACs) of convolutions and dense "
        "operators.",
        _arena_text(found),
        *(_tensor_text("Input", tensor) for tensor in found.inputs),
        *(_tensor_text("Output", tensor) for tensor in found.outputs),
    ]
    if found.metadata:
        listed = ", ".join(f"{name} ({size:,} bytes)" for name, size in found.metadata.items())
        said.append(f"Metadata: {listed}.")
    if found.graphs > 1:
        said.append(f"The file has {found.graphs} graphs; this is the first one only.")
    return said


def _arena_text(found: Inspection) -> str:
    sizes = found.arena
    how = "with the plan that the file brings" if sizes.is_planned else "planned by itself"
    text = (
        f"Arena on TFLite Micro, predicted, {how}: {sizes.head_bytes:,} (head) + "
        f"{sizes.tail_bytes:,} (tail) = {sizes.total_bytes:,} bytes"
    )
    if sizes.peak_operator is None:
        return f"{text}."
    peak = found.operators[sizes.peak_operator]
    return f"{text}; most is in use during operator {peak.number}, {peak.op}."
