"""The search begins with its seeds, repeats nothing, and goes on where it was stopped."""

import json
from collections import Counter
from pathlib import Path

import pytest

from qbee.errors import ModelFileError, ParameterError
from qbee.job.settings import default_space
from qbee.search import tuner
from qbee.search.space import SearchSpace
from qbee.search.tuner import Measured

ELEMENTS = {"stem": 288, "block1_dw": 288, "block1_pw": 1024, "head": 2048}
LAYERS = list(ELEMENTS)
SPACE = default_space()


def toy(scheme, number):
    """A cheap objective: wide kernels are good, wide maps are expensive."""
    kernels = sum(bits.kernel for bits in scheme.layers.values())
    maps = sum(bits.map for bits in scheme.layers.values())
    return Measured(
        f1=kernels / 64,
        f1_error=0.01,
        bits=1000 * kernels + maps,
        tflite_bytes=100 * kernels,
        score=kernels / 64 - maps / 100,
        cpu_seconds=0.0,
    )


def searched(folder, measure=toy, trials=9, space=SPACE):
    heard = []
    found, failed = tuner.search(
        space, ELEMENTS, measure, max_trials=trials, seed=3, folder=folder, on_trial=heard.append
    )
    assert heard == found
    return found, failed


def test_a_search_begins_with_the_uniform_schemes(tmp_path):
    found, _ = searched(tmp_path, trials=7)
    seeds = ["uniform 4", "uniform 8", "uniform 16", "kernels 4, maps 8",
             "largest kernels 4, maps 8"]  # fmt: skip
    assert [t.origin for t in found] == seeds + ["bayesian"] * 2
    for trial, bits in zip(found, (4, 8, 16, 4), strict=False):
        assert {layer.kernel for layer in trial.scheme.layers.values()} == {bits}
    largest = {name: layer.kernel for name, layer in found[4].scheme.layers.items()}
    assert largest == {"stem": 8, "block1_dw": 4, "block1_pw": 4, "head": 4}


def test_no_scheme_is_tried_twice(tmp_path):
    found, _ = searched(tmp_path)
    assert max(Counter(str(t.point) for t in found).values()) == 1


def test_layers_of_a_group_share_their_widths_and_the_output_has_8_bits(tmp_path):
    for trial in searched(tmp_path)[0]:
        layers = trial.scheme.layers
        assert layers["block1_dw"] == layers["block1_pw"]
        assert layers["head"].map == 8


def test_a_stopped_search_continues_and_repeats_no_trial(tmp_path):
    undisturbed, _ = searched(tmp_path / "one")
    measured = []

    def interrupted(scheme, number):
        if number == 6:
            raise KeyboardInterrupt
        measured.append(number)
        return toy(scheme, number)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "two", interrupted)

    def continued(scheme, number):
        measured.append(number)
        return toy(scheme, number)

    found, _ = searched(tmp_path / "two", continued)
    assert measured == list(range(9))
    assert found == undisturbed


def test_a_failed_trial_does_not_end_the_search_and_is_reported(tmp_path):
    calls = []

    def fails_once(scheme, number):
        calls.append(number)
        if len(calls) == 2:
            raise ParameterError("this scheme cannot be built")
        return toy(scheme, number)

    found, failed = searched(tmp_path, fails_once, trials=5)
    assert len(found) == 4
    assert len(failed) == 1
    assert "this scheme cannot be built" in failed[0]


def test_the_winner_is_the_smallest_file_that_is_nearly_as_good_as_float(tmp_path):
    found, _ = searched(tmp_path)
    best = max(t.measured.f1 for t in found)
    winner = tuner.choose(found, float_f1=best, max_f1_drop=0.1)
    good = [t for t in found if t.measured.f1 - t.measured.f1_error >= best - 0.1]
    assert "smallest" in tuner.rule_of(winner, float_f1=best, max_f1_drop=0.1)
    assert winner.measured.tflite_bytes == min(t.measured.tflite_bytes for t in good)


def test_without_a_good_trial_the_one_of_highest_f1_wins(tmp_path):
    found, _ = searched(tmp_path, trials=4)
    winner = tuner.choose(found, float_f1=10.0, max_f1_drop=0.01)
    assert winner.measured.f1 == max(t.measured.f1 for t in found)
    assert "no trial" in tuner.rule_of(winner, float_f1=10.0, max_f1_drop=0.01)


def test_the_space_that_comes_with_qbee_counts_its_schemes():
    # Three groups of 3 kernels x 2 biases, two of them with 3 maps.
    assert SPACE.size(LAYERS) == 6**3 * 3**2


def test_the_space_is_equal_after_a_trip_through_json(tmp_path):
    SPACE.save(tmp_path / "space.json")
    assert SearchSpace.load(tmp_path / "space.json") == SPACE


def test_every_search_space_in_the_repository_loads():
    files = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.json"))
    assert files
    for file in files:
        SearchSpace.load(file)


def test_a_layer_without_a_group_is_an_error_that_names_it():
    with pytest.raises(ParameterError, match="extra_conv"):
        SPACE.scheme({}, [*LAYERS, "extra_conv"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_bits": [4, 5]}, "kernel_bits.1: Input should be 4, 8 or 16"),
        ({"kernel_bits": []}, "kernel_bits"),
        ({"groups": {"a": ["x"], "b": ["x"]}}, "layer 'x' is in two groups"),
        ({"budget": 3}, "budget: Extra inputs are not permitted"),
    ],
)
def test_a_damaged_space_is_an_error_that_names_the_field(tmp_path, change, message):
    path = tmp_path / "space.json"
    path.write_text(json.dumps(SPACE.model_dump() | change))
    with pytest.raises(ModelFileError, match=message):
        SearchSpace.load(path)
