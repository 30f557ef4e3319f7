"""THE twin test: Keras at inference == numpy integers == the .tflite on TFLite Micro."""

import copy

import numpy as np
import pytest

import qbee.models.beenet  # noqa: F401 - registers the models
from qbee.errors import ParameterError
from qbee.export import tflite
from qbee.export.interpreter import MicroModel
from qbee.keras import keras, make_repeatable
from qbee.models import registry
from qbee.quantize import calibrate, convert, fixed_point, fold
from qbee.quantize.layers import QuantizedLayer
from qbee.quantize.scheme import LayerBits, Scheme, uniform

layers = keras.layers


def convolution(filters, size, *, stride=1, name):
    return [
        layers.Conv2D(filters, size, stride, "same", use_bias=False, name=name),
        layers.BatchNormalization(),
        layers.ReLU(),
    ]


def depthwise(*, stride=1, name):
    return [
        layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=name),
        layers.BatchNormalization(),
        layers.ReLU(),
    ]


def head():
    return [layers.Flatten(), layers.Dense(3, name="head")]


def separable_net():
    """The constructs of the BeeNets, with odd sizes and an incomplete pool."""
    return [
        *convolution(6, 3, name="stem"),
        layers.MaxPooling2D(2),
        *depthwise(name="dw"),
        *convolution(8, 1, name="pw"),
        layers.MaxPooling2D(3),
        *head(),
    ]


def strided_net():
    return [
        *convolution(6, 3, stride=2, name="stem"),
        *depthwise(stride=2, name="dw"),
        *convolution(8, 1, name="pw"),
        *head(),
    ]


def signed_net():
    """Layers without ReLU, whose maps are signed, and a pool before the ReLU."""
    return [
        layers.Conv2D(6, 3, 1, "same", name="stem"),
        layers.MaxPooling2D(2),
        layers.DepthwiseConv2D(3, 1, "same", name="dw"),
        layers.Conv2D(8, 1, 1, "same", name="pw"),
        layers.MaxPooling2D(2),
        layers.ReLU(),
        *head(),
    ]


SHAPES = {separable_net: (16, 15, 1), strided_net: (16, 13, 2), signed_net: (16, 16, 1)}


