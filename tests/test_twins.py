"""THE twin test: Keras at inference == numpy integers == the .tflite on TFLite Micro."""

import dataclasses

import numpy as np
import pytest
from twin_nets import (
    GRAPHS,
    NETS,
    Case,
    autoencoder,
    built,
    convolved,
    depthwise,
    logits,
    mobilenet,
    padded,
    random_scheme,
    read_by_a_sigmoid,
    resnet,
    separable,
    signed,
    squeeze_excite,
    strided,
)

import qbee.models  # noqa: F401 - registers the models
from qbee.errors import ParameterError
from qbee.export.delivery import ExportSettings, deliver
from qbee.keras import keras, make_repeatable, tf
from qbee.models import registry
from qbee.quantize import fixed_net, fixed_point
from qbee.quantize.layers import QuantizedLayer, QuantizedOp
from qbee.quantize.scheme import Scheme, uniform
from qbee.runtime.interpreter import MicroModel
from qbee.verify import compare_layers


@pytest.fixture(scope="module")
def cases():
    make_repeatable(11)
    return {make: built(make) for make in NETS}


def keras_maps(model, inputs):
    """Inference output of every quantized layer, float32, by name, and of the input."""
    layers = [layer for layer in model.layers if isinstance(layer, QuantizedOp)]
    outputs = [model.get_layer("input").output, *(layer.output for layer in layers)]
    values = keras.Model(model.inputs, outputs)(inputs, training=False)
    names = ["input", *(layer.name for layer in layers)]
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def has_power_of_two_steps(layer):
    steps = [layer.source.step, layer.target.step, *layer.quantized()[1].numpy()]
    return bool(np.all(np.frexp(steps)[0] == 0.5))


def assert_training_is_close(model, values, codes):
    """In training, no layer alone is more than a code away from what it infers.

    Operations without weights are rounded once where the device rounds up to three times, and
    float32 sums on free steps are a little off their grid, which moves ties. Split layers round
    twice, and next to the end of their range their high part can saturate alone: it differs from
    the whole by 256ths of the sum of magnitudes, which is less than 16 times the range.
    """
    for layer in model.layers:
        if not isinstance(layer, QuantizedOp):
            continue
        inputs = [tf.constant(values[name]) for name in layer.node.inputs]
        trained = layer(inputs if len(inputs) > 1 else inputs[0], training=True).numpy()
        expected, allowed = codes[layer.name], 1
        distance = np.abs(trained.astype(np.float64) / layer.target.step - expected)
        if isinstance(layer, QuantizedLayer) and layer.arithmetic == "int64_split":
            lowest, highest = layer.limits
            margin = (highest - lowest) / 16
            inside = (expected > lowest + margin) & (expected < highest - margin)
            distance, allowed = distance[inside | (expected == 0)], 2
        elif isinstance(layer, QuantizedLayer) and has_power_of_two_steps(layer):
            # Such sums are exact up to 2^24 accumulator codes, of which few maps have more.
            assert np.mean(distance > 0.5) < 0.01, layer.name
        # Values of up to 2^15 codes have relative errors of 2^-24, also on grids of free steps.
        assert np.max(distance, initial=0) <= allowed + 2.0**-8, layer.name


def assert_all_maps_agree(model, integers, inputs):
    """All maps in Keras and on TFLite Micro, and the output as real numbers."""
    delivery = deliver(integers, ExportSettings())
    for found in compare_layers(delivery, model, inputs):
        assert found.keras_mismatches == 0, f"Keras, {found.layer}"
        assert found.tflm_mismatches == 0, f"TFLite Micro, {found.layer}"
    on_device = MicroModel(delivery.exported.content).predict(inputs)
    np.testing.assert_array_equal(on_device, fixed_net.predict(integers, inputs))


def assert_the_three_are_equal(case, scheme, **how):
    """Compare all maps in Keras, numpy and on the device; numpy's codes by node."""
    return assert_model_is_equal(case, *case.quantized(scheme, **how))


def assert_model_is_equal(case, model, integers):
    codes = fixed_net.forward(integers, fixed_point.quantize(case.inputs, integers.input_map))
    values = keras_maps(model, case.inputs)
    for item in integers.nodes:
        # A map of one value would make the comparison empty.
        assert len(np.unique(codes[item.name])) > 2, item.name
    assert_all_maps_agree(model, integers, case.inputs)
    assert_training_is_close(model, values, codes)
    return codes


@pytest.mark.parametrize("bits", [4, 16])
def test_uniform_widths_are_equal_in_all_three(cases, bits):
    case = cases[separable]
    assert_the_three_are_equal(case, uniform(case.net, bits=bits))


@pytest.mark.parametrize("seed", range(4))
def test_random_widths_are_equal_in_all_three(cases, seed):
    case = cases[separable]
    assert_the_three_are_equal(case, random_scheme(case.net, seed))


@pytest.mark.parametrize("make", GRAPHS)
@pytest.mark.parametrize("seed", range(2))
def test_random_widths_of_graphs_are_equal_in_all_three(cases, make, seed):
    case = cases[make]
    assert_the_three_are_equal(case, random_scheme(case.net, seed))


@pytest.mark.parametrize("make", [autoencoder, padded])
@pytest.mark.parametrize("seed", range(2))
def test_dense_nets_and_explicit_padding_are_equal_in_all_three(cases, make, seed):
    case = cases[make]
    assert_the_three_are_equal(case, random_scheme(case.net, seed))


AFFINE = {"alpha": "auto", "map_alpha": "auto", "is_affine": True, "is_per_tensor": True}
FREE = {
    "free steps": {"alpha": "auto", "map_alpha": "auto"},
    "affine maps, one step per kernel": AFFINE,
}


