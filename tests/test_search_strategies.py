"""Strategies propose what was not tried, within menus and limits, from the trials alone."""

import itertools
from functools import cache

import numpy as np
import pytest
import search_toys as toys
from hypothesis import given
from hypothesis import strategies as st
from search_toys import ToyProbe, domain_of, searched, task_of

from qbee.errors import ParameterError
from qbee.search import pareto, sensitivity, strategies, strategy
from qbee.search.journal import Journal
from qbee.search.limits import Limits
from qbee.search.run import work
from qbee.search.sensitivity import Candidates, Sensitivity
from qbee.search.strategy import objective
from qbee.search.trial import Fidelity

TRIALS = 12
# The file has room for kernels of 8 bits and some of 16, the arena for fewer than maps of 8 bits.
LIMITS = Limits(at_most={"tflite_bytes": 600, "arena_bytes": 1500})

named = pytest.mark.parametrize("name", strategies.names())


def proposals(trials):
    return [trial.proposal for trial in trials]


def tries(trials):
    return [(sorted(t.point.items()), t.proposal.fidelity) for t in trials]


@cache
def found_by(name, search_seed=0, limits=None):
    """Trials of a search, and its task."""
    limits = None if limits is None else LIMITS
    task = task_of(max_trials=TRIALS, search_seed=search_seed, limits=limits)
    return task, searched(name, task)


def test_there_are_five_strategies():
    assert set(strategies.names()) == {"random", "bayesian", "nsga2", "tpe", "sensitivity"}


def test_an_unknown_strategy_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ParameterError, match="strategy='luck' must be one of random, bayesian, n"):
        strategies.get("luck")


@named
def test_no_point_is_tried_twice_at_one_fidelity(name):
    trials = found_by(name)[1]
    assert len(trials) == TRIALS
    for one, other in itertools.combinations(tries(trials), 2):
        assert one != other


@named
def test_proposals_are_within_the_menus(name):
    task, trials = found_by(name)
    assert all(task.domain.has(trial.point) for trial in trials)


@named
def test_equal_seeds_give_equal_proposals_and_others_other_ones(name):
    task = task_of(max_trials=TRIALS)
    assert proposals(searched(name, task)) == proposals(found_by(name)[1])
    assert proposals(found_by(name, search_seed=1)[1]) != proposals(found_by(name)[1])


@named
def test_a_proposal_is_a_function_of_the_trials_alone(name):
    task = task_of(max_trials=TRIALS)
    trials = searched(name, task, is_always_new=True)
    assert proposals(trials) == proposals(found_by(name)[1])
    assert strategies.get(name)(task).propose(trials[:9]) == trials[9].proposal


@named
def test_trials_are_the_same_after_a_trip_through_a_journal(name, tmp_path):
    task = task_of(max_trials=TRIALS)
    journal = Journal(
        tmp_path / "search.db", name="toy", identity={}, scheme_of=task.domain.scheme, seed=0
    )
    measure = toys.measure_with(task.probe)
    work(
        journal,
        strategies.get(name)(task),
        measure,
        max_trials=TRIALS,
        on_trial=lambda trial: None,
    )
    assert journal.trials == found_by(name)[1]


@named
def test_every_proposal_keeps_the_limits(name):
    task, trials = found_by(name, limits="tight")
    assert len(trials) == TRIALS
    assert all(LIMITS.are_met(task.probe.costs(trial.point)) for trial in trials)
    unlimited = [trial.point for trial in found_by(name)[1]]
    assert not all(LIMITS.are_met(task.probe.costs(point)) for point in unlimited)


@named
def test_a_small_domain_is_exhausted_and_then_there_is_nothing_to_propose(name):
    domain = domain_of(groups="network", map_bits=(4, 8))
    task = task_of(domain, max_trials=100)
    trials = searched(name, task)
    assert len(trials) < 100
    assert len(toys.whole(trials, task.fidelity)) == domain.size == 6
    assert len(set(map(str, tries(trials)))) == len(trials)


