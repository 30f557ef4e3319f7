"""Error of kernel quantizers on normal weights: ours, QKeras', and forms finer than per channel.

Run with ``python -m benchmarks.kernel_error``; it takes seconds. Kernels are N(0, .05) of shape
3 x 3 x 32 x 64; the figure is the RMS error relative to .05, the number in brackets what a weight
costs in bits, scales, exponents and codebooks included. The last line is JSON.
"""

import numpy as np

from benchmarks import outcome
from qbee.keras import qkeras
from qbee.quantize import (
    quantized_codebook,
    quantized_kernel,
    quantized_micro_exponents,
    quantized_vectors,
)
from qbee.quantize.granularity import effective_bits

SHAPE, SPREAD, SEED = (3, 3, 32, 64), 0.05, 0
# Largest error of power-of-two steps, by bits.
BARS = {4: 0.125, 8: 0.0115, 16: 0.00005}
MICRO_EXPONENTS = {4: 4, 6: 6, 8: 9}
NAMES = ("QKeras auto_po2", "auto_po2", "auto", "vectors", "micro exponents", "codebook")


def relative_error(quantizer, kernel: np.ndarray) -> float:
    """RMS error relative to the spread of the weights."""
    found = np.asarray(quantizer(kernel), np.float64)
    return float(np.sqrt(np.mean((found - kernel) ** 2)) / SPREAD)


def quantizers(bits: int) -> dict[str, object]:
    """Quantizers of about this width by name."""
    found: dict[str, object] = {
        NAMES[0]: qkeras.quantized_bits(bits, bits, 1, 1, alpha="auto_po2"),
        NAMES[1]: quantized_kernel(bits, scale_axis=3),
        NAMES[2]: quantized_kernel(bits, "auto", scale_axis=3),
    }
    if bits <= 8:
        found[NAMES[3]] = quantized_vectors(bits)
        found[NAMES[5]] = quantized_codebook(bits)
    if bits in MICRO_EXPONENTS:
        found[NAMES[4]] = quantized_micro_exponents(MICRO_EXPONENTS[bits])
    return found


def cell(quantizer, kernel: np.ndarray) -> str:
    """Error, and bits per weight unless the quantizer is QKeras'."""
    error = relative_error(quantizer, kernel)
    if isinstance(quantizer, qkeras.quantized_bits):
        return f"{error:.2g}"
    return f"{error:.2g} ({effective_bits(quantizer, kernel.shape):.2f})"


def main() -> None:
    """Measure, print a Markdown table and the JSON line; exit with 1 if a bar is missed."""
    kernel = np.random.default_rng(SEED).normal(0, SPREAD, SHAPE).astype(np.float32)
    print(f"| bits | {' | '.join(NAMES)} |")
    print("|---" * (len(NAMES) + 1) + "|")
    for bits in (2, 3, 4, 6, 8, 16):
        made = quantizers(bits)
        cells = [cell(made[name], kernel) if name in made else "" for name in NAMES]
        print(f"| {bits} | {' | '.join(cells)} |", flush=True)
    ours = {bits: relative_error(quantizers(bits)[NAMES[1]], kernel) for bits in BARS}
    theirs = relative_error(quantizers(16)[NAMES[0]], kernel)
    missed = {
        f"{bits} bits: {ours[bits]:.3g}, more than {bar}": ours[bits] > bar
        for bits, bar in BARS.items()
    }
    outcome.finish(
        "kernel_error",
        ours=ours[16],
        theirs=theirs,
        unit="RMS error relative to the weights' spread, 16 bits, power of two",
        missed=missed,
    )


if __name__ == "__main__":
    main()
