"""One self-contained HTML page to listen to scored windows and correct the decisions."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import jinja2
import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from matplotlib import image
from matplotlib.ticker import MaxNLocator

from qbee.errors import ParameterError
from qbee.files import write_text
from qbee.records import FrontEnd
from qbee.report import mel_axis

Group = Literal["top", "uncertain", "bottom"]


@dataclass(frozen=True, eq=False)
class ReviewItem:
    """One scored window and the clip around it.

    Parameters
    ----------
    clip : name of the clip's file relative to the page's folder, with slashes
    start_s, end_s : of the window inside the clip, which may have a margin on both sides
    source : recording that the clip was cut from
    source_start_s : of the window inside ``source``
    recorded_at : ISO 8601 text of the window's start, if known
    probability : of buzz
    image_db : np.ndarray [shape=(n_mels, n_frames)], dB
    audio : content of the clip's file, FLAC
    """

    clip: str
    start_s: float
    end_s: float
    source: str
    source_start_s: float
    recorded_at: str | None
    location: str
    group: Group
    probability: float
    image_db: np.ndarray
    audio: bytes


def write(
    items: Sequence[ReviewItem],
    path: Path,
    *,
    front_end: FrontEnd,
    threshold: float,
    model: str,
    train_command: str,
) -> None:
    """Write the page as one HTML file that loads nothing from elsewhere.

    The reader answers in the browser, which keeps the answers, and saves them as a
    ``labels.csv`` that :func:`qbee.data.labels.read_csv` takes from the page's folder.

    Parameters
    ----------
    items : shown by group (top, uncertain, bottom), inside a group in the order given
    threshold : probability from which on the detector says buzz
    model : name of the detector, for the title
    train_command : command that takes the labels, in place of ``{labels}``

    Raises
    ------
    ParameterError
        if there is no item, or naming the item and the value that cannot be shown.
    """
    if not items:
        raise ParameterError("items=[] must hold at least one window")
    for item in items:
        _check(item, front_end)
    groups = get_args(Group)
    ordered = sorted(items, key=lambda item: groups.index(item.group))
    scales = _scales_db(ordered, front_end)
    content = {
        "model": model,
        "threshold": threshold,
        "train_command": train_command,
        "axes": _axes(front_end),
        "items": [_entry(i, scale, threshold) for i, scale in zip(ordered, scales, strict=True)],
    }
    # escapes < > & ', so that no name can end the element that holds it
    text = htmlsafe_json_dumps(content, allow_nan=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    write_text(path, _template().render(content=text, key=key))


def _template() -> jinja2.Template:
    source = resources.files("qbee.report").joinpath("review.html")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source.read_text(encoding="utf-8"))


def _check(item: ReviewItem, front_end: FrontEnd) -> None:
    """Refuse what the page or the table of labels could not hold."""
    clip = PurePosixPath(item.clip)
    if not item.clip or clip.is_absolute() or ".." in clip.parts:
        raise ParameterError(f"clip={item.clip!r} must be a path below the page's folder")
    if item.group not in get_args(Group):
        allowed = ", ".join(get_args(Group))
        raise ParameterError(f"{item.clip}: group={item.group!r} must be one of {allowed}")
    if not 0 <= item.start_s < item.end_s < math.inf:
        raise ParameterError(
            f"{item.clip}: start_s={item.start_s}, end_s={item.end_s} must satisfy "
            "0 <= start_s < end_s"
        )
    if not 0 <= item.probability <= 1:
        raise ParameterError(f"{item.clip}: probability={item.probability} must be in [0, 1]")
    shape = np.shape(item.image_db)
    if shape != (front_end.n_mels, front_end.n_frames):
        expected = (front_end.n_mels, front_end.n_frames)
        raise ParameterError(f"{item.clip}: image_db of shape {shape} must have shape {expected}")


def _scales_db(items: Sequence[ReviewItem], front_end: FrontEnd) -> list[tuple[float, float]]:
    """Darkest and brightest decibel of each image, levelled as the detector levels windows."""
    if front_end.standardize == "window":
        return [mel_axis.limits_db(item.image_db) for item in items]
    return [mel_axis.limits_db(np.stack([item.image_db for item in items]))] * len(items)


def _axes(front_end: FrontEnd) -> dict[str, list[dict]]:
    """Ticks of the spectrograms: text, and place in percent from the left or the bottom."""
    hz, end_s = mel_axis.ticks_hz(front_end), front_end.window_s
    bands = mel_axis.band_of(hz, front_end)
    seconds = np.asarray(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(0, end_s))
    inside = seconds[(seconds >= 0) & (seconds <= end_s)]
    return {
        "hz": _ticks(hz.round(), 100 * (bands + 0.5) / front_end.n_mels),
        "s": _ticks(inside, 100 * inside / end_s),
    }


def _ticks(values: np.ndarray, percent: np.ndarray) -> list[dict]:
    return [
        {"text": f"{value:g}", "percent": round(float(place), 3)}
        for value, place in zip(values, percent, strict=True)
    ]


def _entry(item: ReviewItem, scale_db: tuple[float, float], threshold: float) -> dict:
    """What the page knows of a window; a label needs a place, so a blank one is unknown."""
    return {
        "clip": item.clip,
        "start_s": float(item.start_s),
        "end_s": float(item.end_s),
        "source": item.source,
        "source_start_s": float(item.source_start_s),
        "recorded_at": item.recorded_at or "",
        "location": item.location.strip() or "unknown",
        "group": item.group,
        "probability": float(item.probability),
        "decision": "buzz" if item.probability >= threshold else "no_buzz",
        "darkest_db": round(scale_db[0]),
        "brightest_db": round(scale_db[1]),
        "image": _data_address("image/png", _picture(item.image_db, scale_db)),
        "audio": _data_address("audio/flac", item.audio),
    }


def _picture(image_db: np.ndarray, scale_db: tuple[float, float]) -> bytes:
    """PNG with one pixel per value, low frequencies at the bottom."""
    low, high = scale_db
    content = io.BytesIO()
    image.imsave(
        content,
        np.asarray(image_db, np.float64),
        vmin=low,
        # digital silence has one level; without a range nothing could be drawn
        vmax=max(high, low + 1),
        cmap=mel_axis.COLOURS,
        origin="lower",
        format="png",
    )
    return content.getvalue()


def _data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
