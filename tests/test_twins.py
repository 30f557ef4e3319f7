"""THE twin test: Keras at inference == numpy integers == the .tflite on TFLite Micro."""

import dataclasses

import numpy as np
import pytest
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

import qbee.models.beenet  # noqa: F401 - registers the models
from qbee.errors import ParameterError
from qbee.export import tflite
from qbee.export.interpreter import MicroModel
from qbee.keras import keras, make_repeatable, tf
from qbee.models import registry
from qbee.quantize import calibrate, convert, fixed_net, fixed_point, fold
from qbee.quantize.layers import QuantizedLayer, QuantizedOp
from qbee.quantize.scheme import LayerBits, Scheme, uniform

L = keras.layers


def convolved(x, filters, size=3, strides=1, *, activation="relu", padding="same", name=None):
    """Convolution, batch norm and activation."""
    x = L.Conv2D(filters, size, strides, padding, use_bias=False, name=name)(x)
    x = L.BatchNormalization()(x)
    return {"relu": L.ReLU(), "relu6": L.ReLU(6.0), "linear": L.Activation("linear")}[activation](x)


def depthwise(x, strides=1, *, activation="relu", padding="same", name=None):
    x = L.DepthwiseConv2D(3, strides, padding, use_bias=False, name=name)(x)
    x = L.BatchNormalization()(x)
    return L.ReLU(6.0 if activation == "relu6" else None)(x)


def logits(x, outputs=3):
    return L.Dense(outputs, name="head")(L.Flatten()(x))


def separable(x):
    """The constructs of the BeeNets, with odd sizes and an incomplete pool."""
    x = L.MaxPooling2D(2)(convolved(x, 6, name="stem"))
    x = depthwise(x, name="dw")
    return logits(L.MaxPooling2D(3)(convolved(x, 8, 1, name="pw")))


def strided(x):
    x = convolved(x, 6, strides=2, name="stem")
    return logits(convolved(depthwise(x, 2, name="dw"), 8, 1, name="pw"))


def signed(x):
    """Layers without ReLU, whose maps are signed, and a pool before the ReLU."""
    x = L.MaxPooling2D(2)(L.Conv2D(6, 3, 1, "same", name="stem")(x))
    x = L.DepthwiseConv2D(3, 1, "same", name="dw")(x)
    return logits(L.ReLU()(L.MaxPooling2D(2)(L.Conv2D(8, 1, 1, "same", name="pw")(x))))


def mobilenet(x):
    """Inverted residuals with ReLU6, the strided one padded by hand as in Keras' MobileNets."""
    x = convolved(x, 8, strides=2, activation="relu6")
    y = depthwise(convolved(x, 16, 1, activation="relu6"), activation="relu6")
    x = L.Add()([x, convolved(y, 8, 1, activation="linear")])
    y = L.ZeroPadding2D(((0, 1), (1, 1)))(convolved(x, 16, 1, activation="relu6"))
    y = depthwise(y, 2, activation="relu6", padding="valid", name="strided")
    x = L.GlobalAveragePooling2D()(convolved(y, 8, 1, activation="linear"))
    return L.Dense(3, activation="softmax", name="head")(x)


def resnet(x):
    """Residual blocks, one of them with a strided shortcut, and pools that overlap."""
    x = convolved(x, 8)
    x = L.ReLU()(L.Add()([x, convolved(convolved(x, 8), 8, activation="linear")]))
    y = convolved(convolved(x, 12, strides=2), 12, activation="linear")
    shortcut = convolved(x, 12, 1, 2, activation="linear")
    x = L.Activation("relu")(L.Add()([y, shortcut]))
    x = L.MaxPooling2D(2, 1)(L.AveragePooling2D(3, 2, "same")(x))
    return logits(x, 4)


def squeeze_excite(x):
    """Gates of two ranks, batch norm and ReLU after a product, and a sum of three."""
    x = convolved(x, 8)
    gate = L.Dense(4, activation="relu")(L.GlobalAveragePooling2D()(x))
    gate = L.Reshape((1, 1, 8))(L.Dense(8, activation="sigmoid")(gate))
    y = L.BatchNormalization()(L.Multiply()([x, gate]))
    x = L.Add(name="sum")([y, L.ReLU()(y), x])
    gate = L.Dense(8, activation="sigmoid")(L.GlobalAveragePooling2D()(x))
    x = L.MaxPooling2D(3)(L.ReLU(6.0)(L.Multiply()([gate, x])))
    x = L.Flatten()(L.AveragePooling2D((5, 5))(x))
    return L.Dense(3, activation="sigmoid", name="head")(x)


def autoencoder(x):
    """Dense layers only; the codes in the middle and the output are signed."""
    x = L.ReLU()(L.BatchNormalization()(L.Dense(24, use_bias=False)(x)))
    x = L.Dense(24, activation="relu")(L.Dense(4)(x))
    return L.Dense(40, name="head")(x)


def padded(x):
    """Padding that is not TensorFlow's, strides of two lengths, and a mean that is a map again."""
    x = L.Conv2D(6, (3, 2), (1, 2), activation="relu", name="stem")(
        L.ZeroPadding2D(((2, 0), (0, 1)))(x)
    )
    x = L.DepthwiseConv2D(3, 2, name="dw")(L.ZeroPadding2D(((0, 1), (2, 0)))(x))
    x = L.ReLU(6.0)(L.Conv2D(8, 3, (2, 1), "valid", name="pw")(x))
    x = L.AveragePooling2D((2, 3), (1, 2))(x)
    x = L.Reshape((2, 2, 2))(L.GlobalAveragePooling2D()(x))
    return logits(L.Conv2D(4, 2, 1, "same", name="last")(x))


