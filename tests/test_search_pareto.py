"""The Pareto front holds exactly the points that no other point beats."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbee.errors import ParameterError
from qbee.search import pareto

# Few distinct values, so that ties are common.
POINTS = st.lists(st.tuples(st.integers(0, 6).map(lambda n: n / 6), st.integers(1, 6)), max_size=25)


def front(points):
    """Front of (f1, bytes) pairs."""
    return pareto.front([f1 for f1, _ in points], [size for _, size in points])


def dominates(a, b):
    """Whether point ``a`` is at least as good as ``b`` in both and better in one."""
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_front_is_every_point_without_a_better_one_and_the_first_of_equals(points):
    expected = [
        i
        for i, point in enumerate(points)
        if points.index(point) == i and not any(dominates(other, point) for other in points)
    ]
    assert sorted(front(points)) == expected


@given(POINTS)
def test_size_and_f1_grow_along_the_front(points):
    kept = [points[i] for i in front(points)]
    for (f1, size), (next_f1, next_size) in zip(kept, kept[1:], strict=False):
        assert f1 < next_f1
        assert size < next_size


@given(POINTS)
def test_front_of_the_front_is_the_front(points):
    kept = [points[i] for i in front(points)]
    assert front(kept) == list(range(len(kept)))


@given(POINTS, st.randoms(use_true_random=False))
def test_order_of_the_points_does_not_matter(points, random):
    shuffled = points.copy()
    random.shuffle(shuffled)
    assert [shuffled[i] for i in front(shuffled)] == [points[i] for i in front(points)]


def test_no_points_have_an_empty_front():
    assert pareto.front([], []) == []


def test_lists_of_different_length_are_refused():
    with pytest.raises(ParameterError, match=r"len\(f1\)=2"):
        pareto.front([0.5, 0.6], [10])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_f1_that_is_not_finite_is_refused(value):
    with pytest.raises(ParameterError, match="must be finite"):
        pareto.front([0.5, value], [10, 20])
