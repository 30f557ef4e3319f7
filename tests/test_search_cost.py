"""Costs are those of the file that an export writes, or follow stated formulas."""

import numpy as np
import pytest
from twin_nets import Case, built, mobilenet, random_scheme, separable

from qbee.errors import ParameterError
from qbee.export import planner, strips, tflite
from qbee.export.delivery import ExportSettings, deliver
from qbee.export.planner import Layout
from qbee.export.strips import Segment
from qbee.models import registry
from qbee.quantize.fixed_net import FixedNet, FixedNode, FixedWeights
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import Node
from qbee.quantize.scheme import uniform
from qbee.runtime.interpreter import MicroModel
from qbee.search import cost, energy, exporting, instructions
from qbee.search.cost import CostModel

METADATA = {"qbee": b"x" * 700}


def beenet(name, *, bands):
    """Case of an untrained BeeNet."""
    return Case(registry.build(name, n_mels=bands, n_frames=bands), windows=2)


def priced(case, scheme, *names, **settings):
    """Integer network of a scheme, and some of its costs."""
    net = case.quantized(scheme)[1]
    model = CostModel(names, ExportSettings(**settings), METADATA)
    return net, model.costs(net, scheme)


@pytest.fixture(scope="module")
def small():
    return beenet("beenet3", bands=32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("has_metadata", [True, False])
def test_bytes_and_arena_are_those_of_the_delivery(small, seed, has_metadata):
    scheme = random_scheme(small.net, seed)
    names = ("tflite_bytes", "arena_bytes")
    net, costs = priced(small, scheme, *names, has_metadata=has_metadata)
    exported = deliver(net, ExportSettings(has_metadata=has_metadata), metadata=METADATA).exported
    assert costs == {
        "tflite_bytes": len(exported.content),
        "arena_bytes": exported.arena.total_bytes,
    }


@pytest.mark.parametrize("make", [separable, mobilenet])
@pytest.mark.parametrize("bits", [4, 8, 16, None])
def test_the_arena_is_within_two_percent_of_tflite_micros(make, bits):
    case = built(make)
    scheme = random_scheme(case.net, 5) if bits is None else uniform(case.net, bits=bits)
    net, costs = priced(case, scheme, "arena_bytes", has_metadata=False)
    real = MicroModel(tflite.write(net).content, source="net").arena_bytes()
    assert costs["arena_bytes"] == pytest.approx(real, rel=0.02)


def test_the_bits_are_those_of_the_folded_network(small):
    scheme = random_scheme(small.net, 1)
    net, costs = priced(small, scheme, "bits")
    assert cost.integer_elements(net) == cost.elements(small.net)
    assert costs["bits"] == cost.total_bits(cost.elements(small.net), cost.slots(scheme))


def test_all_costs_are_known_by_name_and_come_in_the_order_wanted(small):
    names = tuple(reversed(cost.names()))
    _, costs = priced(small, uniform(small.net, bits=8), *names)
    assert tuple(costs) == names
    assert all(value > 0 for value in costs.values())


def test_an_unknown_cost_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ParameterError, match="cost='watts' must be one of bits, tflite_bytes,"):
        CostModel(("bits", "watts"))


def test_a_cost_model_without_settings_exports_for_tflite_micro_without_metadata(small):
    scheme = uniform(small.net, bits=8)
    net = small.quantized(scheme)[1]
    found = CostModel(("tflite_bytes",)).costs(net, scheme)
    assert found == {"tflite_bytes": len(tflite.write(net).content)}


@pytest.fixture
def plans(monkeypatch):
    """Limits of the arena that the planner was called with."""
    calls, plan = [], planner.plan

    def counted(net, **settings):
        calls.append(settings["max_arena_bytes"])
        return plan(net, **settings)

    monkeypatch.setattr(exporting.planner, "plan", counted)
    return calls


def test_costs_with_planned_memory_are_those_of_the_delivery(small, plans):
    settings = ExportSettings(max_arena_bytes=30_000)
    model = CostModel(("tflite_bytes", "arena_bytes", "macs"), settings, METADATA)
    costs = {}
    for bits in (8, 4):
        scheme = uniform(small.net, bits=bits)
        net = small.quantized(scheme)[1]
        costs[bits] = model.costs(net, scheme)
        assert costs[bits]["arena_bytes"] <= 30_000
    assert plans == [30_000]
    delivered = deliver(small.quantized(uniform(small.net, bits=8))[1], settings, metadata=METADATA)
    assert costs[8] == {
        "tflite_bytes": len(delivered.exported.content),
        "arena_bytes": delivered.exported.arena.total_bytes,
        "macs": strips.macs(delivered.laid_out),
    }


def test_the_order_of_the_networks_does_not_change_their_costs(small):
    schemes = {bits: uniform(small.net, bits=bits) for bits in (8, 4)}
    nets = {bits: small.quantized(scheme)[1] for bits, scheme in schemes.items()}
    found = []
    for order in ((8, 4), (4, 8)):
        model = CostModel(("arena_bytes", "macs"), ExportSettings(max_recompute=1.2))
        found.append({bits: model.costs(nets[bits], schemes[bits]) for bits in order})
    assert found[0] == found[1]


