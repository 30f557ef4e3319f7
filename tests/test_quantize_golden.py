"""3030 outputs of the published quantizers: the numpy statement, QKeras and ours reproduce them."""

import json
from pathlib import Path

import numpy as np
import pytest

from qbee.errors import ParameterError
from qbee.keras import qkeras, tf
from qbee.quantize import published
from qbee.quantize.featuremap import quantized_bits_featuremap

FOLDER = Path(__file__).parent / "golden" / "published"
FILES = sorted(path.name for path in FOLDER.glob("*_*.npz"))
FEATUREMAPS = [name for name in FILES if name.startswith("featuremap")]
QUANTIZED_BITS = [name for name in FILES if name.startswith("quantized_bits")]


def cases_of(file):
    """Configuration, input, gradient from above and expected arrays by letter, of every case."""
    inputs = np.load(FOLDER / "inputs.npz")
    with np.load(FOLDER / file) as arrays:
        golden = dict(arrays)
    for i, config in enumerate(json.loads(str(golden["configs"]))):
        for name in (key[3:] for key in golden if key.startswith("y__")):
            shape = name.split("__")[0]
            keys = [key for key in golden if key.endswith(f"__{name}")]
            expected = {key.split("__")[0]: golden[key][i] for key in keys}
            yield config, inputs[f"x__{name}"], inputs[f"u__{shape}"], expected


def values_and_gradient(quantizer, x, upstream):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x)
        loss = tf.reduce_sum(y * upstream)
    return y.numpy(), tape.gradient(loss, x).numpy()


def test_there_are_3030_cases():
    assert sum(1 for file in FILES for _ in cases_of(file)) == 3030


@pytest.mark.parametrize("file", QUANTIZED_BITS)
def test_the_numpy_statement_of_quantized_bits_is_equal_to_the_last_bit(file):
    for config, x, _, expected in cases_of(file):
        found = published.quantized_bits(x, **config)
        np.testing.assert_array_equal(found.values, expected["y"], str(config))
        unit = np.float32(2.0 ** (config["integer"] - config["bits"] + config["keep_negative"]))
        step = np.broadcast_to(found.step, expected["s"].shape)
        np.testing.assert_array_equal(step, expected["s"] * unit, str(config))


@pytest.mark.parametrize("file", FEATUREMAPS)
def test_the_numpy_statement_of_feature_maps_is_equal_to_the_last_bit(file):
    for config, x, _, expected in cases_of(file):
        found = published.featuremap(x, bits=config["bits"], scale_axis=config["scale_axis"])
        np.testing.assert_array_equal(found.values, expected["y"], str(config))
        np.testing.assert_array_equal(found.codes, expected["outputq"], str(config))
        np.testing.assert_array_equal(found.zero_point, expected["zeropoint"], str(config))
        np.testing.assert_array_equal(found.step, expected["s"], str(config))


@pytest.mark.parametrize("file", FEATUREMAPS)
def test_our_dynamic_feature_map_is_the_published_one(file):
    for config, x, upstream, expected in cases_of(file):
        quantizer = quantized_bits_featuremap(**config, dynamic=True)
        values, gradient = values_and_gradient(quantizer, x, upstream)
        np.testing.assert_array_equal(values, expected["y"], str(config))
        np.testing.assert_array_equal(gradient, expected["g"], str(config))
        np.testing.assert_array_equal(quantizer.codes(x), expected["outputq"], str(config))


@pytest.mark.parametrize("file", FEATUREMAPS)
def test_our_dynamic_feature_map_is_the_same_in_a_graph(file):
    quantizers = {}
    for config, x, _, expected in cases_of(file):
        key = (config["bits"], x.ndim)
        if key not in quantizers:
            quantizers[key] = tf.function(quantized_bits_featuremap(**config, dynamic=True))
        np.testing.assert_array_equal(quantizers[key](tf.constant(x)), expected["y"], str(config))


@pytest.mark.parametrize("file", QUANTIZED_BITS)
def test_the_installed_qkeras_is_the_one_of_the_files(file):
    for config, x, upstream, expected in cases_of(file):
        quantizer = qkeras.quantized_bits(**config)
        values, gradient = values_and_gradient(quantizer, x, upstream)
        np.testing.assert_array_equal(values, expected["y"], str(config))
        np.testing.assert_array_equal(gradient, expected["g"], str(config))


def test_the_statement_has_the_defaults_of_qkeras():
    x = np.random.default_rng(0).normal(0, 1, (3, 4)).astype(np.float32)
    expected = qkeras.quantized_bits()(tf.constant(x))
    np.testing.assert_array_equal(published.quantized_bits(x).values, expected)
    expected = quantized_bits_featuremap(alpha="auto", dynamic=True)(tf.constant(x))
    np.testing.assert_array_equal(published.featuremap(x).values, expected)


def test_an_alpha_that_was_never_published_is_refused():
    with pytest.raises(ParameterError, match="alpha='best' must be"):
        published.quantized_bits(np.ones(3), alpha="best")
