"""Feature-map quantizer: static at inference, moving in training, equal to its numpy twin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbee.errors import ParameterError
from qbee.keras import keras, qkeras, tf
from qbee.quantize import fixed_point as fp
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.power_of_two import best_exponent

THESIS = "quantized_bits_featuremap(8,8,1,1,alpha='auto_po2',scale_axis=0)"
STRINGS = [
    THESIS,
    "quantized_bits_featuremap(8,0,1,1,alpha='auto_po2')",
    "quantized_bits_featuremap(16,0,0,0,alpha='auto',momentum=0.5)",
    "quantized_bits_featuremap(4,4,1,1,alpha='auto',scale_axis=0,dynamic=True)",
    "quantized_bits_featuremap(6,0,1,1,alpha='auto',is_affine=True)",
    "quantized_bits_featuremap(8,0,1,0,alpha='auto_po2',step=0.0625)",
    "quantized_bits_featuremap(8,0,1,1,alpha='auto',is_affine=True,step=0.10000000149011612,"
    "lowest=-37)",
]
NUMBERS = [
    fp.MapType(8, -128, 2.0**-5),
    fp.MapType(4, 0, 0.75),
    fp.MapType(8, -37, float(np.float32(0.1))),
    fp.MapType(16, 0, float(np.float32(1e-3))),
    fp.MapType(16, -32768, 2.0**-12),
]


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def in_graph(quantizer, x):
    return tf.function(quantizer)(tf.constant(x)).numpy()


def gradient(quantizer, x):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(quantizer(x) * tf.range(1.0, 1.0 + tf.size(x, tf.float32)))
    return tape.gradient(y, x).numpy() / np.arange(1, 1 + x.shape[0])


def affine_twin(x, bits):
    """Number format of the range of ``x`` and 0."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = float(np.float32(max((high - low) / (2**bits - 1), -low / 2 ** (bits - 1))))
    lowest = int(np.floor(low / step + 0.5))
    return fp.MapType(bits, max(lowest, -(2 ** (bits - 1))), step)


