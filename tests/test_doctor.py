"""The doctor finds each defect where it is and not where it is not; what it fixes is fixed."""

import json
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from qbee import cli, doctor
from qbee.cli import models
from qbee.doctor.grids import depends_on_call, inferred_step, quantized
from qbee.doctor.records import Examination, Measures
from qbee.doctor.rules import findings
from qbee.errors import ModelFileError, ParameterError
from qbee.keras import keras, qkeras, tf
from qbee.quantize import fold, ops, published, stored
from qbee.quantize.calibrate import calibrate
from qbee.quantize.convert import quantized_model, to_fixed_point
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.scheme import uniform
from qbee.report import doctor_plots, doctor_table

FLAT16 = "quantized_bits(16,16,1,1,alpha='auto_po2')"
FLAT31 = "quantized_bits(31,31,1,1,alpha='auto_po2')"
OUR_KERNEL, OUR_BIAS = "quantized_kernel(8,scale_axis=3)", "quantized_bias(31)"
SIGNED = "quantized_bits_featuremap(8,0,1,1,step=0.03125)"
UNSIGNED = "quantized_bits_featuremap(8,0,1,0,step=0.015625)"


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def one_layer(layer, x_shape, weights, *, source=SIGNED, target=None, relu=True):
    """Model of one QKeras layer with these weights between two maps."""
    inputs = keras.Input(x_shape)
    y = layer(qkeras.QActivation(source, name="source")(inputs))
    y = keras.layers.ReLU()(y) if relu else y
    y = y if target is None else qkeras.QActivation(target, name="map")(y)
    model = keras.Model(inputs, y, name="m")
    layer.set_weights(weights)
    return model


def conv(kernel=OUR_KERNEL, bias=OUR_BIAS, *, weights=None, biases=None, **maps):
    """3x3 convolution of 4 to 16 channels called c."""
    weights = normal(3, 3, 4, 16, scale=0.1) if weights is None else weights
    biases = normal(weights.shape[-1], seed=1, scale=0.1) if biases is None else biases
    layer = qkeras.QConv2D(
        weights.shape[-1], 3, kernel_quantizer=kernel, bias_quantizer=bias, name="c"
    )
    return one_layer(layer, (6, 6, weights.shape[2]), [weights, biases], **maps)


def depthwise(quantizer, spread):
    """Depthwise convolution called d whose filters' scales differ so much."""
    scales = np.geomspace(1 / spread, 1, 32, dtype=np.float32).reshape(1, 1, 32, 1)
    layer = qkeras.QDepthwiseConv2D(3, depthwise_quantizer=quantizer, use_bias=False, name="d")
    kernel = np.random.default_rng(0).uniform(0.9, 1, (3, 3, 32, 1)).astype(np.float32) * scales
    return one_layer(layer, (5, 5, 32), [kernel]), kernel


def dense(inputs, bits):
    """Dense layer called d, all of whose weights are the same."""
    quantizer = f"quantized_bits({bits},0,1,alpha='auto')"
    layer = qkeras.QDense(1, kernel_quantizer=quantizer, use_bias=False, name="d")
    source = UNSIGNED.replace("(8", f"({bits}")
    return one_layer(layer, (inputs,), [np.full((inputs, 1), 0.5, np.float32)], source=source)


def examined(model, seed=0):
    return doctor.examine(model, normal(8, *model.input_shape[1:], seed=seed))


def found_in(model, layer, tensor, *, notes=False):
    """Findings of one tensor by measure; notes only if asked for."""
    found = [f for f in examined(model).findings if notes or f.severity != "note"]
    return {f.measure: f for f in found if (f.layer, f.tensor) == (layer, tensor)}


def float_net():
    """Net with batch norms that have seen data: channels of very different gain."""
    rng = np.random.default_rng(3)
    x = inputs = keras.Input((8, 8, 1))
    kinds = keras.layers.Conv2D, keras.layers.DepthwiseConv2D
    for layer in (kinds[0](8, 3, name="stem"), kinds[1](3, name="dw"), kinds[0](16, 1, name="pw")):
        norm = keras.layers.BatchNormalization()
        x = keras.layers.ReLU()(norm(layer(x)))
        n = x.shape[-1]
        norm.set_weights([rng.lognormal(0, 0.7, n), rng.normal(0, 0.5, n), rng.normal(0, 0.5, n),
                          rng.lognormal(0, 0.7, n)])  # fmt: skip
    logits = keras.layers.Dense(3, name="head")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, logits, name="net")
    model.get_layer("head").bias.assign([0.3, -0.2, 0.1])
    return model


