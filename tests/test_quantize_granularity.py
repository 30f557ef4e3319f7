"""Kernel quantizers with a scale per vector or block: on their grids, exact, and what they cost."""

import numpy as np
import pytest

from qbee.errors import ParameterError
from qbee.keras import keras, qkeras, tf
from qbee.quantize.codebook import quantized_codebook
from qbee.quantize.granularity import (
    effective_bits,
    quantized_micro_exponents,
    quantized_vectors,
)
from qbee.quantize.quantizers import quantized_bias, quantized_kernel

# Shape and axis of the output channels; 5 * 9, 9, 9 and 40 weights leave short last blocks.
KERNELS = {
    "conv": ((3, 3, 32, 6), -1),
    "odd": ((3, 3, 5, 6), 3),
    "first": ((3, 3, 1, 6), -1),
    "depthwise": ((3, 3, 6, 1), 2),
    "dense": ((40, 6), -1),
}
QUANTIZERS = {
    "2-bit vectors": lambda axis: quantized_vectors(2, scale_axis=axis),
    "4-bit vectors": lambda axis: quantized_vectors(4, scale_axis=axis),
    "8-bit vectors of 4": lambda axis: quantized_vectors(8, 4, 6, scale_axis=axis),
    "MX4": lambda axis: quantized_micro_exponents(4, scale_axis=axis),
    "MX6": lambda axis: quantized_micro_exponents(6, scale_axis=axis),
    "MX9": lambda axis: quantized_micro_exponents(9, scale_axis=axis),
}
CASES = [(name, kind) for name in QUANTIZERS for kind in KERNELS]
OBJECTS = {
    "QConv2D": qkeras.QConv2D,
    "QDense": qkeras.QDense,
    "QDepthwiseConv2D": qkeras.QDepthwiseConv2D,
    "Clip": qkeras.Clip,
    "quantized_vectors": quantized_vectors,
    "quantized_micro_exponents": quantized_micro_exponents,
}


def random_kernel(shape, *, seed=0, spread=1.0):
    """Normal values of mean size 0.05, each times its own factor between 1/spread and spread."""
    rng = np.random.default_rng(seed)
    factors = np.exp(rng.uniform(-np.log(spread), np.log(spread), shape))
    return (rng.normal(0, 0.05, shape) * factors).astype(np.float32)


def channels_of(kernel, axis):
    """Kernel as [channels, weights of one output], input channels fastest."""
    moved = np.moveaxis(np.asarray(kernel), axis, 0)
    return moved.reshape(len(moved), -1)


def to_bfloat16(x):
    """Nearest number with 8 significant bits, float32."""
    mantissa, exponent = np.frexp(x)
    return np.float32(np.ldexp(np.rint(np.float64(mantissa) * 256) / 256, exponent))


def vectors_twin(row, quantizer):
    """Numpy twin of ``quantized_vectors`` for the weights of one output."""
    largest = 2 ** (quantizer.bits - 1) - 1
    top = 2**quantizer.scale_bits - 1
    peak = np.abs(row).max()
    coarse = to_bfloat16(max(peak * np.float32(1 / (largest * top)), np.float32(2.0**-120)))
    result = []
    for vector in np.split(row, range(quantizer.vector_size, len(row), quantizer.vector_size)):
        units = vector / coarse
        scales = np.arange(1, top + 1, dtype=np.float32)[:, None]
        trials = np.clip(np.rint(units / scales), -largest, largest) * scales
        errors = np.sum((trials - units) ** 2, axis=1)
        best = top - 1 if np.abs(vector).max() == peak else np.argmin(errors)
        result.append(trials[best] * coarse)
    return np.concatenate(result)


def micro_exponents_twin(row, quantizer):
    """Numpy twin of ``quantized_micro_exponents`` for the weights of one output."""
    bits = quantizer.mantissa_bits
    exponents = np.where(row == 0, -127, np.frexp(row)[1] - 1)
    result = np.zeros_like(row)
    for i in range(len(row)):
        block, pair = i - i % 16, i - i % 2
        shared = max(exponents[block : block + 16].max(), -119)
        micro = 1 if exponents[pair : pair + 2].max() < shared else 0
        step = 2.0 ** (shared - micro - bits + 1)
        result[i] = np.clip(np.rint(row[i] / step), 1 - 2**bits, 2**bits - 1) * step
    return result