@given(st.sampled_from(NUMBERS), st.lists(st.floats(-1e5, 1e5, width=32), max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_fixed_format_is_quantized_like_the_numpy_twin(number, values):
    half = np.nextafter(np.float32(0.5), np.float32(0))
    x = np.array([0.5, half, -0.5, -half, 1.5, -1.5, 2.5, -2.5], np.float32)
    x = np.append(x * np.float32(number.step), np.float32(values))
    quantizer = quantized_bits_featuremap.of(number)
    codes = fp.quantize(x, number)
    found = quantizer(x).numpy()
    np.testing.assert_array_equal(quantizer.codes(x), codes)
    np.testing.assert_array_equal(found, fp.dequantize(codes, number))
    np.testing.assert_array_equal(quantizer(found).numpy(), found)


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_ties_round_up_in_a_graph_as_in_eager_mode(number):
    codes = np.arange(max(number.codes[0], -300), min(number.codes[1], 300)) + 0.5
    x = (codes * number.step).astype(np.float32)
    quantizer = quantized_bits_featuremap.of(number)
    np.testing.assert_array_equal(in_graph(quantizer, x), quantizer(x))
    np.testing.assert_array_equal(in_graph(quantizer.codes, x), fp.quantize(x, number))


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_the_format_of_a_quantizer_made_of_a_format_is_that_format(number):
    assert quantized_bits_featuremap.of(number).number == number


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_unsigned_map_uses_all_codes_and_is_a_relu(alpha, bits):
    x = np.linspace(-1, 1, 10001, dtype=np.float32)
    quantizer = quantized_bits_featuremap(bits, keep_negative=False, alpha=alpha)
    quantizer.calibrate(x)
    assert set(quantizer.codes(x).numpy()) == set(range(2**bits))
    assert not np.any(quantizer(x[x < 0]).numpy())


def test_an_unsigned_map_of_16_bits_has_the_positive_codes_of_int16():
    quantizer = quantized_bits_featuremap(16, keep_negative=False, alpha="auto")
    assert quantizer.calibrate(np.float32([0, 1])).codes == (0, 2**15 - 1)
    assert quantizer.codes([1.0]) == 2**15 - 1


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
def test_inputs_without_zero_in_range_are_no_trouble(alpha):
    x = np.linspace(2, 4, 1001, dtype=np.float32)
    for keep_negative in (True, False):
        quantizer = quantized_bits_featuremap(8, keep_negative=keep_negative, alpha=alpha)
        step = quantizer.calibrate(x).step
        error = np.abs(quantizer(x).numpy() - x)
        assert np.median(error) < step / 2
        # The step of least squared error may leave the highest value to saturation.
        assert error.max() <= step * 1.0001 < 0.04


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
@pytest.mark.parametrize("keep_negative", [True, False])
def test_batches_of_other_ranges_are_quantized_with_one_step(alpha, keep_negative):
    quantizer = quantized_bits_featuremap(8, keep_negative=keep_negative, alpha=alpha)
    number = quantizer.calibrate(normal(16, 5))
    for scale in (0.01, 1, 100):
        x = normal(16, 5, seed=1, scale=scale)
        expected = fp.dequantize(fp.quantize(x, number), number)
        np.testing.assert_array_equal(quantizer(x), expected)
        np.testing.assert_array_equal(quantizer(x[:1]), expected[:1])
        np.testing.assert_array_equal(in_graph(quantizer, x), expected)
        assert quantizer.number == number


@pytest.mark.parametrize(
    ("quantizer", "passes"),
    [
        (quantized_bits_featuremap(4, step=0.5), [0, 1, 1, 1, 0]),
        (quantized_bits_featuremap(4, keep_negative=False, step=0.5), [0, 0, 1, 1, 1]),
        (quantized_bits_featuremap(4, alpha="auto", dynamic=True), [1, 1, 1, 1, 1]),
    ],
    ids=str,
)
def test_the_gradient_is_1_inside_the_range_and_0_outside(quantizer, passes):
    # The 4-bit grid of step 1/2 spans -4..3.5 with a sign and 0..7.5 without.
    x = np.array([-4.6, -1.2, 0.3, 3.2, 4.1], np.float32)
    np.testing.assert_array_equal(gradient(quantizer, x), passes)


def test_no_argument_that_is_only_there_for_compatibility_changes_a_number():
    x = normal(4, 6)
    plain = quantized_bits_featuremap(8)
    thesis = qkeras.quantizers.get_quantizer(THESIS)
    assert thesis.calibrate(x) == plain.calibrate(x)
    np.testing.assert_array_equal(thesis(x), plain(x))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating_types_are_kept_and_integers_become_float32(dtype):
    quantizer = quantized_bits_featuremap(4, step=0.5)
    found = quantizer(np.array([0.3, 9.0], dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, [0.5, 3.5])
    found = quantizer(np.array([1, 9]))
    assert found.dtype == "float32"
    np.testing.assert_array_equal(found, [1.0, 3.5])


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.sampled_from([4, 8]))
@settings(max_examples=100, deadline=None)
def test_a_free_step_is_the_peak_over_the_highest_code(values, bits):
    x = np.float32(values)
    peak = float(np.abs(x).max())
    if 0 < peak < 1e-30:
        return
    number = quantized_bits_featuremap(bits, alpha="auto").calibrate(x)
    expected = np.float32(peak / (2 ** (bits - 1) - 1)) if peak else 1
    assert number.step == expected
    assert number.lowest == -(2 ** (bits - 1))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("keep_negative", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_power_of_two_has_the_least_squared_error_of_the_candidates(bits, keep_negative, seed):
    x = np.random.default_rng(seed).laplace(0, 10.0 ** (seed - 1), 2000).astype(np.float32)
    number = quantized_bits_featuremap(bits, keep_negative=keep_negative).calibrate(x)
    seen = x if keep_negative else np.maximum(x, 0)
    lowest, highest = number.codes
    assert number.step == 2.0 ** best_exponent(seen, lowest=lowest, highest=highest)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30),
    st.sampled_from([2, 4, 8]),
)
@settings(max_examples=200, deadline=None)
def test_an_affine_map_is_calibrated_like_the_numpy_twin(values, bits):
    x = np.float32(values)
    if np.abs(x).max() < 1e-30:
        return
    quantizer = quantized_bits_featuremap(bits, alpha="auto", is_affine=True)
    number = quantizer.calibrate(x)
    assert number == affine_twin(x, bits)
    np.testing.assert_array_equal(quantizer(x), fp.dequantize(fp.quantize(x, number), number))
    # The rounding of the zero point may shift the ends by half a step.
    assert np.abs(quantizer(x) - x).max() <= number.step * 1.0001
    assert quantizer([0.0]) == 0


def test_an_affine_map_halves_the_error_of_a_one_sided_signed_one():
    x = np.abs(normal(1000)) - 0.1
    errors = [
        np.mean((quantizer(x) - x) ** 2)
        for quantizer in (
            quantized_bits_featuremap(4, alpha="auto", is_affine=True),
            quantized_bits_featuremap(4, alpha="auto"),
        )
        if quantizer.calibrate(x)
    ]
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
def test_an_all_zero_map_has_step_1_and_tiny_maps_a_normal_number(alpha):
    quantizer = quantized_bits_featuremap(8, alpha=alpha)
    assert quantizer.calibrate(np.zeros((2, 3), np.float32)).step == 1
    for peak in (1e-44, 1e-38, 1e-30, 3e38):
        x = np.float32([peak, -peak / 2, 0])
        step = quantizer.calibrate(x).step
        assert 2.0**-126 <= step < 2.0**127
        assert np.all(np.isfinite(quantizer(x)))


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
def test_steps_scale_with_powers_of_two(alpha):
    quantizer, x = quantized_bits_featuremap(8, alpha=alpha), normal(1000)
    step = quantizer.calibrate(x).step
    for power in (-60, 17):
        assert quantizer.calibrate(x * np.float32(2.0**power)).step == step * 2.0**power


def test_the_first_batch_sets_the_range_and_training_moves_it_slowly():
    quantizer = quantized_bits_featuremap(8, alpha="auto", momentum=0.75)
    quantizer(np.float32([127.0, -1]))
    assert quantizer.number.step == 1
    quantizer(np.float32([1270.0]))
    assert quantizer.number.step == 1
    quantizer(np.float32([635.0]), training=True)
    assert quantizer.number.step == 2
    tf.function(quantizer)(tf.constant([1270.0]), training=True)
    assert quantizer.number.step == 4
    tf.function(quantizer)(tf.constant([1270.0]), training=tf.constant(True))
    assert quantizer.number.step == 5.5
    quantizer.trainable = False
    quantizer(np.float32([635.0]), training=True)
    assert quantizer.number.step == 5.5


def test_the_default_momentum_is_a_hundredth_per_batch():
    quantizer = quantized_bits_featuremap(8, alpha="auto")
    quantizer(np.float32([127.0]), training=True)
    quantizer(np.float32([1270.0]), training=True)
    assert quantizer.number.step == pytest.approx(0.99 + 0.01 * 10)


def test_a_power_of_two_moves_when_the_average_passes_three_halves():
    quantizer = quantized_bits_featuremap(8, momentum=0.75)
    one, two = (np.float32([scale * code for code in (-128, 127, 64, 3)]) for scale in (1, 2))
    steps = []
    for x in (one, two, two, two, one):
        quantizer(x, training=True)
        steps.append(quantizer.number.step)
    # The averages are 1, 1.25, 1.44, 1.58 and 1.43.
    assert steps == [1, 1, 1, 2, 1]


def test_an_affine_range_moves_at_both_ends():
    quantizer = quantized_bits_featuremap(4, alpha="auto", is_affine=True, momentum=0.5)
    quantizer(np.float32([-4, 11]), training=True)
    assert quantizer.number == fp.MapType(4, -4, 1.0)
    quantizer(np.float32([-12, 33]), training=True)
    assert quantizer.number == fp.MapType(4, -4, 2.0)
    quantizer(np.float32([-14, 16]), training=True)
    assert quantizer.number == fp.MapType(4, -5, 2.0)


@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
def test_batches_that_are_zero_or_not_finite_leave_the_range_alone(alpha):
    quantizer = quantized_bits_featuremap(8, alpha=alpha)
    useless = [np.zeros(3), [np.nan, 1.0, 2.0], [np.inf, 1.0, 0.0]]
    quantizer(np.float32(useless[0]))
    assert quantizer.number.step == 1
    quantizer(np.float32([127 * 0.25, -30, 8]))
    assert quantizer.number.step == 0.25
    for x in useless[::2]:
        quantizer(np.float32(x), training=True)
        assert quantizer.number.step == 0.25


@pytest.mark.parametrize("string", STRINGS)
def test_configuration_and_string_rebuild_the_quantizer(string):
    quantizer, x = qkeras.quantizers.get_quantizer(string), normal(4, 6)
    assert str(quantizer) == string
    names = {"quantized_bits_featuremap": quantized_bits_featuremap}
    values = quantizer(x).numpy()
    for again in (
        quantized_bits_featuremap.from_config(quantizer.get_config()),
        qkeras.safe_eval(string, names),
    ):
        assert type(again) is quantized_bits_featuremap
        assert isinstance(again, qkeras.quantizers.BaseQuantizer)
        assert again.get_config() == quantizer.get_config()
        assert str(again) == string
        np.testing.assert_array_equal(again(x), values)
        np.testing.assert_array_equal(in_graph(again, x), values)


def network(quantizer):
    """A user's model of plain QKeras and Keras layers; ``quantizer`` makes a new one."""
    inputs = keras.Input((4, 4, 2))
    x = quantizer()(inputs)
    x = qkeras.QConv2D(3, 3, kernel_quantizer=quantizer(), activation=str(quantizer()))(x)
    x = qkeras.QActivation(str(quantizer()))(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(2, activation=quantizer())(x))


def trained(model, x):
    """Model after two epochs of two batches."""
    model.compile("sgd", "mse")
    model.fit(x, np.ones((len(x), 2)), batch_size=4, epochs=2, verbose=0)
    return model


QUANTIZERS = {
    "auto_po2": lambda: quantized_bits_featuremap(8),
    "affine": lambda: quantized_bits_featuremap(8, alpha="auto", is_affine=True),
    "fixed": lambda: quantized_bits_featuremap(8, step=2.0**-5),
    "dynamic": lambda: quantized_bits_featuremap(8, alpha="auto", dynamic=True, scale_axis=0),
}


@pytest.mark.parametrize("kind", ["auto_po2", "affine"])
def test_fit_moves_the_ranges_of_all_layers_and_predict_does_not(kind):
    model, x = network(QUANTIZERS[kind]), normal(8, 4, 4, 2)
    model(x)
    ranges = [w for w in model.weights if "range" in w.name]
    before = [w.numpy() for w in ranges]
    trained(model, 2 * x)
    after = [w.numpy() for w in ranges]
    assert len(ranges) == 5
    assert not any(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    for scale in (0.1, 100):
        np.testing.assert_array_equal(model.predict(scale * x, verbose=0), model(scale * x))
    np.testing.assert_array_equal([w.numpy() for w in ranges], after)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_saved_models_and_clones_predict_the_same(kind, tmp_path):
    x = normal(8, 4, 4, 2)
    model = trained(network(QUANTIZERS[kind]), x)
    loaded = [keras.models.clone_model(model), network(QUANTIZERS[kind])]
    assert not {id(w) for w in model.weights} & {id(w) for w in loaded[0].weights}
    loaded[0].set_weights(model.get_weights())
    model.save_weights(tmp_path / "model.weights.h5")
    loaded[1].load_weights(tmp_path / "model.weights.h5")
    for name in ("model.h5", "model.keras"):
        model.save(tmp_path / name)
        with keras.saving.custom_object_scope(vars(qkeras)):
            loaded.append(keras.models.load_model(tmp_path / name))
    loaded.append(qkeras.utils.load_qmodel(tmp_path / "model.h5"))
    for again in loaded:
        np.testing.assert_array_equal(again(x), model(x))


def test_an_object_given_to_qactivation_is_saved_in_h5(tmp_path):
    inputs = keras.Input((3,))
    quantizer = quantized_bits_featuremap(8)
    number = quantizer.calibrate(normal(20))
    keras.Model(inputs, qkeras.QActivation(quantizer)(inputs)).save(tmp_path / "model.h5")
    assert qkeras.utils.load_qmodel(tmp_path / "model.h5").layers[1].quantizer.number == number


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits=1 must be in"),
        ({"bits": 17}, "bits=17 must be in"),
        ({"alpha": None}, "alpha=None must be 'auto'"),
        ({"alpha": "best"}, "alpha='best' must be 'auto'"),
        ({"momentum": 1.0}, "momentum=1.0 must be in"),
        ({"scale_axis": -1}, "scale_axis=-1 must be None"),
        ({"step": 0.75}, "step=0.75 must be a power of two"),
        ({"step": 0.0}, "step=0.0 must be"),
        ({"step": 0.0, "alpha": "auto"}, "step=0.0 must be a positive float32"),
        ({"step": 0.1, "alpha": "auto"}, "step=0.1 must be a positive float32"),
        ({"is_affine": True}, "is_affine=True must have alpha='auto'"),
        ({"is_affine": True, "alpha": "auto", "bits": 16}, "is_affine=True .* bits <= 8"),
        ({"is_affine": True, "alpha": "auto", "keep_negative": False}, "is_affine=True must"),
        ({"is_affine": True, "alpha": "auto", "step": 1.0}, "lowest=None must be given"),
        ({"lowest": -3, "alpha": "auto", "step": 1.0}, "lowest=-3 must be given if is_affine"),
        ({"dynamic": True}, "dynamic=True must have alpha='auto'"),
        ({"dynamic": True, "alpha": "auto", "step": 1.0}, "dynamic=True .* step=None"),
        ({"dynamic": True, "alpha": "auto", "keep_negative": 0}, "dynamic=True must have keep"),
    ],
)
def test_arguments_out_of_range_and_contradictions_are_refused(arguments, message):
    with pytest.raises(ParameterError, match=message):
        quantized_bits_featuremap(**arguments)


def test_a_quantizer_that_saw_no_data_has_no_number_format():
    with pytest.raises(ParameterError, match="must be calibrated"):
        quantized_bits_featuremap().number  # noqa: B018 - the property raises
    with pytest.raises(ParameterError, match="dynamic=True.* must be calibrated"):
        quantized_bits_featuremap(alpha="auto", dynamic=True).number  # noqa: B018


@pytest.mark.parametrize("x", [[np.nan, 1], [np.inf], np.zeros((0, 3))], ids=str)
def test_data_that_is_empty_or_not_finite_calibrates_nothing(x):
    with pytest.raises(ParameterError, match="must be finite and not empty"):
        quantized_bits_featuremap().calibrate(np.float32(x))


def test_a_fixed_step_is_not_calibrated():
    with pytest.raises(ParameterError, match=r"step=0\.5\) must have a moving step"):
        quantized_bits_featuremap(step=0.5).calibrate(np.ones(3, np.float32))