@pytest.fixture(scope="module")
def net():
    return fold.fold(float_net())


@pytest.fixture(scope="module")
def x():
    return normal(40, 8, 8, 1, seed=5)


@pytest.fixture(scope="module")
def flat16(net):
    """The net of the thesis' section 4.2: stock QKeras strings on folded float weights."""
    y = inputs = keras.Input(net.input_shape)
    y = qkeras.QActivation(FLAT16, name="input_map")(y)
    for node in net.nodes:
        name, strings = node.name, {"bias_quantizer": FLAT31, "name": node.name}
        if node.op == "conv":
            y = qkeras.QConv2D(node.shape[-1], node.window, kernel_quantizer=FLAT16, **strings)(y)
        elif node.op == "depthwise":
            y = qkeras.QDepthwiseConv2D(node.window, depthwise_quantizer=FLAT16, **strings)(y)
        elif node.op == "dense":
            y = qkeras.QDense(3, kernel_quantizer=FLAT16, **strings)(y)
        else:
            y = keras.layers.GlobalAveragePooling2D(name=name)(y)
            continue
        y = keras.layers.ReLU(name=f"{name}_relu")(y) if node.activation == "relu" else y
        y = qkeras.QActivation(FLAT16, name=f"{name}_map")(y)
    model = keras.Model(inputs, y, name="flat16")
    for name in net.weighted:
        model.get_layer(name).set_weights([net.kernels[name], net.biases[name]])
    return model


@pytest.fixture(scope="module")
def fixed(flat16, x):
    return doctor.fix(flat16, x)


def ours(net, x, *, bits=8, is_per_tensor=False):
    maps = calibrate(net, x, seed=0)
    scheme = uniform(net, bits=bits, map_bits=8)
    return quantized_model(net, scheme, maps, is_per_tensor=is_per_tensor)


# Rules: one model that has the defect, one that has not.


def test_biases_that_vanish_are_named_with_their_cause():
    finding = found_in(conv(bias=FLAT31), "c", "bias")["bias_zero"]
    assert (finding.severity, finding.value) == ("severe", 1)
    assert finding.sentence == (
        "all 16 biases became 0: QKeras adds 1e-7 to the scale after dividing by 2^31, so no step "
        "is finer than 2^8; use quantized_bias(31)"
    )
    for good in (OUR_BIAS, "quantized_bits(31,0,1,alpha='auto')"):
        assert found_in(conv(bias=good), "c", "bias") == {}


def test_the_epsilon_is_blamed_for_coarse_steps_only_where_it_is_to_blame():
    finding = found_in(conv(FLAT16), "c", "kernel")["epsilon"]
    assert finding.severity == "severe"
    assert "use quantized_kernel(16,alpha='auto_po2',scale_axis=3)" in finding.sentence
    # Without integer bits, only the nearest exponent is wrong.
    other = found_in(conv("quantized_bits(16,0,1,alpha='auto_po2')"), "c", "kernel")
    assert "epsilon" not in other
    assert "clipped" in other
    assert found_in(conv("quantized_kernel(16,scale_axis=3)"), "c", "kernel") == {}


def test_peaks_that_the_nearest_exponent_cuts_off_are_counted():
    weights = normal(3, 3, 32, 64, scale=0.05)
    string = "quantized_bits(8,0,1,alpha='auto_po2')"
    result = published.quantized_bits(weights, bits=8, alpha="auto_po2")
    beyond = np.abs(weights) > 127.5 * result.step
    share = np.mean(beyond.any((0, 1, 2)))
    assert share > 0.3
    finding = found_in(conv(string, weights=weights), "c", "kernel")["clipped"]
    assert finding.value == pytest.approx(share)
    assert "nearest" in finding.sentence
    # At 4 bits that costs less than half a bit, and ours clips as many on purpose.
    for good in (OUR_KERNEL, OUR_KERNEL.replace("8", "4"), string.replace("8", "4")):
        assert "clipped" not in found_in(conv(good, weights=weights), "c", "kernel")


