"""The exported file: packing, operators, alignment, metadata, damage and memory."""

import json

import flatbuffers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.errors import ModelFileError
from qbee.export import tflite
from qbee.quantize import fixed_net, fixed_point
from qbee.quantize.fixed_net import FixedNet, FixedNode, FixedWeights
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT, NO_PADDING, Node, same_padding, window_outputs
from qbee.runtime.flatbuffer import Op, Type, pack_int4
from qbee.runtime.interpreter import MicroModel, read_metadata

CARD = {"threshold": 0.25, "labels": ["no_buzz", "buzz"], "note": "Müller"}
METADATA = {"qbee": json.dumps(CARD).encode(), "other": b"\x00\xff"}
# (op, output channels, max-pool) of the BeeNet3's layers, on smaller images.
BEENET3 = [
    *(("conv", 32, 2), ("depthwise", 32, 1)) * 2,
    *(("conv", 64, 4), ("dense", 2, 1)),
]
AXES = {"conv": (3, 0, 1, 2), "depthwise": (3, 0, 1, 2), "dense": (1, 0)}


def random_weights(rng, kernel_shape, outputs, bits, source, target):
    """Random codes, with steps that make outputs about a third of their range."""
    limit = fixed_point.max_kernel_code(bits)
    terms = int(np.prod(kernel_shape)) // outputs
    growth = limit * np.sqrt(terms) * source.codes[1] / target.codes[1] / 2
    # A 4-bit dense kernel has one step in all.
    is_single = len(kernel_shape) == 2 and bits == 4
    exponents = -int(np.log2(growth)) - rng.integers(0, 1 if is_single else 2, outputs)
    kernel, bias = (rng.integers(-limit, limit, s) for s in (kernel_shape, outputs))
    return FixedWeights(kernel, bits, np.float32(2.0**exponents), bias)


def kernel_shape_of(number, op, shape, outputs):
    if op == "dense":
        return (*shape, outputs)
    size = 3 if number == 0 or op == "depthwise" else 1
    return (size, size, shape[2], 1 if op == "depthwise" else outputs)


