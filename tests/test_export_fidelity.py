"""What a file holds against what was asked for, and what its target takes."""

import dataclasses

import numpy as np
import pytest
from twin_nets import Case, built, mobilenet, random_scheme, resnet, separable

from qbee.errors import ExportError, ParameterError
from qbee.export import fidelity, targets, tflite
from qbee.export.delivery import ExportSettings, deliver
from qbee.export.planner import Layout
from qbee.export.strips import Segment
from qbee.keras import keras, make_repeatable
from qbee.quantize import fixed_net, fixed_point
from qbee.quantize.scheme import uniform
from qbee.report import fidelity_table
from qbee.runtime.checks import parsed
from qbee.runtime.flatbuffer import Op, Type
from qbee.runtime.interpreter import MicroModel
from qbee.verify import compare, compare_layers


@pytest.fixture(scope="module")
def cases():
    make_repeatable(6)
    return {make: built(make, windows=2) for make in (separable, mobilenet, resnet)}


@pytest.fixture
def small(cases):
    """Keras model and integers of the separable net, 8 bits."""
    case = cases[separable]
    return case.quantized(uniform(case.net, bits=8))


def rows_of(case, **widths):
    net = case.quantized(random_scheme(case.net, 0, **widths))[1]
    return net, fidelity.table(net, tflite.write(net))


@pytest.mark.parametrize("make", [separable, mobilenet, resnet])
@pytest.mark.parametrize("seed", range(3))
def test_every_byte_of_the_file_is_accounted_for(cases, make, seed):
    case = cases[make]
    net = case.quantized(random_scheme(case.net, seed))[1]
    found = fidelity.table(net, tflite.write(net, metadata={"qbee": b"{}"}))
    parts = found.kernel_bytes + found.bias_bytes + found.metadata_bytes + found.other_bytes
    assert parts == found.file_bytes
    assert found.metadata_bytes == 2
    assert found.other_bytes > 0
    assert found.kernel_bytes <= sum(row.kernel_bytes for row in found.layers)


@pytest.mark.parametrize(
    ("kernel", "map_", "stored", "reasons"),
    [
        (4, 8, "int4", []),
        (8, 8, "int8", []),
        (8, 4, "int8", ["map of 4 bits stored in 8"]),
        (4, 16, "int8", ["kernel of 4 bits stored in 8: int4 kernels need int8 maps"]),
        (16, 16, "2 x int8", []),
        (16, 8, "3 x int8", ["kernel of 16 bits stored in 24"]),
    ],
)
def test_widths_containers_and_reasons_of_a_layer_between_unsigned_maps(
    cases, kernel, map_, stored, reasons
):
    _, found = rows_of(cases[separable], kernel=kernel, map=map_)
    row = next(row for row in found.layers if row.layer == "dw")
    assert (row.kernel_bits, row.map_bits, row.kernel_stored) == (kernel, map_, stored)
    assert len(row.widened) == len(reasons)
    assert all(any(reason in text for text in row.widened) for reason in reasons)


def test_strict_export_refuses_what_is_widened_and_names_the_layer(cases):
    case = cases[separable]
    wide = case.quantized(random_scheme(case.net, 0, kernel=4, map=16))[1]
    with pytest.raises(ExportError, match=r"layer 'stem': kernel of 4 bits stored in 8.* more\)"):
        deliver(wide, ExportSettings(is_strict=True))
    plain = case.quantized(uniform(case.net, bits=8))[1]
    assert deliver(plain, ExportSettings(is_strict=True)).fidelity.widened == []


def test_strips_and_groups_store_no_kernel_twice(small):
    _, net = small
    whole = fidelity.table(net, tflite.write(net))
    laid_out = Layout((Segment("pw", 2),), 3).of(net)
    found = fidelity.table(net, tflite.write(laid_out))
    assert [row.layer for row in found.layers] == [row.layer for row in whole.layers]
    assert [row.kernel_bytes for row in found.layers] == [r.kernel_bytes for r in whole.layers]
    assert found.kernel_bytes == whole.kernel_bytes


def test_the_largest_sum_is_reached_by_the_worst_input_and_never_exceeded(small):
    _, net = small
    item = next(item for item in net.nodes if item.name == "pw")
    bound = next(
        row.largest_sum
        for row in fidelity.table(net, tflite.write(net)).layers
        if row.layer == "pw"
    )
    code = max(abs(c) for c in item.sources[0].codes)
    shape = (1, 2, 2, item.weights.kernel.shape[2])
    rng = np.random.default_rng(0)
    for codes in (np.full(shape, code), rng.integers(0, code + 1, shape)):
        sums = fixed_point.accumulate(codes, item.weights.kernel, "conv") + item.weights.bias
        assert np.abs(sums).max() <= bound
    signs = np.sign(item.weights.kernel[0, 0])
    reached = np.abs(item.weights.kernel[0, 0] * signs).sum(0) * code + np.abs(item.weights.bias)
    assert reached.max() == bound


