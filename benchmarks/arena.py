"""RAM and flash of the BeeNets on TFLite Micro, whole and in strips, and the boards they fit.

Run with ``python -m benchmarks.arena``; about five minutes on two cores. Each network (random
weights that look trained, 8-bit maps, kernels of 8 or 4 bits with one step for each channel or one
in all) is exported whole and with the smallest arena at 1.3 and at 2 times the multiplications.
Files hold a card as those of a job do. Every arena is measured by TFLite Micro on this machine, and
every output compared with the whole network's. The last line is JSON.
"""

import numpy as np

from benchmarks import outcome
from benchmarks.exactness import BEENETS, trained_looking
from qbee.detector import Card
from qbee.export import boards
from qbee.export.delivery import Delivery, ExportSettings, deliver
from qbee.quantize import convert, fixed_net
from qbee.quantize.calibrate import calibrate
from qbee.quantize.scheme import uniform
from qbee.records import FrontEnd
from qbee.runtime.interpreter import MicroModel

LIMITS = {1.3: 150_000, 2.0: 110_000}
# Bits of kernels and whether each has one step: bytes of a file at most.
SIZES = {
    ("beenet3", 4, True): 7_400,
    ("beenet3", 4, False): 9_600,
    ("beenet3", 8, True): 12_500,
    ("beenet3", 8, False): 12_500,
    ("beenet1", 4, True): 32_500,
    ("beenet1", 4, False): 39_000,
    ("beenet1", 8, True): 56_500,
    ("beenet1", 8, False): 63_500,
}
# Largest error of a predicted arena.
LARGEST_ERROR = 0.02


class Measured:
    """A delivery's bytes, arena, and whether its outputs are those of the specification."""

    def __init__(self, delivery: Delivery, x: np.ndarray):
        micro = MicroModel(delivery.exported.content)
        expected = fixed_net.predict(delivery.net, x)
        self.delivery, self.tflite_bytes = delivery, len(micro.content)
        self.is_exact = bool(np.array_equal(micro.predict(x), expected))
        self.arena_bytes = micro.arena_bytes()
        self.error = abs(delivery.exported.arena.total_bytes / self.arena_bytes - 1)

    def cells(self) -> str:
        """Cells of the table."""
        fits = boards.fitting(arena_bytes=self.arena_bytes, tflite_bytes=self.tflite_bytes)
        return (
            f"{self.tflite_bytes} | {self.arena_bytes} | {100 * self.error:.2f} % | "
            f"{self.delivery.recompute:.2f} | {', '.join(fits)} |"
        )


def main() -> None:
    """Measure, print a table and the JSON line; exit with 1 if a bar is missed."""
    print("| network | kernels | steps | strips | bytes | arena | error of prediction |", end="")
    print(" products | boards |\n|---|---|---|---|---|---|---|---|---|")
    missed, worst = {}, 0.0
    metadata = Card(front_end=FrontEnd(), threshold=0.5).to_metadata()
    for name in BEENETS:
        net, x = trained_looking(name, 128, 0)
        maps = calibrate(net, x, seed=0)
        for bits in (8, 4):
            for is_per_tensor in (False, True):
                scheme = uniform(net, bits=bits, map_bits=8)
                model = convert.quantized_model(net, scheme, maps, is_per_tensor=is_per_tensor)
                fixed = convert.to_fixed_point(model)
                steps = "kernel" if is_per_tensor else "channel"
                for limit in (None, *LIMITS):
                    settings = ExportSettings(max_recompute=limit)
                    found = Measured(deliver(fixed, settings, metadata=metadata), x[:2])
                    label = "whole" if limit is None else f"up to {limit} x"
                    row = f"| {name} | {bits} | {steps} | {label} | {found.cells()}"
                    print(row, flush=True)
                    worst = max(worst, found.error)
                    missed[f"{row}: outputs differ"] = not found.is_exact
                    if limit is None:
                        most = SIZES.get((name, bits, is_per_tensor), found.tflite_bytes)
                        missed[f"{row}: more than {most} bytes"] = found.tflite_bytes > most
                    elif name != "beenet2":
                        largest = LIMITS[limit]
                        missed[f"{row}: arena above {largest}"] = found.arena_bytes > largest
    missed[f"a prediction is {worst:.3f} off"] = worst > LARGEST_ERROR
    outcome.finish(
        "arena",
        ours=worst,
        theirs=LARGEST_ERROR,
        unit="largest relative error of a predicted arena",
        missed=missed,
    )


if __name__ == "__main__":
    main()
