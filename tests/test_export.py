"""The exported file: packing, operators, alignment, metadata, damage and memory."""

import dataclasses
import json

import flatbuffers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.errors import ModelFileError, ParameterError
from qbee.export import tflite
from qbee.export.flatbuffer import Op, Type, pack_int4
from qbee.export.interpreter import MicroModel, read_metadata
from qbee.quantize import fixed_point
from qbee.quantize.fixed_point import FixedLayer, FixedNet, MapType

CARD = {"threshold": 0.25, "labels": ["no_buzz", "buzz"], "note": "Müller"}
METADATA = {"qbee": json.dumps(CARD).encode(), "other": b"\x00\xff"}
# (kind, output channels, max-pool) of the BeeNet3's layers, on smaller images.
BEENET3 = [
    *(("conv", 32, 2), ("depthwise", 32, 1)) * 2,
    *(("conv", 64, 4), ("dense", 2, 1)),
]


def integer_net(*, kernel_bits=8, map_bits=8, seed=0, side=16):
    """Random integers in the shape of a BeeNet3, with outputs of about a third of the range."""
    rng = np.random.default_rng(seed)
    layers, source, shape = [], MapType(8, True, -5), (side, side, 1)
    for number, (kind, outputs, pool) in enumerate(BEENET3):
        is_dense = kind == "dense"
        size = 3 if number == 0 or kind == "depthwise" else 1
        size = (size, size, shape[2], 1 if kind == "depthwise" else outputs)
        size = (int(np.prod(shape)), outputs) if is_dense else size
        limit = fixed_point.max_kernel_code(kernel_bits)
        target = MapType(8 if is_dense else map_bits, is_dense, source.exponent)
        terms = int(np.prod(size)) // outputs
        growth = limit * np.sqrt(terms) * source.codes[1] / target.codes[1] / 2
        steps = rng.integers(0, 1 if is_dense and kernel_bits == 4 else 2, outputs)
        steps = -int(np.log2(growth)) - steps
        kernel, bias = (rng.integers(-limit, limit, s) for s in (size, outputs))
        name = f"layer{number}"
        layers.append(
            FixedLayer(
                name, kind, kernel, kernel_bits, steps, bias, source, target, not is_dense, 1, pool
            )
        )
        shape, source = (shape[0] // pool, shape[1] // pool, outputs), target
    return FixedNet("net", (side, side, 1), tuple(layers))


def parsed(content):
    return schema.ModelT.InitFromPackedBuf(content, 0)


def operators_of(content):
    model = parsed(content)
    return [model.operatorCodes[o.opcodeIndex].builtinCode for o in model.subgraphs[0].operators]


@pytest.fixture(scope="module")
def exported():
    return tflite.write(integer_net(), metadata=METADATA)


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
        assert tensor.quantization.scale.tolist() == [2.0**number.exponent]
        assert tensor.quantization.zeroPoint.tolist() == [0]


@pytest.mark.parametrize("content", [{}, METADATA, {"odd": b"12345"}])
def test_all_buffers_are_aligned_to_16_bytes(content):
    whole = tflite.write(integer_net(kernel_bits=4), metadata=content)
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
    weighted = [o for o in graph.operators if len(o.inputs) == 3]
    for layer, operator in zip(net.layers, weighted, strict=True):
        kernel, bias = (graph.tensors[i] for i in operator.inputs[1:])
        axes = (1, 0) if layer.kind == "dense" else (3, 0, 1, 2)
        codes = np.asarray(model.buffers[kernel.buffer].data, np.uint8).view(np.int8)
        np.testing.assert_array_equal(codes.reshape(kernel.shape), layer.kernel.transpose(axes))
        offsets = np.asarray(model.buffers[bias.buffer].data, np.uint8).view("<i4")
        np.testing.assert_array_equal(offsets, layer.bias)
        # Equal steps of all channels are stored once.
        steps = np.broadcast_to(kernel.quantization.scale, len(layer.bias))
        np.testing.assert_array_equal(steps, 2.0**layer.kernel_exponents)


def test_metadata_is_equal_after_the_trip(exported):
    assert read_metadata(exported, key="qbee", source="m.tflite") == CARD


def test_missing_or_broken_metadata_is_one_error(exported):
    with pytest.raises(ModelFileError, match="m.tflite: has no 'card' metadata"):
        read_metadata(exported, key="card", source="m.tflite")
    with pytest.raises(ModelFileError, match="m.tflite: metadata 'other' is damaged"):
        read_metadata(exported, key="other", source="m.tflite")
    with pytest.raises(ModelFileError, match="m.tflite: has no 'qbee' metadata"):
        read_metadata(tflite.write(integer_net()), key="qbee", source="m.tflite")


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


def test_a_signed_4_bit_map_is_refused_with_the_name_of_its_layer():
    net = integer_net(map_bits=4)
    wrong = dataclasses.replace(net.layers[1], target=MapType(4, True, 0), has_relu=False)
    wrong = dataclasses.replace(net, layers=(net.layers[0], wrong, *net.layers[2:]))
    with pytest.raises(ParameterError, match="'layer1': a signed 4-bit map needs a ReLU"):
        tflite.write(wrong)


def test_packed_4_bit_kernels_save_half_of_their_bytes():
    narrow, wide = integer_net(kernel_bits=4), integer_net(kernel_bits=8)
    kernels = sum(layer.kernel.size for layer in wide.layers)
    saved = len(tflite.write(wide)) - len(tflite.write(narrow))
    # Kernels are padded to 16 bytes each, and the head has one step instead of two.
    assert saved == pytest.approx(kernels / 2, abs=16 * len(wide.layers) + 32)


def test_the_bytes_are_the_same_every_time(exported):
    assert tflite.write(integer_net(), metadata=METADATA) == exported


def test_the_arena_is_measured_stable_and_grows_with_the_image():
    sizes = {}
    for side in (16, 32):
        model = MicroModel(tflite.write(integer_net(side=side)))
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
    content = tflite.write(net)
    graph = parsed(content).subgraphs[0]
    kernels = [graph.tensors[o.inputs[1]].type for o in graph.operators if len(o.inputs) == 3]
    # The first layer reads the 8-bit input, but writes to int16, which makes it int16 too.
    assert set(kernels) == {Type.INT8 if map_bits == 16 else Type.INT4}
    codes, model = random_codes(net), MicroModel(content, keep_all=True)
    expected = fixed_point.forward(net, codes)[-1]
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(model.run(codes), expected)
    np.testing.assert_array_equal(model.tensor(graph.outputs[0])[0], expected[-1])


def test_predict_quantizes_half_up_and_saturates_like_the_specification():
    net, step = integer_net(), 2.0**-5
    x = np.concatenate([(random_codes(net, n=2) + 0.5) * step, random_codes(net, n=1) * 1e3])
    codes = fixed_point.forward(net, fixed_point.quantize(x, net.input_map))[-1]
    expected = fixed_point.dequantize(codes, net.output_map)
    found = MicroModel(tflite.write(net)).predict(x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