@named
def test_a_domain_of_one_point_is_tried_once(name):
    task = task_of(domain_of(kernel_bits=(8,), map_bits=(8,)), max_trials=3)
    assert [trial.point for trial in searched(name, task)] == [{}]


@named
def test_a_failed_trial_is_not_tried_again_and_does_not_stop_the_search(name):
    trials = searched(name, task_of(max_trials=TRIALS), failing=(0, 1, 5, 6))
    assert len(trials) == TRIALS
    assert len(set(map(str, tries(trials)))) == TRIALS


@named
def test_a_search_goes_on_although_every_trial_failed(name):
    trials = searched(name, task_of(max_trials=TRIALS), failing=range(TRIALS))
    assert len(set(map(str, tries(trials)))) == TRIALS


@named
def test_running_trials_of_other_workers_are_not_proposed_again(name):
    task = task_of(max_trials=TRIALS)
    trials = []
    while len(trials) < 6:
        proposal = strategies.get(name)(task).propose(list(trials))
        trials.append(toys.running(task, proposal, len(trials)))
    assert len(set(map(str, tries(trials)))) == 6


@named
def test_a_search_can_be_continued_with_more_trials(name):
    few = searched(name, task_of(max_trials=5))
    task = task_of(max_trials=20)
    trials = searched(name, task, trials=few)
    assert trials[:5] == few
    assert len(set(map(str, tries(trials)))) == len(trials) == 20


@named
def test_a_search_can_be_continued_with_tighter_limits_that_allow_no_wide_maps(name):
    before = searched(name, task_of(max_trials=TRIALS))
    assert any(16 in (v for n, v in t.point.items() if n.endswith(".map")) for t in before)
    domain = domain_of(widest_map=8)
    probe = ToyProbe(domain_of())
    task = task_of(domain, max_trials=2 * TRIALS, limits=LIMITS, probe=probe)
    trials = searched(name, task, trials=before)
    new = trials[TRIALS:]
    assert len(set(map(str, tries(trials)))) == len(trials) == 2 * TRIALS
    assert all(domain.has(t.point) and LIMITS.are_met(probe.costs(t.point)) for t in new)


@pytest.mark.parametrize("name", ["bayesian", "nsga2", "tpe"])
def test_a_search_begins_with_the_seeds(name):
    task, trials = found_by(name)
    seeds = task.domain.seed_points()
    assert {t.proposal.origin: t.point for t in trials[: len(seeds)]} == seeds
    assert {t.proposal.origin for t in trials[len(seeds) :]} <= {name, "random"}
    assert name in {t.proposal.origin for t in trials}


@pytest.mark.parametrize("name", ["bayesian", "nsga2", "tpe"])
def test_seeds_that_break_the_limits_are_cut_and_called_so(name):
    task, trials = found_by(name, limits="tight")
    cut = [t for t in trials if t.proposal.origin.endswith(", cut")]
    assert cut
    for trial in cut:
        seed = task.domain.seed_points()[trial.proposal.origin.removesuffix(", cut")]
        assert trial.point == task.repaired(seed) != seed


def test_random_has_no_seeds():
    task, trials = found_by("random")
    assert {trial.proposal.origin for trial in trials} == {"random"}
    assert trials[0].point not in task.domain.seed_points().values()


def test_bayesian_search_scores_higher_than_chance():
    best = {
        name: np.mean([max(t.measured.score for t in found_by(name, s)[1]) for s in (0, 1)])
        for name in ("bayesian", "random")
    }
    assert best["bayesian"] > best["random"]


def test_objectives_are_turned_so_that_lower_is_better():
    task, trials = found_by("random")
    better, worse = sorted(trials[:2], key=lambda trial: trial.measured.metrics["loss"])
    for name in ("loss", "f1"):
        assert objective(better, name) < objective(worse, name)
    assert objective(better, "bits") == better.measured.costs["bits"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("loss", "price"), "objective='price' must be one of loss, f1, .*tflite_bytes"),
        (("loss", "f1"), "must have a metric and a cost"),
        (("bits",), "must have a metric and a cost"),
    ],
)
def test_objectives_that_are_unknown_or_of_one_kind_are_an_error(names, message):
    with pytest.raises(ParameterError, match=message):
        strategy.check_objectives(names)
    assert strategy.check_objectives(["auc", "macs"]) == ("auc", "macs")