def test_a_network_that_fits_no_layout_has_the_smallest_arena(small, plans):
    net, costs = priced(small, uniform(small.net, bits=8), "arena_bytes", max_arena_bytes=9000)
    assert plans == [9000, None]
    smallest = deliver(net, ExportSettings(max_recompute=1.3)).exported.arena.total_bytes
    assert costs["arena_bytes"] == smallest > 9000


def test_memory_is_planned_once_for_all_schemes_of_a_network(small, plans):
    model = CostModel(("arena_bytes",), ExportSettings(max_arena_bytes=30_000))
    found = {}
    for seed in range(3):
        scheme = random_scheme(small.net, seed)
        found[seed] = model.costs(small.quantized(scheme)[1], scheme)["arena_bytes"]
    assert plans == [30_000]
    # Wide maps need more than the limit, narrow ones do not.
    assert max(found.values()) > 30_000


def toy(kernel_bits, map_bits):
    """A 3x3 convolution of 2 channels on a map of 4 x 4, then a dense layer, all zeros."""

    def weights(*shape):
        out = shape[-1]
        kernel, steps = np.zeros(shape, np.int64), np.full(out, 0.5, np.float32)
        return FixedWeights(kernel, kernel_bits, steps, np.zeros(out, np.int64))

    number = MapType.of(map_bits, is_signed=True, exponent=-4)
    conv = Node("conv", "conv", ("input",), (2, 2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), pool=2)
    flat = Node("flat", "reshape", ("conv",), (8,))
    dense = Node("dense", "dense", ("flat",), (3,))
    nodes = (
        FixedNode(conv, (number,), number, weights(3, 3, 1, 2)),
        FixedNode(flat, (number,), number),
        FixedNode(dense, (number,), number, weights(8, 3)),
    )
    return FixedNet("toy", (4, 4, 1), number, nodes)


# 16 places of 18 weights before the max-pool, and 24 weights of the dense layer.
TOY_MACS = 16 * 18 + 24


@pytest.mark.parametrize(
    ("kernel_bits", "map_bits", "each_pj"),
    [
        (8, 8, 3.1 / 16 + 0.1),
        (4, 8, 3.1 / 32 + 0.1),
        (16, 8, 3.1 / 8 + 0.1 + 32 * 0.07 / 24),
        (16, 16, 3.1 / 4 + 0.1 + 32 * 0.07 / 24),
    ],
)
def test_the_energy_is_that_of_the_products_and_sums(kernel_bits, map_bits, each_pj):
    net = toy(kernel_bits, map_bits)
    assert energy.macs_by_widths(net) == {(kernel_bits, map_bits): TOY_MACS}
    assert energy.total_uj(net) == pytest.approx(TOY_MACS * each_pj * 1e-6)


def test_horowitzs_figures_are_met():
    assert energy.add_pj(8) == 0.03
    assert energy.add_pj(32) == pytest.approx(0.1)
    assert energy.multiply_pj(32, 32) == 3.1
    # He prints one digit.
    assert round(energy.multiply_pj(8, 8), 1) == 0.2


def test_macs_by_widths_add_up_to_the_macs(small):
    net, costs = priced(small, random_scheme(small.net, 2), "macs")
    by_widths = energy.macs_by_widths(net)
    assert sum(by_widths.values()) == costs["macs"] == strips.macs(net)
    assert len(by_widths) > 1


def test_the_work_of_operators_is_counted():
    work = instructions.work(tflite.write(toy(8, 8)).model)
    assert work == instructions.Work(
        products=TOY_MACS, taps=16 * 2 * 9 + 3, results=16 * 2 + 3, moves=0
    )


def test_wide_kernels_need_more_instructions_and_narrow_ones_as_many():
    for device in instructions.DEVICES:
        at = {
            widths: instructions.estimate(tflite.write(toy(*widths)).model, device)
            for widths in ((4, 8), (8, 8), (16, 8), (8, 16), (16, 16))
        }
        assert at[4, 8] == at[8, 8] == at[8, 16] < at[16, 8]
        assert at[16, 16] > 2 * at[8, 16]


# Millions of instructions: reference kernels and CMSIS-NN, measured in QEMU.
MEASURED = {"beenet1": (466.1, 86.7), "beenet2": (447.9, 82.2), "beenet3": (422.6, 76.4)}


@pytest.fixture(scope="module")
def beenets():
    cases = {name: beenet(name, bands=128) for name in MEASURED}
    return {name: c.quantized(uniform(c.net, bits=8))[1] for name, c in cases.items()}


@pytest.mark.parametrize("name", MEASURED)
def test_measured_instructions_are_reproduced(beenets, name):
    model = tflite.write(beenets[name]).model
    found = [instructions.estimate(model, device) / 1e6 for device in instructions.DEVICES]
    np.testing.assert_allclose(found, MEASURED[name], rtol=1e-3)


def test_measured_instructions_of_eight_strips_are_reproduced(beenets):
    cut = Layout((Segment("block1_pw", 8),)).of(beenets["beenet3"])
    found = instructions.estimate(tflite.write(cut).model, instructions.DEVICES[1])
    assert found == pytest.approx(95.1e6, rel=1e-3)
