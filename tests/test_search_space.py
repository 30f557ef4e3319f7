"""Spaces are data that fit whole families of networks; domains are their points for one."""

import itertools
import json
import math
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_nets import NETS, built, read_by_a_sigmoid, separable, squeeze_excite

from qbee.errors import ModelFileError, ParameterError
from qbee.models import registry
from qbee.quantize import convert, fold
from qbee.search.domain import Domain
from qbee.search.score import Bomp, ForgivingFactor
from qbee.search.space import SearchSpace, Seed
from qbee.search.trial import Fidelity

FILES = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.json"))
# The smallest images that a network's pools and strides leave something of.
SMALLEST = {"beenet1": 64, "beenet2": 32, "beenet3": 32, "mobilenet_v2": 32, "resnet9": 32}
SEEDS = (
    Seed(kernel=4, map=4),
    Seed(kernel=16, map=16),
    Seed(kernel=4, map=8),
    Seed(kernel=4, map=8, largest_groups=2),
)
SPACE = SearchSpace(
    kernel_bits=(4, 8, 16),
    map_bits=(4, 8, 16),
    bias_bits=(31,),
    groups="layer",
    seeds=SEEDS,
    score=ForgivingFactor(),
    trial_epochs=1,
    trial_windows=640,
    trial_max_rate=1e-4,
    max_f1_drop=0.01,
)


def spaced(**changes):
    """The space with some fields replaced, and checked again."""
    return SearchSpace.model_validate({**SPACE.model_dump(), **changes})


@cache
def case_of(make):
    return built(make)


def domain_of(make, *, widest_map=16, **changes):
    return Domain(spaced(**changes), case_of(make).net, widest_map=widest_map)


def points_of(domain):
    """Every point, by brute force."""
    return [
        dict(zip(domain.menus, choices, strict=True))
        for choices in itertools.product(*domain.menus.values())
    ]


def rng_of(seed):
    return np.random.default_rng(seed)


@cache
def folded(name):
    side = SMALLEST[name]
    return fold.fold(registry.build(name, n_mels=side, n_frames=side))


def test_without_groups_every_slot_but_the_output_map_has_a_hyperparameter():
    domain = domain_of(separable, bias_bits=(16, 31))
    assert list(domain.menus) == [
        "stem.kernel", "stem.bias", "stem.map", "dw.kernel", "dw.bias", "dw.map",
        "pw.kernel", "pw.bias", "pw.map", "head.kernel", "head.bias",
    ]  # fmt: skip
    assert domain.menus["stem.kernel"] == domain.menus["dw.map"] == (4, 8, 16)
    assert domain.settled == {"width": 100}


def test_layers_of_a_block_share_their_widths():
    domain = Domain(spaced(groups="block"), folded("beenet3"))
    assert {name.rpartition(".")[0] for name in domain.menus} == {
        "stem", "block1", "block2", "head"
    }  # fmt: skip
    for seed in range(5):
        layers = domain.scheme(domain.random(rng_of(seed))).layers
        assert layers["block1_dw"] == layers["block1_pw"]


def test_in_one_group_all_layers_share_their_widths():
    domain = domain_of(separable, groups="network")
    assert list(domain.menus) == ["network.kernel", "network.map"]
    layers = domain.scheme({"network.kernel": 4, "network.map": 16}).layers
    assert {bits.kernel for bits in layers.values()} == {4}
    assert [bits.map for bits in layers.values()] == [16, 16, 16, 8]


def test_groups_may_be_named_with_layers_and_patterns_and_absent_ones_are_passed_over():
    groups = {"first": ["stem"], "middle": ["?w"], "end": ["head*"], "other family": ["gate_*"]}
    domain = domain_of(separable, groups=groups)
    assert set(domain.menus) == {
        "first.kernel", "first.map", "middle.kernel", "middle.map", "end.kernel"
    }  # fmt: skip
    layers = domain.scheme(domain.random(rng_of(0))).layers
    assert layers["dw"] == layers["pw"]


def test_a_layer_without_a_group_is_an_error_that_names_it():
    with pytest.raises(ParameterError, match="no group has the layer 'pw'"):
        domain_of(separable, groups={"some": ["stem", "dw", "head"]})


def test_a_layer_that_two_patterns_match_is_an_error_that_names_them():
    with pytest.raises(ParameterError, match=r"groups \['all', 'words'\].*have the layer 'dw'"):
        domain_of(separable, groups={"all": ["*"], "words": ["dw"]})


