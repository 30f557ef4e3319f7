"""Splits of labelled windows that share no sound: cross-validation and leave one location out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from qbee.errors import DataError, ParameterError
from qbee.records import Fold, FrontEnd, Window

# Splits tried, each with a seed derived from the caller's, until the parts have both classes.
N_TRIES = 10
# In leave-one-location-out, one of this many parts of the other locations is for validation.
N_PARTS_OF_REST = 5
PARTS = ("training", "validation", "test")
CLASSES = ("no_buzz", "buzz")


def cross_validation(
    windows: Sequence[Window],
    front_end: FrontEnd,
    *,
    n_folds: int = 5,
    seed: int,
    block_s: float = 300.0,
) -> list[Fold]:
    """Folds stratified by class and location; fold i tests on part i, validates on the next.

    Parts are made of whole recordings; a recording whose windows span more than ``block_s``
    seconds is cut into time blocks of equal length, at most ``block_s``. A window that starts
    less than a window and a hop from a window of the same recording in another part is
    dropped: from training beside validation or test, from validation beside test.

    Parameters
    ----------
    n_folds : int >= 3
    seed : int >= 0; equal seeds give equal folds

    Raises
    ------
    DataError
        if there are fewer windows or blocks of a class than folds, or a part lacks a class.
    ParameterError
        if ``n_folds``, ``seed`` or ``block_s`` cannot work.
    """
    if n_folds < 3:
        raise ParameterError(f"n_folds={n_folds} must be at least 3: training, validation, test")
    labels, blocks = _labels(windows), _blocks(windows, front_end, block_s)
    _check_blocks(labels, blocks, n_folds)
    problems = []
    for parts in _splits(windows, blocks, n_parts=n_folds, seed=seed):
        folds = [
            _fold(f"fold {i + 1}", windows, _roles(parts, i, n_folds), front_end)
            for i in range(n_folds)
        ]
        lacking = [problem for fold in folds for problem in _lacking(fold, labels, PARTS)]
        if not lacking:
            return folds
        problems += lacking
    raise DataError(f"{problems[0]}; label more recordings or ask for fewer than {n_folds} folds")


def by_location(
    windows: Sequence[Window], front_end: FrontEnd, *, seed: int, block_s: float = 300.0
) -> list[Fold]:
    """One fold per location, named after it: all its windows are for testing.

    A fifth of the other windows, stratified as in :func:`cross_validation` and with the same
    dropping of neighbours, is for validation; it has both classes if any of the splits tried
    gives both to validation and training. The test part may have one class only.

    Raises
    ------
    DataError
        if there is one location only, or the others cannot train and validate.
    ParameterError
        if ``seed`` or ``block_s`` cannot work.
    """
    locations = sorted({window.location for window in windows})
    if len(locations) < 2:
        raise DataError(
            f"{len(windows)} windows of {len(locations)} location ({', '.join(locations)}); "
            "leaving one out needs at least 2 locations"
        )
    labels, blocks = _labels(windows), _blocks(windows, front_end, block_s)
    return [
        _leave_out(location, windows, labels, blocks, front_end, seed) for location in locations
    ]


def _leave_out(location, windows, labels, blocks, front_end, seed) -> Fold:
    rest = np.flatnonzero([window.location != location for window in windows])
    n_blocks, n_buzz = len(np.unique(blocks[rest])), int(labels[rest].sum())
    n_parts = min(N_PARTS_OF_REST, n_blocks, max(n_buzz, len(rest) - n_buzz))
    if n_parts < 2 or n_buzz in (0, len(rest)):
        raise DataError(
            f"{location}: the other locations have {n_buzz} buzz and {len(rest) - n_buzz} no_buzz "
            f"windows in {n_blocks} recordings or blocks; training and validation need both "
            "classes and 2 blocks: label more recordings there"
        )
    possible = []
    for parts in _splits([windows[i] for i in rest], blocks[rest], n_parts=n_parts, seed=seed):
        for part in _most_typical(parts, labels[rest], n_parts):
            roles = np.full(len(windows), 2)
            roles[rest] = parts == part
            fold = _fold(location, windows, roles, front_end)
            if not _lacking(fold, labels, PARTS[:2]):
                return fold
            possible.append(fold)
    for fold in possible:
        if fold.validation and not _lacking(fold, labels, PARTS[:1]):
            return fold
    problem = [*_lacking(possible[0], labels, PARTS[:1]), f"{location}: no validation windows"][0]
    raise DataError(f"{problem}; label more recordings of the other locations")


def _labels(windows: Sequence[Window]) -> np.ndarray:
    return np.array([window.is_buzz for window in windows], dtype=np.int64)


def _by_recording(windows: Sequence[Window]) -> Iterator[np.ndarray]:
    """Yield the indices of the windows of each recording."""
    recordings: dict = {}
    for index, window in enumerate(windows):
        recordings.setdefault(window.path, []).append(index)
    return map(np.array, recordings.values())


def _blocks(windows: Sequence[Window], front_end: FrontEnd, block_s: float) -> np.ndarray:
    """Block number of each window; a block is a recording or a stretch of a long one."""
    if not block_s > front_end.window_s + front_end.window_hop_s:
        raise ParameterError(
            f"block_s={block_s} must be longer than a window and a hop, "
            f"{front_end.window_s + front_end.window_hop_s} s"
        )
    blocks = np.zeros(len(windows), np.int64)
    n_blocks = 0
    for indices in _by_recording(windows):
        starts_s = np.array([windows[i].start_s for i in indices])
        elapsed_s = starts_s - starts_s.min()
        span_s = elapsed_s.max() + front_end.window_s
        n_cuts = int(np.ceil(span_s / block_s))
        blocks[indices] = n_blocks + elapsed_s * n_cuts // span_s
        n_blocks += n_cuts
    return blocks


def _check_blocks(labels: np.ndarray, blocks: np.ndarray, n_folds: int) -> None:
    n_blocks, label = min((len(np.unique(blocks[labels == label])), label) for label in (0, 1))
    if n_blocks < n_folds:
        raise DataError(
            f"{(labels == label).sum()} {CLASSES[label]} windows in {n_blocks} recordings or "
            f"blocks are too few for n_folds={n_folds}; label more recordings, ask for fewer "
            "folds or shorten block_s"
        )


def _splits(windows, blocks, *, n_parts: int, seed: int) -> Iterator[np.ndarray]:
    """Part of each window: a first split of the blocks, then others, the best balanced first."""
    if seed < 0:
        raise ParameterError(f"seed={seed} must not be negative")
    labels = _labels(windows)
    places = np.unique([window.location for window in windows], return_inverse=True)[1]
    strata = 2 * places + labels
    if np.bincount(strata).max() < n_parts:
        # scikit-learn wants one stratum with a member for each part
        strata = labels
    first, *further = np.random.SeedSequence(seed).generate_state(N_TRIES).tolist()
    yield _split(strata, blocks, n_parts, first)
    others = [_split(strata, blocks, n_parts, state) for state in further]
    yield from sorted(others, key=lambda parts: _shares(parts, labels, n_parts).std())


def _split(strata: np.ndarray, blocks: np.ndarray, n_parts: int, state: int) -> np.ndarray:
    splitter = StratifiedGroupKFold(n_parts, shuffle=True, random_state=state)
    parts = np.empty(len(strata), np.int64)
    with warnings.catch_warnings():
        # rare strata are expected, and the caller looks for classes that a part lacks
        warnings.filterwarnings("ignore", message="The least populated class")
        for part, (_, chosen) in enumerate(splitter.split(strata, strata, blocks)):
            parts[chosen] = part
    return parts


def _shares(parts: np.ndarray, labels: np.ndarray, n_parts: int) -> np.ndarray:
    """Share of each class that each part has [shape=(2, n_parts)]."""
    counts = [np.bincount(parts[labels == label], minlength=n_parts) for label in (0, 1)]
    return np.array([count / count.sum() for count in counts])


def _most_typical(parts: np.ndarray, labels: np.ndarray, n_parts: int) -> list[int]:
    """Parts, the one whose shares of both classes are nearest to equal ones first."""
    distances = np.abs(_shares(parts, labels, n_parts) - 1 / n_parts).sum(axis=0)
    return np.argsort(distances, kind="stable").tolist()


def _roles(parts: np.ndarray, fold: int, n_folds: int) -> np.ndarray:
    """Index into ``PARTS`` of each window."""
    return np.where(parts == fold, 2, np.where(parts == (fold + 1) % n_folds, 1, 0))


def _fold(name: str, windows, roles: np.ndarray, front_end: FrontEnd) -> Fold:
    gap_s = front_end.window_s + front_end.window_hop_s
    dropped = np.zeros(len(windows), bool)
    for indices in _by_recording(windows):
        starts_s = np.array([windows[i].start_s for i in indices])
        for role in (0, 1):
            mine, later = roles[indices] == role, roles[indices] > role
            dropped[indices[mine]] = _is_near(starts_s[mine], starts_s[later], gap_s)
    members = [*((roles == role) & ~dropped for role in range(3)), dropped]
    train, validation, test, left_out = (tuple(np.flatnonzero(m).tolist()) for m in members)
    return Fold(name, train, validation, test, left_out)


def _is_near(starts_s: np.ndarray, others_s: np.ndarray, gap_s: float) -> np.ndarray:
    """Whether any of the others is less than ``gap_s`` away from a start."""
    others_s = np.concatenate([[-np.inf], np.sort(others_s), [np.inf]])
    after = np.searchsorted(others_s[:-1], starts_s, side="right")
    return np.minimum(starts_s - others_s[after - 1], others_s[after] - starts_s) < gap_s


def _lacking(fold: Fold, labels: np.ndarray, parts: tuple[str, ...]) -> list[str]:
    """Sentences about the classes that the first ``parts`` of a fold lack."""
    members = dict(zip(PARTS, (fold.train, fold.validation, fold.test), strict=True))
    return [
        f"{fold.name}: the {part} part has no {name} windows: {len(members[part])} windows, "
        f"{len(fold.dropped)} dropped beside other parts"
        for part in parts
        for label, name in enumerate(CLASSES)
        if label not in labels[[*members[part]]]
    ]
