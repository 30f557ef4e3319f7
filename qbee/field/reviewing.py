"""Windows of a detection for the ear: clips, and a page on which they are labelled."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qbee.audio import mel
from qbee.detect import clips
from qbee.detect.events import Listened, Span
from qbee.detect.label_files import safe_name
from qbee.detect.run import FILE, Detection, DetectSettings
from qbee.detect.tables import time_text
from qbee.errors import AudioError, DataError, ModelFileError, ParameterError
from qbee.field.detecting import SUMMARY, Summary
from qbee.files import make_folder, write_bytes
from qbee.job.settings import FILE as JOB_FILE
from qbee.job.settings import JobSettings
from qbee.job.watcher import Watcher
from qbee.records import FrontEnd
from qbee.report import review_page
from qbee.report.review_page import Group, ReviewItem
from qbee.train import metrics

PAGE, CLIPS = "review.html", "clips"


@dataclass(frozen=True)
class Scored:
    """A window and its probability of buzz."""

    span: Span
    probability: float


@dataclass(frozen=True, eq=False)
class _All:
    """Windows of all recordings, one array an attribute."""

    listened: Sequence[Listened]
    owner: np.ndarray
    start_s: np.ndarray
    margin: np.ndarray

    @classmethod
    def of(cls, listened: Sequence[Listened], front_end: FrontEnd) -> _All:
        starts = [one.starts_s(front_end) for one in listened]
        return cls(
            listened,
            np.repeat(np.arange(len(listened)), [len(part) for part in starts]),
            np.concatenate([np.empty(0), *starts]),
            np.concatenate([np.empty(0), *(one.part.margins for one in listened)]),
        )


def chosen(
    listened: Sequence[Listened],
    front_end: FrontEnd,
    *,
    counts: dict[Group, int],
    threshold: float,
) -> list[tuple[Group, Scored]]:
    """The surest windows with and without buzz, and those nearest to the threshold.

    No two of them overlap: a reader learns little from the same sound twice. The uncertain ones
    are chosen first, as corrections of them teach the most.
    """
    everything = _All.of(listened, front_end)
    bounded = np.clip(threshold, metrics.PROBABILITY_FLOOR, 1 - metrics.PROBABILITY_FLOOR)
    edge = np.log(bounded / (1 - bounded))
    orders: dict[Group, np.ndarray] = {
        "uncertain": np.abs(everything.margin - edge),
        "top": -everything.margin,
        "bottom": everything.margin,
    }
    taken: defaultdict[int, list[float]] = defaultdict(list)
    found: list[tuple[Group, Scored]] = []
    for group, order in orders.items():
        left = counts[group]
        # Logits of few bits make many equal, which must not all be of the first recording.
        chance = np.random.default_rng(0).permutation(len(order))
        for index in np.lexsort((chance, order)):
            if not left:
                break
            owner, start_s = int(everything.owner[index]), float(everything.start_s[index])
            if any(abs(start_s - other) < front_end.window_s for other in taken[owner]):
                continue
            taken[owner].append(start_s)
            span = Span(everything.listened[owner], start_s, start_s + front_end.window_s)
            probability = float(metrics.sigmoid(everything.margin[index]))
            found.append((group, Scored(span, probability)))
            left -= 1
    return found


def review(
    detection: Path,
    out: Path,
    *,
    top: int = 30,
    uncertain: int = 40,
    bottom: int = 30,
    watcher: Watcher | None = None,
) -> Path:
    """Write a page on which windows of a detection are listened to and labelled.

    The page and the clips of the windows lie in ``out``; the label table that the page saves
    belongs beside them, and ``run`` takes it.

    Parameters
    ----------
    detection : folder that ``detect`` wrote
    top, uncertain, bottom : windows of each kind

    Returns
    -------
    path of the page

    Raises
    ------
    QbeeError
        if there is no finished detection or no window that can be listened to.
    """
    watcher = watcher or Watcher()
    folder, out = Path(detection), Path(out)
    if not (folder / SUMMARY).exists():
        raise ModelFileError(f"{folder}: holds no finished detection ({SUMMARY} of 'detect')")
    if out.resolve() == folder.resolve():
        raise ParameterError(f"out={str(out)!r} must be another folder than the detection")
    if (out / "labels.csv").exists():
        raise ParameterError(f"{out / 'labels.csv'}: holds labels; give another folder")
    summary = Summary.load(folder / SUMMARY)
    found = Detection(folder, DetectSettings.load(folder / FILE), zone=summary.zone)
    counts: dict[Group, int] = {"top": top, "uncertain": uncertain, "bottom": bottom}
    front_end, threshold = found.settings.front_end, summary.rule.threshold
    windows = chosen(found.listened, front_end, counts=counts, threshold=threshold)
    if not windows:
        raise DataError(f"{folder}: has no windows to review")
    watcher.stage("Cutting clips")
    items = list(_items(windows, make_folder(out / CLIPS), front_end, watcher))
    if not items:
        raise DataError(f"{folder}: none of its recordings can be read any more")
    name = Path(summary.model).name
    review_page.write(
        items,
        out / PAGE,
        front_end=front_end,
        threshold=threshold,
        model=name,
        train_command=_train_command(Path(summary.model)),
    )
    return out / PAGE


def _train_command(model: Path) -> str:
    """Command that trains again, as before and with the labels of before if they are known."""
    if not (model / JOB_FILE).exists():
        return "qbee run --labels {labels} --model beenet3 --out retrained"
    job = JobSettings.load(model / JOB_FILE)
    given = [part for table in job.labels for part in ("--labels", table)]
    given += ["--unannotated", job.unannotated] if job.unannotated != "ignore" else []
    given += ["--test-location", job.test_location] if job.test_location else []
    given += ["--standardize", "fold"] if job.front_end.standardize == "fold" else []
    given += ["--balance-classes"] if job.balance_classes else []
    # Braces are for what the page puts in.
    before = shlex.join(given).replace("{labels}", "{ labels }")
    return f"qbee run {before} --labels {{labels}} --model {job.model} --out retrained"


def _items(
    windows: Sequence[tuple[Group, Scored]], folder: Path, front_end: FrontEnd, watcher: Watcher
) -> Iterator[ReviewItem]:
    """Clips that were written, as the page shows them."""
    for number, (group, scored) in enumerate(windows, start=1):
        span = scored.span
        recording = span.listened.placed.recording
        place, stem = safe_name(recording.location), safe_name(recording.path.stem)
        # With the time, since a page of before may still be open.
        name = f"{number:04d}_{place}_{stem}_{span.start_s:.3f}.flac"
        try:
            clip = clips.cut(clips.around(span, front_end))
            start_s = span.start_s - clip.start_s
            write_bytes(folder / name, clip.audio)
            image_db = mel.images(folder / name, front_end, [start_s])[0]
        except AudioError as error:
            watcher.note(f"left out: {error}")
            continue
        watcher.progress(number, len(windows), "clips")
        yield ReviewItem(
            clip=f"{CLIPS}/{name}",
            start_s=start_s,
            end_s=start_s + front_end.window_s,
            source=recording.name,
            source_start_s=span.start_s,
            recorded_at=time_text(span.listened, span.start_s) or None,
            location=recording.location,
            group=group,
            probability=scored.probability,
            image_db=image_db,
            audio=clip.audio,
        )