def rmse(quantizer, kernel):
    return float(np.sqrt(np.mean((quantizer(kernel).numpy() - np.float64(kernel)) ** 2)))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_quantizer_equals_its_numpy_twin_in_eager_and_graph_mode(name, kind):
    shape, axis = KERNELS[kind]
    quantizer, kernel = QUANTIZERS[name](axis), random_kernel(shape, spread=10.0)
    is_vectors = isinstance(quantizer, quantized_vectors)
    twin = vectors_twin if is_vectors else micro_exponents_twin
    expected = np.stack([twin(row, quantizer) for row in channels_of(kernel, axis)])
    for call in (quantizer, tf.function(quantizer)):
        found = call(tf.constant(kernel)).numpy()
        assert found.shape == shape
        np.testing.assert_array_equal(channels_of(found, axis), expected)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_quantizing_a_kernel_twice_changes_nothing(name, kind):
    shape, axis = KERNELS[kind]
    quantizer = QUANTIZERS[name](axis)
    once = quantizer(random_kernel(shape, spread=10.0)).numpy()
    np.testing.assert_array_equal(quantizer(once).numpy(), once)


@pytest.mark.parametrize(("bits", "scale_bits"), [(2, 4), (4, 4), (4, 2), (8, 8)])
def test_every_vector_is_codes_times_an_integer_scale_times_its_channels_scale(bits, scale_bits):
    kernel = random_kernel((3, 3, 16, 4), spread=5.0)
    found = quantized_vectors(bits, scale_bits=scale_bits)(kernel).numpy()
    largest, top = 2 ** (bits - 1) - 1, 2**scale_bits - 1
    for row in channels_of(found, -1).astype(np.float64):
        coarse = np.abs(row).max() / (largest * top)
        assert coarse == to_bfloat16(coarse)
        for units in (row / coarse).reshape(-1, 16):
            codes = units / np.arange(1, top + 1)[:, None]
            fits = np.all((codes == np.rint(codes)) & (np.abs(codes) <= largest), axis=1)
            assert np.any(fits)


def test_an_mx4_block_computed_by_hand():
    # Peak 1.7: exponent 0, steps of 1/2; pairs below 1 have steps of 1/4; 1.7 saturates at 1.5.
    block = [1.7, 0.05, 0.3, -0.6, 0.2, 1.0, -0.99, 0.1, 0.13, -0.12, *[0.0] * 6]
    expected = [1.5, 0.0, 0.25, -0.5, 0.0, 1.0, -0.75, 0.0, 0.25, 0.0, *[0.0] * 6]
    found = quantized_micro_exponents(4)(np.array(block, np.float32)[:, None]).numpy()
    np.testing.assert_array_equal(found[:, 0], expected)


@pytest.mark.parametrize("bits", [4, 6, 9])
def test_an_mx_error_is_at_most_a_step_and_half_a_step_below_saturation(bits):
    mantissa_bits = {4: 2, 6: 4, 9: 7}[bits]
    kernel = random_kernel((16, 500))
    error = np.abs(quantized_micro_exponents(bits)(kernel).numpy() - kernel)
    step = 2.0 ** (np.frexp(np.abs(kernel).max(axis=0))[1] - mantissa_bits)
    assert np.all(error <= step)
    is_free = np.abs(kernel) <= (2**mantissa_bits - 1) * step / 2
    assert np.all((error <= step / 2)[is_free])


@pytest.mark.parametrize(
    "quantizers",
    [
        [quantized_vectors(bits) for bits in range(2, 9)],
        [quantized_vectors(4, scale_bits=bits) for bits in (2, 3, 4, 6)],
        [quantized_vectors(4, size) for size in (64, 32, 16, 8, 4)],
        [quantized_micro_exponents(bits) for bits in (4, 6, 9)],
    ],
    ids=["bits", "scale bits", "shorter vectors", "MX"],
)
def test_more_bits_mean_a_smaller_error(quantizers):
    kernel = random_kernel((3, 3, 64, 8), spread=3.0)
    errors = [rmse(quantizer, kernel) for quantizer in quantizers]
    assert all(after < before for before, after in zip(errors, errors[1:], strict=False))
    cost = [effective_bits(quantizer, kernel.shape) for quantizer in quantizers]
    assert cost == sorted(cost)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("alpha", ["auto", "auto_po2"])