def integer_net(*, kernel_bits=8, map_bits=8, seed=0, side=16):
    """Random integers in the shape of a BeeNet3."""
    rng = np.random.default_rng(seed)
    nodes, name, source, shape = [], INPUT, MapType(8, -128, 2.0**-5), (side, side, 1)
    for number, (op, outputs, pool) in enumerate(BEENET3):
        is_dense = op == "dense"
        if is_dense:
            shape = (int(np.prod(shape)),)
            nodes.append(FixedNode(Node("flat", "reshape", (name,), shape), (source,), source))
            name = "flat"
        kernel_shape = kernel_shape_of(number, op, shape, outputs)
        target = MapType.of(8 if is_dense else map_bits, is_signed=is_dense, exponent=-5)
        weights = random_weights(rng, kernel_shape, outputs, kernel_bits, source, target)
        window = (1, 1) if is_dense else kernel_shape[:2]
        after = (outputs,) if is_dense else (shape[0] // pool, shape[1] // pool, outputs)
        node = Node(
            f"layer{number}",
            op,
            (name,),
            after,
            window=window,
            padding=NO_PADDING if is_dense else same_padding(shape, window, (1, 1)),
            activation="linear" if is_dense else "relu",
            pool=pool,
        )
        nodes.append(FixedNode(node, (source,), target, weights))
        name, source, shape = node.name, target, after
    return FixedNet("net", (side, side, 1), MapType(8, -128, 2.0**-5), tuple(nodes))


def weighted(net):
    return [item for item in net.nodes if item.weights is not None]


def parsed(content):
    return schema.ModelT.InitFromPackedBuf(content, 0)


def operators_of(content):
    model = parsed(content)
    return [model.operatorCodes[o.opcodeIndex].builtinCode for o in model.subgraphs[0].operators]


@pytest.fixture(scope="module")
def exported():
    return tflite.write(integer_net(), metadata=METADATA).content


def test_int4_codes_are_packed_low_nibble_first():
    assert pack_int4(np.array([[1, -1], [7, -8]])).tobytes() == b"\xf1\x87"
    assert pack_int4(np.array([-2, 3, 5])).tobytes() == b"\x3e\x05"
    assert pack_int4(np.array([], int)).tobytes() == b""


@given(st.lists(st.integers(-8, 7), max_size=30))
def test_packed_codes_are_equal_after_the_trip(codes):
    packed = pack_int4(np.array(codes, int))
    nibbles = np.stack([packed & 15, packed >> 4], -1).ravel().astype(int)
    assert len(packed) == (len(codes) + 1) // 2
    assert (nibbles - 16 * (nibbles > 7))[: len(codes)].tolist() == codes


def test_an_int8_beenet3_uses_five_operators_only(exported):
    assert set(operators_of(exported)) == {
        Op.CONV_2D,
        Op.DEPTHWISE_CONV_2D,
        Op.MAX_POOL_2D,
        Op.RESHAPE,
        Op.FULLY_CONNECTED,
    }
    model = parsed(exported)
    assert len(model.operatorCodes) == 5
    assert len(operators_of(exported)) == len(BEENET3) + 3 + 1


def test_input_and_output_are_named_int8_maps_of_the_nets_format(exported):
    net, graph = integer_net(), parsed(exported).subgraphs[0]
    named = ((graph.inputs, b"mel", net.input_map), (graph.outputs, b"logits", net.output_map))
    for (index,), name, number in named:
        tensor = graph.tensors[index]
        assert (tensor.name, tensor.type) == (name, Type.INT8)
        assert tensor.quantization.scale.tolist() == [number.step]
        assert tensor.quantization.zeroPoint.tolist() == [0]


@pytest.mark.parametrize("content", [{}, METADATA, {"odd": b"12345"}])
def test_all_buffers_are_aligned_to_16_bytes(content):
    whole = tflite.write(integer_net(kernel_bits=4), metadata=content).content
    model = schema.Model.GetRootAs(whole, 0)
    starts = []
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        if buffer.DataLength():
            field = buffer._tab.Offset(4)
            starts.append(buffer._tab.Vector(field))
    assert len(starts) == 2 * len(BEENET3) + 1 + len(content)
    assert not any(start % 16 for start in starts)


def test_constants_hold_the_integers_of_the_net(exported):
    net, model = integer_net(), parsed(exported)
    graph = model.subgraphs[0]
    operators = [o for o in graph.operators if len(o.inputs) == 3]
    for item, operator in zip(weighted(net), operators, strict=True):
        weights = item.weights
        kernel, bias = (graph.tensors[i] for i in operator.inputs[1:])
        codes = np.asarray(model.buffers[kernel.buffer].data, np.uint8).view(np.int8)
        expected = weights.kernel.transpose(AXES[item.node.op])
        np.testing.assert_array_equal(codes.reshape(kernel.shape), expected)
        offsets = np.asarray(model.buffers[bias.buffer].data, np.uint8).view("<i4")
        np.testing.assert_array_equal(offsets, weights.bias)
        # Equal steps of all channels are stored once.
        steps = np.broadcast_to(kernel.quantization.scale, len(weights.bias))
        np.testing.assert_array_equal(steps, weights.steps)


def test_metadata_is_equal_after_the_trip(exported):
    assert read_metadata(exported, key="qbee", source="m.tflite") == CARD


def test_missing_or_broken_metadata_is_one_error(exported):
    with pytest.raises(ModelFileError, match="m.tflite: has no 'card' metadata"):
        read_metadata(exported, key="card", source="m.tflite")
    with pytest.raises(ModelFileError, match="m.tflite: metadata 'other' is damaged"):
        read_metadata(exported, key="other", source="m.tflite")
    with pytest.raises(ModelFileError, match="m.tflite: has no 'qbee' metadata"):
        read_metadata(tflite.write(integer_net()).content, key="qbee", source="m.tflite")


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0" * 100, b"RIFF....WAVEfmt "])
def test_what_is_no_tflite_file_is_refused(tmp_path, content):
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m\.tflite: not a \.tflite file"):
        MicroModel.load(tmp_path / "m.tflite")
    with pytest.raises(ModelFileError, match="m: not a .tflite file"):
        read_metadata(content, key="qbee", source="m")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"none\.tflite: No such file"):
        MicroModel.load(tmp_path / "none.tflite")