def test_one_step_for_depthwise_filters_of_different_scales():
    model, kernel = depthwise("quantized_bits(4,0,1,alpha='auto')", 100)
    dead = np.sum(np.max(kernel, (0, 1, 3)) < np.max(kernel) / 14)
    found = found_in(model, "d", "kernel")
    assert found["one_step"].severity == "severe"
    assert found["one_step"].value == pytest.approx(100, rel=0.1)
    assert found["dead_channels"].value == dead > 10
    # At 8 bits none dies, but the smallest have a bit and a half left.
    eight, _ = depthwise("quantized_bits(8,0,1,alpha='auto')", 100)
    assert found_in(eight, "d", "kernel")["one_step"].severity == "warning"
    for quantizer, spread in (
        ("quantized_bits(8,0,1,alpha='auto')", 8),
        ("quantized_bits(8,0,1,alpha='auto',scale_axis=2)", 100),
        ("quantized_kernel(4,scale_axis=2)", 100),
    ):
        found = found_in(depthwise(quantizer, spread)[0], "d", "kernel")
        assert not {"one_step", "dead_channels"} & set(found)


def test_a_fixed_point_far_from_the_weights_is_found():
    far = found_in(conv("quantized_bits(8,3,1,alpha=1)"), "c", "kernel")["sqnr"]
    assert far.value > 10
    assert "the step is 2^-4" in far.sentence
    assert "sqnr" not in found_in(conv("quantized_bits(8,0,1,alpha=1)"), "c", "kernel")


def test_saturated_biases_are_found():
    biases = np.linspace(-3, 3, 16, dtype=np.float32)
    finding = found_in(conv(bias="quantized_bits(16,0,1,alpha=1)", biases=biases), "c", "bias")
    assert finding["clipped"].value == np.mean(np.abs(biases) > 0.9999)
    assert "saturate" in finding["clipped"].sentence
    wide = found_in(conv(bias="quantized_bits(16,2,1,alpha=1)", biases=biases), "c", "bias")
    assert wide == {}


def test_a_map_after_a_relu_that_has_negative_codes():
    for string in ("quantized_bits(4,2,1)", "quantized_bits_featuremap(4,0,1,1,step=0.5)"):
        finding = found_in(conv(target=string), "map", "map")["unused_codes"]
        assert finding.value <= 0.54
    for string in ("quantized_relu(4,2)", "quantized_bits_featuremap(4,0,1,0,step=0.25)"):
        assert "unused_codes" not in found_in(conv(target=string), "map", "map")
    signed = found_in(conv(target="quantized_bits(4,2,1)", relu=False), "map", "map")
    assert "unused_codes" not in signed


@pytest.mark.parametrize(
    ("string", "depends"),
    [
        ("quantized_bits(8,0,1,alpha='auto')", True),
        ("quantized_bits(8,0,1,alpha='auto_po2')", True),
        ("quantized_bits_featuremap(8,alpha='auto',dynamic=True,scale_axis=0)", True),
        ("quantized_bits_featuremap(8,alpha='auto',dynamic=True)", True),
        ("quantized_bits_featuremap(8,0,1,0,step=0.0625)", False),
        ("quantized_bits(8,2,1)", False),
        ("quantized_relu(8,2)", False),
    ],
)
def test_a_range_that_depends_on_the_call(string, depends):
    assert ("call_range" in found_in(conv(target=string), "map", "map")) == depends
    assert depends_on_call(qkeras.quantizers.get_quantizer(string), normal(4, 6)) == depends


def test_a_calibrated_moving_range_does_not_depend_on_the_call():
    model = conv(target="quantized_bits_featuremap(8,0,1,0)")
    with pytest.raises(ParameterError, match="must be calibrated"):
        examined(model)
    model(normal(8, 6, 6, 4))
    before = model.get_weights()
    assert "call_range" not in found_in(model, "map", "map")
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)


@pytest.mark.parametrize(
    ("inputs", "bits", "measure", "severity"),
    [
        (70_000, 8, "overflow", "severe"),
        (1_000, 8, "inexact", "note"),
        (100, 8, None, None),
        (10, 16, "overflow", "note"),
    ],
)
def test_accumulators_are_bounded(inputs, bits, measure, severity):
    model = dense(inputs, bits)
    bound = inputs * (2 ** (bits - 1) - 1) * min(2**bits - 1, 2**15 - 1)
    assert examined(model).of("d", "kernel").accumulator == bound
    found = found_in(model, "d", "kernel", notes=True)
    assert {name: f.severity for name, f in found.items()} == (
        {measure: severity} if measure else {}
    )


def test_a_constraint_that_would_cut_weights_off():
    weights = normal(3, 3, 4, 16)
    string = "quantized_bits(8,0,1,alpha='auto')"
    finding = found_in(conv(string, weights=weights), "c", "kernel")["constraint"]
    assert finding.value == pytest.approx(np.mean(np.abs(weights) > 1))
    assert "constraint" not in found_in(conv(string, weights=weights / 8), "c", "kernel")
    lifted, changes = doctor.fix(conv(string, weights=weights), normal(8, 6, 6, 4))
    assert [change.after for change in changes] == ["the same, without a constraint"]
    assert str(lifted.get_layer("c").kernel_quantizer_internal) == string
    assert found_in(lifted, "c", "kernel") == {}


