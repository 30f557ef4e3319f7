"""From a folded net to integers: calibration, schemes, conversion."""

import json

import numpy as np
import pytest

from qbee.errors import ModelFileError, ParameterError
from qbee.keras import keras, make_repeatable, qkeras, tf
from qbee.quantize import calibrate, convert, custom_objects, fixed_net, fold, ops
from qbee.quantize.fixed_point import SIGMOID_MAP, MapType
from qbee.quantize.layers import QuantizedLayer, QuantizedOp
from qbee.quantize.scheme import LayerBits, Scheme, uniform

L = keras.layers
NAMES = ["stem", "dw", "pw", "gated", "sum", "head"]


def gated_model(head="softmax", seed=0):
    """Every kind of node: convolutions, a gate, a sum, pools and a dense layer."""
    make_repeatable(seed)
    same = {"padding": "same", "kernel_initializer": "he_normal"}
    x = inputs = keras.Input((12, 10, 1))
    x = L.Conv2D(6, 3, 2, name="stem", bias_initializer="normal", **same)(x)
    x = L.ReLU()(L.BatchNormalization(scale=False)(x))
    x = L.DepthwiseConv2D(3, use_bias=False, name="dw", padding="same")(L.Dropout(0.5)(x))
    x = L.ReLU(6.0)(L.MaxPooling2D(2)(L.BatchNormalization(center=False)(x)))
    gate = L.Conv2D(6, 1, name="pw", activation="sigmoid", **same)(x)
    y = L.Multiply(name="gated")([x, gate])
    x = L.Flatten()(L.AveragePooling2D(2, 1)(L.Add(name="sum")([x, y])))
    model = keras.Model(inputs, L.Dense(3, name="head", activation=head)(x), name="gated")
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def images(n=6, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (n, 12, 10, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return gated_model()


@pytest.fixture(scope="module")
def net(model):
    return fold.fold(model)


@pytest.fixture(scope="module")
def maps(net):
    return calibrate.calibrate(net, images(), seed=0)


def float_logits(net, x):
    return ops.run(net, tf.constant(x))[net.nodes[-1].name].numpy()


def quantized_layers(model):
    return [layer for layer in model.layers if isinstance(layer, QuantizedOp)]


def test_calibration_is_the_same_for_the_same_seed(net, maps):
    assert calibrate.calibrate(net, images(), seed=0) == maps
    assert list(maps) == ["input", *NAMES]
    assert {tuple(by_width) for by_width in maps.values()} == {(4, 8, 16)}
    assert all(number.bits == bits for m in maps.values() for bits, number in m.items())


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "aciq_gauss", "octav", "kl"])
def test_steps_grow_with_the_image_by_every_method(net, method, alpha):
    one, four = (
        calibrate.calibrate(net, images() * gain, seed=0, method=method, alpha=alpha)["input"]
        for gain in (1, 4)
    )
    for bits in (4, 8, 16):
        assert four[bits].step == pytest.approx(4 * one[bits].step, rel=1e-6)


def test_maps_are_signed_where_they_can_be_negative(net, maps):
    signed = {name for name, by_width in maps.items() if by_width[8].is_signed}
    assert signed == {"input", "pw", "head"}
    positive = calibrate.calibrate(net, np.abs(images()), seed=0)
    assert not positive["input"][8].is_signed
    assert {name for name in maps if positive[name][8].is_signed} == {"pw", "head"}


def test_signs_pass_through_nodes_without_arithmetic_and_end_at_sigmoids_and_relus():
    inputs = keras.Input((4, 4, 2))
    x = L.MaxPooling2D(2, 1, name="pooled")(L.Conv2D(2, 1, name="conv")(inputs))
    gate = L.Activation("sigmoid", name="gate")(x)
    x = L.Multiply(name="product")([gate, x])
    squared = L.Multiply(name="gates")([gate, gate])
    x = L.GlobalAveragePooling2D(name="mean")(L.Add(name="both")([x, squared]))
    found = calibrate.signs(fold.fold(keras.Model(inputs, L.ReLU()(x))), input_is_signed=False)
    assert found == {
        "input": False, "conv": True, "pooled": True, "gate": False, "product": True,
        "gates": False, "both": True, "mean": False,
    }  # fmt: skip


