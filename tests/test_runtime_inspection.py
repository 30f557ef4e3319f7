"""Facts about a .tflite, ours and others', against the network, TFLite Micro and arithmetic."""

import json

import numpy as np
import pytest
from test_export import METADATA, integer_net, map_net, weighted
from test_runtime_checks import repacked

from qbee.errors import ModelFileError
from qbee.export import strips, tflite
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT
from qbee.runtime.facts import Inspection
from qbee.runtime.flatbuffer import Author, Op, Type, code_of, packed, schema
from qbee.runtime.inspection import exponent, inspect
from qbee.runtime.interpreter import MicroModel

NUMBER = MapType(8, -128, 2.0**-5)
# Alignments of single structures are averaged in the table of their sizes.
ARENA_TOLERANCE = 0.02


@pytest.fixture(scope="module")
def exported():
    return tflite.write(integer_net(kernel_bits=4), metadata=METADATA)


@pytest.fixture(scope="module")
def found(exported):
    return inspect(exported.content, "m.tflite")


@pytest.fixture(scope="module")
def planned():
    net = strips.cut(integer_net(side=32), (strips.Segment("layer1", 4),))
    return tflite.write(net, plan_memory=True)


def test_an_inspection_is_equal_after_the_trip(found):
    assert Inspection.model_validate_json(found.model_dump_json()) == found
    assert json.loads(found.model_dump_json())["operators"][0]["op"] == "CONV_2D"


def test_macs_are_those_of_the_network(found):
    assert found.macs == strips.macs(integer_net())
    assert found.macs == sum(op.macs for op in found.operators)