@pytest.mark.parametrize("share", np.linspace(0, 0.99, 30))
def test_a_truncated_file_is_refused(exported, share):
    with pytest.raises(ModelFileError, match="m.tflite: "):
        read_metadata(exported[: int(share * len(exported))], key="qbee", source="m.tflite")


@pytest.mark.parametrize("value", [0x00, 0x7F, 0xFF])
def test_a_damaged_header_gives_the_metadata_or_one_error(exported, value):
    refused = 0
    for position in range(0, 200):
        damaged = bytearray(exported)
        damaged[position] = value
        try:
            assert read_metadata(bytes(damaged), key="qbee", source="m.tflite") == CARD
        except ModelFileError:
            refused += 1
    assert refused > 10


def test_a_file_that_tflite_micro_refuses_is_one_error(exported):
    model = parsed(exported)
    model.operatorCodes[0].builtinCode = Op.NON_MAX_SUPPRESSION_V4
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(ModelFileError, match="m: TFLite Micro refuses it: "):
        MicroModel(bytes(builder.Output()), source="m")


def test_packed_4_bit_kernels_save_half_of_their_bytes():
    narrow, wide = integer_net(kernel_bits=4), integer_net(kernel_bits=8)
    kernels = sum(item.weights.kernel.size for item in weighted(wide))
    saved = len(tflite.write(wide).content) - len(tflite.write(narrow).content)
    # Kernels are padded to 16 bytes each, and the head has one step instead of two.
    assert saved == pytest.approx(kernels / 2, abs=16 * len(BEENET3) + 32)


def test_the_bytes_are_the_same_every_time(exported):
    assert tflite.write(integer_net(), metadata=METADATA).content == exported


def test_the_arena_is_measured_stable_and_grows_with_the_image():
    sizes = {}
    for side in (16, 32):
        model = MicroModel(tflite.write(integer_net(side=side)).content)
        sizes[side] = model.arena_bytes()
        # The largest map and its pooled copy lie in the arena at the same time.
        assert sizes[side] > side * side * 32 * 1.25
        model.predict(np.ones((2, side, side, 1)))
        assert model.arena_bytes() == sizes[side]
    assert sizes[32] > 2 * sizes[16]


def random_codes(net, n=3, seed=5):
    return np.random.default_rng(seed).integers(-128, 128, (n, *net.input_shape))


@pytest.mark.parametrize("map_bits", [4, 8, 16])
def test_4_bit_kernels_are_exact_and_packed_unless_maps_have_16_bits(map_bits):
    net = integer_net(kernel_bits=4, map_bits=map_bits, seed=map_bits)
    content = tflite.write(net).content
    graph = parsed(content).subgraphs[0]
    kernels = [graph.tensors[o.inputs[1]].type for o in graph.operators if len(o.inputs) == 3]
    # The first layer reads the 8-bit input, but writes to int16, which makes it int16 too.
    assert set(kernels) == {Type.INT8 if map_bits == 16 else Type.INT4}
    codes, model = random_codes(net), MicroModel(content, keep_all=True)
    expected = fixed_net.forward(net, codes)["layer5"]
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(model.run(codes), expected)
    np.testing.assert_array_equal(model.tensor(graph.outputs[0])[0], expected[-1])


def test_predict_quantizes_half_up_and_saturates_like_the_specification():
    net, step = integer_net(), 2.0**-5
    x = np.concatenate([(random_codes(net, n=2) + 0.5) * step, random_codes(net, n=1) * 1e3])
    found = MicroModel(tflite.write(net).content).predict(x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, fixed_net.predict(net, x))


