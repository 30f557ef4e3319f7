"""Defects of the published quantizers, each shown on the original, and its absence in ours."""

import numpy as np
import pytest

from qbee.errors import ParameterError
from qbee.keras import qkeras, tf
from qbee.quantize import published
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.quantizers import quantized_bias, quantized_kernel


def normal(*shape, seed=0, scale=0.05):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def relative_rmse(x, quantized):
    """Root mean square of the error over that of ``x``."""
    error = np.asarray(quantized, np.float64) - x
    return np.sqrt(np.mean(error**2) / np.mean(np.float64(x) ** 2))


def sqnr_db(x, quantized):
    return -20 * np.log10(relative_rmse(x, quantized))


def lost_peaks(x, quantized):
    """Relative loss of each output channel's largest magnitude."""
    before, after = (np.abs(np.asarray(k)).max((0, 1, 2)) for k in (x, quantized))
    return 1 - after / before


def depthwise_kernel():
    """Filters whose scales differ by a hundred, as after folding a batch norm."""
    return normal(3, 3, 32, 1) * np.geomspace(0.01, 1, 32, dtype=np.float32).reshape(1, 1, 32, 1)


def dead_filters(kernel):
    return int(np.sum(np.all(np.asarray(kernel) == 0, axis=(0, 1, 3))))


def has_the_same_values_in_a_graph(quantizer, x):
    return np.array_equal(quantizer(tf.constant(x)), tf.function(quantizer)(tf.constant(x)))


# The bar: relative error per output channel, and what QKeras' auto_po2 has (0 integer bits).
@pytest.mark.parametrize(
    ("bits", "bar", "original"), [(4, 0.125, 0.145), (8, 0.0115, 0.0435), (16, 0.00005, 0.0386)]
)
def test_power_of_two_kernels_have_less_error_than_those_of_the_original(bits, bar, original):
    x = normal(3, 3, 32, 64)
    stock = qkeras.quantized_bits(bits, 0, 1, alpha="auto_po2")(x)
    assert relative_rmse(x, stock) == pytest.approx(original, rel=0.01)
    assert relative_rmse(x, quantized_kernel(bits, scale_axis=3)(x)) <= bar < original


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_free_steps_have_the_error_of_the_original(bits):
    x = normal(3, 3, 32, 64)
    stock = qkeras.quantized_bits(bits, 0, 1, alpha="auto")(x)
    ours = quantized_kernel(bits, alpha="auto", scale_axis=3)(x)
    # Our 16-bit kernels leave out the 255 highest codes, which two int8 halves do not have.
    assert relative_rmse(x, ours) <= relative_rmse(x, stock) * 1.01


def test_the_epsilon_swallows_31_bit_biases_of_the_original_only():
    x = normal(64, scale=0.1)
    assert not np.any(qkeras.quantized_bits(31, 31, 1, alpha="auto_po2")(x).numpy())
    assert np.abs(quantized_bias(31)(x) - x).max() <= np.abs(x).max() * 2.0**-30


def test_flat_16_bit_kernels_have_16_bits_in_ours_only():
    x = normal(3, 3, 32, 64, scale=0.1)
    stock = {i: qkeras.quantized_bits(16, i, 1, alpha="auto_po2")(x) for i in (0, 16)}
    assert all(sqnr_db(x, y) < 30 for y in stock.values())
    # The smallest step that the epsilon lets through is 2^(16-23), whatever the kernel is.
    tiny = x / np.float32(10)
    assert sqnr_db(tiny, qkeras.quantized_bits(16, 16, 1, alpha="auto_po2")(tiny)) < 10
    for kernel in (x, tiny):
        assert sqnr_db(kernel, quantized_kernel(16, scale_axis=3)(kernel)) > 85


@pytest.mark.parametrize("bits", [8, 16])
def test_the_nearest_exponent_cuts_the_peaks_off_in_the_original_only(bits):
    x = normal(3, 3, 32, 64)
    stock = lost_peaks(x, qkeras.quantized_bits(bits, 0, 1, alpha="auto_po2")(x))
    ours = lost_peaks(x, quantized_kernel(bits, scale_axis=3)(x))
    assert np.mean(stock > 0.01) > 0.4
    assert stock.max() > 0.25
    # With 8 bits, a little saturation can have less squared error than coarser rounding.
    assert np.mean(ours > 0.01) < 0.1
    assert ours.max() < (0.06 if bits == 8 else 1e-4)


def test_1_depthwise_filters_die_at_4_bits_in_the_original_only():
    x = depthwise_kernel()
    for alpha in ("auto", "auto_po2"):
        assert dead_filters(qkeras.quantized_bits(4, 0, 1, alpha=alpha)(x)) > 10
        assert dead_filters(quantized_kernel(4, alpha=alpha, scale_axis=2)(x)) == 0