def test_channels_that_nothing_wakes_are_a_note_and_a_dead_map_is_severe():
    biases = np.zeros(16, np.float32)
    biases[:2] = -100
    two = found_in(conv(biases=biases, target=UNSIGNED), "map", "map", notes=True)
    assert (two["silent_channels"].value, two["silent_channels"].severity) == (2, "note")
    dead = found_in(conv(biases=biases - 100, target=UNSIGNED), "map", "map", notes=True)
    assert {name: f.severity for name, f in dead.items()} == {"silent_channels": "severe"}
    assert found_in(conv(target=UNSIGNED), "map", "map", notes=True) == {}


def test_a_tiny_channel_that_no_map_of_its_bits_could_show_is_not_missed():
    weights = normal(3, 3, 4, 16, scale=0.1)
    weights[..., 0] *= 1e-4
    found = found_in(conv(weights=weights, biases=np.zeros(16), target=UNSIGNED), "map", "map")
    assert found == {}


# Numbers, against computations of their own.


def test_measures_of_a_kernel_are_those_of_the_published_quantizer():
    weights = normal(3, 3, 4, 16, scale=0.1)
    t = examined(conv("quantized_bits(6,0,1,alpha='auto')", weights=weights)).of("c", "kernel")
    result = published.quantized_bits(weights, bits=6, alpha="auto")
    error = np.float64(result.values) - weights
    assert t.sqnr_db == pytest.approx(10 * np.log10(np.sum(weights**2) / np.sum(error**2)), abs=0.1)
    assert t.codes_used == len(np.unique(result.codes))
    assert t.codes_spanned == t.codes_available == 63
    assert t.zeroed == pytest.approx(np.mean(result.codes == 0))
    assert t.step == pytest.approx(np.median(result.step))
    assert t.step_to_std == pytest.approx(np.median(result.step) / weights.std(), rel=1e-5)
    assert (t.clipped, t.clipped_channels, t.dead_channels, t.channels) == (0, 0, 0, 16)
    peaks = np.abs(weights).max((0, 1, 2))
    assert t.spread == pytest.approx(peaks.max() / peaks.min())
    largest = 128 * np.abs(result.codes).sum((0, 1, 2))
    bias = np.abs(normal(16, seed=1, scale=0.1)) / (0.03125 * result.step.ravel())
    assert t.accumulator == pytest.approx(np.max(largest + bias), abs=1)


def test_measures_of_our_layers_are_those_of_the_integers(net, x):
    model = ours(net, x, bits=4)
    found = doctor.examine(model, x)
    for item in to_fixed_point(model).nodes:
        if item.weights is None:
            continue
        codes, bias = item.weights.kernel, item.weights.bias
        kernel, biases = found.of(item.name, "kernel"), found.of(item.name, "bias")
        channels = (0, 1) if item.node.op == "depthwise" else tuple(range(codes.ndim - 1))
        source = max(-item.sources[0].codes[0], item.sources[0].codes[1])
        sums = source * np.abs(codes).sum(channels).ravel() + np.abs(bias)
        assert kernel.accumulator == sums.max()
        assert kernel.codes_used == len(np.unique(codes))
        assert biases.codes_used == len(np.unique(bias))
        assert (kernel.bits, biases.bits, kernel.codes_available) == (4, 31, 15)
        assert found.of(item.name, "map").step == item.target.step


def test_a_map_is_compared_with_the_result_before_rounding(net, x):
    found = doctor.examine(ours(net, x), x).of("stem", "map")
    assert found.step == calibrate(net, x, seed=0)["stem"][8].step
    real = ops.run(net, tf.constant(x[:32]))["stem"].numpy()
    rounded = np.clip(np.floor(real / found.step + 0.5), 0, 255) * found.step
    expected = 10 * np.log10(np.sum(real**2) / np.sum((real - rounded) ** 2))
    # Kernel and input are rounded too, so the values are a little different.
    assert found.sqnr_db == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("step", [0.1, 2.0**-7, 3.0])
def test_a_grid_is_inferred_from_its_values(step):
    codes = np.random.default_rng(0).integers(-7, 8, 50)
    assert inferred_step((codes * step).astype(np.float32)) == pytest.approx(step, rel=1e-5)
    assert inferred_step(np.zeros(5)) == 1
    assert inferred_step(np.array([0.1, 0.2217, 0.37])) is None


