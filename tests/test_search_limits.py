"""Limits are read and merged, and points that break them are repaired with few cuts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twin_nets import built, separable

from qbee.errors import ParameterError
from qbee.export.boards import BOARDS
from qbee.job.settings import default_space
from qbee.search import limits, repair
from qbee.search.cost import CostModel
from qbee.search.domain import Domain
from qbee.search.limits import Limits


def at_most(**limit):
    return Limits(at_most=limit)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("tflite_bytes<=48k", at_most(tflite_bytes=48000)),
        ("tflite_bytes <= 48Ki", at_most(tflite_bytes=49152)),
        ("macs<=1.5M", at_most(macs=1_500_000)),
        ("arena_bytes<=2Mi", at_most(arena_bytes=2 * 2**20)),
        ("energy_uj<=3.25", at_most(energy_uj=3.25)),
    ],
)
def test_a_limit_is_read(text, limit):
    assert limits.parse(text) == limit


@pytest.mark.parametrize("text", ["macs", "macs<3", "macs<=", "macs<=3q", "macs<=3K", "macs<=-1"])
def test_a_text_of_another_form_is_an_error_that_shows_it(text):
    with pytest.raises(ParameterError, match="must look like tflite_bytes<=48k.*k, M, Ki, Mi"):
        limits.parse(text)


def test_a_limit_of_zero_or_of_an_unknown_cost_is_an_error():
    with pytest.raises(ParameterError, match="must be positive"):
        limits.parse("macs<=0")
    with pytest.raises(ParameterError, match="cost='flops' must be one of bits"):
        limits.parse("flops<=1")
    with pytest.raises(ValueError, match="cost='flops' must be one of bits"):
        at_most(flops=1)
    with pytest.raises(ValueError, match="must be positive"):
        at_most(macs=0)


def test_a_board_leaves_three_quarters_of_its_memory():
    expected = at_most(arena_bytes=192 * 1024, tflite_bytes=768 * 1024)
    assert limits.of_board("nRF52840") == limits.of_board("nrf52840") == expected


def test_an_unknown_board_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ParameterError, match="board='Arduino' must be one of nRF52833, .*Apollo4"):
        limits.of_board("Arduino")


def test_the_boards_named_in_the_documents_are_known():
    known = {board.name for board in BOARDS}
    assert known > {"nRF52840", "STM32L4R5", "STM32F746", "STM32H743", "RP2040", "ESP32-S3"}


def test_of_two_limits_the_tighter_one_counts():
    both = at_most(macs=5, bits=9).merged(at_most(macs=3, arena_bytes=2))
    assert both == at_most(macs=3, bits=9, arena_bytes=2)
    assert at_most(macs=3).merged(at_most(macs=5)) == at_most(macs=3)


def test_what_exceeds_its_limit_is_broken_and_what_meets_it_is_not():
    limit = at_most(macs=5, bits=9)
    assert limit.broken({"macs": 5.5, "bits": 9, "energy_uj": 1e9}) == {"macs": 5.5}
    assert limit.are_met({"macs": 5, "bits": 9})
    assert not limit.are_met({"macs": 5, "bits": 9.5})
    assert Limits().are_met({})


def test_a_limit_of_a_cost_that_is_not_given_is_an_error():
    with pytest.raises(ParameterError, match="costs must have bits"):
        at_most(bits=9).broken({"macs": 1})


def test_limits_are_equal_after_a_trip_through_json_and_readable(tmp_path):
    limit = at_most(tflite_bytes=49152, energy_uj=2.5)
    limit.save(tmp_path / "limits.json")
    assert Limits.load(tmp_path / "limits.json") == limit
    assert str(limit) == "tflite_bytes<=49 152, energy_uj<=2.500"


GROUPS = ("a", "b", "c")
KERNELS, MAPS, BIASES = (4, 8, 16), (4, 8, 16), (16, 31)
MENUS = {
    f"{group}.{role}": menu
    for group in GROUPS
    for role, menu in (("kernel", KERNELS), ("bias", BIASES), ("map", MAPS))
    # The last group is the output layer.
    if (group, role) != ("c", "map")
} | {"width": (50, 100)}


class Toy:
    """Costs of a network that is nothing but elements; counts how often they are asked for."""

    def __init__(self, elements):
        self.elements, self.calls = elements, 0

    def __call__(self, point):
        self.calls += 1
        return self.costs(point)

    def costs(self, point):
        sizes = self.elements
        bits = sum(count * point[name] for name, count in sizes.items())
        stored = sum(n * point[name] for name, n in sizes.items() if name.endswith("kernel"))
        # Each map and the next one are in memory at once.
        maps = [sizes[f"{g}.map"] * (2 if point[f"{g}.map"] > 8 else 1) for g in "ab"]
        peak = max(a + b for a, b in itertools.pairwise([100, *maps, 10]))
        costs = {"bits": bits, "tflite_bytes": 300 + stored / 8, "arena_bytes": peak}
        return costs | {"energy_uj": sum(point.get(f"{g}.kernel", 0) for g in GROUPS)}


POINTS = st.fixed_dictionaries({name: st.sampled_from(menu) for name, menu in MENUS.items()})
ELEMENTS = st.fixed_dictionaries({name: st.integers(1, 5000) for name in MENUS if name != "width"})
LIMITED = st.sets(st.sampled_from(("bits", "tflite_bytes", "arena_bytes", "energy_uj")), min_size=1)


def lowest(point):
    return {name: point[name] if name == "width" else menu[0] for name, menu in MENUS.items()}


@st.composite
def repairable(draw):
    """A point, a toy, and limits between the costs of the lowest and of the widest point."""
    point, toy = draw(POINTS), Toy(draw(ELEMENTS))
    low, high = toy.costs(lowest(point)), toy.costs(point)
    share = draw(st.floats(0, 1.2))
    found = {name: low[name] + share * (high[name] - low[name]) for name in draw(LIMITED)}
    return point, toy, Limits(at_most=found)


def repaired(point, toy, limit):
    return repair.repair(point, menus=MENUS, costs_of=toy, limits=limit, elements=toy.elements)


@given(repairable())
def test_a_repaired_point_meets_the_limits_and_is_nowhere_wider(case):
    point, toy, limit = case
    before = dict(point)
    found = repaired(point, toy, limit)
    assert limit.are_met(toy.costs(found))
    assert all(found[name] <= point[name] and found[name] in MENUS[name] for name in MENUS)
    assert found["width"] == point["width"]
    assert point == before


@given(repairable())
def test_repairing_twice_changes_nothing(case):
    point, toy, limit = case
    found = repaired(point, toy, limit)
    assert repaired(found, toy, limit) == found


@given(repairable())
def test_no_cut_of_sums_is_needless(case):
    point, toy, limit = case
    limit = Limits(at_most={n: v for n, v in limit.at_most.items() if n == "bits"})
    found = repaired(point, toy, limit)
    for name, width in found.items():
        for higher in [c for c in MENUS[name] if width < c <= point[name]][:1]:
            assert not limit.are_met(toy.costs(found | {name: higher}))


@given(POINTS, ELEMENTS)
def test_a_point_that_meets_the_limits_is_unchanged_after_one_look(point, elements):
    toy = Toy(elements)
    limit = Limits(at_most={"bits": toy.costs(point)["bits"]})
    assert repaired(point, toy, limit) == point
    assert toy.calls == 1


def widest():
    return {name: max(menu) for name, menu in MENUS.items()}


EQUAL = dict.fromkeys((name for name in MENUS if name != "width"), 100)


def test_the_arena_is_cut_at_the_largest_wide_map_to_eight_bits():
    toy = Toy(EQUAL | {"b.map": 4000})
    limit = at_most(arena_bytes=5000)
    changed = {"b.map": 8}
    assert repaired(widest(), toy, limit) == widest() | changed
    # The second look finds that it was enough.
    assert toy.calls == 2


def test_the_file_is_cut_at_the_largest_kernel_and_all_at_once():
    toy = Toy(EQUAL | {"a.kernel": 4000, "c.kernel": 6000})
    limit = at_most(tflite_bytes=300 + 6000 + 4000 + 200)
    assert repaired(widest(), toy, limit) == widest() | {"a.kernel": 8, "c.kernel": 8}
    assert toy.calls == 2


def test_of_equal_cuts_the_first_is_made():
    toy = Toy(EQUAL)
    limit = at_most(tflite_bytes=toy.costs(widest())["tflite_bytes"] - 1)
    assert repaired(widest(), toy, limit) == widest() | {"a.kernel": 8}


def test_cuts_that_saved_nothing_are_taken_back():
    # The large map is not where the peak is: it is next to small ones.
    sizes = EQUAL | {"a.map": 300, "b.map": 200}

    class Peak(Toy):
        def costs(self, point):
            return {"arena_bytes": 1000 + sizes["b.map"] * (2 if point["b.map"] > 8 else 1)}

    found = repaired(widest(), Peak(sizes), at_most(arena_bytes=1200))
    assert found == widest() | {"b.map": 8}


def test_the_arena_comes_before_the_file():
    asked = []
    toy = Toy(EQUAL)

    def costs_of(point):
        asked.append(point)
        return toy.costs(point)

    limit = at_most(tflite_bytes=500, arena_bytes=250)
    found = repair.repair(widest(), menus=MENUS, costs_of=costs_of, limits=limit, elements=EQUAL)
    assert asked[1] == widest() | {"a.map": 8}
    assert limit.are_met(toy.costs(found))


def test_limits_that_no_point_meets_are_an_error_with_the_lowest_value():
    toy = Toy(EQUAL | {"c.kernel": 81_600})
    with pytest.raises(ParameterError, match="^tflite_bytes=41 200 is the lowest this network"):
        repaired(widest(), toy, at_most(tflite_bytes=20_000))
    with pytest.raises(ParameterError, match="arena_bytes=200 is .* reach, the limit is 150$"):
        repaired(widest(), toy, at_most(arena_bytes=150))


def test_a_real_network_is_cut_to_its_limits_with_few_looks():
    case = built(separable)
    space = default_space().model_copy(update={"groups": "layer"})
    domain, looks = Domain(space, case.net), []
    model = CostModel(("tflite_bytes", "arena_bytes"))

    def costs_of(point):
        looks.append(point)
        scheme = domain.scheme(point)
        return model.costs(case.quantized(scheme)[1], scheme)

    eight = costs_of(dict.fromkeys(domain.menus, 8))
    limit = at_most(arena_bytes=eight["arena_bytes"] + 100, tflite_bytes=eight["tflite_bytes"] + 50)
    looks.clear()
    found = repair.repair(
        dict.fromkeys(domain.menus, 16),
        menus=domain.menus,
        costs_of=costs_of,
        limits=limit,
        elements=domain.elements,
    )
    assert limit.are_met(costs_of(found))
    assert found == dict.fromkeys(domain.menus, 8)
    # A look for each cut, and one for each that is taken back or not.
    assert len(looks) <= 4 * len(domain.menus)
