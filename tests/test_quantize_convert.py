"""From a float Keras model to integers: folding, schemes, conversion."""

import json

import numpy as np
import pytest

import qbee.models.beenet  # noqa: F401 - registers the models
from qbee.errors import ModelFileError, ParameterError
from qbee.keras import keras, make_repeatable, tf
from qbee.models import registry
from qbee.quantize import calibrate, convert, fold
from qbee.quantize.layers import QuantizedLayer
from qbee.quantize.scheme import LayerBits, Scheme, uniform

layers = keras.layers
NAMES = ["stem", "dw", "pw", "head"]


def with_random_statistics(model, seed=0):
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def chain(*middle, shape=(12, 10, 1)):
    x = inputs = keras.Input(shape)
    for layer in middle:
        x = layer(x)
    return keras.Model(inputs, x, name="chain")


def ending():
    return layers.Flatten(), layers.Dense(2, name="head")


def small_model(seed=0):
    make_repeatable(seed)
    same = {"padding": "same", "kernel_initializer": "he_normal"}
    model = chain(
        layers.Conv2D(6, 3, strides=2, name="stem", bias_initializer="normal", **same),
        layers.BatchNormalization(scale=False),
        layers.ReLU(),
        layers.Dropout(0.5),
        layers.DepthwiseConv2D(3, strides=2, use_bias=False, name="dw", padding="same"),
        layers.BatchNormalization(center=False),
        layers.Conv2D(8, 1, name="pw", **same),
        layers.MaxPooling2D(2),
        layers.ReLU(),
        *ending(),
    )
    return with_random_statistics(model, seed)


def images(model, n=6, seed=1):
    shape = (n, *model.input_shape[1:])
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def exponents(model):
    return calibrate.exponents(fold.fold(model), images(model), seed=0)


def test_the_folded_net_computes_what_the_keras_model_does(model):
    for original in (model, with_random_statistics(registry.build("beenet3"))):
        x = images(original, n=3)
        net = fold.fold(original)
        y = x
        for layer, shape in zip(net.layers, net.shapes, strict=True):
            y = calibrate.run_layer(layer, tf.constant(y))
            assert tuple(y.shape[1:]) == shape
        expected = original(x, training=False).numpy()
        # Folding reorders float32 products; 1e-5 of the largest logit.
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=atol)


def test_the_folded_net_describes_the_chain(model):
    net = fold.fold(model)
    assert net.layer_names == NAMES
    assert [(a.kind, a.stride, a.pool, a.has_relu) for a in net.layers] == [
        ("conv", 2, 1, True),
        ("depthwise", 2, 1, False),
        ("conv", 1, 2, True),
        ("dense", 1, 1, False),
    ]
    assert (net.name, net.input_shape) == ("chain", (12, 10, 1))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (layers.LeakyReLU(name="odd"), r"LeakyReLU\) cannot be quantized; known.*Conv2D, Dense"),
        (layers.ReLU(6.0, name="odd"), r"ReLU\) must be a plain ReLU"),
        (layers.ReLU(negative_slope=0.1, name="odd"), "must be a plain ReLU"),
        (layers.Conv2D(4, 3, name="odd"), "must have padding='same' and no dilation"),
        (layers.Conv2D(4, 3, 1, "same", dilation_rate=2, name="odd"), "no dilation"),
        (layers.Conv2D(4, 3, (1, 2), "same", name="odd"), r"equal strides, has \(1, 2\)"),
        (layers.Conv2D(4, 3, 1, "same", groups=2, name="odd"), "must have groups=1"),
        (layers.Conv2D(4, 1, padding="same", activation="relu", name="odd"), "no activation"),
        (layers.DepthwiseConv2D(3, 1, "same", 2, name="odd"), "must have depth_multiplier=1"),
        (layers.MaxPooling2D(2, strides=1, name="odd"), "square pool equal to its stride"),
        (layers.MaxPooling2D((1, 2), name="odd"), "square pool equal to its stride"),
        (layers.MaxPooling2D(2, padding="same", name="odd"), "padding='valid'"),
        (layers.Dense(3, name="odd"), "must follow a Flatten layer"),
    ],
)
def test_a_layer_that_cannot_be_converted_is_named(wrong, why):
    stem = layers.Conv2D(4, 3, padding="same")
    with pytest.raises(ParameterError, match=f"layer 'odd' .*{why}"):
        fold.fold(chain(stem, wrong, *ending()))


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ([layers.ReLU, lambda: layers.BatchNormalization(name="odd")], "must follow a conv"),
        (
            [layers.MaxPooling2D, lambda: layers.BatchNormalization(name="odd")],
            "must follow a conv",
        ),
        ([layers.ReLU, lambda: layers.ReLU(name="odd")], "must follow a weighted layer"),
        ([layers.MaxPooling2D, lambda: layers.MaxPooling2D(name="odd")], "only once"),
    ],
)
def test_an_order_that_cannot_be_converted_is_named(order, why):
    with pytest.raises(ParameterError, match=f"layer 'odd' .*{why}"):
        fold.fold(
            chain(layers.Conv2D(4, 3, padding="same"), *(make() for make in order), *ending())
        )


def test_a_net_must_begin_with_and_end_in_a_weighted_layer():
    with pytest.raises(ParameterError, match="'odd'.*must follow a weighted layer"):
        fold.fold(chain(layers.ReLU(name="odd"), *ending()))
    with pytest.raises(ParameterError, match=r"'chain' must end in a weighted layer \(logits\)"):
        fold.fold(chain(layers.Flatten(), layers.Dense(2), layers.ReLU()))