def test_vectors_beat_one_scale_per_channel_where_ranges_differ(bits, alpha):
    kernel = random_kernel((3, 3, 32, 16))
    kernel *= np.geomspace(0.05, 1, 9, dtype=np.float32).reshape(3, 3, 1, 1)
    per_channel = quantized_kernel(bits, alpha=alpha, scale_axis=3)
    # Measured: 0.31 to 0.57 of the error per channel.
    assert rmse(quantized_vectors(bits), kernel) < 0.6 * rmse(per_channel, kernel)


def test_mx9_beats_an_8_bit_channel_where_ranges_differ():
    kernel = random_kernel((3, 3, 32, 16))
    kernel *= np.geomspace(0.05, 1, 9, dtype=np.float32).reshape(3, 3, 1, 1)
    per_channel = rmse(quantized_kernel(8, scale_axis=3), kernel)
    assert rmse(quantized_micro_exponents(9), kernel) < 0.5 * per_channel


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_short_last_block_is_quantized_as_if_zeros_followed(name):
    quantizer, kernel = QUANTIZERS[name](-1), random_kernel((21, 5))
    longer = np.pad(kernel, [(0, 27), (0, 0)])
    np.testing.assert_array_equal(quantizer(longer).numpy()[:21], quantizer(kernel).numpy())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_channels_do_not_influence_each_other(name):
    quantizer, kernel = QUANTIZERS[name](2), random_kernel((3, 3, 6, 1))
    changed = kernel.copy()
    changed[:, :, 2] *= 100
    before, after = (np.delete(quantizer(k).numpy(), 2, axis=2) for k in (kernel, changed))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("power", [-60, 17])
def test_kernels_scale_with_powers_of_two(name, power):
    quantizer, kernel = QUANTIZERS[name](-1), random_kernel((3, 3, 5, 6))
    scaled = quantizer(kernel * np.float32(2.0**power)).numpy()
    np.testing.assert_array_equal(scaled, quantizer(kernel).numpy() * np.float32(2.0**power))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38])
def test_a_zero_or_vanishing_kernel_stays_finite_and_tiny(name, value):
    found = QUANTIZERS[name](-1)(np.full((3, 3, 2, 4), value, np.float32)).numpy()
    assert np.all(np.abs(found) <= 2.0**-100)
    assert value > 0 or not np.any(found)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_gradient_passes_straight_through(name):
    x, upstream = tf.constant(random_kernel((5, 7))), random_kernel((5, 7), seed=1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(QUANTIZERS[name](-1)(x) * upstream)
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), upstream)


@pytest.mark.parametrize(
    "quantizer",
    [
        quantized_vectors(4),
        quantized_vectors(8, vector_size=5, scale_bits=6, scale_axis=2),
        quantized_micro_exponents(6),
        quantized_micro_exponents(9, scale_axis=2),
    ],
    ids=str,
)
def test_configuration_and_string_rebuild_the_quantizer(quantizer):
    kind = type(quantizer)
    kernel = random_kernel((3, 3, 4, 2))
    from_string = qkeras.safe_eval(str(quantizer), {kind.__name__: kind})
    for again in (kind.from_config(quantizer.get_config()), from_string):
        assert type(again) is kind
        assert again.get_config() == quantizer.get_config()
        assert str(again) == str(quantizer)
        np.testing.assert_array_equal(again(kernel).numpy(), quantizer(kernel).numpy())