def test_affine_maps_are_those_that_can_be_negative_and_have_8_bits_or_less(net):
    found = calibrate.calibrate(net, images() + 0.7, seed=0, alpha="auto", is_affine=True)
    assert -8 < found["input"][4].lowest < 0
    assert -128 < found["input"][8].lowest < 0
    assert found["input"][16].lowest == -32768
    assert found["stem"][8].lowest == 0


def test_calibration_samples_keep_the_lowest_and_the_highest_value_of_every_map():
    values = np.zeros((2, 300, 300, 1), np.float32)
    values[0, 17, 5], values[1, 3, 3] = -9, 4
    kept = calibrate._sample(values, np.random.default_rng(0))
    assert (kept.size, kept.min(), kept.max()) == (calibrate.SAMPLES_PER_BATCH, -9, 4)


def test_maps_are_observed_batch_by_batch(net):
    seen = calibrate.observe(net, images(70), seed=0)
    assert [len(batches) for batches in seen.values()] == [3] * (1 + len(NAMES))
    np.testing.assert_array_equal(seen["input"][1], images(70)[32:64].ravel())
    logits = float_logits(net, images(70))
    # The size of a batch changes the order of float32 sums: 1e-5 of the largest logit.
    atol = 1e-5 * np.abs(logits).max()
    np.testing.assert_allclose(np.concatenate(seen["head"]), logits.ravel(), rtol=0, atol=atol)


def test_nothing_to_calibrate_with_is_an_error(net):
    with pytest.raises(ParameterError, match="at least one input"):
        calibrate.calibrate(net, images(0), seed=0)


def test_nodes_without_arithmetic_keep_the_format_of_their_input(net, maps):
    widths = dict.fromkeys(NAMES, 8) | {"input": 8, "sum": 4}
    found = calibrate.formats(net, maps, widths)
    assert list(found) == ["input", *(node.name for node in net.nodes)]
    for node in net.nodes:
        if node.op == "sigmoid":
            assert found[node.name] == SIGMOID_MAP
        elif not node.has_own_map:
            assert found[node.name] == found[node.inputs[0]] == maps["sum"][4]
        else:
            assert found[node.name] == maps[node.name][widths[node.name]]


@pytest.mark.parametrize(
    "how", [{}, {"alpha": "auto"}, {"alpha": "auto", "is_affine": True}], ids=str
)
def test_the_quantized_model_stays_close_to_the_float_model(net, how):
    x = images(40)
    expected, maps = float_logits(net, x), calibrate.calibrate(net, x, seed=0, **how)
    kernels = {"alpha": how.get("alpha", "auto_po2")}
    errors = []
    for bits in (4, 8, 16):
        scheme = uniform(net, bits=bits, map_bits=min(bits, 8))
        quantized = convert.logits_model(convert.quantized_model(net, scheme, maps, **kernels))
        error = quantized(x, training=False).numpy() - expected
        errors.append(np.sqrt(np.mean(error**2)) / np.std(expected))
    # Maps of 8 bits alone cost three per cent here, measured.
    assert errors[0] > 4 * errors[1]
    assert errors[1] > 0.9 * errors[2]
    assert errors[2] < 0.04


def test_wide_maps_are_closer_still(net, maps):
    x, errors = images(40), []
    expected = float_logits(net, x)
    for map_bits in (8, 16):
        layers = uniform(net, bits=16, map_bits=map_bits).layers
        layers = layers | {"pw": LayerBits(kernel=16, bias=31, map=8)}
        quantized = convert.quantized_model(net, Scheme(layers=layers), maps)
        found = convert.logits_model(quantized)(x, training=False).numpy()
        errors.append(np.sqrt(np.mean((found - expected) ** 2)))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("head", ["softmax", "sigmoid", None])