def test_what_is_not_a_chain_is_refused():
    inputs = keras.Input((8, 8, 1))
    one = layers.Conv2D(4, 3, padding="same", name="one")(inputs)
    two = layers.Conv2D(4, 3, padding="same", name="two")(inputs)
    joined = layers.Dense(2)(layers.Flatten()(layers.Add()([one, two])))
    with pytest.raises(ParameterError, match="'two'.*must read the output of 'one'.*not a chain"):
        fold.fold(keras.Model(inputs, joined))


def test_calibration_is_the_same_for_the_same_seed(model, exponents):
    net = fold.fold(model)
    assert calibrate.exponents(net, images(model), seed=0) == exponents
    assert list(exponents) == ["input", *NAMES]
    louder = calibrate.exponents(net, images(model) * 4, seed=0)
    assert louder["input"] == {bits: e + 2 for bits, e in exponents["input"].items()}


def test_calibration_samples_keep_the_largest_value_of_every_map():
    values = np.zeros((2, 300, 300, 1), np.float32)
    values[0, 17, 5], values[1, 3, 3] = -9, 4
    kept = calibrate._sample(values, np.random.default_rng(0))
    assert (kept.size, kept.min()) == (calibrate.SAMPLES_PER_BATCH, -9)


def test_the_quantized_model_stays_close_to_the_float_model(model, exponents):
    net, x = fold.fold(model), images(model)
    expected = model(x, training=False).numpy()
    errors = []
    for bits in (4, 8, 16):
        quantized = convert.quantized_model(net, uniform(NAMES, bits=bits), exponents)
        error = quantized(x, training=False).numpy() - expected
        errors.append(np.sqrt(np.mean(error**2)) / np.std(expected))
    # The input and the logits always have 8 bits, which alone cost about one per cent.
    assert errors[0] > 5 * errors[1] > 5 * errors[2]
    assert errors[2] < 0.02


def test_training_mode_computes_the_same_values_up_to_float32_sums(model, exponents):
    net, x = fold.fold(model), images(model)
    quantized = convert.quantized_model(net, uniform(NAMES, bits=8), exponents)
    # Codes of up to 2^24 are exact in float32, so 8 bits leave nothing to differ.
    np.testing.assert_array_equal(quantized(x, training=True), quantized(x, training=False))


def test_every_weight_of_the_quantized_model_gets_a_gradient(model, exponents):
    quantized = convert.quantized_model(fold.fold(model), uniform(NAMES, bits=4), exponents)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantized(images(model), training=True) ** 2)
    for slope in tape.gradient(loss, quantized.trainable_weights):
        assert np.any(slope.numpy() != 0)
        assert np.all(np.isfinite(slope.numpy()))


def test_quantized_layers_are_rebuilt_from_their_configuration(model, exponents):
    bits = [LayerBits(kernel=k, bias=16, map=m) for k, m in ((4, 16), (16, 4), (8, 8), (16, 8))]
    scheme = Scheme(layers=dict(zip(NAMES, bits, strict=True)))
    original = convert.quantized_model(fold.fold(model), scheme, exponents)
    x = original.get_layer("input")(images(model))
    for layer in original.layers:
        if isinstance(layer, QuantizedLayer):
            again = QuantizedLayer.from_config(json.loads(json.dumps(layer.get_config())))
            again.build(x.shape)
            again.set_weights(layer.get_weights())
            expected = layer(x, training=False)
            np.testing.assert_array_equal(again(x, training=False), expected)
            x = expected


def test_a_scheme_is_equal_after_the_trip_through_json(tmp_path):
    scheme = uniform(NAMES, bits=4)
    scheme.save(tmp_path / "s.json")
    assert Scheme.load(tmp_path / "s.json") == scheme
    assert list(Scheme.load(tmp_path / "s.json").layers) == NAMES
    assert [b.map for b in scheme.layers.values()] == [4, 4, 4, 8]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"layers": {}}', "layers must name at least one layer"),
        ('{"layers": {"a": {"kernel": 8, "bias": 31, "map": 4}}}', "layers.a.map=4 must be 8"),
        ('{"layers": {"a": {"kernel": 5, "bias": 31, "map": 8}}}', "layers.a.kernel: .*4, 8 or 16"),
        ('{"layers": {"a": {"kernel": 8, "bias": 8, "map": 8}}}', "layers.a.bias: .*16 or 31"),
        ('{"layers": {"a": {"kernel": 8, "map": 8}}}', "layers.a.bias: Field required"),
        ('{"layers": {"a": {"kernel": 8, "bias": 31, "map": 8}}, "input_bits": 4}', "input_bits"),
    ],
)
def test_a_wrong_scheme_is_refused_with_file_and_field(tmp_path, text, named):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ModelFileError, match=rf"s\.json: .*{named}"):
        Scheme.load(tmp_path / "s.json")


def test_a_scheme_of_other_layers_is_refused(model, exponents):
    for names in (["stem", "head"], ["dw", "stem", "pw", "head"], [*NAMES, "more"]):
        with pytest.raises(ParameterError, match=r"the network has \['stem', 'dw', 'pw', 'head'\]"):
            convert.quantized_model(fold.fold(model), uniform(names, bits=8), exponents)