def with_random_weights(model, seed):
    """Random batch norms and biases, so that no channel is like another."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.5, layer.bias.shape))
    return model


class Case:
    """A folded float net, its calibration, and inputs of which one saturates the input map."""

    def __init__(self, model, *, windows, seed=0):
        rng = np.random.default_rng(seed + 1)
        x = rng.normal(0, 1, (windows, *model.input_shape[1:])).astype(np.float32)
        self.net = fold.fold(with_random_weights(model, seed))
        self.exponents = calibrate.exponents(self.net, x, seed=0)
        self.inputs = x.copy()
        self.inputs[-1] *= 40

    @property
    def names(self):
        return self.net.layer_names

    def quantized(self, scheme):
        model = convert.quantized_model(self.net, scheme, self.exponents)
        return model, convert.to_fixed_point(model)


@pytest.fixture(scope="module")
def cases():
    make_repeatable(11)
    built = {}
    for make, shape in SHAPES.items():
        x = inputs = keras.Input(shape)
        for layer in make():
            x = layer(x)
        built[make] = Case(keras.Model(inputs, x, name=make.__name__), windows=4)
    return built


def random_scheme(names, seed, **fixed):
    """Random widths; ``fixed`` replaces some of every layer. The output has 8 bits."""
    rng = np.random.default_rng(seed)
    widths = {}
    for name in names:
        kernel, map_ = (int(bits) for bits in rng.choice([4, 8, 16], 2))
        bias = int(rng.choice([16, 31]))
        widths[name] = {"kernel": kernel, "bias": bias, "map": map_} | fixed
    widths[names[-1]]["map"] = 8
    return Scheme(layers={name: LayerBits(**bits) for name, bits in widths.items()})


def assert_the_three_are_equal(case, scheme):
    model, integers = case.quantized(scheme)
    every = keras.Model(
        model.inputs, [a.output for a in model.layers if isinstance(a, QuantizedLayer)]
    )
    codes = fixed_point.forward(integers, fixed_point.quantize(case.inputs, integers.input_map))
    outputs = every(case.inputs, training=False)
    for layer, expected, output in zip(integers.layers, codes, outputs, strict=True):
        found = output.numpy().astype(np.float64) / 2.0**layer.target.exponent
        np.testing.assert_array_equal(found, expected, err_msg=f"Keras, {layer.name}")
        # A map of one value would make the comparison empty.
        assert len(np.unique(expected)) > 2, layer.name
    on_device = MicroModel(tflite.write(integers)).predict(case.inputs)
    expected = fixed_point.dequantize(codes[-1], integers.output_map)
    np.testing.assert_array_equal(on_device, expected, err_msg="TFLite Micro")
    return codes


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_uniform_widths_are_equal_in_all_three(cases, bits):
    case = cases[separable_net]
    assert_the_three_are_equal(case, uniform(case.names, bits=bits))


@pytest.mark.parametrize("seed", range(25))
def test_random_widths_are_equal_in_all_three(cases, seed):
    case = cases[separable_net]
    assert_the_three_are_equal(case, random_scheme(case.names, seed))


@pytest.mark.parametrize("map_bits", [4, 8, 16])
@pytest.mark.parametrize("kernel_bits", [4, 8])
def test_strides_of_two_are_equal_in_all_three(cases, kernel_bits, map_bits):
    case = cases[strided_net]
    scheme = random_scheme(case.names, kernel_bits + map_bits, kernel=kernel_bits, map=map_bits)
    assert_the_three_are_equal(case, scheme)


def test_a_strided_depthwise_layer_with_16_bit_maps_and_kernel_is_equal_in_all_three(cases):
    case = cases[strided_net]
    assert_the_three_are_equal(case, uniform(case.names, bits=16))


def test_a_strided_depthwise_layer_with_a_16_bit_kernel_on_an_8_bit_map_is_refused(cases):
    _, integers = cases[strided_net].quantized(
        random_scheme(cases[strided_net].names, 0, kernel=16, map=8)
    )
    with pytest.raises(ParameterError, match="'dw': a 16-bit depthwise kernel needs stride 1"):
        tflite.write(integers)


@pytest.mark.parametrize("map_bits", [8, 16])
@pytest.mark.parametrize("kernel_bits", [4, 8, 16])
def test_signed_maps_are_equal_in_all_three(cases, kernel_bits, map_bits):
    case = cases[signed_net]
    scheme = random_scheme(case.names, map_bits, kernel=kernel_bits, map=map_bits)
    codes = assert_the_three_are_equal(case, scheme)
    assert codes[0].min() < 0 < codes[0].max()


@pytest.mark.parametrize(
    ("make", "bits"),
    [
        (separable_net, 4),
        (separable_net, 8),
        (separable_net, 16),
        (signed_net, 8),
        (signed_net, 16),
    ],
)
def test_maps_calibrated_too_small_saturate_alike(cases, make, bits):
    tight = copy.copy(cases[make])
    tight.exponents = {
        name: {width: e - 1 for width, e in by_width.items()}
        for name, by_width in tight.exponents.items()
    }
    codes = assert_the_three_are_equal(tight, uniform(tight.names, bits=bits))
    for output, layer in zip(codes[:-1], tight.net.layers, strict=False):
        lowest, highest = fixed_point.MapType(bits, not layer.has_relu, 0).codes
        assert output.max() == highest
        assert output.min() == lowest or not layer.has_relu


@pytest.mark.parametrize("gain", [1e-3, 1e-6, 1e-12, 1e-36])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_channels_that_a_batch_norm_all_but_switched_off_are_equal_in_all_three(gain, bits):
    make_repeatable(4)
    x = inputs = keras.Input((16, 16, 1))
    for layer in [*convolution(6, 3, name="stem"), *depthwise(name="dw"), *head()]:
        x = layer(x)
    case = Case(keras.Model(inputs, x), windows=2)
    weak = [
        fold.replace(layer, kernel=layer.kernel * np.where(np.arange(6) % 2, gain, 1).astype("f4"))
        if layer.kind == "conv"
        else layer
        for layer in case.net.layers
    ]
    case.net = fold.replace(case.net, layers=tuple(weak))
    assert_the_three_are_equal(case, uniform(case.names, bits=bits))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_beenet3_is_equal_in_all_three(bits):
    make_repeatable(bits)
    case = Case(registry.build("beenet3"), windows=2)
    assert_the_three_are_equal(case, uniform(case.names, bits=bits))