def test_the_head_of_the_float_model_follows_the_logits(head):
    original = gated_model(head)
    net = fold.fold(original)
    maps = calibrate.calibrate(net, images(), seed=0)
    quantized = convert.quantized_model(net, uniform(net, bits=8), maps)
    logits = convert.logits_model(quantized)
    assert (logits is quantized) == (head is None)
    values = logits(images(), training=False)
    codes = values.numpy() / convert.to_fixed_point(logits).output_map.step
    np.testing.assert_array_equal(codes, np.rint(codes))
    function = {"softmax": tf.nn.softmax, "sigmoid": tf.nn.sigmoid, None: tf.identity}[head]
    found = quantized(images(), training=False).numpy()
    np.testing.assert_array_equal(found, function(values).numpy())
    # Measured: .013 for softmax and sigmoid; the logits span 4.
    assert np.abs(found - original(images(), training=False).numpy()).max() < 0.1


def test_training_mode_computes_the_same_values_up_to_ties(net, maps):
    x = images()
    quantized = convert.logits_model(convert.quantized_model(net, uniform(net, bits=8), maps))
    found, expected = (quantized(x, training=mode).numpy() for mode in (True, False))
    # Each of the eight layers may be off by a code where float32 moved a tie.
    assert np.abs(found - expected).max() <= 2 * convert.to_fixed_point(quantized).output_map.step
    assert np.mean(found == expected) > 0.5


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
def test_every_weight_of_the_quantized_model_gets_a_gradient(net, maps, alpha):
    quantized = convert.quantized_model(net, uniform(net, bits=4), maps, alpha=alpha)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(images(), training=True) ** 2)
    assert len(quantized.trainable_weights) == 2 * len(net.weighted)
    for slope in tape.gradient(loss, quantized.trainable_weights):
        assert np.any(slope.numpy() != 0)
        assert np.all(np.isfinite(slope.numpy()))


@pytest.mark.parametrize("activation", ["linear", "relu", "relu6"])
def test_gradients_stop_where_an_output_saturates(activation):
    inputs = keras.Input((1, 1, 1))
    y = L.Conv2D(1, 1, name="one", kernel_initializer="ones")(inputs)
    y = y if activation == "linear" else L.Activation(activation)(y)
    net = fold.fold(keras.Model(inputs, L.Flatten()(y)))
    number = MapType(8, -128 if activation == "linear" else 0, 2.0**-4)
    maps = {"input": {8: MapType(8, -128, 2.0**-2)}, "one": {8: number}}
    quantized = convert.quantized_model(net, uniform(net, bits=8), maps)
    x = tf.constant([-9.0, -7.5, -0.25, 0.25, 5.75, 6.25, 7.5, 20.0])[:, None, None, None]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantized(x, training=True)
    slopes = tape.gradient(y, x).numpy().ravel()
    expected = {
        "linear": [0, 1, 1, 1, 1, 1, 1, 0],
        "relu": [0, 0, 0, 1, 1, 1, 1, 0],
        "relu6": [0, 0, 0, 1, 1, 0, 0, 0],
    }[activation]
    # The kernel's step is a power of two: it is 1 exactly, up to 127 codes' reach.
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=0)


def mixed_scheme(net):
    """Every width of kernels and maps somewhere."""
    widths = {"stem": (4, 16, 16), "dw": (16, 31, 4), "pw": (8, 31, 8), "head": (16, 16, 8)}
    layers = {n: LayerBits(kernel=k, bias=b, map=m) for n, (k, b, m) in widths.items()}
    layers |= {"gated": LayerBits(map=16), "sum": LayerBits(map=16)}
    return Scheme(layers={name: layers[name] for name in net.maps})


@pytest.mark.parametrize("how", [{}, {"alpha": "auto", "is_per_tensor": True}], ids=str)
def test_quantized_layers_are_rebuilt_from_their_configuration(net, maps, how):
    original = convert.quantized_model(net, mixed_scheme(net), maps, **how)
    values = {"input": original.get_layer("input")(images())}
    for layer in quantized_layers(original):
        again = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
        assert again.get_config() == layer.get_config()
        inputs = [values[name] for name in layer.node.inputs]
        inputs = inputs if len(inputs) > 1 else inputs[0]
        again(inputs, training=False)
        again.set_weights(layer.get_weights())
        values[layer.name] = layer(inputs, training=False)
        np.testing.assert_array_equal(again(inputs, training=False), values[layer.name])