def test_kernels_are_those_of_the_network(found):
    kernels = [op.kernel for op in found.operators if op.kernel is not None]
    for item, kernel in zip(weighted(integer_net(kernel_bits=4)), kernels, strict=True):
        weights = item.weights
        assert (kernel.type, kernel.bits, kernel.bias_type) == ("int4", 4, "int32")
        assert kernel.bytes == -(-weights.kernel.size // 2)
        assert kernel.bias_bytes == 4 * len(weights.bias)
        assert kernel.scales == len(np.unique(weights.steps)) or kernel.scales == len(weights.steps)
        assert kernel.is_power_of_two
        powers = np.log2(weights.steps)
        assert kernel.exponents == (powers.min(), powers.max())


def test_maps_are_those_of_the_network(found):
    (source,), (output,) = found.inputs, found.outputs
    assert (source.name, source.shape, source.type) == ("mel", (1, 16, 16, 1), "int8")
    assert (source.scale, source.scale_exponent, source.zero_point) == (2.0**-5, -5, 0)
    assert (output.name, output.shape) == ("logits", (1, 2))
    first = found.operators[0]
    assert (first.number, first.activation, first.output.shape) == (0, "RELU", (1, 16, 16, 32))
    # The lowest code of a map without a sign is its zero.
    assert first.output.zero_point == -128


def test_bytes_of_constants_and_metadata_add_up(found, exported):
    net = integer_net(kernel_bits=4)
    kernels = sum(-(-i.weights.kernel.size // 2) + 4 * len(i.weights.bias) for i in weighted(net))
    # Beside kernels and biases, the shape of the RESHAPE: two int32.
    assert found.constants_bytes == kernels + 8
    assert found.metadata == {name: len(content) for name, content in METADATA.items()}
    assert found.metadata_bytes == sum(found.metadata.values())
    assert found.file_bytes == len(exported.content)
    assert found.graphs == 1


def test_a_constant_that_tensors_share_counts_once():
    author = Author()
    shared = np.arange(64).reshape(8, 8)
    source = author.tensor((1, 8), Type.INT8, scale=1.0)
    for scale in (0.5, 0.25):
        kernel = author.tensor((8, 8), Type.INT8, scale=scale, data=shared)
        result = author.tensor((1, 8), Type.INT8, scale=1.0)
        options = schema.FullyConnectedOptionsT()
        source = author.operator(Op.FULLY_CONNECTED, [source, kernel], result, options)
    found = inspect(packed(author.model([0], [source])), "m")
    assert [op.kernel.bytes for op in found.operators] == [64, 64]
    assert found.constants_bytes == 64
    assert [op.kernel.bias_type for op in found.operators] == [None, None]


@pytest.mark.parametrize(
    ("scale", "power"),
    [(1.0, 0), (0.5, -1), (2.0**-126, -126), (2.0**20, 20), (0.3, None), (0.0, None), (3.0, None)],
)
def test_only_powers_of_two_have_an_exponent(scale, power):
    assert exponent(scale) == power


def nets():
    """Networks of all our kinds of operators."""
    strided = {"window": (2, 2), "strides": (2, 2)}
    yield integer_net()
    yield integer_net(kernel_bits=16, map_bits=8)
    yield integer_net(kernel_bits=16, map_bits=16)
    yield strips.cut(integer_net(side=32), (strips.Segment("layer2", 8),))
    yield map_net(
        ("sum", "add", (INPUT, INPUT), (4, 6, 2), NUMBER, {}),
        ("product", "multiply", (INPUT, "sum"), (4, 6, 2), NUMBER, {"activation": "relu6"}),
        ("pool", "average_pool", ("product",), (2, 3, 2), NUMBER, strided),
        ("rescaled", "rescale", ("pool",), (2, 3, 2), MapType(4, -8, 0.5), {}),
        ("sigmoid", "sigmoid", ("rescaled",), (2, 3, 2), MapType(8, 0, 2.0**-8), {}),
        ("mean", "mean", ("sigmoid",), (2,), NUMBER, {}),
    )


@pytest.mark.parametrize("number", range(5))
def test_the_predicted_arena_is_the_measured_one(number):
    net = list(nets())[number]
    for plan_memory in (False, True):
        content = tflite.write(net, plan_memory=plan_memory).content
        model = MicroModel(content)
        measured = model.arena_bytes()
        predicted = inspect(content, "m").arena.total_bytes
        assert predicted == pytest.approx(measured, rel=ARENA_TOLERANCE)
        # Running it needs no more.
        model.run(np.zeros((1, *net.input_shape)))
        assert model.arena_bytes() == measured


def test_stretches_lie_within_the_head_and_those_in_use_add_up(planned):
    arena = inspect(planned.content, "m").arena
    assert arena.is_planned
    assert max(s.offset_bytes + s.size_bytes for s in arena.stretches) == arena.head_bytes
    assert min(s.offset_bytes for s in arena.stretches) == 0
    assert arena.head_bytes + arena.tail_bytes == arena.total_bytes
    assert arena.head_bytes == planned.arena.head_bytes


def test_the_peak_is_the_operator_with_most_bytes_in_use(planned):
    for content in (planned.content, tflite.write(integer_net()).content):
        found = inspect(content, "m")
        live = [op.live_bytes for op in found.operators]
        assert found.arena.peak_operator == live.index(max(live))
        assert max(live) <= found.arena.head_bytes


def test_bytes_that_a_plan_gives_to_two_tensors_count_once(planned):
    model = schema.ModelT.InitFromPackedBuf(planned.content, 0)
    words = np.array([1, 0, len(planned.offsets), *planned.offsets], "<i4")
    words[3:][words[3:] > 0] = 0
    model.buffers[model.metadata[0].buffer].data = words.view(np.uint8)
    found = inspect(repacked(model), "m")
    # All lie at the front, one over the other: the largest is all that is in use.
    assert max(op.live_bytes for op in found.operators) == found.arena.head_bytes
    assert found.arena.head_bytes == max(s.size_bytes for s in found.arena.stretches)


def old_file(content):
    """The file as converters of before 2020 wrote it: kinds of operators in the first field."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for code in model.operatorCodes:
        code.deprecatedBuiltinCode, code.builtinCode = code.builtinCode, 0
    return repacked(model)


def test_a_file_of_an_old_converter_has_the_same_facts(exported, found):
    old = inspect(old_file(exported.content), "m.tflite")
    assert old.operators == found.operators
    assert old.arena == found.arena
    model = schema.ModelT.InitFromPackedBuf(old_file(exported.content), 0)
    graph = model.subgraphs[0]
    assert code_of(model, graph.operators[0]) == Op.CONV_2D
    assert MicroModel(old_file(exported.content)).arena_bytes() == old.arena.total_bytes


def test_more_graphs_than_one_are_told(exported):
    model = schema.ModelT.InitFromPackedBuf(exported.content, 0)
    model.subgraphs.append(model.subgraphs[0])
    assert inspect(repacked(model), "m").graphs == 2


def test_damage_is_one_error_that_names_the_file(exported):
    with pytest.raises(ModelFileError, match="^m.tflite: "):
        inspect(exported.content[:-100], "m.tflite")


@pytest.fixture(scope="module")
def converted():
    """One network of Keras as TensorFlow's own converter writes it: float, int8 and int16."""
    from qbee.keras import keras, tf

    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((12, 10, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    opsets = {
        "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
        "int16": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
    }
    inputs = np.random.default_rng(0).normal(size=(8, 1, 12, 10, 3)).astype(np.float32)
    files = {}
    for kind in ("float32", *opsets):
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if kind in opsets:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([one] for one in inputs)
            converter.target_spec.supported_ops = [opsets[kind]]
            converter.inference_input_type = getattr(tf, kind)
            converter.inference_output_type = getattr(tf, kind)
        files[kind] = converter.convert()
    return files


@pytest.mark.parametrize("kind", ["float32", "int8", "int16"])
def test_files_of_tensorflows_converter_are_understood(converted, kind):
    found = inspect(converted[kind], "m")
    ops = [op.op for op in found.operators]
    assert ops == ["CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
    # Places times window times channels, and the dense layer.
    assert found.macs == 6 * 5 * 9 * 3 * 8 + 4 * 3 * 9 * 8 + 8 * 4
    assert {op.output.type for op in found.operators} == {kind}
    width = 32 if kind == "float32" else 8
    assert {op.kernel.bits for op in found.operators if op.kernel} == {width}
    measured = MicroModel(converted[kind]).arena_bytes()
    assert found.arena.total_bytes == pytest.approx(measured, rel=ARENA_TOLERANCE)


def test_scales_of_tensorflows_converter_are_no_powers_of_two(converted):
    kernel = inspect(converted["int8"], "m").operators[0].kernel
    assert (kernel.scales, kernel.is_power_of_two, kernel.exponents) == (8, False, None)
    kernel = inspect(converted["float32"], "m").operators[0].kernel
    assert (kernel.scales, kernel.is_power_of_two) == (0, None)


def test_a_float_model_is_predicted_without_rounding(converted):
    model = MicroModel(converted["float32"])
    inputs = np.random.default_rng(1).normal(size=(3, 12, 10, 3))
    found = model.predict(inputs)
    assert found.shape == (3, 4)
    # Sums of probabilities in float32.
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    quantized = MicroModel(converted["int8"]).predict(inputs)
    # Steps of a softmax are 256ths; eight bits in four layers move it by some of them.
    np.testing.assert_allclose(found, quantized, atol=6 / 256)
