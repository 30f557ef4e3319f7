"""The proof: numpy == Keras == TFLite Micro, integer for integer, on the same windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from qbee.export import strips
from qbee.export.delivery import Delivery
from qbee.keras import keras
from qbee.quantize import fixed_net, fixed_point
from qbee.quantize.fixed_net import FixedNet
from qbee.quantize.layers import QuantizedOp
from qbee.records import Record
from qbee.runtime.interpreter import MicroModel

BATCH_WINDOWS = 16


class Verification(Record):
    """Windows compared, and windows whose output codes differ anywhere between the three."""

    windows: int
    mismatches: int
    keras_mismatches: int
    tflm_mismatches: int


def compare(
    net: FixedNet,
    keras_model,
    micro: MicroModel,
    inputs: Callable[[int, int], np.ndarray],
    windows: int,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Verification, np.ndarray]:
    """Compare the three implementations; returns also TFLite Micro's logits [windows, 2].

    Parameters
    ----------
    net : FixedNet
        the specification, run by ``fixed_net``.
    keras_model : quantized Keras model, run in inference mode
    micro : the exported file on TFLite Micro
    inputs : callable (start, stop) -> standardised inputs [stop - start, height, width, 1]
    """
    wrong_keras = wrong_tflm = wrong = 0
    logits = []
    for start in range(0, windows, BATCH_WINDOWS):
        stop = min(start + BATCH_WINDOWS, windows)
        x = inputs(start, stop)
        expected = fixed_net.predict(net, x)
        on_device = micro.predict(x)
        axes = tuple(range(1, expected.ndim))
        differs_keras = np.any(keras_model(x, training=False).numpy() != expected, axis=axes)
        differs_tflm = np.any(on_device != expected, axis=axes)
        wrong_keras += int(differs_keras.sum())
        wrong_tflm += int(differs_tflm.sum())
        wrong += int((differs_keras | differs_tflm).sum())
        logits.append(on_device)
        if on_progress is not None:
            on_progress(stop, windows)
    found = Verification(
        windows=windows,
        mismatches=wrong,
        keras_mismatches=wrong_keras,
        tflm_mismatches=wrong_tflm,
    )
    return found, np.concatenate(logits)


class LayerCheck(Record):
    """Values of one layer that differ from the specification; None: not compared."""

    layer: str
    values: int
    keras_mismatches: int | None
    tflm_mismatches: int


def compare_layers(delivery: Delivery, keras_model, inputs: np.ndarray) -> tuple[LayerCheck, ...]:
    """Compare every feature map of a delivered network in all three implementations.

    TFLite Micro is compared with the network as it is laid out in memory, and that with the
    network as it was; strips count with the layer they belong to.

    Parameters
    ----------
    delivery : Delivery
    keras_model : quantized Keras model up to its logits, run in inference mode
    inputs : np.ndarray [shape=(n, *input_shape)], real values
    """
    net, laid_out = delivery.net, delivery.laid_out
    codes = fixed_point.quantize(inputs, net.input_map)
    expected = fixed_net.forward(net, codes)
    in_strips = fixed_net.forward(laid_out, codes)
    found_by_keras = _keras_maps(keras_model, inputs)
    wrong: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for name, on_device in _device_maps(delivery, inputs):
        layer = strips.layer_of(name)
        values[layer] += on_device.size
        wrong[layer] += int(np.sum(on_device != in_strips[name]))
        if name in expected:
            wrong[layer] += int(np.sum(in_strips[name] != expected[name]))
    keras_wrong = {
        item.name: int(
            np.sum(
                found_by_keras[item.name]
                != fixed_point.dequantize(expected[item.name], item.target)
            )
        )
        for item in net.nodes
        if item.name in found_by_keras
    }
    return tuple(
        LayerCheck(
            layer=layer,
            values=values[layer],
            keras_mismatches=keras_wrong.get(layer),
            tflm_mismatches=wrong[layer],
        )
        for layer in values
    )


def _keras_maps(model, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Output of every quantized layer, by name."""
    layers = [layer for layer in model.layers if isinstance(layer, QuantizedOp)]
    values = keras.Model(model.inputs, [layer.output for layer in layers])(inputs, training=False)
    values = values if isinstance(values, list) else [values]
    return {layer.name: v.numpy() for layer, v in zip(layers, values, strict=True)}


def _device_maps(delivery: Delivery, inputs: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Codes of every node of the laid-out network on TFLite Micro, by name."""
    micro = MicroModel(delivery.exported.content, keep_all=True)
    tensors = delivery.exported.tensors
    found: dict[str, list[np.ndarray]] = {item.name: [] for item in delivery.laid_out.nodes}
    for window in inputs:
        micro.predict(window[None])
        for name, maps in found.items():
            maps.append(micro.tensor(tensors[name]))
    for item in delivery.laid_out.nodes:
        zero = delivery.exported.zero_point(item.name)
        stored = np.stack(found[item.name]).astype(np.int64)
        yield item.name, stored.reshape(len(inputs), *item.node.shape) - zero