def map_net(*nodes, shape=(4, 6, 2), number=None):
    """Net of nodes without weights: (name, op, inputs, shape, target, changes)."""
    number, found = MapType(8, -128, 2.0**-5) if number is None else number, []
    formats = {INPUT: number}
    for name, op, inputs, result, target, changes in nodes:
        formats[name] = target
        sources = tuple(formats[source] for source in inputs)
        found.append(FixedNode(Node(name, op, inputs, result, **changes), sources, target))
    return FixedNet("maps", shape, number, tuple(found))


def assert_on_device(net, n=4):
    """The device computes what the specification does, for codes of all the input map."""
    lowest, highest = net.input_map.codes
    codes = np.random.default_rng(0).integers(lowest, highest + 1, (n, *net.input_shape))
    expected = fixed_net.forward(net, codes)[net.nodes[-1].name]
    content = tflite.write(net).content
    found = MicroModel(content).run(codes + net.input_map.zero_point).astype(int)
    np.testing.assert_array_equal(found - net.output_map.zero_point, expected)
    assert len(np.unique(expected)) > 2
    return operators_of(content)


WHOLE = (4, 6, 2)
NUMBERS = {
    "signed 8": MapType(8, -128, 2.0**-4),
    "unsigned 8": MapType(8, 0, 2.0**-5),
    "affine 8": MapType(8, -50, float(np.float32(0.03))),
    "signed 4": MapType(4, -8, 0.5),
    "unsigned 4": MapType(4, 0, 0.5),
    "signed 16": MapType(16, -32768, 2.0**-12),
    "unsigned 16": MapType(16, 0, float(np.float32(1e-4))),
}