NUMBERS = st.integers(0, 1000).map(lambda n: n / 100)
TABLES = st.dictionaries(
    st.sampled_from("abc"),
    st.dictionaries(st.sampled_from((4, 8, 16)), st.tuples(NUMBERS, NUMBERS), min_size=1),
    min_size=1,
)


def sums(table, point):
    """Damage and cost of a point of a separable problem."""
    return np.sum([table[name][bits] for name, bits in point.items()], axis=0)


def all_sums(table):
    points = (dict(zip(table, bits, strict=True)) for bits in itertools.product(*table.values()))
    return np.array([sums(table, point) for point in points])


@given(TABLES)
def test_points_of_the_lagrangian_are_on_the_lower_convex_hull_in_order(table):
    everything, found = all_sums(table), sensitivity.lagrangian(table)
    values = np.array([sums(table, point) for point in found])
    # Sums of three hundredths and their products with multipliers of up to 1e4 are rounded.
    slack = 1e-6
    for x, y in values:
        # On the hull: no chord between two others passes below it.
        for (a, b), (c, d) in itertools.product(everything, repeat=2):
            if a <= x <= c and a < c:
                assert y <= b + (d - b) * (x - a) / (c - a) + slack
    assert np.all(np.diff(values[:, 0]) >= -slack)
    assert np.all(np.diff(values[:, 1]) <= slack)


def test_the_lagrangian_finds_every_corner_of_the_hull_and_nothing_inside():
    table = {"a": {4: (9, 1), 8: (4, 2), 16: (0, 8)}, "b": {4: (8, 0), 8: (7.5, 5), 16: (0, 10)}}
    # b's 8 bits lie above the line from its 4 to its 16 bits.
    assert sensitivity.lagrangian(table) == [
        {"a": 16, "b": 16}, {"a": 8, "b": 16}, {"a": 8, "b": 4}, {"a": 4, "b": 4}
    ]  # fmt: skip


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_a_spread_keeps_the_extremes_and_at_most_so_many(values, count):
    found = sensitivity.spread(values, count)
    assert len(found) == len(set(found)) == min(count, len(values))
    assert [values[i] for i in found] == sorted(values[i] for i in found)
    if count > 1:
        assert (values[found[0]], values[found[-1]]) == (min(values), max(values))


def test_a_spread_of_one_is_in_the_middle():
    assert sensitivity.spread([1, 2, 4, 8, 16], 1) == [2]


def test_a_spread_is_even_on_a_log_scale():
    values = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert [values[i] for i in sensitivity.spread(values, 5)] == [1, 4, 16, 64, 256]


@pytest.mark.parametrize("max_trials", range(1, 60))
def test_rungs_have_at_most_as_many_trials_as_are_allowed_and_the_last_is_whole(max_trials):
    task = task_of(max_trials=max_trials)
    found = Sensitivity(task)
    assert sum(found.sizes) <= max_trials
    assert found.rungs[-1] == task.fidelity
    assert len(found.sizes) == len(found.rungs) == (1 if max_trials < 6 else 2 + (max_trials > 35))
    for shorter, longer in itertools.pairwise(found.rungs):
        assert longer == Fidelity(epochs=shorter.epochs, windows=2 * shorter.windows)


def unlike_its_damage(trial):
    """Measurements that the probe did not foresee."""
    rng = np.random.default_rng(sorted(trial.point.values()))
    costs = {"tflite_bytes": float(rng.uniform(100, 200)), "arena_bytes": 1.0}
    return toys.measured(costs, loss=float(rng.uniform(0, 1)))


def of_rung(task, trials, number):
    of_length = toys.whole(trials, Sensitivity(task).rungs[number])
    return [trial for trial in of_length if trial.proposal.origin == "sensitivity"]


