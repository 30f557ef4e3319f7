"""What fake quantization adds to a training step of BeeNet1, in CPU time.

Run with ``python -m benchmarks.training_step``; about a minute on two cores. Float and quantized
steps of 64 windows of 128 x 128 alternate in one process; all kernels, biases and maps are
quantized, with 4-bit kernels and 8-bit maps, and with 8 and 16 bits. Theirs is the float step.
The last line is JSON.
"""

import time

import numpy as np

from benchmarks import outcome
from qbee.keras import keras, make_repeatable, tf
from qbee.models import registry
from qbee.quantize import convert
from qbee.quantize.calibrate import calibrate
from qbee.quantize.fold import fold
from qbee.quantize.scheme import uniform

BATCH_WINDOWS, STEPS = 64, 8
WIDTHS = {"kernels 4, maps 8": (4, 8), "8 bits": (8, 8), "16 bits": (16, 16)}
LARGEST_RATIO = 1.35


def compiled_step(model):
    """Compiled training step (inputs, labels) of Adam."""
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)
    variables = model.trainable_variables

    @tf.function
    def step(inputs, labels):
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    return step


def measure() -> dict[str, float]:
    """Median CPU seconds of a step by name."""
    make_repeatable(0)
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (BATCH_WINDOWS, 128, 128, 1)).astype(np.float32)
    labels = tf.constant(rng.integers(0, 2, BATCH_WINDOWS))
    model = registry.build("beenet1")
    net = fold(model)
    maps = calibrate(net, x[:32], seed=0)
    steps = {"float": compiled_step(model)}
    for name, (kernel, map_) in WIDTHS.items():
        scheme = uniform(net, bits=kernel, map_bits=map_)
        steps[name] = compiled_step(convert.quantized_model(net, scheme, maps))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    batch = tf.constant(x)
    for _ in range(STEPS + 1):
        for name, step in steps.items():
            begun = time.process_time()
            step(batch, labels)
            seconds[name].append(time.process_time() - begun)
    # The first step of each compiles.
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}


def main() -> None:
    """Measure, print a table and the JSON line; exit with 1 if the bar is missed."""
    seconds = measure()
    for name, value in seconds.items():
        print(f"  {name:<20}{value:8.3f} CPU s a step {value / seconds['float']:6.2f} x float")
    worst = max(seconds[name] for name in WIDTHS)
    ratio = worst / seconds["float"]
    outcome.finish(
        "training_step",
        ours=worst,
        theirs=seconds["float"],
        unit="CPU seconds per step of 64 windows",
        missed={f"{ratio:.2f} x the float step, more than {LARGEST_RATIO}": ratio > LARGEST_RATIO},
    )


if __name__ == "__main__":
    main()