@pytest.mark.parametrize(
    ("quantizer", "shape", "expected"),
    [
        # S2-3: b + scale_bits / vector_len, and 32 bits per channel of 288 or 9 weights.
        (quantized_vectors(4), (3, 3, 32, 64), 4 + 4 / 16 + 32 / 288),
        (quantized_vectors(8, 32, 6), (64, 10), 8 + 6 / 32 + 32 / 64),
        (quantized_vectors(4, scale_axis=2), (3, 3, 8, 1), 4 + (4 + 32) / 9),
        (quantized_micro_exponents(4), (3, 3, 32, 64), 4),
        (quantized_micro_exponents(6), (3, 3, 32, 64), 6),
        (quantized_micro_exponents(9), (48, 10), 9),
        (quantized_micro_exponents(4, scale_axis=2), (3, 3, 8, 1), 3 + (8 + 5) / 9),
        (quantized_kernel(4, scale_axis=3), (3, 3, 32, 64), 4 + 8 / 288),
        (quantized_kernel(8, alpha="auto", scale_axis=2), (3, 3, 8, 1), 8 + 32 / 9),
        (quantized_kernel(4), (64, 10), 4 + 8 / 640),
        # S2-1: 16 weights as 2-bit indices and 4 centroids are 3.2 times smaller than floats.
        (quantized_codebook(2), (4, 4), 32 / 3.2),
        (quantized_codebook(8), (3, 3, 32, 64), 8 + 256 * 32 / 18432),
    ],
    ids=str,
)
def test_effective_bits_count_scales_exponents_and_codebooks(quantizer, shape, expected):
    assert effective_bits(quantizer, shape) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "quantizer", [quantized_bias(16), None, "quantized_kernel(4)"], ids=["bias", "none", "string"]
)
def test_quantizers_of_unknown_cost_are_refused(quantizer):
    with pytest.raises(ParameterError, match="quantizer=.* must be a quantized_kernel"):
        effective_bits(quantizer, (3, 3, 4, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: quantized_vectors(1), "bits=1 must be in"),
        (lambda: quantized_vectors(9), "bits=9 must be in"),
        (lambda: quantized_vectors(4, scale_bits=1), "scale_bits=1 must be in"),
        (lambda: quantized_vectors(4, scale_bits=9), "scale_bits=9 must be in"),
        (lambda: quantized_vectors(4, vector_size=0), "vector_size=0 must be at least 1"),
        (lambda: quantized_micro_exponents(8), "bits=8 must be 4, 6 or 9"),
        (lambda: quantized_vectors(4, scale_axis=2)(np.ones((3, 3))), "scale_axis=2 must be an"),
        (lambda: quantized_micro_exponents(4, -3)(np.ones((3, 3))), "scale_axis=-3 must be an"),
        (lambda: effective_bits(quantized_vectors(4, scale_axis=4), (3, 3, 4, 4)), "scale_axis=4"),
    ],
)
def test_impossible_arguments_are_refused(build, message):
    with pytest.raises(ParameterError, match=message):
        build()


def small_model():
    """Convolution, depthwise convolution and dense layer with the quantizers of this module."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            qkeras.QConv2D(5, 3, kernel_quantizer=quantized_vectors(4)),
            qkeras.QDepthwiseConv2D(
                3, depthwise_quantizer=quantized_micro_exponents(6, scale_axis=2)
            ),
            keras.layers.Flatten(),
            qkeras.QDense(2, kernel_quantizer="quantized_vectors(3,vector_size=8)"),
        ]
    )


def test_a_trained_model_predicts_the_same_after_saving_and_loading(tmp_path, monkeypatch):
    # QKeras reads strings with the names of its own module only.
    monkeypatch.setattr(qkeras.quantizers, "quantized_vectors", quantized_vectors, raising=False)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(0, 1, s).astype(np.float32) for s in ((32, 6, 6, 3), (32, 2)))
    with keras.utils.custom_object_scope(OBJECTS):
        model = small_model()
        model.compile(keras.optimizers.Adam(0.01), "mse")
        history = model.fit(x, y, epochs=4, batch_size=16, verbose=0).history["loss"]
        assert history[-1] < history[0]
        for name in ("m.keras", "m.h5"):
            model.save(tmp_path / name)
            again = keras.models.load_model(tmp_path / name)
            np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
            quantizer = again.layers[1].depthwise_quantizer_internal
            assert quantizer.get_config() == {"bits": 6, "scale_axis": 2}


def test_training_does_not_clip_kernels_at_one_as_qkeras_does():
    x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    quantizer = quantized_vectors(8)
    model = keras.Sequential([keras.Input((1,)), qkeras.QDense(1, kernel_quantizer=quantizer)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(x, 3 * x, epochs=20, verbose=0)
    assert model.layers[0].kernel.numpy().item() == pytest.approx(3, abs=0.1)