NETS = {
    separable: (16, 15, 1),
    strided: (16, 13, 2),
    signed: (16, 16, 1),
    mobilenet: (16, 15, 3),
    resnet: (16, 15, 3),
    squeeze_excite: (16, 15, 3),
    autoencoder: (40,),
    padded: (12, 17, 2),
}
GRAPHS = (mobilenet, resnet, squeeze_excite)


def with_random_weights(model, seed):
    """Random batch norms and biases, so that no channel is like another."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.5, layer.bias.shape))
    return model


class Case:
    """A folded float net, its calibrations, and inputs of which one saturates the input map."""

    def __init__(self, model, *, windows, seed=0):
        rng = np.random.default_rng(seed + 1)
        x = rng.normal(0, 1, (windows, *model.input_shape[1:])).astype(np.float32)
        self.net = fold.fold(with_random_weights(model, seed))
        self.images, self._maps = x, {}
        self.inputs = x.copy()
        self.inputs[-1] *= 40

    def maps(self, alpha, is_affine):
        if (alpha, is_affine) not in self._maps:
            self._maps[alpha, is_affine] = calibrate.calibrate(
                self.net, self.images, seed=0, alpha=alpha, is_affine=is_affine
            )
        return self._maps[alpha, is_affine]

    def quantized(self, scheme, *, map_alpha="auto_po2", is_affine=False, maps=None, **kernels):
        """Quantized Keras model up to its logits, and its integers."""
        maps = self.maps(map_alpha, is_affine) if maps is None else maps
        model = convert.quantized_model(self.net, scheme, maps, **kernels)
        model = convert.logits_model(model)
        return model, convert.to_fixed_point(model)


@pytest.fixture(scope="module")
def cases():
    make_repeatable(11)
    built = {}
    for make, shape in NETS.items():
        inputs = keras.Input(shape)
        built[make] = Case(keras.Model(inputs, make(inputs), name=make.__name__), windows=4)
    return built


def read_by_a_sigmoid(net):
    """Maps that a sigmoid reads, directly or through nodes that keep their number format."""
    found = set()
    for node in net.nodes:
        source = node.inputs[0]
        while node.op == "sigmoid" and source != "input" and not net.node(source).has_own_map:
            source = net.node(source).inputs[0]
        found |= {source} if node.op == "sigmoid" else set()
    return found


def random_scheme(net, seed, **fixed):
    """Random widths; ``fixed`` replaces some of every layer.

    Input and output have at least 8 bits, and what a sigmoid reads at most 8.
    """
    rng = np.random.default_rng(seed)
    widths = {}
    for name in net.maps:
        kernel, map_ = (int(bits) for bits in rng.choice([4, 8, 16], 2))
        drawn = {"kernel": kernel, "bias": int(rng.choice([16, 31])), "map": map_} | fixed
        if name in read_by_a_sigmoid(net):
            drawn["map"] = min(drawn["map"], 8)
        widths[name] = drawn if name in net.weighted else {"map": drawn["map"]}
    widths[net.maps[-1]]["map"] = max(widths[net.maps[-1]]["map"], 8)
    layers = {name: LayerBits(**bits) for name, bits in widths.items()}
    return Scheme(layers=layers, input_bits=int(rng.choice([8, 16])))


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


def device_maps(content, inputs):
    """Step and codes [n, ...] of the result of every operator on TFLite Micro, in order."""
    graph = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
    tensors = [operator.outputs[0] for operator in graph.operators]
    model = MicroModel(content, keep_all=True)
    found = []
    for window in inputs:
        model.predict(window[None])
        found.append([model.tensor(index).astype(int) for index in tensors])
    numbers = [graph.tensors[index].quantization for index in tensors]
    return [
        (float(number.scale[0]), np.concatenate(maps) - int(number.zeroPoint[0]))
        for number, maps in zip(numbers, zip(*found, strict=True), strict=True)
    ]


def assert_the_device_agrees(integers, inputs, codes):
    """The output, and every map in the order of the nodes."""
    content = tflite.write(integers).content
    on_device = MicroModel(content).predict(inputs)
    expected = fixed_net.predict(integers, inputs)
    np.testing.assert_array_equal(on_device, expected, err_msg="TFLite Micro")
    operators = iter(device_maps(content, inputs))
    for item in integers.nodes:
        expected = codes[item.name]
        # Some nodes need several operators, the last of which has the node's result.
        assert any(
            found.size == expected.size
            and step == item.target.step
            and np.array_equal(found.reshape(expected.shape), expected)
            for step, found in operators
        ), f"TFLite Micro, {item.name}"


def assert_the_three_are_equal(case, scheme, **how):
    """Compare all maps in Keras, numpy and on the device; numpy's codes by node."""
    return assert_model_is_equal(case, *case.quantized(scheme, **how))


def assert_model_is_equal(case, model, integers):
    codes = fixed_net.forward(integers, fixed_point.quantize(case.inputs, integers.input_map))
    values = keras_maps(model, case.inputs)
    for item in integers.nodes:
        expected = fixed_point.dequantize(codes[item.name], item.target)
        np.testing.assert_array_equal(values[item.name], expected, err_msg=f"Keras, {item.name}")
        # A map of one value would make the comparison empty.
        assert len(np.unique(expected)) > 2, item.name
    assert_training_is_close(model, values, codes)
    assert_the_device_agrees(integers, case.inputs, codes)
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
