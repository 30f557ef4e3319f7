"""Files of nets that others trained, against the reference: bytes, exactness and score.

Run with ``python -m benchmarks.trained_files FOLDER``, where FOLDER is as for ``trained_nets``;
about three minutes on two cores. The four MLPerf Tiny models with 8 bits and power-of-two steps
(one for each channel, one for all channels of similar range, or one for each kernel), calibrated on
100 inputs: every feature map compared in numpy, Keras and TFLite Micro on ten inputs, the score on
all inputs, and the bytes of the file beside those of the reference's int8 .tflite; then the bytes
with 4-bit kernels. The last line is JSON.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks import outcome
from benchmarks.trained_nets import (
    EXACT_INPUTS,
    LARGEST_LOSS,
    Task,
    calibrated,
    compiled,
    in_float,
    load,
    score,
)
from qbee.export.delivery import Delivery, ExportSettings, deliver
from qbee.quantize import convert
from qbee.quantize.scheme import uniform
from qbee.quantize.sharing import Steps, one_step_of
from qbee.verify import compare_layers

# Bytes with 4-bit kernels as a share of the reference's, at most.
LARGEST_SHARE = 0.65
STEPS: tuple[Steps, ...] = ("channel", "similar", "kernel")


class Files:
    """Deliveries of one task."""

    def __init__(self, task: Task):
        self.task, self.everything = task, np.arange(len(task.x))
        self.maps = calibrated(task, self.everything, "auto_po2")

    def delivered(self, bits: int, *, steps: Steps) -> tuple[Delivery, object]:
        """The file and the Keras model up to its logits."""
        model = convert.quantized_model(
            self.task.net,
            uniform(self.task.net, bits=bits, map_bits=8),
            self.maps,
            is_per_tensor=one_step_of(steps, self.task.net),
        )
        logits = convert.logits_model(model)
        return deliver(convert.to_fixed_point(logits), ExportSettings()), logits

    def eight_bits(self, *, steps: Steps) -> tuple[int, float, int]:
        """Bytes, score and values that differ of an 8-bit file."""
        delivery, logits = self.delivered(8, steps=steps)
        inputs = self.task.inputs(self.everything)[:EXACT_INPUTS]
        checks = compare_layers(delivery, logits, inputs)
        wrong = sum((c.keras_mismatches or 0) + c.tflm_mismatches for c in checks)
        found = score(self.task, compiled(logits), self.everything)
        return len(delivery.exported.content), found, wrong


def main() -> None:
    """Measure, print a table and the JSON line; exit with 1 if a bar is missed."""
    missed, shares = {}, []
    print(
        "| net | reference, bytes | float | steps | bytes | score | values that differ | 4 bits |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for task in load(Path(sys.argv[1])):
        files = Files(task)
        whole = score(task, in_float(task.net), files.everything)
        is_met = False
        for steps in STEPS:
            size, found, wrong = files.eight_bits(steps=steps)
            narrow = len(files.delivered(4, steps=steps)[0].exported.content)
            share = narrow / task.reference_bytes
            print(
                f"| {task.name} | {task.reference_bytes} | {whole:.3f} | {steps} | {size} | "
                f"{found:.3f} | {wrong} | {100 * share:.0f} % |",
                flush=True,
            )
            is_good = whole - found <= LARGEST_LOSS[task.metric]
            is_met |= is_good and size <= task.reference_bytes
            missed[f"{task.name}, {steps}: {wrong} values differ"] = wrong > 0
            missed[f"{task.name}, {steps}: 4 bits have {share:.2f}"] = share > LARGEST_SHARE
            if is_good:
                shares.append(size / task.reference_bytes)
        missed[f"{task.name}: no file is as small as the reference and as good"] = not is_met
    outcome.finish(
        "trained_files",
        ours=float(np.mean(shares)),
        theirs=1.0,
        unit="mean bytes of 8-bit files that lose no more than allowed, of the reference's",
        missed=missed,
    )


if __name__ == "__main__":
    main()