@pytest.mark.parametrize("max_trials", [12, 36])
def test_promoted_trials_are_those_of_the_best_ranks_in_their_rung(max_trials):
    task = task_of(max_trials=max_trials)
    trials = searched("sensitivity", task, measure=unlike_its_damage)
    for number in range(1, len(Sensitivity(task).rungs)):
        before, promoted = of_rung(task, trials, number - 1), of_rung(task, trials, number)
        values = [[objective(trial, name) for name in task.objectives] for trial in before]
        ranks = pareto.ranks(values)
        is_promoted = [trial.point in [p.point for p in promoted] for trial in before]
        up = [rank for rank, is_up in zip(ranks, is_promoted, strict=True) if is_up]
        down = [rank for rank, is_up in zip(ranks, is_promoted, strict=True) if not is_up]
        assert len(promoted) == len(up) == Sensitivity(task).sizes[number]
        assert max(up) <= min(down)


def test_if_the_probe_is_right_candidates_and_promoted_trials_are_not_dominated():
    task = task_of(max_trials=20)
    values = [
        (task.probe.damage(point), Candidates(task).cost(point))
        for point in Sensitivity(task).candidates
    ]
    assert len(pareto.front(values)) == len(values) == Sensitivity(task).sizes[0]


def test_a_rung_waits_for_its_running_trials():
    task = task_of(max_trials=12)
    first = Sensitivity(task).sizes[0]
    trials = searched("sensitivity", task)[:first]
    last = toys.running(task, trials[-1].proposal, first - 1)
    assert Sensitivity(task).propose([*trials[:-1], last]) is None
    assert Sensitivity(task).propose(trials).fidelity == task.fidelity
    lost = toys.failed(task, trials[-1].proposal, first - 1)
    assert Sensitivity(task).propose([*trials[:-1], lost]).fidelity == task.fidelity


def test_after_the_rungs_come_neighbours_of_the_front():
    task = task_of(max_trials=20)
    trials = searched("sensitivity", task, measure=unlike_its_damage)
    in_rungs = sum(Sensitivity(task).sizes)
    for number in range(in_rungs, 20):
        assert trials[number].proposal.origin == "neighbour"
        whole = toys.whole(trials[:number], task.fidelity)
        values = [[objective(trial, name) for name in task.objectives] for trial in whole]
        points = [whole[i].point for i in pareto.front(values)]
        menus = task.domain.menus
        far = [
            sum(abs(m.index(p[n]) - m.index(trials[number].point[n])) for n, m in menus.items())
            for p in points
        ]
        assert min(far) == 1


def test_every_point_is_looked_at_once_and_not_many_are():
    task = task_of(max_trials=20)
    candidates = Candidates(task)
    candidates.points(10)
    assert task.probe.looks == len(candidates.damages)
    choices = sum(len(menu) - 1 for menu in task.domain.menus.values())
    starts = len(sensitivity.lagrangian(candidates.table())) + len(task.domain.seed_points())
    assert task.probe.looks <= 1 + choices + max(sensitivity.MAX_LOOKS, starts)


def volume_of(trials, task):
    """Dominated share of all losses and files, of whole trials."""
    lowest = {name: menu[0] for name, menu in task.domain.menus.items()}
    widest = {name: menu[-1] for name, menu in task.domain.menus.items()}
    corner = (task.probe.damage(lowest), task.probe.costs(widest)["tflite_bytes"])
    values = [
        [objective(trial, name) for name in task.objectives]
        for trial in toys.whole(trials, task.fidelity)
    ]
    return pareto.hypervolume(values, corner) / np.prod(corner)


@pytest.mark.parametrize("seed", range(4))
def test_where_damage_adds_up_sensitivity_beats_chance_with_30_trials(seed):
    probe = ToyProbe(domain_of(), seed=seed)
    task = task_of(max_trials=30, search_seed=seed, probe=probe)
    volumes = {n: volume_of(searched(n, task), task) for n in ("sensitivity", "random")}
    assert volumes["sensitivity"] > volumes["random"]