def test_quantizers_without_a_known_grid_are_measured_all_the_same():
    found = examined(conv("ternary(alpha='auto')")).of("c", "kernel")
    assert found.codes_used == 3
    assert found.sqnr_db > 0
    assert (found.reference_db, found.remedy) == (None, None)
    bent = examined(conv("quantized_po2(4)")).of("c", "kernel")
    assert bent.remedy is None
    assert found_in(conv("quantized_po2(4)"), "c", "kernel") == {}


def test_activations_and_batch_norms_inside_of_layers_are_examined():
    layer = qkeras.QConv2D(3, 3, kernel_quantizer=OUR_KERNEL, bias_quantizer=OUR_BIAS,
                           activation="quantized_relu(4,3)", name="c")  # fmt: skip
    inside = one_layer(layer, (6, 6, 2), [normal(3, 3, 2, 3), normal(3)], relu=False)
    layer = qkeras.QConv2D(3, 3, kernel_quantizer=OUR_KERNEL, bias_quantizer=OUR_BIAS, name="c")
    outside = one_layer(layer, (6, 6, 2), [normal(3, 3, 2, 3), normal(3)],
                        target="quantized_relu(4,3)", relu=False)  # fmt: skip
    a, b = examined(inside).of("c", "map"), examined(outside).of("map", "map")
    assert a == b.model_copy(update={"layer": "c"})
    folded = qkeras.QConv2DBatchnorm(3, 3, kernel_quantizer=OUR_KERNEL, bias_quantizer=OUR_BIAS,
                                     name="c")  # fmt: skip
    inputs = keras.Input((6, 6, 2))
    model = keras.Model(inputs, folded(inputs))
    folded.batchnorm.gamma.assign([1.0, 2.0, 4.0])
    kernel = folded.get_folded_weights()[0].numpy()
    assert examined(model).of("c", "kernel").wanted_step == np.abs(kernel).max() / 127


# The whole net of the thesis.


def test_the_flat_16_net_loses_all_biases_and_the_doctor_says_so(flat16, x):
    found = doctor.examine(flat16, x)
    named = {f.layer for f in found.findings if f.measure == "bias_zero"}
    assert named == {"stem", "dw", "pw", "head"}
    assert {f.layer for f in found.findings if f.measure == "epsilon" and f.tensor == "kernel"} == {
        "stem", "dw", "pw", "head"}  # fmt: skip
    assert found == Examination.model_validate_json(found.model_dump_json())
    with pytest.raises(ParameterError, match="layer='mean' of model 'flat16' has no quantized map"):
        found.of("mean", "map")


def test_after_the_fix_nothing_is_left_and_outputs_are_those_of_float(net, flat16, fixed, x):
    model, changes = fixed
    left = doctor.examine(model, x).findings
    assert {f.severity for f in left} <= {"note"}
    assert len(changes) == 13
    wanted = ops.run(net, tf.constant(x))[net.nodes[-1].name].numpy()
    scale = np.abs(wanted).max()
    assert np.abs(model(x).numpy() - wanted).max() < 1e-3 * scale
    assert np.abs(flat16(x).numpy() - wanted).max() > 0.1 * scale


def test_the_fix_keeps_weights_and_leaves_the_model_as_it_was(net, flat16, fixed, x):
    model, changes = fixed
    for name in net.weighted:
        kernel, bias = model.get_layer(name).get_weights()
        np.testing.assert_array_equal(kernel, net.kernels[name])
        np.testing.assert_array_equal(bias, net.biases[name])
    assert str(flat16.get_layer("dw").depthwise_quantizer_internal).startswith("quantized_bits(16")
    assert str(model.get_layer("dw").depthwise_quantizer_internal) == (
        "quantized_kernel(16,alpha='auto_po2',scale_axis=2)"
    )
    assert next(c for c in changes if c.tensor == "bias").after == "quantized_bias(31)"
    assert all("step=" in c.after for c in changes if c.tensor == "map")


def test_quantizers_without_a_finding_are_kept():
    weights = normal(3, 3, 4, 16, scale=0.1)
    mixed = conv("quantized_bits(8,0,1,alpha='auto')", FLAT31, weights=weights, target=UNSIGNED)
    model, changes = doctor.fix(mixed, normal(8, 6, 6, 4))
    assert [(c.layer, c.tensor, c.reasons) for c in changes] == [("c", "bias", ("bias_zero",))]
    layer = model.get_layer("c")
    assert str(layer.kernel_quantizer_internal) == "quantized_bits(8,0,1,alpha='auto')"
    assert str(model.get_layer("map").quantizer) == str(mixed.get_layer("map").quantizer)