def test_fixed_widths_do_not_follow_their_group():
    fixed = {"dw": {"kernel": 8, "map": 16}, "head": {"map": 16}}
    domain = domain_of(separable, groups="network", fixed=fixed)
    for point in points_of(domain):
        layers = domain.scheme(point).layers
        assert (layers["dw"].kernel, layers["dw"].map, layers["head"].map) == (8, 16, 16)
        assert layers["stem"].kernel == layers["pw"].kernel == point["network.kernel"]
    kernels = case_of(separable).net.kernels
    followers = sum(kernels[name].size for name in ("stem", "pw", "head"))
    assert domain.elements["network.kernel"] == followers


@pytest.mark.parametrize("fixed", [{"dw2": {"kernel": 8}}, {"sum": {"kernel": 8}}])
def test_a_fixed_width_of_what_the_network_lacks_is_an_error_that_lists_what_it_has(fixed):
    name = next(iter(fixed))
    with pytest.raises(ParameterError, match=rf"fixed: .* no {name}\.kernel; it has .*dw\.kernel"):
        domain_of(separable, fixed=fixed)


@pytest.mark.parametrize(
    ("make", "layer", "bits", "why"),
    [(squeeze_excite, None, 16, "a sigmoid reads it"), (separable, "head", 4, "it is the output")],
)
def test_a_fixed_map_that_the_network_cannot_have_is_an_error(make, layer, bits, why):
    layer = layer or min(read_by_a_sigmoid(case_of(make).net))
    with pytest.raises(ParameterError, match=rf"fixed\.{layer}\.map={bits} must .*: {why}"):
        domain_of(make, fixed={layer: {"map": bits}})


def test_bounds_narrow_a_menu_and_one_choice_is_settled():
    bounds = {"stem.kernel": (8, 16), "pw.map": (4, 7)}
    domain = domain_of(separable, bounds=bounds)
    assert domain.menus["stem.kernel"] == (8, 16)
    assert domain.settled == {
        "stem.bias": 31, "dw.bias": 31, "pw.bias": 31, "head.bias": 31, "pw.map": 4, "width": 100
    }  # fmt: skip
    layers = domain.scheme(domain.random(rng_of(0))).layers
    assert (layers["pw"].map, layers["pw"].bias) == (4, 31)


def test_bounds_without_a_choice_between_them_are_an_error_that_names_the_menu():
    with pytest.raises(ParameterError, match=r"stem\.kernel: .* \(4, 8, 16\) lies between 5 and 7"):
        domain_of(separable, bounds={"stem.kernel": (5, 7)})


def test_bounds_of_an_unknown_hyperparameter_are_an_error_that_lists_the_known_ones():
    with pytest.raises(ParameterError, match=r"no hyperparameter 'block9\.map'; there are stem\."):
        domain_of(separable, bounds={"block9.map": (4, 8)})


def test_several_widths_are_a_hyperparameter_of_their_own():
    domain = domain_of(separable, groups="network", widths=(100, 50))
    assert domain.menus["width"] == (50, 100)
    point = {"network.kernel": 8, "network.map": 8, "width": 50}
    assert domain.width(point) == 50
    assert domain.scheme(point) == domain.scheme({**point, "width": 100})
    assert {point["width"] for point in domain.seed_points().values()} == {100}


def test_one_width_is_that_of_all_points():
    assert domain_of(separable).width({}) == 100
    assert domain_of(separable, widths=(75,)).width({}) == 75


def test_a_uniform_seed_sets_all_kernels_and_maps():
    domain = domain_of(separable, bias_bits=(16, 31))
    points = domain.seed_points()
    assert list(points) == [
        "uniform 4", "uniform 16", "kernels 4, maps 8", "largest kernels 4, maps 8"
    ]  # fmt: skip
    layers = domain.scheme(points["kernels 4, maps 8"]).layers
    assert {(b.kernel, b.bias, b.map) for b in layers.values()} == {(4, 31, 8)}


def test_a_seed_of_the_largest_groups_leaves_the_other_kernels_at_eight_bits():
    domain = domain_of(separable)
    point = domain.seed_points()["largest kernels 4, maps 8"]
    sizes = {name: kernel.size for name, kernel in case_of(separable).net.kernels.items()}
    # Of equal ones the first.
    largest = sorted(sizes, key=lambda name: -sizes[name])[:2]
    assert {name for name in sizes if point[f"{name}.kernel"] == 4} == set(largest)
    assert {point[f"{name}.kernel"] for name in sizes if name not in largest} == {8}