@pytest.mark.parametrize("activation", ["linear", "relu", "relu6"])
@pytest.mark.parametrize("target", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("op", ["rescale", "add", "multiply", "mean"])
def test_every_map_saturates_within_its_format_and_activation(op, target, activation):
    source = MapType(8, -128, 2.0**-3)
    inputs = (INPUT, INPUT) if op in ("add", "multiply") else (INPUT,)
    shape = (2,) if op == "mean" else WHOLE
    net = map_net(("n", op, inputs, shape, target, {"activation": activation}), number=source)
    assert_on_device(net, n=12)


@pytest.mark.parametrize("op", ["add", "multiply"])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_a_sum_or_product_is_max_pooled_after_its_activation(op, activation):
    target = MapType(8, 0 if activation == "relu" else -128, 2.0**-3)
    changes = {"activation": activation, "pool": 2}
    net = map_net(("n", op, (INPUT, INPUT), (2, 3, 2), target, changes))
    assert Op.MAX_POOL_2D in assert_on_device(net)


@pytest.mark.parametrize("op", ["max_pool", "average_pool"])
@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("is_same", [True, False])
def test_pools_of_every_format_are_the_specifications(op, number, is_same):
    window, strides = (3, 2), (1, 2)
    padding = same_padding(WHOLE, window, strides) if is_same else NO_PADDING
    changes = {"window": window, "strides": strides, "padding": padding}
    shape = (4 if is_same else 2, 3, 2)
    first = ("first", "rescale", (INPUT,), WHOLE, number, {})
    assert_on_device(map_net(first, ("n", op, ("first",), shape, number, changes)))


def test_a_mean_may_be_read_as_a_map():
    number = MapType(8, -128, 2.0**-6)
    shape = (2, 1, 1)
    net = map_net(
        ("mean", "mean", (INPUT,), shape, number, {}),
        ("pooled", "max_pool", ("mean",), (1, 1, 1), number, {"window": (2, 1)}),
    )
    assert_on_device(net, n=20)


def test_codes_go_from_one_container_to_another_once():
    wide = MapType(16, -32768, 2.0**-10)
    number = MapType(8, -128, 2.0**-5)
    net = map_net(
        ("a", "add", (INPUT, INPUT), WHOLE, wide, {}),
        ("b", "multiply", (INPUT, "a"), WHOLE, wide, {}),
        ("c", "add", ("a", "b"), WHOLE, number, {}),
    )
    # The input once to int16, and the last sum once to int8.
    assert assert_on_device(net).count(Op.QUANTIZE) == 2


def test_limits_that_saturation_and_fused_activations_express_cost_no_operator():
    for target in (MapType(8, -128, 2.0**-5), MapType(8, 0, 2.0**-5)):
        assert assert_on_device(map_net(("n", "rescale", (INPUT,), WHOLE, target, {}))) == [
            Op.QUANTIZE
        ]
    clipped = {"activation": "relu6"}
    target = MapType(8, 0, 2.0**-4)
    net = map_net(("n", "add", (INPUT, INPUT), WHOLE, target, clipped))
    assert assert_on_device(net) == [Op.ADD]
    net = map_net(("n", "rescale", (INPUT,), WHOLE, target, clipped))
    assert assert_on_device(net) == [Op.QUANTIZE, Op.MINIMUM]


def test_a_signed_4_bit_map_is_cut_at_its_lowest_code():
    target = MapType(4, -8, 0.5)
    net = map_net(("n", "rescale", (INPUT,), WHOLE, target, {}))
    assert assert_on_device(net) == [Op.QUANTIZE, Op.MAXIMUM]


def test_wide_inputs_and_outputs_are_int16():
    number = MapType(16, -32768, 2.0**-10)
    shape = (4, 6, 2)
    net = map_net(("n", "add", (INPUT, INPUT), shape, number, {}), number=number)
    assert assert_on_device(net) == [Op.ADD]
    graph = parsed(tflite.write(net).content).subgraphs[0]
    for (index,) in (graph.inputs, graph.outputs):
        assert graph.tensors[index].type == Type.INT16


def test_negative_values_are_0_in_a_wide_input_map_without_a_sign():
    number = MapType(16, 0, 2.0**-10)
    net = map_net(("n", "add", (INPUT, INPUT), WHOLE, number, {}), number=number)
    x = np.random.default_rng(0).normal(0, 3, (4, *WHOLE))
    expected = fixed_net.predict(net, x)
    assert np.any(expected == 0) and np.any(expected > 0)
    np.testing.assert_array_equal(MicroModel(tflite.write(net).content).predict(x), expected)


def padded_layer(op, padding, strides, kernel_bits):
    """One convolution on a map of 8 bits with this padding."""
    rng, source, target = (
        np.random.default_rng(1),
        MapType(8, -128, 2.0**-5),
        MapType(8, 0, 2.0**-2),
    )
    shape = (3, 3, 2, 1 if op == "depthwise" else 3)
    weights = random_weights(rng, shape, 2 if op == "depthwise" else 3, kernel_bits, source, target)
    size = window_outputs(WHOLE, (3, 3), strides, padding)
    node = Node("n", op, (INPUT,), (*size, len(weights.bias)), (3, 3), strides, padding, "relu")
    return FixedNet("one", WHOLE, source, (FixedNode(node, (source,), target, weights),))


@pytest.mark.parametrize("op", ["conv", "depthwise"])
@pytest.mark.parametrize("kernel_bits", [4, 8, 16])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
def test_only_padding_that_is_not_tensorflows_needs_an_operator(op, kernel_bits, strides):
    same = same_padding(WHOLE, (3, 3), strides)
    for padding in (NO_PADDING, same, ((1, 0), (2, 1))):
        operators = assert_on_device(padded_layer(op, padding, strides, kernel_bits))
        # TFLite would pad copies of columns one by one: it may where both sides are alike.
        is_lopsided = any(before != after for before, after in padding)
        has_copies = op == "depthwise" and kernel_bits == 16
        needs_pad = padding not in (NO_PADDING, same) or (has_copies and is_lopsided)
        assert (Op.PAD in operators) == needs_pad
