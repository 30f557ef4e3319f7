"""Flat power-of-two quantization of BeeNet1: ours against QKeras' own quantizers.

Run with ``python -m benchmarks.flat_quantization [FOLDER]``; it takes about twenty minutes on two
cores, most of it float training, whose weights are kept in FOLDER if it is given. Each of the
three embedded locations is left out once; the scores are F1 on the one left out, at the threshold
that is best on validation windows of the others. All schemes start from the same float weights.
Theirs is ``quantized_bits(b,b,1,1,alpha='auto_po2')`` for kernels, biases (31 bits) and maps of the
network with batch norm folded: the strings of the thesis' section 4.2. The last line is JSON.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import embedded_data, outcome
from qbee.keras import keras, make_repeatable, qkeras, tf
from qbee.models import registry
from qbee.quantize import convert, ops
from qbee.quantize.calibrate import Maps, calibrate
from qbee.quantize.fold import FoldedNet, fold
from qbee.quantize.scheme import LayerBits, Scheme, uniform
from qbee.records import Fold
from qbee.train import metrics, weights
from qbee.train.fit import Examples, Trainer, TrainSettings, predict

SEED = embedded_data.SEED
CALIBRATION_WINDOWS = 100
TUNING = TrainSettings(epochs=2, max_rate=1e-4)
# Largest loss against float, in points of mean F1, by scheme.
BARS = {"8 bits": 1.0, "kernels 4, maps 8": 1.5, "largest two 4, rest 8": 1.5, "16 bits": 0.2}
STOCK = "16 bits, QKeras"


def float_model(examples: Examples, fold_: Fold, folder: Path) -> keras.Model:
    """The trained float model of a fold, from the folder if it is there."""
    stored = folder / f"beenet1_{fold_.name}.npz"
    if not stored.exists():
        weights.save(embedded_data.trained_beenet(examples, fold_), stored)
    model = registry.build("beenet1")
    weights.load(model, stored)
    return model


def f1(model, examples: Examples, fold_: Fold) -> float:
    """F1 of the location left out."""
    probability = np.zeros(len(examples.labels))
    for part in (fold_.validation, fold_.test):
        probability[list(part)] = metrics.probabilities(predict(model, examples, part))
    return embedded_data.score(probability, examples, fold_)


def largest_two_at_4(net: FoldedNet) -> Scheme:
    """4 bits for the two largest kernels, 8 for all else."""
    largest = sorted(net.weighted, key=lambda name: -net.kernels[name].size)[:2]
    flat = uniform(net, bits=8)
    narrow = {name: LayerBits(kernel=4, bias=31, map=flat.layers[name].map) for name in largest}
    return Scheme(layers=flat.layers | narrow)


def stock_model(net: FoldedNet, bits: int):
    """The folded network with QKeras' quantizers, as a function of a batch."""
    kernel = qkeras.quantized_bits(bits, bits, 1, 1, alpha="auto_po2")
    bias = qkeras.quantized_bits(31, 31, 1, 1, alpha="auto_po2")
    kernels = {name: kernel(tf.constant(value)) for name, value in net.kernels.items()}
    biases = {name: bias(tf.constant(value)) for name, value in net.biases.items()}

    def model(x, training=False):
        quantizer = qkeras.quantized_bits(bits, bits, 1, 1, alpha="auto_po2")
        found = ops.run(net, x, kernels=kernels, biases=biases, on_map=lambda name, y: quantizer(y))
        return found[net.nodes[-1].name]

    return model


def scored(net: FoldedNet, maps: Maps, scheme: Scheme, examples, fold_, *, is_tuned: bool) -> float:
    """F1 of a quantized network, calibrated only or fine-tuned for two epochs."""
    make_repeatable(SEED)
    model = convert.quantized_model(net, scheme, maps)
    if is_tuned:
        trainer = Trainer(model, clip_value=TUNING.clip_value)
        trainer.run(examples, train=fold_.train, settings=TUNING, seed=SEED)
    return f1(model, examples, fold_)


def measure_fold(examples: Examples, fold_: Fold, folder: Path) -> dict[str, float]:
    """F1 of the location left out, by scheme."""
    model = float_model(examples, fold_, folder)
    net = fold(model)
    chosen = np.random.default_rng(SEED).permutation(np.asarray(fold_.train))[:CALIBRATION_WINDOWS]
    maps = calibrate(net, examples.inputs(chosen), seed=SEED)
    four = uniform(net, bits=4, map_bits=8)
    return {
        "float": f1(model, examples, fold_),
        "8 bits": scored(net, maps, uniform(net, bits=8), examples, fold_, is_tuned=False),
        "kernels 4, maps 8": scored(net, maps, four, examples, fold_, is_tuned=True),
        "largest two 4, rest 8": scored(
            net, maps, largest_two_at_4(net), examples, fold_, is_tuned=True
        ),
        "16 bits": scored(net, maps, uniform(net, bits=16), examples, fold_, is_tuned=False),
        STOCK: f1(stock_model(net, 16), examples, fold_),
    }


def measure(folder: Path) -> dict[str, float]:
    """Mean F1 over the locations by scheme; prints a line per location."""
    with tempfile.TemporaryDirectory() as sounds:
        examples, by_location = embedded_data.make_data(Path(sounds))
    rows: list[dict[str, float]] = []
    for fold_ in by_location:
        rows.append(measure_fold(examples, fold_, folder))
        if len(rows) == 1:
            embedded_data.print_row("left out", *rows[0])
        embedded_data.print_row(fold_.name, *(f"{value:.3f}" for value in rows[-1].values()))
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    embedded_data.print_row("mean", *(f"{value:.3f}" for value in means.values()))
    return means


def main() -> None:
    """Measure, print a table and the JSON line; exit with 1 if a bar is missed."""
    print("BeeNet1 on the default soundscapes, one location left out; F1")
    with tempfile.TemporaryDirectory() as scratch:
        means = measure(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
    missed = {}
    for name, bar in BARS.items():
        lost = 100 * (means["float"] - means[name])
        print(f"  {name}: {lost:+.2f} points below float (bar: {bar})")
        missed[f"{name}: {lost:.2f} points below float, more than {bar}"] = lost > bar
    outcome.finish(
        "flat_quantization",
        ours=means["16 bits"],
        theirs=means[STOCK],
        unit="mean F1 of the location left out, flat 16-bit power of two",
        missed=missed,
        **{name: round(value, 4) for name, value in means.items()},
    )


if __name__ == "__main__":
    main()
