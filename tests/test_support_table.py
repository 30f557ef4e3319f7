"""Every row of the table of what TFLite Micro runs, layer by layer, and what it must not get."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbee.errors import ExportError, ModelFileError
from qbee.export import tflite
from qbee.export.targets import TFLM
from qbee.quantize import fixed_net, fixed_point
from qbee.quantize.fixed_net import FixedNet, FixedNode, FixedWeights
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT, NO_PADDING, Node, same_padding, window_outputs
from qbee.runtime.flatbuffer import Author, Op, Type, packed, schema
from qbee.runtime.interpreter import MicroModel

MAPS = [
    MapType(4, 0, 2.0**-3),
    MapType(4, -8, 2.0**-3),
    MapType(8, 0, 2.0**-6),
    MapType(8, -128, 2.0**-6),
    MapType(8, -31, float(np.float32(0.0137))),
    MapType(16, 0, 2.0**-12),
    MapType(16, -(2**15), 2.0**-12),
]
# A column of the table: operator, and what fits into one layer of it.
WEIGHTED = ("conv", "depthwise", "dense")
UNARY = ("max_pool", "average_pool", "mean", "rescale", "reshape", "rows")
BINARY = ("add", "multiply", "concat_rows", "concat_channels")

# One layer runs in milliseconds; an interpreter is made for each.
often = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def steps_for(draw, outputs, source, target, terms, bits, *, is_single):
    """Steps that make most results lie in the target's range, some of them beyond."""
    reach = fixed_point.max_kernel_code(bits) * max(abs(c) for c in source.codes)
    gain = target.step * (target.codes[1] + 1) / (source.step * reach * np.sqrt(terms))
    exponent = np.floor(np.log2(gain))
    spread = draw(st.lists(st.integers(-1, 1), min_size=outputs, max_size=outputs))
    steps = 2.0 ** (exponent + np.array(spread[:1] * outputs if is_single else spread))
    return np.float32(steps * (1.0 if draw(st.booleans()) else 0.83))


@st.composite
def weighted_layers(draw, op):
    """A network of one convolution, depthwise convolution or dense layer."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = draw(st.sampled_from([4, 8, 16]))
    source, target = draw(st.sampled_from(MAPS)), draw(st.sampled_from(MAPS[2:]))
    channels, outputs = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    activation = draw(st.sampled_from(["linear", "relu", "relu6"]))
    if target.lowest == 0 and activation == "linear":
        activation = "relu"
    if op == "dense":
        shape, window, strides, padding = (channels,), (1, 1), (1, 1), NO_PADDING
        after, kernel_shape, terms = (outputs,), (channels, outputs), channels
    else:
        window = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        side = draw(st.integers(1, 2))
        strides = (
            (side, side)
            if op == "depthwise"
            else draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        )
        shape = (draw(st.integers(3, 7)), draw(st.integers(3, 7)), channels)
        kinds = [NO_PADDING, same_padding(shape, window, strides), ((1, 0), (0, 2))]
        padding = draw(st.sampled_from(kinds))
        outputs = channels if op == "depthwise" else outputs
        after = (*window_outputs(shape[:2], window, strides, padding), outputs)
        depth = 1 if op == "depthwise" else channels
        terms = window[0] * window[1] * depth
        kernel_shape = (*window, channels, 1 if op == "depthwise" else outputs)
    is_single = draw(st.booleans()) or (op == "dense" and bits == 4)
    limit = fixed_point.max_kernel_code(bits)
    steps = steps_for(draw, outputs, source, target, terms, bits, is_single=is_single)
    bias_limit = int(min(2**30, target.step * target.codes[1] / (source.step * steps.min())))
    weights = FixedWeights(
        rng.integers(-limit, limit + 1, kernel_shape),
        bits,
        steps,
        rng.integers(-bias_limit, bias_limit + 1, outputs),
    )
    node = Node("layer", op, (INPUT,), after, window, strides, padding, activation)
    return FixedNet("one", shape, source, (FixedNode(node, (source,), target, weights),)), rng


def codes_of(net, rng, count=4):
    """Random codes, and all the lowest and highest ones."""
    lowest, highest = net.input_map.codes
    codes = rng.integers(lowest, highest + 1, (count, *net.input_shape))
    codes[0], codes[1] = lowest, highest
    return codes


def assert_the_device_computes_the_same(net, rng):
    codes = codes_of(net, rng)
    expected = fixed_net.forward(net, codes)[net.nodes[-1].name]
    model = MicroModel(tflite.write(net).content)
    stored = codes + (0 if net.input_map.is_wide else net.input_map.zero_point)
    number = net.output_map
    found = model.run(stored).astype(np.int64) - (0 if number.is_wide else number.zero_point)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("op", WEIGHTED)
def test_weighted_layers_of_all_widths_paddings_and_steps(op):
    @often
    @given(weighted_layers(op))
    def check(drawn):
        assert_the_device_computes_the_same(*drawn)

    check()


@st.composite
def other_layers(draw, op):
    """A network of one operation without weights; two inputs are two rescaled copies of one."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    source = draw(st.sampled_from(MAPS))
    height, width, channels = (draw(st.integers(2, 6)) for _ in range(3))
    shape = (height, width, channels)
    target = draw(st.sampled_from(MAPS)) if op in ("mean", "rescale") else source
    window, strides, first, after = (1, 1), (1, 1), 0, shape
    if op.endswith("pool"):
        window = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        strides = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        after = (*window_outputs(shape[:2], window, strides, NO_PADDING), channels)
    elif op == "mean":
        after = (channels,)
    elif op == "reshape":
        after = (height * width * channels,)
    elif op == "rows":
        first = draw(st.integers(0, height - 1))
        after = (draw(st.integers(1, height - first)), width, channels)
    node = Node("layer", op, (INPUT,), after, window, strides, first_row=first)
    return FixedNet("one", shape, source, (FixedNode(node, (source,), target),)), rng