def test_activations_inside_of_layers_are_fixed_as_well():
    layer = qkeras.QConv2D(3, 3, kernel_quantizer=OUR_KERNEL, bias_quantizer=OUR_BIAS,
                           activation="quantized_relu(8,8)", name="c")  # fmt: skip
    weights = [normal(3, 3, 2, 3, scale=0.1), normal(3)]
    model, changes = doctor.fix(
        one_layer(layer, (6, 6, 2), weights, relu=False), normal(8, 6, 6, 2)
    )
    assert [(c.layer, c.tensor) for c in changes] == [("c", "map")]
    assert isinstance(model.get_layer("c").activation, quantized_bits_featuremap)
    assert np.min(model(normal(8, 6, 6, 2))) == 0
    assert found_in(model, "c", "map") == {}


# Our own models.


@pytest.mark.parametrize("bits", [8, 16])
def test_our_uniform_models_have_no_severe_finding_and_nothing_to_fix(net, x, bits):
    model = ours(net, x, bits=bits)
    found = doctor.examine(model, x)
    assert {f.severity for f in found.findings} <= {"note"}
    same, changes = doctor.fix(model, x)
    assert changes == ()
    np.testing.assert_array_equal(same(x), model(x))


def test_one_step_per_kernel_becomes_one_per_filter(x):
    wild = fold.fold(float_net())
    scales = np.geomspace(0.01, 1, 8, dtype=np.float32).reshape(1, 1, 8, 1)
    kernels = wild.kernels | {"dw": np.sign(wild.kernels["dw"]) * scales}
    wild = wild.with_weights(kernels, wild.biases)
    model = ours(wild, x, bits=4, is_per_tensor=True)
    assert "one_step" in {f.measure for f in doctor.examine(model, x).findings}
    better, changes = doctor.fix(model, x)
    assert ("dw", "kernel") in {(c.layer, c.tensor) for c in changes}
    assert not {"one_step", "dead_channels"} & {
        f.measure for f in doctor.examine(better, x).findings
    }
    assert better.get_layer("dw").kernel_quantizer.scale_axis == 2


def test_maps_calibrated_on_other_inputs_get_the_range_of_these(net, x):
    model = ours(net, x)
    loud = 16 * x
    found = doctor.examine(model, loud).findings
    assert ("input", "clipped") in {(f.layer, f.measure) for f in found}
    better, changes = doctor.fix(model, loud)
    assert ("input", "map") in {(c.layer, c.tensor) for c in changes}
    left = {f.severity for f in doctor.examine(better, loud).findings}
    assert left <= {"note"}


# Training.


def test_updates_are_measured_raw_and_in_steps():
    model = conv("quantized_bits(8,0,1,alpha=1)", FLAT31)
    before = model.get_weights()
    after = [values + np.float32(0.01) for values in before]
    kernel, bias = doctor.update_ratios(model, before, after)
    assert kernel.mean_update == pytest.approx(0.01, rel=1e-3)
    assert (kernel.step, kernel.steps_changed) == (2.0**-7, 0)
    assert kernel.ratio == pytest.approx(1.28, rel=1e-3)
    rounded = [np.clip(np.rint(np.float64(v[0]) * 128), -127, 127) for v in (before, after)]
    assert kernel.codes_changed == pytest.approx(np.mean(rounded[0] != rounded[1]), abs=0.01)
    assert not kernel.is_in_band
    assert (bias.step, bias.codes_changed) == (256, 0)
    assert bias.ratio == pytest.approx(0.01 / 256, rel=1e-3)
    tiny = [values + np.float32(1e-5) for values in before]
    assert all(u.is_in_band for u in doctor.update_ratios(model, before, tiny))


def test_weights_that_move_without_an_effect_are_found():
    model = conv(bias=FLAT31)
    snapshots = [[v + np.float32(0.02 * i) for v in model.get_weights()] for i in range(3)]
    found = doctor.examine(model, normal(8, 6, 6, 4), history=snapshots)
    assert len(found.updates) == 2
    assert [(f.layer, f.tensor) for f in found.findings if f.measure == "frozen"] == [("c", "bias")]
    good = doctor.examine(conv(), normal(8, 6, 6, 4), history=snapshots)
    assert "frozen" not in {f.measure for f in good.findings}
    with pytest.raises(ParameterError, match="after must be the weights of model 'm'"):
        doctor.update_ratios(model, snapshots[0], snapshots[1][:1])


