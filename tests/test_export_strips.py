"""Strips, groups of channels and dense pointwise layers: the same integers, less memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_nets import (
    Case,
    built,
    logits,
    mobilenet,
    padded,
    random_scheme,
    resnet,
    separable,
    signed,
    squeeze_excite,
    strided,
)

from qbee.errors import ExportError, ParameterError
from qbee.export import planner, strips, targets, tflite
from qbee.export.delivery import ExportSettings, deliver
from qbee.export.planner import Layout
from qbee.export.strips import Segment
from qbee.keras import keras, make_repeatable
from qbee.quantize import fixed_net, fixed_point
from qbee.quantize.scheme import uniform
from qbee.runtime import arena
from qbee.runtime.flatbuffer import Op
from qbee.runtime.interpreter import MicroModel

MAKES = (separable, strided, signed, mobilenet, resnet, squeeze_excite, padded)


@pytest.fixture(scope="module")
def cases():
    make_repeatable(5)
    return {make: built(make, windows=2) for make in MAKES}


@pytest.fixture(scope="module")
def uniform_net(cases):
    """Integers of the separable net, 8 bits, one step per kernel."""
    case = cases[separable]
    return case.quantized(uniform(case.net, bits=8), is_per_tensor=True)[1]


def random_layout(net, rng):
    """One or two segments of random strips, and random groups where there is a convolution."""
    possible = strips.ends(net)
    count = min(len(possible), int(rng.integers(1, 3)))
    chosen = sorted(rng.choice(len(possible), count, replace=False))
    heights = {item.name: item.node.shape[0] for item in net.nodes}
    segments = tuple(
        Segment(possible[i], int(rng.integers(1, heights[possible[i]] + 1))) for i in chosen
    )
    groups = int(rng.integers(1, 5)) if net.nodes[0].node.op == "conv" else 1
    return Layout(segments, groups, has_dense=bool(rng.integers(2)))


def on_device(exported, x):
    return MicroModel(exported.content).predict(x)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", MAKES)
def test_random_layouts_of_random_schemes_compute_the_same(cases, make, seed):
    case, rng = cases[make], np.random.default_rng(seed)
    how = {"alpha": "auto", "map_alpha": "auto", "is_affine": True} if seed == 2 else {}
    _, net = case.quantized(random_scheme(case.net, seed), **how)
    layout = random_layout(net, rng)
    laid_out = layout.of(net)
    expected = fixed_net.predict(net, case.inputs)
    np.testing.assert_array_equal(fixed_net.predict(laid_out, case.inputs), expected)
    for plan_memory in (False, True):
        exported = tflite.write(laid_out, plan_memory=plan_memory)
        np.testing.assert_array_equal(on_device(exported, case.inputs), expected)


def test_every_joined_map_of_strips_is_the_whole_map(cases):
    case = cases[resnet]
    _, net = case.quantized(uniform(case.net, bits=8))
    codes = fixed_point.quantize(case.inputs, net.input_map)
    whole = fixed_net.forward(net, codes)
    for end in strips.ends(net):
        in_strips = fixed_net.forward(strips.cut(net, (Segment(end, 3),)), codes)
        np.testing.assert_array_equal(in_strips[end], whole[end])


def test_a_segment_may_only_end_where_all_that_follows_reads_its_last_map(cases):
    case = cases[resnet]
    _, net = case.quantized(uniform(case.net, bits=8))
    names = [item.name for item in net.nodes]
    # Between a residual branch's fork and its sum, two maps are alive.
    inside = names[1]
    assert inside not in strips.ends(net)
    with pytest.raises(ParameterError, match=f"end='{inside}'"):
        strips.cut(net, (Segment(inside, 2),))


def test_more_strips_than_rows_are_refused(uniform_net):
    height = uniform_net.nodes[0].node.shape[0]
    with pytest.raises(ParameterError, match=f"strips={height + 1}"):
        strips.cut(uniform_net, (Segment("stem", height + 1),))


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_strips_cost_at_least_as_many_products_and_no_more_than_all_rows_each(
    uniform_net, first, groups, second
):
    layout = Layout((Segment("dw", first), Segment("pw", min(second, 2))), groups)
    ratio = strips.macs(layout.of(uniform_net)) / strips.macs(uniform_net)
    assert 1 <= ratio <= first * second


def small_case(make, shape):
    inputs = keras.Input(shape)
    return Case(keras.Model(inputs, make(inputs)), windows=2)


def test_a_pointwise_convolution_before_a_pool_is_planned_in_groups_and_dense():
    """As a dense layer it is no convolution any more, and only convolutions have groups."""

    def make(x):
        x = keras.layers.Conv2D(16, 1, activation="relu", name="stem")(x)
        return logits(keras.layers.MaxPooling2D(2)(x))

    case = small_case(make, (16, 16, 2))
    net = case.quantized(uniform(case.net, bits=8), is_per_tensor=True)[1]
    laid_out = Layout((Segment("stem", 2),), 3, has_dense=True).of(net)
    assert {i.node.op for i in laid_out.nodes if i.name.startswith("stem#")} == {"dense"}
    planned = planner.plan(net, max_recompute=1.0)
    for one in (laid_out, planned.net):
        expected = fixed_net.predict(net, case.inputs)
        np.testing.assert_array_equal(on_device(tflite.write(one), case.inputs), expected)


def test_no_segment_holds_rows_that_are_computed_from_padding_alone():
    def make(x):
        x = keras.layers.Conv2D(4, 1, activation="relu", name="stem")(x)
        x = keras.layers.ZeroPadding2D(((3, 0), (0, 0)))(x)
        return logits(keras.layers.Conv2D(4, 3, activation="relu", name="far")(x))

    case = small_case(make, (8, 8, 2))
    net = case.quantized(uniform(case.net, bits=8))[1]
    assert strips.ends(net) == ["stem"]
    expected = fixed_net.predict(net, case.inputs)
    in_strips = strips.cut(net, (Segment("stem", 8),))
    np.testing.assert_array_equal(on_device(tflite.write(in_strips), case.inputs), expected)


def test_groups_without_strips_cost_no_products(uniform_net):
    grouped = strips.grouped(uniform_net, "stem", 3)
    assert strips.macs(grouped) == strips.macs(uniform_net)
    assert [i.node.shape[-1] for i in grouped.nodes if i.name.startswith("stem#")] == [2, 2, 2]


def test_only_pointwise_convolutions_of_one_step_become_dense(cases, uniform_net):
    dense = strips.with_dense_pointwise(uniform_net)
    changed = [a.name for a, b in zip(uniform_net.nodes, dense.nodes, strict=True) if a is not b]
    assert changed == ["pw"]
    case = cases[separable]
    _, by_channel = case.quantized(uniform(case.net, bits=8))
    pointwise = next(item for item in by_channel.nodes if item.name == "pw")
    assert len(np.unique(pointwise.weights.steps)) > 1
    assert strips.with_dense_pointwise(by_channel) == by_channel


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("seed", range(2))
def test_the_predicted_arena_is_what_tflite_micro_reports(cases, make, seed):
    case = cases[make]
    _, net = case.quantized(random_scheme(case.net, seed + 10))
    layouts = [Layout(), random_layout(net, np.random.default_rng(seed))]
    for layout in layouts:
        for plan_memory in (False, True):
            exported = tflite.write(layout.of(net), plan_memory=plan_memory)
            measured = MicroModel(exported.content).arena_bytes()
            # Structures of a few operators are counted on average; these arenas are tiny.
            assert exported.arena.total_bytes == pytest.approx(measured, rel=0.02, abs=400)


def is_reshape(exported, number):
    operator = exported.model.subgraphs[0].operators[number]
    return exported.model.operatorCodes[operator.opcodeIndex].builtinCode == Op.RESHAPE


def test_a_plan_of_memory_never_overlaps_what_lives_together(cases):
    case = cases[resnet]
    _, net = case.quantized(uniform(case.net, bits=4))
    placed = tflite.write(random_layout(net, np.random.default_rng(0)).of(net), plan_memory=True)
    found = placed.arena.allocations
    for i, a in enumerate(found):
        for b in found[:i]:
            # What RESHAPE reads and writes may be one.
            is_one = a.offset_bytes == b.offset_bytes and is_reshape(placed, a.first)
            if a.first <= b.last and b.first <= a.last and not is_one:
                apart = a.offset_bytes + a.size_bytes <= b.offset_bytes
                assert apart or b.offset_bytes + b.size_bytes <= a.offset_bytes


def test_a_plan_is_stored_only_if_it_is_tighter(uniform_net):
    exported = tflite.write(uniform_net, plan_memory=True)
    own = tflite.write(uniform_net).arena
    assert not exported.offsets or exported.arena.head_bytes < own.head_bytes
    in_strips = Layout((Segment("pw", 2),), 3).of(uniform_net)
    assert arena.offline_offsets(tflite.write(in_strips).model) is None or (
        tflite.write(in_strips, plan_memory=True).arena.head_bytes
        < tflite.write(in_strips).arena.head_bytes
    )


def test_a_file_for_ethos_u_holds_no_plan_as_vela_would_keep_it_for_other_tensors(uniform_net):
    layout = Layout((Segment("stem", 4), Segment("pw", 2)), 3)
    net = layout.of(uniform_net)
    assert tflite.write(net, plan_memory=True).offsets
    for_ethos_u = tflite.write(net, target=targets.ETHOS_U, plan_memory=True)
    assert not for_ethos_u.offsets
    assert not for_ethos_u.model.metadata


def test_a_limit_of_memory_is_met_with_the_least_computation(cases):
    case = cases[strided]
    _, net = case.quantized(uniform(case.net, bits=8))
    whole = tflite.write(net).arena.total_bytes
    loose = planner.plan(net, max_arena_bytes=whole)
    assert loose.layout == Layout()
    smallest = planner.plan(net, max_recompute=3)
    assert smallest.arena_bytes <= whole
    with pytest.raises(ExportError, match=f"the smallest arena found has {smallest.arena_bytes}"):
        planner.plan(net, max_arena_bytes=smallest.arena_bytes - 1, max_recompute=3)
    fitting = planner.plan(net, max_arena_bytes=smallest.arena_bytes, max_recompute=3)
    assert fitting.arena_bytes <= smallest.arena_bytes
    assert fitting.recompute <= smallest.recompute <= 3


def test_delivery_keeps_to_the_limits(uniform_net):
    whole = deliver(uniform_net, ExportSettings())
    small = deliver(uniform_net, ExportSettings(max_recompute=1.5))
    assert whole.recompute == 1 <= small.recompute <= 1.5
    assert small.exported.arena.total_bytes <= whole.exported.arena.total_bytes