def test_seeds_that_the_menus_do_not_allow_are_passed_over():
    assert "uniform 16" not in domain_of(separable, widest_map=8).seed_points()
    points = domain_of(separable, kernel_bits=(4, 16)).seed_points()
    assert set(points) == {"uniform 4", "uniform 16", "kernels 4, maps 8"}
    assert domain_of(separable, seeds=()).seed_points() == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": "network", "bias_bits": (16, 31)},
        {"groups": "network", "widths": (50, 75, 100)},
        {"groups": {"a": ["stem", "head"], "b": ["?w"]}, "fixed": {"head": {"kernel": 8}}},
        {"map_bits": (8,), "bounds": {"stem.kernel": (8, 8)}},
        {"kernel_bits": (8,), "map_bits": (8,)},
    ],
)
def test_the_size_is_the_number_of_different_networks(changes):
    domain = domain_of(separable, **changes)
    different = {(domain.scheme(p).model_dump_json(), domain.width(p)) for p in points_of(domain)}
    assert domain.size == len(different)


def test_the_size_is_the_product_of_the_menus():
    assert domain_of(separable).size == 3**4 * 3**3
    assert domain_of(separable, bias_bits=(16, 31), widths=(50, 100)).size == 3**7 * 2**4 * 2


CHANGES = (
    {},
    {"groups": "network", "bias_bits": (16, 31), "widths": (50, 100)},
    {"groups": "block", "widest_map": 8},
)


CASES = st.tuples(st.sampled_from(list(NETS)), st.integers(0, len(CHANGES) - 1))


@cache
def domain_of_case(case):
    make, number = case
    return domain_of(make, **CHANGES[number])


@given(CASES, st.data())
@settings(deadline=None)
def test_every_point_is_a_scheme_of_the_network_with_an_output_of_8_bits(case, data):
    domain, net = domain_of_case(case), case_of(case[0]).net
    menus = {name: st.sampled_from(menu) for name, menu in domain.menus.items()}
    point = data.draw(st.fixed_dictionaries(menus))
    scheme = domain.scheme(point)
    assert scheme.check(net) is scheme
    assert domain.has(point)
    assert scheme.layers[net.maps[-1]].map == 8
    assert {scheme.layers[name].map for name in read_by_a_sigmoid(net)} <= {4, 8}
    assert max(bits.map for bits in scheme.layers.values()) <= domain.widest_map


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_every_point_of_a_network_with_sigmoids_can_be_computed_by_the_device(seed):
    case = case_of(squeeze_excite)
    domain = domain_of(squeeze_excite)
    maps = case.maps("auto_po2", False)
    assert convert.formats_of(case.net, domain.scheme(domain.random(rng_of(seed))), maps)


def test_a_map_that_a_sigmoid_reads_has_at_most_8_bits_and_so_has_its_group():
    net = case_of(squeeze_excite).net
    narrow = {f"{name}.map" for name in read_by_a_sigmoid(net)}
    assert narrow
    domain = domain_of(squeeze_excite)
    maps = {name: menu for name, menu in domain.menus.items() if name.endswith(".map")}
    assert maps == {name: (4, 8) if name in narrow else (4, 8, 16) for name in maps}
    assert domain_of(squeeze_excite, groups="network").menus["network.map"] == (4, 8)


def test_wide_maps_alone_do_not_fit_a_sigmoid():
    with pytest.raises(ParameterError, match=r"dense.*\.map: no width of the menu \(16,\)"):
        domain_of(squeeze_excite, map_bits=(16,))


def test_without_ram_for_wide_maps_they_are_on_no_menu():
    domain = domain_of(separable, widest_map=8)
    assert domain.menus["stem.map"] == (4, 8)
    assert domain.menus["stem.kernel"] == (4, 8, 16)


def test_elements_are_weights_in_all_and_the_largest_map_before_its_pool():
    net = case_of(separable).net
    domain = domain_of(separable, groups={"body": ["stem", "?w"], "head": ["head"]})
    kernels = {name: kernel.size for name, kernel in net.kernels.items()}
    assert domain.elements["body.kernel"] == sum(kernels.values()) - kernels["head"]
    assert domain.elements["head.kernel"] == kernels["head"]
    # 6 channels of 16 x 15, of which the pool leaves out the last column.
    assert domain.elements["body.map"] == 6 * 16 * 14
    assert "head.map" not in domain.elements


def test_random_points_are_within_the_menus_and_equal_for_equal_seeds():
    domain = domain_of(separable, widths=(50, 100))
    points = [domain.random(rng_of(seed)) for seed in range(50)]
    assert all(map(domain.has, points))
    assert points == [domain.random(rng_of(seed)) for seed in range(50)]
    assert all({p[name] for p in points} == set(menu) for name, menu in domain.menus.items())


