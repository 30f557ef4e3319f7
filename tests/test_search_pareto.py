"""Fronts, ranks and hypervolumes are those of their definitions, counted point by point."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbee.errors import ParameterError
from qbee.search import pareto

REFERENCE = 6


def points_of(objectives, max_size):
    """Lists of points of few distinct values, so that ties are common; some not inside."""
    return st.lists(st.tuples(*[st.integers(0, 7)] * objectives), max_size=max_size)


POINTS = st.integers(1, 3).flatmap(lambda objectives: points_of(objectives, 20))
ORDER = st.randoms(use_true_random=False)


def dominates(a, b):
    """Whether ``a`` is at most as high as ``b`` everywhere and lower somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def hypervolume(points):
    """Hypervolume below the reference, which has as many objectives."""
    return pareto.hypervolume(points, [REFERENCE] * (len(points[0]) if points else 2))


def counted(points):
    """Unit cubes below the reference that a point dominates."""
    cubes = itertools.product(range(REFERENCE), repeat=len(points[0]) if points else 2)
    return sum(any(np.less_equal(point, cube).all() for point in points) for cube in cubes)


@given(POINTS)
def test_front_is_every_point_without_a_better_one_and_the_first_of_equals(points):
    expected = [
        i
        for i, point in enumerate(points)
        if points.index(point) == i and not any(dominates(other, point) for other in points)
    ]
    assert sorted(pareto.front(points)) == expected


@given(points_of(2, 20))
def test_along_the_front_of_two_the_last_grows_and_the_first_falls(points):
    kept = [points[i] for i in pareto.front(points)]
    for (loss, size), (next_loss, next_size) in itertools.pairwise(kept):
        assert loss > next_loss
        assert size < next_size


@given(POINTS)
def test_front_of_the_front_is_the_front(points):
    kept = [points[i] for i in pareto.front(points)]
    assert pareto.front(kept) == list(range(len(kept)))


@given(POINTS, ORDER)
def test_order_of_the_points_does_not_matter(points, random):
    shuffled = random.sample(points, len(points))
    assert [shuffled[i] for i in pareto.front(shuffled)] == [
        points[i] for i in pareto.front(points)
    ]
    assert hypervolume(shuffled) == hypervolume(points)
    by_point = dict(zip(points, pareto.ranks(points), strict=True))
    assert [by_point[point] for point in shuffled] == pareto.ranks(shuffled)


@given(POINTS)
def test_ranks_are_the_fronts_that_remain_when_better_ones_are_taken_away(points):
    expected: dict[tuple, int] = {}
    left, rank = set(points), 0
    while left:
        best = {p for p in left if not any(dominates(other, p) for other in left)}
        expected |= dict.fromkeys(best, rank)
        left, rank = left - best, rank + 1
    assert pareto.ranks(points) == [expected[point] for point in points]


def test_crowding_is_the_distance_of_the_neighbours_in_parts_of_the_range():
    points = [(0, 10), (1, 6), (2, 5), (4, 0)]
    assert pareto.crowding(points).tolist() == [math.inf, 2 / 4 + 5 / 10, 3 / 4 + 6 / 10, math.inf]


def test_crowding_of_equal_points_is_no_division_by_zero():
    assert pareto.crowding([(1, 1)] * 3).tolist() == [math.inf, 0, math.inf]


def test_best_first_takes_ranks_in_turn_and_the_lonely_ones_of_a_rank_before_the_crowded():
    points = [(5, 20), (2, 5), (1, 6), (0, 10), (4, 0)]
    assert pareto.best_first(points) == [3, 4, 1, 2, 0]


@given(POINTS)
def test_best_first_holds_every_point_once_by_growing_rank(points):
    order, rank = pareto.best_first(points), pareto.ranks(points)
    assert sorted(order) == list(range(len(points)))
    assert [rank[i] for i in order] == sorted(rank)


@given(POINTS)
def test_hypervolume_is_the_number_of_dominated_cubes(points):
    assert hypervolume(points) == counted(points)


@given(points_of(2, 12), st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_another_point_never_lowers_the_hypervolume_and_a_dominated_one_keeps_it(points, new):
    before, after = hypervolume(points), hypervolume([*points, new])
    assert after >= before
    if new in points or any(dominates(point, new) for point in points):
        assert after == before


@given(POINTS)
def test_hypervolume_over_the_trials_is_that_of_the_trials_so_far(points):
    reference = [REFERENCE] * (len(points[0]) if points else 2)
    expected = [pareto.hypervolume(points[: i + 1], reference) for i in range(len(points))]
    assert pareto.hypervolume_over(points, reference).tolist() == expected


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1e5)), min_size=1, max_size=12))
def test_hypervolume_over_the_trials_never_falls_by_rounding(points):
    assert np.all(np.diff(pareto.hypervolume_over(points, (0.7, 6e4))) >= 0)


def test_nothing_comes_of_no_points():
    assert pareto.front([]) == pareto.ranks([]) == pareto.best_first([]) == []
    assert pareto.crowding([]).size == pareto.hypervolume_over([], (1, 1)).size == 0
    assert pareto.hypervolume([], (1, 1)) == 0


@pytest.mark.parametrize("points", [[(1, 2), (1,)], [()]])
def test_points_without_one_number_of_objectives_are_refused(points):
    with pytest.raises(ParameterError, match="numbers of objectives"):
        pareto.front(points)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_objective_that_is_not_finite_is_refused(value):
    with pytest.raises(ParameterError, match=r"points\[1\]=.* must be finite"):
        pareto.front([(0.5, 10), (value, 20)])


@pytest.mark.parametrize("reference", [(1,), (1, 2, 3), (1, math.nan)])
def test_reference_that_does_not_fit_is_refused(reference):
    with pytest.raises(ParameterError, match="reference="):
        pareto.hypervolume([(0.5, 10)], reference)