def test_our_own_kernels_can_be_watched_in_training(net, x):
    model = ours(net, x)
    before = model.get_weights()
    found = doctor.update_ratios(model, before, [1.5 * values for values in before])
    assert [u.layer for u in found] == net.weighted
    assert all(u.codes_changed > 0.3 for u in found)


# Refusals.


def test_what_cannot_be_examined_is_one_error():
    inputs = keras.Input((4,))
    plain = keras.Model(inputs, keras.layers.Dense(2)(inputs), name="plain")
    with pytest.raises(ParameterError, match="model 'plain' has no quantized layers"):
        doctor.examine(plain, normal(2, 4))
    nested = keras.Model(inputs, plain(inputs))
    with pytest.raises(ParameterError, match="layer 'plain' is a model"):
        doctor.examine(nested, normal(2, 4))
    shared = qkeras.QDense(4, kernel_quantizer="quantized_bits(4,0,1)", name="twice")
    with pytest.raises(ParameterError, match="layer 'twice' is used more than once"):
        doctor.examine(keras.Model(inputs, shared(shared(inputs))), normal(2, 4))
    model = conv()
    for bad, why in (
        (normal(2, 6, 6), r"inputs.shape=\(2, 6, 6\) must be \(n, 6, 6, 4\)"),
        (normal(0, 6, 6, 4), "n >= 1"),
        (np.full((1, 6, 6, 4), np.nan), "finite"),
        (np.full((1, 6, 6, 4), "a"), "finite numbers"),
    ):
        with pytest.raises(ParameterError, match=why):
            doctor.examine(model, bad)


def test_layers_that_are_not_known_are_named():
    inputs = keras.Input((8, 8, 2))
    four = "quantized_bits(4,0,1)"
    strange = qkeras.QSeparableConv2D(
        3, 3, depthwise_quantizer=four, pointwise_quantizer=four, name="strange"
    )
    y = qkeras.QActivation("quantized_relu(4)")(strange(inputs))
    found = examined(keras.Model(inputs, y))
    assert found.skipped == ("strange",)
    assert "not examined: strange" in doctor_table.sentences(found)[-1]


# Files.


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_models_are_loaded_with_nothing_but_known_classes(tmp_path, suffix, net, x):
    path = tmp_path / f"m.{suffix}"
    model = conv(FLAT16, FLAT31, target="quantized_bits_featuremap(8,0,1,0,step=0.0625)")
    model.save(path)
    np.testing.assert_array_equal(
        stored.load_model(path)(x[..., :1].repeat(4, -1)[:, :6, :6]),
        model(x[..., :1].repeat(4, -1)[:, :6, :6]),
    )
    own = ours(net, x)
    own.save(path)
    np.testing.assert_array_equal(stored.load_model(path)(x), own(x))
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Lambda(lambda v: v)(inputs)).save(path)
    with pytest.raises(ModelFileError, match="'Lambda'.*is not loaded"):
        stored.load_model(path)
    keras.Model(inputs, inputs + 1.0).save(path)
    with pytest.raises(ModelFileError, match="'TFOpLambda'.*is not loaded"):
        stored.load_model(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_lambda_in_a_file_of_two_formats_is_refused(tmp_path):
    inputs, path = keras.Input((4,)), tmp_path / "m.h5"
    keras.Model(inputs, keras.layers.Lambda(lambda v: v)(inputs)).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ModelFileError, match="'Lambda'"):
        stored.load_model(path)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"module": "qkeras.qconvolutional"', '"module": "subprocess"', "of subprocess"),
        ('"module": "qkeras.qconvolutional"', '"module": "keras.utils"', "of keras.utils"),
        ('"registered_name": "QConv2D"', '"registered_name": "Lambda"', "'QConv2D'"),
        ('"class_name": "HeNormal"', '"class_name": "function"', "'function'"),
        ('"class_name": "HeNormal"', '"class_name": ["HeNormal"]', "damaged"),
        ('"quantized_bits_featuremap(', '"open(', "is no quantizer"),
        ('"class_name": "Functional"', '"class_name": "Missing"', "'Missing'"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_changed_description_is_refused(tmp_path, old, new, why):
    path = tmp_path / "m.keras"
    conv().save(path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    changed = content["config.json"].decode().replace(old, new)
    assert changed != content["config.json"].decode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (content | {"config.json": changed.encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(ModelFileError, match=why) as caught:
        stored.load_model(path)
    assert "\n" not in str(caught.value)


# The command line and the report.


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``qbee doctor`` and give its exit code, output and error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["qbee", "doctor", *map(str, arguments)])
        monkeypatch.setattr(models, "console", Console(width=80))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path, flat16, x):
    """The flat 16-bit model and inputs in files."""
    stored.save_model(flat16, tmp_path / "flat16.keras")
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "flat16.keras", tmp_path / "x.npy"


def test_the_command_says_what_is_wrong_and_mends_it(run, files, tmp_path, x):
    model, inputs = files
    out, record, picture = (tmp_path / name for name in ("fixed.keras", "e.json", "e.png"))
    code, text, error = run(model, "--inputs", inputs, "--fix", out, "--json", record,
                            "--picture", picture)  # fmt: skip
    assert (code, error) == (0, "")
    said = " ".join(text.split())
    assert "severe: stem, bias: all 8 biases became 0: QKeras adds 1e-7" in said
    assert "Likewise dw, pw, head." in said
    assert "13 quantizers replaced" in said
    assert "Now " in said
    assert "0 severe, 0 warning" in said
    found = Examination.load(record)
    assert f"{len(found.findings)} findings: {found.count('severe')} severe" in said
    assert json.loads(record.read_text())["tensors"][0]["layer"] == "input_map"
    with Image.open(picture) as image:
        assert image.format == "PNG"
    code, text, _ = run(out, "--inputs", inputs)
    assert (code, "0 severe, 0 warning" in text) == (0, True)
    assert not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (normal(3, 5), "its shape is"),
        (np.array([{}, []], object), "not a .npy array of numbers"),
        (np.full((3, 8, 8, 1), np.inf), "not finite"),
    ],
)
def test_bad_inputs_are_one_line(run, files, array, why):
    model, inputs = files
    np.save(inputs, array, allow_pickle=True)
    code, _, error = run(model, "--inputs", inputs)
    assert code == 2
    assert error.startswith("qbee: ")
    assert error.count("\n") == 1
    assert why in error


