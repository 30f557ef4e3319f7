"""Fronts, ranks and hypervolumes of points whose objectives are all minimised (no TensorFlow).

A point dominates another if it is at most as high in every objective and lower in one. Who wants
an objective to be high negates it. Optuna computes hypervolumes in private modules only, so they
are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from qbee.errors import ParameterError

# A list of points, each a sequence of as many objectives.
Points = Sequence[Sequence[float]] | np.ndarray


def front(points: Points) -> list[int]:
    """Indices of the points that no other point dominates; of equal points the first is kept.

    They are sorted by the last objective, where it is equal by the one before it, and so on.

    Raises
    ------
    ParameterError
        if the points have different numbers of objectives or one is not finite.
    """
    values = _checked(points)
    kept: list[int] = []
    for i in _sorted(values):
        if not np.all(values[kept] <= values[i], axis=1).any():
            kept.append(i)
    return kept


def ranks(points: Points) -> list[int]:
    """Rank of each point: 0 if nothing dominates it, else one more than its worst dominator's.

    Equal points have the same rank. Errors are those of `front`.
    """
    values = _checked(points)
    order = np.array(_sorted(values), np.intp)
    found = np.zeros(len(values), np.intp)
    # Whatever dominates a point is sorted before it.
    for at, i in enumerate(order):
        before = order[:at]
        is_better = np.all(values[before] <= values[i], 1) & np.any(values[before] < values[i], 1)
        found[i] = np.max(found[before[is_better]] + 1, initial=0)
    return found.tolist()


def crowding(points: Points) -> np.ndarray:
    """How far apart the neighbours of each point are: NSGA-II's crowding distance.

    Summed over the objectives, each divided by its range; infinite for the first of the lowest
    and the last of the highest points of an objective. Errors are those of `front`.
    """
    values = _checked(points)
    found = np.zeros(len(values))
    for objective in values.T if len(values) else ():
        order = np.argsort(objective, kind="stable")
        ordered = objective[order]
        found[order[[0, -1]]] = np.inf
        extent = ordered[-1] - ordered[0]
        if extent > 0:
            found[order[1:-1]] += (ordered[2:] - ordered[:-2]) / extent
    return found


def best_first(points: Points) -> list[int]:
    """Indices of all points by rank, in a rank by falling crowding distance, then in order.

    The first so many are those that successive halving promotes. Errors are those of `front`.
    """
    values, rank = _checked(points), np.array(ranks(points), np.intp)
    distance = np.zeros(len(values))
    for level in np.unique(rank):
        distance[rank == level] = crowding(values[rank == level])
    return np.lexsort((-distance, rank)).tolist()


def hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Volume of all that is dominated by a point and lower than ``reference`` everywhere.

    Exact for any number of objectives; meant for two or three, as the time grows with the number
    of points to the power of the objectives less one. What is not lower than the reference in
    every objective adds nothing.

    Raises
    ------
    ParameterError
        as `front`, or if the reference has another number of objectives.
    """
    values, corner = _checked(points), _corner(points, reference)
    inside = values[np.all(values < corner, axis=1)] if len(values) else values
    return float(_volume(inside[front(inside)], corner)) if len(inside) else 0.0


def hypervolume_over(points: Points, reference: Sequence[float]) -> np.ndarray:
    """Hypervolume of the first point, the first two and so on [shape=(n,)]; never falls.

    Errors are those of `hypervolume`.
    """
    values, corner = _checked(points), _corner(points, reference)
    found, kept = np.zeros(len(values)), values[:0]
    for i, point in enumerate(values):
        found[i] = found[i - 1] if i else 0.0
        if np.all(point < corner) and not np.all(kept <= point, axis=1).any():
            kept = np.vstack([kept[~np.all(point <= kept, axis=1)], point])
            found[i] = max(found[i], _volume(kept, corner))
    return found


def _volume(points: np.ndarray, corner: np.ndarray) -> float:
    """Hypervolume of one point or more, all inside, in slabs along the first objective."""
    if points.shape[1] == 1:
        return corner[0] - points.min()
    points = points[np.argsort(points[:, 0], kind="stable")]
    depths = np.diff(points[:, 0], append=corner[0])
    areas = [
        _volume(points[: i + 1, 1:], corner[1:]) if depth > 0 else 0.0
        for i, depth in enumerate(depths)
    ]
    return float(depths @ np.array(areas))


def _sorted(values: np.ndarray) -> list[int]:
    """Indices in the order of `front`; equal points keep theirs."""
    return np.lexsort(values.T).tolist() if len(values) else []


def _checked(points: Points) -> np.ndarray:
    """Points as an array [shape=(n, objectives)]."""
    if len(points) == 0:
        return np.zeros((0, 0))
    lengths = sorted({len(point) for point in points})
    if len(lengths) > 1 or lengths[0] == 0:
        raise ParameterError(f"points: the numbers of objectives {lengths} must be one, above 0")
    values = np.asarray(points, float)
    for i in np.flatnonzero(~np.isfinite(values).all(axis=1)):
        raise ParameterError(f"points[{i}]={values[i].tolist()!r} must be finite")
    return values


def _corner(points: Points, reference: ArrayLike) -> np.ndarray:
    corner = np.atleast_1d(np.asarray(reference, float))
    if not np.isfinite(corner).all() or (len(points) and len(corner) != len(points[0])):
        raise ParameterError(f"reference={reference!r} must hold one number for each objective")
    return corner