def test_a_quantized_model_is_equal_after_the_trip_through_a_file(net, maps, tmp_path):
    original = convert.quantized_model(net, mixed_scheme(net), maps)
    original.save(tmp_path / "net.keras")
    known = custom_objects() | {"QActivation": qkeras.QActivation}
    with keras.utils.custom_object_scope(known):
        again = keras.models.load_model(tmp_path / "net.keras", compile=False)
    for mode in (False, True):
        found, expected = (m(images(), training=mode).numpy() for m in (again, original))
        np.testing.assert_array_equal(found, expected)
    one, other = (fixed_net.predict(convert.to_fixed_point(m), images()) for m in (again, original))
    np.testing.assert_array_equal(one, other)


def test_integers_are_the_layers_weights_in_steps(net, maps):
    quantized = convert.quantized_model(net, mixed_scheme(net), maps)
    found = convert.to_fixed_point(quantized)
    assert (found.name, found.input_shape, found.input_map) == (
        "gated", (12, 10, 1), maps["input"][8]
    )  # fmt: skip
    assert [item.node for item in found.nodes] == list(net.nodes)
    for item in found.nodes:
        assert (item.weights is not None) == item.node.is_weighted
        if item.weights is None:
            continue
        kernel, steps, bias = (v.numpy() for v in quantized.get_layer(item.name).quantized())
        shape = (-1, 1) if item.node.op == "depthwise" else (-1,)
        values = item.weights.kernel * item.weights.steps.reshape(shape)
        np.testing.assert_array_equal(values.astype(np.float32), kernel)
        np.testing.assert_array_equal(item.weights.steps, steps)
        grid = item.sources[0].step * steps.astype(np.float64)
        np.testing.assert_array_equal((item.weights.bias * grid).astype(np.float32), bias)
        assert item.weights.bits == mixed_scheme(net).layers[item.name].kernel


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
def test_a_kernel_has_one_step_per_channel_or_one_in_all(net, maps, alpha):
    for is_per_tensor in (False, True):
        quantized = convert.quantized_model(
            net, uniform(net, bits=8), maps, alpha=alpha, is_per_tensor=is_per_tensor
        )
        for item in convert.to_fixed_point(quantized).nodes:
            if item.weights is not None:
                steps = item.weights.steps
                assert steps.shape == item.weights.bias.shape
                is_po2 = np.all(np.frexp(steps)[0] == 0.5)
                assert is_po2 == (alpha == "auto_po2")
                if alpha == "auto":
                    assert (len(np.unique(steps)) == 1) == is_per_tensor


def test_a_wide_map_before_a_sigmoid_is_refused_with_both_names(net, maps):
    layers = uniform(net, bits=8).layers | {"pw": LayerBits(kernel=8, bias=31, map=16)}
    with pytest.raises(ParameterError, match="'pw' must have a map of at most 8 bits.*sigmoid 'pw"):
        convert.quantized_model(net, Scheme(layers=layers), maps)


def test_a_sum_too_fine_for_its_inputs_is_refused_because_the_device_would_stop(net, maps):
    layers = uniform(net, bits=8, map_bits=4).layers | {"sum": LayerBits(map=16)}
    scheme, inputs = Scheme(layers=layers), [maps[name][4].step for name in ("dw", "gated")]
    # Measured on TFLite Micro: from this step on it ends the program.
    too_fine = 2 * max(inputs) / 2**15
    for step, is_refused in ((too_fine, True), (2 * too_fine, False)):
        tight = maps | {"sum": {16: MapType(16, 0, step)}}
        if not is_refused:
            convert.quantized_model(net, scheme, tight)
            continue
        with pytest.raises(ParameterError, match="layer 'sum' must have a map of fewer bits"):
            convert.quantized_model(net, scheme, tight)