def test_bad_files_are_one_line(run, files, tmp_path):
    model, inputs = files
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "d.keras").mkdir()
    inside = tmp_path / "no" / "such.json"
    for arguments, why in (
        ([tmp_path / "none.h5", "--inputs", inputs], "none.h5: no such file"),
        ([model, "--inputs", tmp_path / "none.npy"], "none.npy"),
        ([tmp_path / "text.keras", "--inputs", inputs], "text.keras: damaged, or not a Keras"),
        ([inputs, "--inputs", inputs], "must be a .keras or .h5 file"),
        ([model, "--inputs", inputs, "--json", inside], "the folder does not exist"),
        ([model, "--inputs", inputs, "--fix", tmp_path / "m.h5"], "must end in .keras"),
        ([model, "--inputs", inputs, "--fix", tmp_path / "d.keras"], "cannot be written"),
    ):
        code, out, error = run(*arguments)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert why in error


def many(layers):
    """Examination of so many layers, each with a defect."""
    tensors = [
        Measures(layer=f"[/b]block_{i:02}", tensor=kind, quantizer="q", bits=bits, op="conv",
                 codes_used=9, codes_spanned=9, codes_available=2**bits - 1, sqnr_db=12 + i,
                 reference_db=40 + i, zeroed=i / 100, clipped=0.1, step_to_std=10.0**-i)
        for i in range(layers)
        for kind, bits in (("kernel", 8), ("bias", 31), ("map", 16))
    ]  # fmt: skip
    return Examination(model="$m_{[/i]", inputs=3, tensors=tensors, findings=findings(tensors))


@pytest.mark.parametrize("layers", [1, 30, 90])
def test_the_picture_is_readable_for_any_number_of_layers(tmp_path, layers):
    doctor_plots.examination(many(layers), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert max(image.size) <= 2000
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_findings_of_one_kind_are_one_sentence_and_severe_ones_come_first():
    found = many(9)
    said = doctor_table.sentences(found)
    assert [text.split(":")[0] for text in said] == ["severe"] * 3 + ["warning"] * 3
    assert "Likewise [/b]block_01" in said[0]
    assert sum(text.count("and 2 more") for text in said) == 0
    console = Console(width=80, file=None, record=True)
    with console.capture() as capture:
        console.print(doctor_table.table(found))
    assert "[/b]block_" in capture.get()


def test_quantized_gives_values_without_changing_the_quantizer():
    quantizer = qkeras.quantized_bits(8, 0, 1, alpha="auto")
    values, grid = quantized(quantizer, normal(3, 4))
    assert quantizer.scale is None
    np.testing.assert_allclose(grid.rounded(values), values, atol=1e-6)
