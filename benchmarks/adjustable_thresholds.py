"""FAT on a depthwise network whose filters differ a hundredfold in range.

Run with ``python -m benchmarks.adjustable_thresholds``; it takes about two minutes on two cores. A
small network of depthwise separable convolutions is trained on scikit-learn's digits (bundled),
batch norm is folded, and its filters are spread: depthwise filters are divided by factors of 0.1
to 10, which the layers before and after make good, so that the function stays the same. Then, with
8-bit maps: one threshold for each kernel (scalar), the same after rescaling, one for each filter
(vector), as in FAT's tables 1 and 2; and what training thresholds (and points) on a tenth of the
training images, without labels, recovers of the loss of 4-bit scalar quantization. The last line
is JSON.
"""

import numpy as np
from sklearn.datasets import load_digits

from benchmarks import outcome
from qbee.keras import keras, make_repeatable
from qbee.quantize import convert, thresholds
from qbee.quantize.calibrate import calibrate
from qbee.quantize.equalize import rescale_depthwise
from qbee.quantize.fold import FoldedNet, fold
from qbee.quantize.scheme import uniform
from qbee.quantize.thresholds import FatSettings

SEED, TRAINING_IMAGES, EPOCHS = 0, 1200, 25
LEAST_SPREAD, LEAST_RECOVERED = 100.0, 0.8
FILTERS = (24, 32, 48)
SETTINGS = {
    "thresholds": FatSettings(thresholds=True, points=False, max_rate=0.02),
    "points": FatSettings(max_rate=0.02),
    "both": FatSettings(thresholds=True, max_rate=0.02),
}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 8, 8, 1] of values from 0 to 1, and labels."""
    found = load_digits()
    order = np.random.default_rng(SEED).permutation(len(found.target))
    images = (found.images[order, ..., None] / 16).astype(np.float32)
    return images, found.target[order]


def trained(images: np.ndarray, labels: np.ndarray) -> FoldedNet:
    """The folded network, trained on these images."""
    layers = keras.layers
    make_repeatable(SEED)
    x = inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    for filters in FILTERS:
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(images, labels, batch_size=64, epochs=EPOCHS, verbose=0)
    return fold(model)


def spread(net: FoldedNet) -> FoldedNet:
    """The same function with depthwise filters of very different range."""
    rng = np.random.default_rng(SEED)
    kernels, biases = dict(net.kernels), dict(net.biases)
    names = net.weighted
    for before, middle, after in zip(names, names[1:], names[2:], strict=False):
        if net.node(middle).op != "depthwise":
            continue
        channels = kernels[middle].shape[2]
        root = np.sqrt(10.0 ** rng.permutation(np.linspace(-1, 1, channels))).astype(np.float32)
        kernels[before], biases[before] = kernels[before] * root, biases[before] * root
        kernels[middle] = kernels[middle] / (root**2).reshape(1, 1, -1, 1)
        biases[middle] = biases[middle] / root
        kernels[after] = kernels[after] * root.reshape(1, 1, -1, 1)
    return net.with_weights(kernels, biases)


def range_ratio(net: FoldedNet) -> float:
    """Largest ratio of filter ranges within a depthwise layer."""
    peaks = [
        np.abs(net.kernels[node.name]).max((0, 1, 3))
        for node in net.nodes
        if node.op == "depthwise"
    ]
    return float(max(p.max() / p.min() for p in peaks))


class Comparison:
    """Accuracies on test images of networks quantized with the help of training images."""

    def __init__(self, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray):
        self.calibration, self.images, self.labels = calibration, images, labels

    def accuracy(self, logits: np.ndarray) -> float:
        """Share of test images classified right."""
        return float(np.mean(logits.argmax(1) == self.labels))

    def quantized(self, net: FoldedNet, bits: int, *, is_per_tensor: bool, settings=None) -> float:
        """Accuracy of a calibrated, or fine-tuned, network on the device's integers."""
        scheme = uniform(net, bits=bits, map_bits=8)
        maps = calibrate(net, self.calibration[:100], seed=SEED, alpha="auto")
        if settings is not None:
            found = thresholds.tune(
                net,
                scheme,
                maps,
                self.calibration,
                settings=settings,
                seed=SEED,
                alpha="auto",
                is_per_tensor=is_per_tensor,
            )
            net, maps = found.net, found.maps
        model = convert.quantized_model(
            net, scheme, maps, alpha="auto", is_per_tensor=is_per_tensor
        )
        return self.accuracy(model(self.images, training=False).numpy())


def main() -> None:
    """Measure, print tables and the JSON line; exit with 1 if a bar is missed."""
    images, labels = digits()
    net = spread(trained(images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]))
    tenth = images[: TRAINING_IMAGES // 10]
    test = Comparison(tenth, images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:])
    rescaled, ratio = rescale_depthwise(net, tenth), range_ratio(net)
    accuracy = test.accuracy(thresholds.logits(net, test.images))
    print(
        f"filters differ {ratio:.0f} x; accuracy on {len(test.images)} images, float {accuracy:.3f}"
    )
    print("| bits of kernels | scalar | rescaled | vector |\n|---|---|---|---|")
    rows = {}
    for bits in (8, 4):
        rows[bits] = [
            test.quantized(net, bits, is_per_tensor=True),
            test.quantized(rescaled, bits, is_per_tensor=True),
            test.quantized(net, bits, is_per_tensor=False),
        ]
        print(f"| {bits} | " + " | ".join(f"{value:.3f}" for value in rows[bits]) + " |")
    starts = {"scalar": (net, True), "rescaled": (rescaled, True), "vector": (net, False)}
    print(f"| 4 bits, trained | {' | '.join(SETTINGS)} |\n|---|---|---|---|", flush=True)
    lost, best = accuracy - rows[4][0], {}
    for start, (begun, is_per_tensor) in starts.items():
        shares = []
        for name, settings in SETTINGS.items():
            found = test.quantized(begun, 4, is_per_tensor=is_per_tensor, settings=settings)
            best[f"{start}, {name}"] = (found - rows[4][0]) / lost
            shares.append(f"{found:.3f} ({100 * best[f'{start}, {name}']:.0f} %)")
        print(f"| {start} | {' | '.join(shares)} |", flush=True)
    share = max(best["rescaled, thresholds"], best["vector, thresholds"])
    missed = {f"filters differ only {ratio:.0f} x": ratio < LEAST_SPREAD}
    for bits, row in rows.items():
        missed[f"{bits} bits: not ordered scalar, rescaled, vector"] = row != sorted(row)
    missed[f"thresholds recover {share:.2f}, less than {LEAST_RECOVERED}"] = share < LEAST_RECOVERED
    outcome.finish(
        "adjustable_thresholds",
        ours=share,
        theirs=LEAST_RECOVERED,
        unit="share of the loss of 4-bit scalar quantization that trained thresholds recover",
        missed=missed,
    )


if __name__ == "__main__":
    main()