def test_2_a_relu_map_wastes_a_bit_in_the_original_only():
    x = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    x = np.maximum(x, 0)
    assert len(np.unique(published.featuremap(x, bits=4, scale_axis=0).codes)) == 8
    for alpha in ("auto", "auto_po2"):
        quantizer = quantized_bits_featuremap(4, keep_negative=False, alpha=alpha)
        quantizer.calibrate(x)
        assert len(np.unique(quantizer.codes(x))) == 16


def test_2_a_map_without_zero_in_range_becomes_constant_in_the_original_only():
    x = np.linspace(2, 4, 50, dtype=np.float32).reshape(1, 50)
    np.testing.assert_array_equal(np.unique(published.featuremap(x, scale_axis=0).values), [8])
    quantizer = quantized_bits_featuremap(8, alpha="auto")
    quantizer.calibrate(x)
    assert np.abs(quantizer(x) - x).max() < 0.02


@pytest.mark.parametrize("scale_axis", [0, None])
def test_3_the_step_depends_on_the_data_at_inference_in_the_original_only(scale_axis):
    x = normal(2, 4, 4, 3) * np.float32([1, 100]).reshape(2, 1, 1, 1)
    stock = [published.featuremap(y, scale_axis=scale_axis) for y in (x, x[:1], x[1:])]
    assert len({float(result.step.max()) for result in stock}) > 1
    quantizer = quantized_bits_featuremap(8, scale_axis=scale_axis)
    number = quantizer.calibrate(x)
    together = quantizer(x)
    for i in range(2):
        np.testing.assert_array_equal(quantizer(x[i : i + 1])[0], together[i])
    assert quantizer.number == number


def test_4_a_configuration_forgets_the_axis_in_the_original_only():
    x = depthwise_kernel()
    stock = qkeras.quantized_bits(8, 0, 1, alpha="auto", scale_axis=2, use_ste=False)
    assert not {"scale_axis", "use_ste"} & set(stock.get_config())
    assert not np.array_equal(type(stock).from_config(stock.get_config())(x), stock(x))
    ours = quantized_kernel(8, scale_axis=2)
    np.testing.assert_array_equal(type(ours).from_config(ours.get_config())(x), ours(x))
    assert str(quantized_bits_featuremap()).startswith("quantized_bits_featuremap(")


def test_5_a_kernel_quantizer_changes_its_alpha_in_the_original_only():
    def alpha_in_a_layer(quantizer):
        layer = qkeras.QConv2D(3, 3, kernel_quantizer=quantizer)
        return layer.kernel_quantizer_internal.alpha

    assert alpha_in_a_layer(qkeras.quantized_bits(8, 0, 1, alpha=None)) == "auto_po2"
    for alpha in ("auto", "auto_po2"):
        assert alpha_in_a_layer(quantized_kernel(8, alpha=alpha)) == alpha
    with pytest.raises(ParameterError, match="alpha=None must be"):
        quantized_kernel(8, alpha=None)


@pytest.mark.parametrize("bits", [16, 31])
def test_6_biases_are_no_accumulator_codes_in_the_original_only(bits):
    x = normal(64, scale=0.1)
    # Input step times kernel steps, as the device adds biases before it rescales.
    grid = np.float64(2.0**-7) * np.random.default_rng(1).uniform(1e-4, 1e-3, 64)
    stock = qkeras.quantized_bits(bits, 0, 1, alpha="auto")(x).numpy() / grid
    assert np.mean(np.abs(stock - np.rint(stock)) > 0.01) > 0.9
    quantizer = quantized_bias(bits)
    codes = quantizer.codes(x, grid).numpy()
    np.testing.assert_array_equal(codes, np.rint(codes))
    np.testing.assert_array_equal(quantizer.on_grid(x, grid), (codes * grid).astype(np.float32))
    # 16 bits are left of codes that need up to 20.
    assert np.abs(codes * grid - x).max() <= max(np.abs(x).max() / 2**15, grid.max() / 2)


def test_9_free_steps_differ_between_eager_and_graph_mode_in_the_original_only():
    x = normal(3, 3, 32, 64)
    moving = quantized_bits_featuremap(8, alpha="auto")
    moving.calibrate(x)
    assert not has_the_same_values_in_a_graph(qkeras.quantized_bits(8, 0, 1, alpha="auto"), x)
    for ours in (
        moving,
        quantized_bits_featuremap.of(moving.number),
        quantized_bits_featuremap(8, alpha="auto", dynamic=True),
        quantized_kernel(8, alpha="auto", scale_axis=3),
        quantized_kernel(8, scale_axis=3),
    ):
        assert has_the_same_values_in_a_graph(ours, x), ours


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_9_the_first_batch_sets_the_same_free_step_in_eager_and_graph_mode(bits):
    eager, graph = (quantized_bits_featuremap(bits, alpha="auto") for _ in range(2))
    for peak in normal(20):
        for quantizer in (eager, graph):
            quantizer.moving_range.assign([0.0, -1.0])
        eager(tf.fill([3], peak))
        tf.function(graph)(tf.fill([3], peak))
        assert eager.number == graph.number