@pytest.mark.parametrize("how", FREE.values(), ids=FREE)
@pytest.mark.parametrize("make", [*GRAPHS, autoencoder])
def test_free_steps_and_affine_maps_are_equal_in_all_three(cases, make, how):
    case = cases[make]
    assert_the_three_are_equal(case, random_scheme(case.net, len(how)), **how)


@pytest.mark.parametrize("make", [signed, padded])
def test_affine_maps_use_codes_that_symmetric_ones_do_not_have(cases, make):
    how = {"map_alpha": "auto", "is_affine": True}
    codes = assert_the_three_are_equal(cases[make], uniform(cases[make].net, bits=8), **how)
    assert max(found.max() for found in codes.values()) > 127
    assert min(found.min() for found in codes.values()) < 0


@pytest.mark.parametrize(("kernel_bits", "map_bits"), [(4, 16), (16, 4), (16, 8), (16, 16)])
def test_strides_of_two_are_equal_in_all_three(cases, kernel_bits, map_bits):
    """Among them, 16-bit depthwise kernels on 8-bit maps: columns side by side, and strided."""
    case = cases[strided]
    scheme = random_scheme(case.net, kernel_bits + map_bits, kernel=kernel_bits, map=map_bits)
    assert_the_three_are_equal(case, scheme)


@pytest.mark.parametrize("make", [mobilenet, padded])
@pytest.mark.parametrize(("map_bits", "how"), [(4, {}), (8, AFFINE)], ids=["po2", "free"])
def test_wide_kernels_on_narrow_padded_maps_are_equal_in_all_three(cases, make, map_bits, how):
    case = cases[make]
    assert_the_three_are_equal(case, uniform(case.net, bits=16, map_bits=map_bits), **how)


@pytest.mark.parametrize(("kernel_bits", "map_bits"), [(4, 8), (16, 8), (16, 16)])
def test_signed_maps_are_equal_in_all_three(cases, kernel_bits, map_bits):
    case = cases[signed]
    scheme = random_scheme(case.net, map_bits, kernel=kernel_bits, map=map_bits)
    codes = assert_the_three_are_equal(case, scheme)
    assert codes["stem"].min() < 0 < codes["stem"].max()


def halved(maps):
    """Number formats with half the range."""
    return {
        name: {b: dataclasses.replace(m, step=m.step / 2) for b, m in by_width.items()}
        for name, by_width in maps.items()
    }


@pytest.mark.parametrize(
    ("make", "bits"),
    [(separable, 4), (separable, 8), (separable, 16), (signed, 8), (signed, 16), (resnet, 8)],
)
def test_maps_calibrated_too_small_saturate_alike(cases, make, bits):
    case = cases[make]
    maps = halved(case.maps("auto_po2", False))
    scheme = random_scheme(case.net, 3, kernel=bits, map=bits)
    codes = assert_the_three_are_equal(case, scheme, maps=maps)
    for name in case.net.maps[:-1]:
        lowest, highest = maps[name][bits].codes
        assert codes[name].max() == highest or codes[name].min() == lowest < 0, name


@pytest.mark.parametrize("gain", [1e-3, 1e-36])
@pytest.mark.parametrize("bits", [8, 16])
def test_channels_that_a_batch_norm_all_but_switched_off_are_equal_in_all_three(gain, bits):
    make_repeatable(4)
    inputs = keras.Input((16, 16, 1))
    x = depthwise(convolved(inputs, 6, name="stem"), name="dw")
    case = Case(keras.Model(inputs, logits(x)), windows=2)
    weak = np.where(np.arange(6) % 2, gain, 1).astype(np.float32)
    kernels = case.net.kernels | {"stem": case.net.kernels["stem"] * weak}
    case.net = case.net.with_weights(kernels, case.net.biases)
    assert_the_three_are_equal(case, uniform(case.net, bits=bits))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_beenet3_is_equal_in_all_three(bits):
    make_repeatable(bits)
    case = Case(registry.build("beenet3"), windows=2)
    assert_the_three_are_equal(case, uniform(case.net, bits=bits))


@pytest.mark.parametrize("make", [separable, *GRAPHS])
def test_8_bit_nets_are_equal_in_all_three_and_in_training_close_to_that(cases, make):
    case, scheme = cases[make], uniform(cases[make].net, bits=8)
    model, integers = case.quantized(scheme)
    assert_model_is_equal(case, model, integers)
    outputs = [model(case.images, training=mode).numpy() for mode in (True, False)]
    # Every layer may be off by a code where a tie moved; measured: at most one code of the output.
    assert np.abs(outputs[0] - outputs[1]).max() <= 3 * integers.output_map.step


def test_a_compiled_model_infers_the_same(cases):
    case = cases[padded]
    model, integers = case.quantized(random_scheme(case.net, 5), **AFFINE)
    compiled = tf.function(lambda x: model(x, training=False))
    expected = fixed_net.predict(integers, case.inputs)
    np.testing.assert_array_equal(compiled(case.inputs).numpy(), expected)


def test_a_wide_map_that_a_sigmoid_reads_is_refused(cases):
    net = cases[squeeze_excite].net
    (name, *_) = sorted(read_by_a_sigmoid(net))
    scheme = random_scheme(net, 0)
    wide = Scheme(layers=scheme.layers | {name: scheme.layers[name].model_copy(update={"map": 16})})
    with pytest.raises(ParameterError, match=f"'{name}' must have a map of at most 8 bits"):
        cases[squeeze_excite].quantized(wide)
