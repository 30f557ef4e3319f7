"""numpy == Keras == TFLite Micro on every feature map, over many random schemes.

Run with ``python -m benchmarks.exactness [SCHEMES]`` (200 schemes take about an hour on two
cores). Random widths (kernels and maps of 4, 8 or 16 bits, biases of 16 or 31) for BeeNet1, 2 and 3
on whole images, a tenth as many each for MobileNetV2 and ResNet-9 on images of 32 x 32; then both
once with 8 bits on whole images, with time and memory. Weights are random but look trained: batch
norms hold the statistics of the inputs, so that maps fill their ranges and clamps are in use, and
the classes are balanced. Ten inputs each, whole images of the large networks two. The last line is
JSON.
"""

import math
import resource
import sys
import time
import zlib

import numpy as np

from benchmarks import outcome
from qbee.export.delivery import ExportSettings, deliver
from qbee.keras import keras, make_repeatable
from qbee.models import registry
from qbee.quantize import convert
from qbee.quantize.calibrate import calibrate
from qbee.quantize.fold import FoldedNet, fold
from qbee.quantize.scheme import LayerBits, Scheme, uniform
from qbee.verify import compare_layers

SCHEMES, INPUTS, WHOLE_INPUTS, SMALL_SIDE = 200, 10, 2, 32
BEENETS, LARGE = ("beenet1", "beenet2", "beenet3"), ("mobilenet_v2", "resnet9")
# Limits of the largest networks.
SECONDS, KILOBYTES = 600, 8 * 2**20


def images(side: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of different loudness [count, side, side, 1]."""
    x = rng.normal(size=(count, side, side, 1))
    x = x + 2 * np.cumsum(x, axis=2) / np.sqrt(side)
    loudness = rng.uniform(0.3, 2, (count, 1, 1, 1))
    return (x / x.std() * loudness).astype(np.float32)


def trained_looking(name: str, side: int, seed: int) -> tuple[FoldedNet, np.ndarray]:
    """A folded network with random weights, and inputs of the kind it was adapted to."""
    make_repeatable(seed)
    rng = np.random.default_rng(seed)
    model = registry.build(name, n_mels=side, n_frames=side)
    x = images(side, 16, rng)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
            layer.momentum = 0.5
    for _ in range(10):
        model(x, training=True)
    net = fold(model)
    logits = model(x, training=False).numpy()
    balance = np.median(logits[:, 0] - logits[:, 1])
    biases = dict(net.biases)
    biases["head"] = biases["head"] + np.float32([-balance / 2, balance / 2])
    return net.with_weights(net.kernels, biases), x


def random_scheme(net: FoldedNet, rng: np.random.Generator) -> Scheme:
    """Random widths of every layer; the logits have at least 8 bits."""
    layers = {}
    for name in net.maps:
        kernel, map_ = (int(bits) for bits in rng.choice([4, 8, 16], 2))
        map_ = max(map_, 8) if name == net.maps[-1] else map_
        weights = {"kernel": kernel, "bias": int(rng.choice([16, 31]))}
        layers[name] = LayerBits(map=map_, **(weights if name in net.weighted else {}))
    return Scheme(layers=layers, input_bits=int(rng.choice([8, 16])))


class Tally:
    """Values compared and found different."""

    def __init__(self) -> None:
        self.schemes = self.values = self.wrong_keras = self.wrong_device = 0
        self.classes = np.zeros(2, int)

    def compare(self, net: FoldedNet, scheme: Scheme, maps, x: np.ndarray) -> int:
        """Compare one quantized network on these inputs; gives the bytes of its file."""
        model = convert.quantized_model(net, scheme, maps)
        delivery = deliver(convert.to_fixed_point(model), ExportSettings())
        for found in compare_layers(delivery, model, x):
            self.values += found.values
            self.wrong_keras += found.keras_mismatches or 0
            self.wrong_device += found.tflm_mismatches
        chosen = model(x, training=False).numpy().argmax(1)
        self.classes += np.bincount(chosen, minlength=2)
        self.schemes += 1
        keras.backend.clear_session()
        return len(delivery.exported.content)

    def row(self, name: str) -> str:
        """A row of the table."""
        return (
            f"| {name} | {self.schemes} | {self.values} | {self.wrong_keras} | "
            f"{self.wrong_device} | {self.classes[0]}:{self.classes[1]} |"
        )


def over_schemes(name: str, side: int, count: int) -> Tally:
    """Random schemes of one network, its weights new every ten."""
    tally = Tally()
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for number in range(count):
        if number % 10 == 0:
            net, x = trained_looking(name, side, number)
            maps = calibrate(net, x, seed=0)
        tally.compare(net, random_scheme(net, rng), maps, images(side, INPUTS, rng))
    return tally


def whole(name: str) -> tuple[Tally, str, bool]:
    """A large network on whole images, what that cost, and whether that is within the limits."""
    begun = time.monotonic()
    tally = Tally()
    net, x = trained_looking(name, 128, 0)
    maps = calibrate(net, x[:4], seed=0, method="minmax")
    size = tally.compare(net, uniform(net, bits=8), maps, x[:WHOLE_INPUTS])
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = f"{name}: {size} bytes, {seconds:.0f} s, peak memory {peak / 2**20:.1f} GB"
    return tally, cost, seconds <= SECONDS and peak <= KILOBYTES


def main() -> None:
    """Compare, print a table and the JSON line; exit with 1 if anything differs."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else SCHEMES
    print("| network | schemes | values | Keras differs | TFLite Micro differs | classes |")
    print("|---|---|---|---|---|---|")
    tallies, missed = [], {}
    for name in BEENETS:
        tallies.append(over_schemes(name, 128, math.ceil(count / len(BEENETS))))
        print(tallies[-1].row(name), flush=True)
    for name in LARGE:
        tallies.append(over_schemes(name, SMALL_SIDE, max(count // 10, 1)))
        print(tallies[-1].row(f"{name}, {SMALL_SIDE} x {SMALL_SIDE}"), flush=True)
    for name in LARGE:
        tally, cost, is_within = whole(name)
        tallies.append(tally)
        print(tally.row(name) + f"\n\n{cost}\n", flush=True)
        missed[f"{name} takes more than {SECONDS} s or 8 GB"] = not is_within
    wrong = sum(t.wrong_keras + t.wrong_device for t in tallies)
    missed[f"{wrong} values differ"] = wrong > 0
    outcome.finish(
        "exactness",
        ours=wrong,
        theirs=0,
        unit=f"values that differ, of {sum(t.values for t in tallies)}",
        missed=missed,
    )


if __name__ == "__main__":
    main()