def test_a_scheme_is_equal_after_the_trip_through_json(net, tmp_path):
    scheme = uniform(net, bits=4)
    scheme.save(tmp_path / "s.json")
    assert Scheme.load(tmp_path / "s.json") == scheme
    assert list(Scheme.load(tmp_path / "s.json").layers) == NAMES


def test_a_uniform_scheme_has_one_width_for_kernels_and_one_for_maps(net):
    scheme = uniform(net, bits=4)
    assert [b.map for b in scheme.layers.values()] == [4, 4, 4, 4, 4, 8]
    assert [b.kernel for b in scheme.layers.values()] == [4, 4, 4, None, None, 4]
    assert [b.bias for b in scheme.layers.values()] == [31, 31, 31, None, None, 31]
    wide = uniform(net, bits=16, map_bits=8)
    assert {b.kernel for b in wide.layers.values()} == {16, None}
    assert {b.map for b in wide.layers.values()} == {8}
    assert scheme.check(net) is scheme


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"layers": {}}', "layers must name at least one layer"),
        ('{"layers": {"a": {"kernel": 8, "bias": 31, "map": 4}}}', "layers.a.map=4 must be 8"),
        ('{"layers": {"a": {"kernel": 5, "bias": 31, "map": 8}}}', "layers.a.kernel: .*4, 8 or 16"),
        ('{"layers": {"a": {"kernel": 8, "bias": 8, "map": 8}}}', "layers.a.bias: .*16 or 31"),
        ('{"layers": {"a": {"kernel": 8, "map": 8}}}', "layers.a: .*kernel and bias must both"),
        ('{"layers": {"a": {"bias": 31, "map": 8}}}', "layers.a: .*kernel and bias must both"),
        ('{"layers": {"a": {"kernel": 8, "bias": 31}}}', "layers.a.map: Field required"),
        ('{"layers": {"a": {"kernel": 8, "bias": 31, "map": 8}}, "input_bits": 4}', "input_bits"),
    ],
)
def test_a_wrong_scheme_is_refused_with_file_and_field(tmp_path, text, named):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ModelFileError, match=rf"s\.json: .*{named}"):
        Scheme.load(tmp_path / "s.json")


@pytest.mark.parametrize(
    "names", [["stem", "head"], [*NAMES[::-1]], [*NAMES, "more"], [*NAMES[:3], *NAMES[4:]]]
)
def test_a_scheme_of_other_layers_is_refused(net, maps, names):
    whole = uniform(net, bits=8).layers | {"more": LayerBits(kernel=8, bias=31, map=8)}
    scheme = Scheme(layers={name: whole[name] for name in names})
    with pytest.raises(ParameterError, match=r"the network has \['stem', 'dw', 'pw', 'gated'"):
        convert.quantized_model(net, scheme, maps)


def test_a_scheme_gives_kernel_bits_to_the_layers_that_have_a_kernel_and_to_no_other(net, maps):
    layers = uniform(net, bits=8).layers
    without = Scheme(layers=layers | {"dw": LayerBits(map=8)})
    with pytest.raises(ParameterError, match="layers.dw.kernel=None: the layer has a kernel"):
        convert.quantized_model(net, without, maps)
    idle = Scheme(layers=layers | {"sum": LayerBits(kernel=8, bias=16, map=8)})
    with pytest.raises(ParameterError, match="layers.sum.kernel=8: the layer has no kernel"):
        convert.quantized_model(net, idle, maps)


def test_every_weighted_node_becomes_a_layer_that_can_be_trained(net, maps):
    quantized = convert.quantized_model(net, uniform(net, bits=8), maps)
    layers = quantized_layers(quantized)
    assert [layer.node for layer in layers] == list(net.nodes)
    trained = [layer for layer in layers if isinstance(layer, QuantizedLayer)]
    assert [layer.name for layer in trained] == net.weighted
    for layer in trained:
        for weight, value in (("kernel", net.kernels), ("bias", net.biases)):
            np.testing.assert_array_equal(getattr(layer, weight), value[layer.name])