@pytest.mark.parametrize("op", UNARY)
def test_layers_without_weights(op):
    @often
    @given(other_layers(op))
    def check(drawn):
        assert_the_device_computes_the_same(*drawn)

    check()


@st.composite
def pairs(draw, op):
    """Two rescaled copies of the input, and a sum, product or concatenation of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    source = draw(st.sampled_from(MAPS))
    shape = tuple(draw(st.integers(1, 5)) for _ in range(3))
    wide = draw(st.booleans())
    fitting = [m for m in MAPS if m.is_wide == wide]
    a, b = (draw(st.sampled_from(fitting)) for _ in range(2))
    target = draw(st.sampled_from(fitting))
    if op.startswith("concat"):
        b = target = a
    axis = 0 if op == "concat_rows" else 2
    after = list(shape)
    if op.startswith("concat"):
        after[axis] *= 2
    activation = "relu" if target.lowest == 0 and not op.startswith("concat") else "linear"
    nodes = [
        FixedNode(Node(name, "rescale", (INPUT,), shape), (source,), number)
        for name, number in (("a", a), ("b", b))
    ]
    node = Node("layer", op, ("a", "b"), tuple(after), activation=activation)
    nodes.append(FixedNode(node, (a, b), target))
    return FixedNet("pair", shape, source, tuple(nodes)), rng


@pytest.mark.parametrize("op", BINARY)
def test_layers_of_two_inputs(op):
    @often
    @given(pairs(op))
    def check(drawn):
        assert_the_device_computes_the_same(*drawn)

    check()


def file_of(kernel_type, map_type, bias_type, *, op=Op.CONV_2D, steps=0.1):
    """A file of one layer of any types, as an exporter that knows nothing might write it."""
    author = Author()
    source = author.tensor((1, 3, 3, 4), map_type, scale=0.5)
    shape = {Op.CONV_2D: (4, 1, 1, 4), Op.DEPTHWISE_CONV_2D: (1, 1, 1, 4)}.get(op, (4, 36))
    axis = 3 if op == Op.DEPTHWISE_CONV_2D else 0
    kernel = author.tensor(shape, kernel_type, scale=steps, axis=axis, data=np.ones(shape))
    bias = author.tensor((4,), bias_type, scale=0.05, data=np.zeros(4))
    result = (1, 4) if op == Op.FULLY_CONNECTED else (1, 3, 3, 4)
    output = author.tensor(result, map_type, scale=0.5)
    options = {
        Op.CONV_2D: schema.Conv2DOptionsT,
        Op.DEPTHWISE_CONV_2D: schema.DepthwiseConv2DOptionsT,
        Op.FULLY_CONNECTED: schema.FullyConnectedOptionsT,
    }[op]()
    if op != Op.FULLY_CONNECTED:
        options.padding = options.strideH = options.strideW = 1
        options.dilationHFactor = options.dilationWFactor = 1
    if op == Op.DEPTHWISE_CONV_2D:
        options.depthMultiplier = 1
    author.operator(op, [source, kernel, bias], output, options)
    return packed(author.model([source], [output]))


ALL = (Op.CONV_2D, Op.DEPTHWISE_CONV_2D, Op.FULLY_CONNECTED)


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize(
    ("kernel_type", "map_type"), [(Type.INT4, Type.INT16), (Type.INT16, Type.INT8),
                                  (Type.INT16, Type.INT16)]
)  # fmt: skip
def test_what_tflite_micro_refuses_the_target_refuses_at_export(op, kernel_type, map_type):
    with pytest.raises(ExportError, match="layer 'x': tflm does not run"):
        TFLM.check("x", op, map_type, kernel_type=kernel_type)
    bias_type = Type.INT64 if map_type == Type.INT16 else Type.INT32
    content = file_of(kernel_type, map_type, bias_type, op=op)
    with pytest.raises(ModelFileError):
        # Some kernels look at their types only when they run.
        MicroModel(content).run(np.zeros((1, 3, 3, 4)))


def test_dense_int4_kernels_by_channel_are_refused_by_the_device_and_never_written():
    steps = np.linspace(0.1, 0.2, 4)
    with pytest.raises(ModelFileError):
        MicroModel(file_of(Type.INT4, Type.INT8, Type.INT32, op=Op.FULLY_CONNECTED, steps=steps))
    MicroModel(file_of(Type.INT4, Type.INT8, Type.INT32, op=Op.FULLY_CONNECTED))


def test_depthwise_int16_with_int32_biases_which_the_device_misreads_is_refused():
    with pytest.raises(ModelFileError):
        MicroModel(file_of(Type.INT8, Type.INT16, Type.INT32, op=Op.DEPTHWISE_CONV_2D))
    MicroModel(file_of(Type.INT8, Type.INT16, Type.INT64, op=Op.DEPTHWISE_CONV_2D))