def test_a_target_without_int4_gets_int8_and_says_so(cases):
    case = cases[separable]
    net = case.quantized(uniform(case.net, bits=4, map_bits=8))[1]
    packed, plain = (deliver(net, ExportSettings(target=name)) for name in ("tflm", "ethos-u"))
    types = [
        {tensor.type for tensor in parsed(d.exported.content, "model").subgraphs[0].tensors}
        for d in (packed, plain)
    ]
    assert Type.INT4 in types[0]
    assert Type.INT4 not in types[1]
    assert "the target has no int4" in plain.fidelity.widened[0]
    outputs = [MicroModel(d.exported.content).predict(case.inputs) for d in (packed, plain)]
    np.testing.assert_array_equal(*outputs)


def test_a_stride_that_the_target_cannot_run_is_refused_with_the_layers_name(cases):
    """16-bit depthwise kernels on 8-bit maps lie side by side, which triples their stride."""
    case = cases[mobilenet]
    net = case.quantized(uniform(case.net, bits=16, map_bits=8))[1]
    deliver(net, ExportSettings())
    with pytest.raises(ExportError, match="layer 'strided': ethos-u does not run .* stride of 6"):
        deliver(net, ExportSettings(target="ethos-u"))


def test_types_that_no_target_runs_are_refused_with_the_layers_name():
    for target in (targets.TFLM, targets.LITERT, targets.ETHOS_U):
        with pytest.raises(ExportError, match="layer 'gate': .* does not run LOGISTIC on int16"):
            target.check("gate", Op.LOGISTIC, Type.INT16)
        with pytest.raises(ExportError, match="layer 'x': .* on int16 maps with int16 kernels"):
            target.check("x", Op.CONV_2D, Type.INT16, kernel_type=Type.INT16)
        target.check("x", Op.CONV_2D, Type.INT16, kernel_type=Type.INT8)


def test_an_unknown_target_is_answered_with_the_known_ones():
    with pytest.raises(ParameterError, match="target='mcu' must be one of tflm, litert, ethos-u"):
        targets.get("mcu")


def test_verification_finds_a_planted_difference_and_its_layer(cases, small):
    model, net = small
    inputs = cases[separable].inputs
    good = deliver(net, ExportSettings())
    found = compare_layers(good, model, inputs)
    assert {(c.keras_mismatches, c.tflm_mismatches) for c in found} == {(0, 0)}
    at = next(i for i, item in enumerate(net.nodes) if item.name == "pw")
    weights = net.nodes[at].weights
    shifted = dataclasses.replace(weights, bias=weights.bias + 2**12)
    nodes = list(net.nodes)
    nodes[at] = dataclasses.replace(nodes[at], weights=shifted)
    other = dataclasses.replace(net, nodes=tuple(nodes))
    wrong_file = dataclasses.replace(good, exported=tflite.write(other))
    found = {c.layer: c for c in compare_layers(wrong_file, model, inputs)}
    assert found["pw"].tflm_mismatches > 0 == found["dw"].tflm_mismatches
    assert found["pw"].keras_mismatches == 0
    wrong_net = dataclasses.replace(good, net=other, laid_out=other)
    found = {c.layer: c for c in compare_layers(wrong_net, model, inputs)}
    assert found["pw"].keras_mismatches > 0 == found["dw"].keras_mismatches


def test_verification_covers_every_layer_of_a_network_in_strips(cases, small):
    model, net = small
    delivery = deliver(net, ExportSettings(max_recompute=2.0))
    in_strips = dataclasses.replace(
        delivery,
        laid_out=(laid_out := Layout((Segment("pw", 2),), 2).of(net)),
        exported=tflite.write(laid_out, plan_memory=True),
    )
    found = {c.layer: c for c in compare_layers(in_strips, model, cases[separable].inputs)}
    assert {item.name for item in net.nodes} <= set(found)
    assert all(c.tflm_mismatches == 0 for c in found.values())
    codes = fixed_point.quantize(cases[separable].inputs, net.input_map)
    # Rows that neighbouring strips share are compared twice.
    assert found["stem"].values > fixed_net.forward(net, codes)["stem"].size


def test_what_the_memory_costs_is_said_of_every_part_of_a_layout(small):
    whole = deliver(small[1], ExportSettings())
    layouts = {
        Layout(): [],
        Layout(groups=3): [
            "First convolution in 3 groups of channels: 1.00 x the multiplications."
        ],
        Layout((Segment("pw", 2),), has_dense=True): [
            "Layers up to pw in 2 strips; 1x1 convolutions of one step as dense layers: "
            "1.00 x the multiplications."
        ],
    }
    for layout, expected in layouts.items():
        delivery = dataclasses.replace(whole, layout=layout)
        assert list(fidelity_table.sentences(delivery)) == expected


def test_windows_that_differ_are_counted_once_for_an_output_that_is_a_map():
    inputs = keras.Input((6, 6, 2))
    outputs = keras.layers.Conv2D(2, 3, name="head")(inputs)
    case = Case(keras.Model(inputs, outputs), windows=3)
    model, net = case.quantized(uniform(case.net, bits=8))
    shifted = dataclasses.replace(net.nodes[0].weights, bias=net.nodes[0].weights.bias + 2**12)
    other = dataclasses.replace(net, nodes=(dataclasses.replace(net.nodes[0], weights=shifted),))
    for written, wrong in ((net, 0), (other, 3)):
        micro = MicroModel(tflite.write(written).content)
        found, _ = compare(net, model, micro, lambda a, b: case.inputs[a:b], 3)
        assert (found.mismatches, found.keras_mismatches) == (wrong, 0)