def test_all_points_are_equally_likely():
    domain = domain_of(separable, groups="network", map_bits=(4, 8))
    rng, draws = rng_of(0), 3000
    found = Counter(tuple(domain.random(rng).items()) for _ in range(draws))
    assert len(found) == domain.size
    share = 1 / domain.size
    # Five standard deviations of a binomial.
    spread = 5 * math.sqrt(draws * share * (1 - share))
    assert all(abs(count - draws * share) < spread for count in found.values())


@given(CASES, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_neighbours_differ_in_one_hyperparameter_by_one_step(case, seed):
    domain, rng = domain_of_case(case), rng_of(seed)
    point = domain.random(rng)
    before = dict(point)
    found = domain.neighbour(point, rng)
    assert point == before
    assert domain.has(found)
    steps = [abs(menu.index(found[n]) - menu.index(point[n])) for n, menu in domain.menus.items()]
    assert sorted(steps)[-2:] == [0, 1] or steps == [1]


def test_points_of_other_domains_are_not_in_the_domain():
    domain = domain_of(separable, groups="network")
    assert domain.has({"network.kernel": 4, "network.map": 8})
    assert not domain.has({"network.kernel": 4})
    assert not domain.has({"network.kernel": 5, "network.map": 8})
    assert not domain.has({"network.kernel": 4, "network.map": 8, "width": 100})


@pytest.mark.parametrize("name", sorted(SMALLEST))
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_space_in_the_repository_fits_every_network(file, name):
    net = folded(name)
    domain = Domain(SearchSpace.load(file), net)
    assert len(domain.seed_points()) == len(domain.space.seeds)
    for point in [*domain.seed_points().values(), domain.random(rng_of(0))]:
        assert domain.scheme(point).check(net)


def test_there_are_spaces_in_the_repository_and_sizes_for_all_networks():
    assert {file.stem for file in FILES} >= {"beenet_4_8_16", "thesis_4_8_16"}
    assert sorted(SMALLEST) == registry.names()


def test_the_space_that_comes_with_qbee_has_4_groups_in_beenet3():
    space = SearchSpace.load(next(f for f in FILES if f.stem == "beenet_4_8_16"))
    # Kernels of stem, two blocks and head; maps of all but the output.
    assert Domain(space, folded("beenet3")).size == 3**4 * 3**3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"groups": {"a": ["stem", "?w"], "b": ["head"]}, "fixed": {"head": {"kernel": 8}}},
        {"widths": (50, 100), "bounds": {"stem.map": (4, 8)}, "score": Bomp().model_dump()},
    ],
)
def test_a_space_is_equal_after_a_trip_through_json(tmp_path, changes):
    space = spaced(**changes)
    space.save(tmp_path / "space.json")
    assert SearchSpace.load(tmp_path / "space.json") == space


def test_a_whole_trial_trains_as_long_as_the_space_says():
    assert SPACE.fidelity == Fidelity(epochs=1, windows=640)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_bits": [4, 5]}, "kernel_bits.1: Input should be 4, 8 or 16"),
        ({"kernel_bits": []}, "kernel_bits"),
        ({"bias_bits": [8]}, "bias_bits.0: Input should be 16 or 31"),
        ({"groups": {"a": ["x"], "b": ["x"]}}, "layer 'x' is in two groups"),
        ({"groups": {}}, "groups: .*must name at least one group"),
        ({"groups": "row"}, "groups"),
        ({"budget": 3}, "budget: Extra inputs are not permitted"),
        ({"widths": [5]}, "widths.0: Input should be greater than or equal to 10"),
        ({"fixed": {"stem": {"weight": 8}}}, "fixed.stem.weight"),
        ({"fixed": {"stem": {"kernel": 5}}}, "fixed: .*stem.kernel=5 must be one of 4, 8, 16"),
        ({"bounds": {"stem": [4, 8]}}, "bounds.stem: must end in .kernel, .bias or .map"),
        ({"bounds": {"stem.map": [8, 4]}}, "bounds.stem.map: 8 must not be above 4"),
        ({"seeds": [{"kernel": 3, "map": 8}]}, "seeds.0.kernel: Input should be 4, 8 or 16"),
        ({"score": {"kind": "best"}}, "score"),
        ({"max_f1_drop": None}, "max_f1_drop"),
    ],
)
def test_a_damaged_space_is_an_error_that_names_the_field(tmp_path, change, message):
    path = tmp_path / "space.json"
    path.write_text(json.dumps(SPACE.model_dump(mode="json") | change))
    with pytest.raises(ModelFileError, match=message):
        SearchSpace.load(path)
