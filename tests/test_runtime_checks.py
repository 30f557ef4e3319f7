"""Damaged files are refused before C++ sees them; sound ones of any converter are not."""

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export import METADATA, integer_net, map_net
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.errors import ModelFileError
from qbee.export import strips, tflite
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT
from qbee.runtime import arena, bounds, checks, flatbuffer
from qbee.runtime.flatbuffer import Author, Op, Type, packed
from qbee.runtime.interpreter import MicroModel

WHOLE = (4, 6, 2)
NUMBER = MapType(8, -128, 2.0**-5)


SMALL = tflite.write(
    map_net(
        ("sum", "add", (INPUT, INPUT), WHOLE, NUMBER, {}),
        ("mean", "mean", ("sum",), (2,), NUMBER, {}),
    ),
    metadata={"note": b"text"},
).content


def repacked(model):
    """Bytes of a model, whatever is wrong with it."""
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def changed(content, change):
    """The file after a change of its graph's objects."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    change(model.subgraphs[0], model)
    return repacked(model)


@pytest.fixture(scope="module")
def exported():
    return tflite.write(integer_net(), metadata=METADATA).content


@pytest.fixture(scope="module")
def planned():
    """A network in strips, with a plan of the arena in the file."""
    net = strips.cut(integer_net(side=32), (strips.Segment("layer1", 4),))
    found = tflite.write(net, plan_memory=True)
    assert found.offsets
    return found


def kernel_of(graph, operator=0):
    return graph.tensors[graph.operators[operator].inputs[1]]


def options(**values):
    def change(graph, _):
        for name, value in values.items():
            setattr(graph.operators[0].builtinOptions, name, value)

    return change


def quantization(**values):
    def change(graph, _):
        for name, value in values.items():
            setattr(kernel_of(graph).quantization, name, value)

    return change


def other_options(graph, _):
    graph.operators[0].builtinOptionsType = schema.BuiltinOptions.AddOptions
    graph.operators[0].builtinOptions = schema.AddOptionsT()


def no_options(graph, _):
    graph.operators[0].builtinOptionsType, graph.operators[0].builtinOptions = 0, None


def turned_kernel(graph, _):
    kernel = kernel_of(graph, 6)
    kernel.shape, kernel.quantization = kernel.shape[::-1].copy(), kernel_of(graph, 9).quantization


def other_bias(graph, _):
    inputs = graph.operators[0].inputs.copy()
    inputs[2] = graph.operators[6].inputs[2]
    graph.operators[0].inputs = inputs


def bias_of_int16(graph, _):
    bias = graph.tensors[graph.operators[0].inputs[2]]
    bias.type, bias.shape = Type.INT16, np.array([2, 32], np.int32)


def other_result(graph, _):
    graph.tensors[graph.operators[0].outputs[0]].shape = np.array([1, 16, 8, 64], np.int32)


def huge_tensor(graph, _):
    graph.tensors[graph.inputs[0]].shape = np.array([1 << 20, 1 << 12], np.int32)


def swapped_operators(graph, _):
    graph.operators[1], graph.operators[2] = graph.operators[2], graph.operators[1]


def written_constant(graph, _):
    graph.operators[0].outputs = graph.operators[0].inputs[1:2]


def written_twice(graph, _):
    graph.operators[1].outputs = graph.operators[0].outputs


def one_input(graph, _):
    graph.operators[0].inputs = graph.operators[0].inputs[:1]


def missing_kernel(graph, _):
    graph.operators[0].inputs = np.array([graph.operators[0].inputs[0], -1], np.int32)


def unwritten_output(graph, _):
    graph.tensors.append(graph.tensors[graph.outputs[0]])
    graph.outputs = np.array([len(graph.tensors) - 1], np.int32)


def constant_input(graph, _):
    graph.inputs = graph.operators[0].inputs[1:2]


def mixed_types(graph, _):
    graph.tensors[graph.operators[1].outputs[0]].type = Type.INT16


def map_without_scale(graph, _):
    graph.tensors[graph.operators[0].outputs[0]].quantization = None


def unknown_type(graph, _):
    graph.tensors[0].type = Type.STRING


def content_elsewhere(_, model):
    model.buffers[1].offset = 1 << 20


def unnamed_custom(_, model):
    model.operatorCodes[0].builtinCode = Op.CUSTOM


def graph_in_itself(graph, model):
    model.operatorCodes[0].builtinCode = Op.CALL_ONCE
    graph.operators[0].builtinOptionsType = schema.BuiltinOptions.CallOnceOptions
    graph.operators[0].builtinOptions = schema.CallOnceOptionsT()


def missing_graph(graph, model):
    graph_in_itself(graph, model)
    graph.operators[0].builtinOptions.initSubgraphIndex = 7


DAMAGES = {
    "stride": (options(strideW=0), "a stride, window or dilation below 1"),
    "dilation": (options(dilationHFactor=-1), "a stride, window or dilation below 1"),
    "padding": (options(padding=7), "padding 7"),
    "activation": (options(fusedActivationFunction=99), "its activation is 99"),
    "no options": (no_options, "operator 0 .CONV_2D.: it has no options"),
    "other options": (other_options, "its options are AddOptions"),
    "kernel": (turned_kernel, "its kernel .* does not fit its map|has not 4 axes"),
    "bias": (other_bias, "its bias has not 32 numbers"),
    "bias type": (bias_of_int16, "a bias of type int16 on int8 maps"),
    "result": (other_result, r"its result is \[1, 16, 8, 64\] instead of \[1, 16, 16, 32\]"),
    "huge": (huge_tensor, "has 4294967296 bytes"),
    "order": (swapped_operators, "reads tensor .* before it is written"),
    "constant": (written_constant, "writes tensor .* which has its content already"),
    "twice": (written_twice, "writes tensor .* which has its content already"),
    "inputs": (one_input, "it has 1 inputs"),
    "missing": (missing_kernel, "an input is missing"),
    "output": (unwritten_output, "is written by no operator"),
    "input": (constant_input, "an input is a constant"),
    "types": (mixed_types, "it mixes int16 and int8"),
    "no scale": (map_without_scale, "has no scale or no zero point"),
    "scale count": (quantization(scale=np.ones(3, np.float32)), "3 scales for 32 channels"),
    "scale axis": (
        quantization(scale=np.ones(32, np.float32), quantizedDimension=9),
        "its scales lie on axis 9",
    ),
    "scale nan": (quantization(scale=np.array([np.nan], np.float32)), "a scale is no number"),
    "scale negative": (quantization(scale=np.array([-1], np.float32)), "a scale is no number"),
    "zero points": (quantization(zeroPoint=np.zeros(5, np.int64)), "5 zero points for 32 scales"),
    "zero point": (quantization(zeroPoint=np.array([200])), "a zero point beyond its type"),
    "type": (unknown_type, "tensors of type string are not supported"),
    "elsewhere": (content_elsewhere, "constants behind the flatbuffer are not supported"),
    "custom": (unnamed_custom, "operator 0 is of no kind"),
    "itself": (graph_in_itself, "a graph runs itself"),
    "graph": (missing_graph, "an operator runs a graph that does not exist"),
}


@pytest.mark.parametrize(("change", "match"), DAMAGES.values(), ids=DAMAGES)
def test_every_kind_of_damage_is_named(exported, change, match):
    with pytest.raises(ModelFileError, match=f"m.tflite: .*({match})"):
        checks.parsed(changed(exported, change), "m.tflite")


def test_a_file_that_is_written_again_unchanged_is_sound(exported):
    checks.parsed(changed(exported, lambda *_: None), "m")


def test_a_bias_that_tflite_micro_would_misread_is_refused_there_only():
    net = integer_net(map_bits=16)
    model = schema.ModelT.InitFromPackedBuf(tflite.write(net).content, 0)
    graph = model.subgraphs[0]
    codes = [flatbuffer.code_of(model, o) for o in graph.operators]
    bias = graph.tensors[graph.operators[codes.index(Op.DEPTHWISE_CONV_2D)].inputs[2]]
    words = np.asarray(model.buffers[bias.buffer].data).view("<i8").astype("<i4")
    bias.type, bias.buffer = Type.INT32, len(model.buffers)
    model.buffers.append(schema.BufferT())
    model.buffers[-1].data = words.view(np.uint8)
    checks.parsed(repacked(model), "m")
    with pytest.raises(ModelFileError, match="m: TFLite Micro would take its int32 bias for int64"):
        MicroModel(repacked(model), source="m")


def with_options(op, made, inputs, result, *, constants=(), type_=Type.INT8):
    """A file of one operator."""
    author = Author()
    sources = [author.tensor(shape, type_, scale=0.5) for shape in inputs]
    fixed = [author.tensor(np.shape(c), Type.INT32, data=np.array(c)) for c in constants]
    output = author.tensor(result, type_, scale=0.5)
    author.operator(op, [*sources, *fixed], output, made)
    return packed(author.model(sources, [output]))


def concatenation(axis):
    made = schema.ConcatenationOptionsT()
    made.axis = axis
    return made


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ((Op.CONCATENATION, concatenation(4), [(1, 2)] * 2, (1, 4)), "axis 4 of 2"),
        ((Op.CONCATENATION, concatenation(1), [(1, 2), (2, 2)], (1, 4)), "its maps are"),
        ((Op.ADD, schema.AddOptionsT(), [(1, 2), (1, 3)], (1, 3)), "its maps are"),
        ((Op.RELU, None, [(1, 2)], (1, 3)), r"its result is \[1, 3\] instead of \[1, 2\]"),
        ((Op.RESHAPE, None, [(1, 2)], (1, 3)), r"its result is \[1, 3\]"),
    ],
)
def test_operators_without_kernels_have_rules_too(content, match):
    with pytest.raises(ModelFileError, match=match):
        checks.parsed(with_options(*content), "m")


@pytest.mark.parametrize(
    ("op", "inputs", "result", "constants", "match"),
    [
        (Op.MEAN, [(1, 4, 2)], (1, 2), [[5]], "axis 5 of 3"),
        (Op.MEAN, [(1, 4, 2)], (1, 4), [[1]], "instead of"),
        (Op.PAD, [(1, 4)], (1, 6), [[[0, 0], [-1, 3]]], "its margins are"),
        (Op.SLICE, [(1, 4)], (1, 2), [[0, 3], [1, 2]], r"it cuts \[1, 2\] at \[0, 3\]"),
        (Op.TRANSPOSE, [(1, 4)], (4, 1), [[1, 1]], r"its order is \[1, 1\]"),
        (Op.RESIZE_BILINEAR, [(1, 2, 2, 1)], (1, 4, 4, 1), [[4, 0]], r"its size is \[4, 0\]"),
    ],
)
def test_constants_that_direct_an_operator_must_fit_it(op, inputs, result, constants, match):
    content = with_options(op, None, inputs, result, constants=constants)
    with pytest.raises(ModelFileError, match=match):
        checks.parsed(content, "m")


def test_stored_weights_of_a_float_model_may_have_a_scale_for_each_channel():
    author = Author()
    source = author.tensor((1, 4), Type.FLOAT32)
    scales = np.array([0.5, 0.25, 0.125])
    stored = author.tensor((3, 4), Type.INT8, scale=scales, data=np.ones((3, 4)))
    kernel, output = author.tensor((3, 4), Type.FLOAT32), author.tensor((1, 3), Type.FLOAT32)
    author.operator(Op.DEQUANTIZE, [stored], kernel, schema.DequantizeOptionsT())
    options = schema.FullyConnectedOptionsT()
    author.operator(Op.FULLY_CONNECTED, [source, kernel], output, options)
    checks.parsed(packed(author.model([source], [output])), "m")


@pytest.mark.parametrize(
    ("begin", "end", "step", "mask", "length"),
    [(0, 9, 2, 0, 5), (-3, 9, 1, 0, 2), (2, 0, 1, 1, 8), (7, 2, -2, 0, 3)],
)
def test_a_strided_slice_has_the_length_that_numpy_finds(begin, end, step, mask, length):
    made = schema.StridedSliceOptionsT()
    made.endMask = mask
    constants = [[begin], [end], [step]]
    stop = None if mask else end
    assert len(np.arange(10)[begin:stop:step]) == length
    sound = with_options(Op.STRIDED_SLICE, made, [(10,)], (length,), constants=constants)
    checks.parsed(sound, "m")
    other = with_options(Op.STRIDED_SLICE, made, [(10,)], (length + 1,), constants=constants)
    with pytest.raises(ModelFileError, match=rf"instead of \[{length}\]"):
        checks.parsed(other, "m")


def test_a_map_of_unknown_length_does_not_make_a_file_unsound(exported):
    def change(graph, _):
        tensor = graph.tensors[graph.operators[0].outputs[0]]
        tensor.shapeSignature = np.array([-1, -1, 16, 32], np.int32)
        tensor.shape = np.array([1, 1, 16, 32], np.int32)

    checks.parsed(changed(exported, change), "m")


def test_every_file_of_ours_is_sound(planned):
    checks.parsed(planned.content, "m")
    for kernel_bits, map_bits in ((4, 8), (8, 8), (16, 8), (16, 16)):
        net = integer_net(kernel_bits=kernel_bits, map_bits=map_bits)
        checks.parsed(tflite.write(net).content, "m")


def test_the_plan_of_the_arena_is_read_and_must_fit_the_tensors(planned):
    model = checks.parsed(planned.content, "m")
    assert checks.offline_offsets(model) == planned.offsets
    buffer = model.metadata[0].buffer
    for words, match in (
        (planned.offsets[1:], "does not fit its tensors"),
        ((*planned.offsets[1:], -7), "has a negative place"),
    ):
        plan = np.array([1, 0, len(planned.offsets), *words], "<i4").tobytes()
        model.buffers[buffer].data = np.frombuffer(plan, np.uint8)
        with pytest.raises(ModelFileError, match=match):
            checks.parsed(repacked(model), "m")
    # One name in two modules: that which writes must not be loaded by those that only read.
    assert flatbuffer.OFFLINE_PLAN == tflite.OFFLINE_PLAN


def test_the_head_follows_the_plan_of_the_file(planned):
    model = checks.parsed(planned.content, "m")
    free = arena.plan(model)
    tight = arena.plan(model, checks.offline_offsets(model))
    assert tight.head_bytes == planned.arena.head_bytes < free.head_bytes
    assert MicroModel(planned.content).arena_bytes() == tight.total_bytes


def test_all_tensors_can_be_kept_though_the_file_has_a_plan(planned):
    net = strips.cut(integer_net(side=32), (strips.Segment("layer1", 4),))
    codes = np.random.default_rng(0).integers(-128, 128, (2, *net.input_shape))
    kept, usual = MicroModel(planned.content, keep_all=True), MicroModel(planned.content)
    np.testing.assert_array_equal(kept.run(codes), usual.run(codes))
    last = schema.ModelT.InitFromPackedBuf(planned.content, 0).subgraphs[0].outputs[0]
    np.testing.assert_array_equal(kept.tensor(last)[0], usual.run(codes)[-1])


@pytest.mark.parametrize("share", np.linspace(0, 0.999, 40))
def test_what_points_behind_the_end_is_found(exported, share):
    # The padding behind the last constant is all that may go.
    with pytest.raises(bounds.OutOfBoundsError):
        bounds.check(exported[: int(share * len(exported))])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), st.integers(-(2**31), 2**31 - 1))
def test_any_number_in_the_place_of_another_gives_a_model_or_one_error(place, number):
    content = bytearray(SMALL)
    place %= len(content) - 4
    content[place : place + 4] = number.to_bytes(4, "little", signed=True)
    try:
        checks.parsed(bytes(content), "m")
    except ModelFileError as error:
        assert str(error).startswith("m: ")


def test_many_tables_that_share_their_content_do_not_take_for_ever():
    # A vector of thousands of entries that all point to one table of many tensors.
    model = schema.ModelT.InitFromPackedBuf(SMALL, 0)
    graph = model.subgraphs[0]

    class Once:
        place = None

        def Pack(self, builder):  # noqa: N802 - the schema's name
            self.place = self.place or graph.Pack(builder)
            return self.place

    model.subgraphs = [Once()] * 20_000
    with pytest.raises(ModelFileError, match="holds more tables than bytes"):
        checks.parsed(repacked(model), "m")
