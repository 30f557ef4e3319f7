"""A finished result folder as a detector on TFLite Micro or LiteRT (no TensorFlow)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from qbee.audio import mel
from qbee.data import labels, windows
from qbee.errors import FrontEndError, ModelFileError
from qbee.files import read_bytes
from qbee.records import FrontEnd, OnError, Record, Window
from qbee.runtime import checks, sandbox
from qbee.runtime.flatbuffer import packed
from qbee.runtime.interpreter import MicroModel, Runner, read_metadata
from qbee.runtime.litert import LiteRtModel
from qbee.train import metrics

MODEL, FRONT_END = "model.tflite", "frontend.json"
METADATA_KEY = "qbee"
# TFLite Micro's kernels give the integers of the device. LiteRT's own (without XNNPACK) are over
# ten times faster; they round some sums in another way, which moves few outputs by one step.
Engine = Literal["tflm", "litert"]
BATCH_WINDOWS = 16


class Training(Record):
    """What a detector was trained on: windows and those with buzz, and how long."""

    model: str
    windows: int
    positives: int
    epochs: int
    fine_tune_epochs: int
    seed: int


class Card(Record):
    """What travels inside the .tflite: how to make its input and how to read its output."""

    front_end: FrontEnd
    labels: tuple[str, str] = ("no_buzz", "buzz")
    threshold: float
    goal: str | None = None
    training: Training | None = None

    def to_metadata(self) -> dict[str, bytes]:
        """Metadata entry of the .tflite."""
        # What the threshold was chosen for takes no room where it is the highest F1.
        left_out = {"goal"} if self.goal is None else set()
        return {METADATA_KEY: self.model_dump_json(exclude=left_out).encode()}

    @classmethod
    def of_model(cls, content: bytes, *, source: str) -> Card:
        """Card stored in a .tflite.

        Raises
        ------
        ModelFileError
            if there is none or it is damaged.
        """
        stored = read_metadata(content, key=METADATA_KEY, source=source)
        try:
            return cls.model_validate_json(json.dumps(stored))
        except ValidationError as error:
            raise ModelFileError(f"{source}: the card of the model is damaged") from error


def margin_threshold(threshold: float, step: float) -> int:
    """Smallest difference of output codes (buzz - no_buzz) that is a detection.

    ``sigmoid(step * margin) >= threshold`` in integers, for the firmware.
    """
    bounded = min(max(threshold, 1e-9), 1 - 1e-9)
    return math.ceil(math.log(bounded / (1 - bounded)) / step - 1e-9)


class Detector:
    """The exported model of a result folder, run by an interpreter."""

    def __init__(self, model: Runner, card: Card):
        self.model, self.card = model, card

    @classmethod
    def load(cls, folder: Path, *, engine: Engine = "tflm", is_probed: bool = False) -> Detector:
        """Detector of a result folder.

        Parameters
        ----------
        is_probed : whether this process or its parent has loaded the same folder before

        Raises
        ------
        ModelFileError
            if a file is missing or damaged.
        FrontEndError
            if model.tflite and frontend.json belong to different front ends.
        """
        path = Path(folder) / MODEL
        content = read_bytes(path)
        if not is_probed:
            # Damage that no check sees must not end this process.
            sandbox.probe(content, source=str(path))
        model = _loaded(content, engine, source=str(path))
        card = Card.of_model(content, source=str(path))
        image = (card.front_end.n_mels, card.front_end.n_frames)
        if model.input_shape[1:3] != image:
            raise FrontEndError(
                f"{path}: its input is {model.input_shape[1:3]}, its front end makes {image} images"
            )
        _check_beside(Path(folder), card.front_end)
        return cls(model, card)

    def inputs(self, images: np.ndarray) -> np.ndarray:
        """Standardised inputs [n, n_mels, n_frames, 1] of dB mel images."""
        return mel.standardize(images, self.card.front_end)[..., None]

    def logits(
        self, images: np.ndarray, *, on_progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """Logits [n, 2] of dB mel images [n, n_mels, n_frames], from the device's integers."""
        outputs = []
        for start in range(0, len(images), BATCH_WINDOWS):
            stop = min(start + BATCH_WINDOWS, len(images))
            outputs.append(self.model.predict(self.inputs(images[start:stop])))
            if on_progress is not None:
                on_progress(stop, len(images))
        return np.concatenate(outputs) if outputs else np.zeros((0, 2), np.float32)


def network_digest(content: bytes, *, source: str) -> str:
    """SHA-256 of the network in a .tflite, whatever its card says of thresholds.

    Raises
    ------
    ModelFileError
        if the file is damaged.
    """
    model = checks.parsed(content, source)
    for entry in model.metadata or []:
        model.buffers[entry.buffer].data = None
    model.metadata = None
    return hashlib.sha256(packed(model)).hexdigest()


def _loaded(content: bytes, engine: Engine, *, source: str) -> Runner:
    if engine == "litert":
        return LiteRtModel(content, xnnpack=False, source=source)
    return MicroModel(content, source=source)


def _check_beside(folder: Path, front_end: FrontEnd) -> None:
    """Refuse a model beside the front end of another one."""
    beside = FrontEnd.load(folder / FRONT_END)
    for name, value in front_end.model_dump().items():
        other = getattr(beside, name)
        if other != value:
            raise FrontEndError(
                f"{folder / FRONT_END}: {name}={other}, but {folder / MODEL} was trained with "
                f"{name}={value}: the files belong to different models"
            )


def scores_by_location(
    windows: Sequence[Window], probability: np.ndarray, *, threshold: float
) -> tuple[metrics.Scores, dict[str, metrics.Scores]]:
    """Scores on all windows and on those of each location, by name."""
    labels = np.array([w.is_buzz for w in windows], bool)
    places = np.array([w.location for w in windows])
    return metrics.evaluate(labels, probability, threshold=threshold), {
        str(place): metrics.evaluate(
            labels[places == place], probability[places == place], threshold=threshold
        )
        for place in sorted(set(places))
    }


def evaluate(
    folder: Path,
    labels_table: Path,
    *,
    on_error: OnError = "stop",
    unannotated: labels.Unannotated = "ignore",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a finished result folder on a label table, through TFLite Micro.

    Returns
    -------
    dict with the fields of ``Scores`` on all windows, ``locations`` (the same by location),
    ``uncertain``, ``too_short`` (left out) and ``skipped`` (unreadable recordings).

    Raises
    ------
    QbeeError
        if the folder or the table cannot be used.
    """
    detector = Detector.load(folder)
    front_end = detector.card.front_end
    segments = labels.read(labels_table, unannotated=unannotated)
    table = windows.from_segments(segments, front_end, on_error=on_error)
    # The images of days of recordings need not fit in memory.
    with TemporaryDirectory(prefix="qbee_") as scratch:
        path = Path(scratch) / "windows.npy"
        made = windows.images(table.windows, front_end, path=path, on_error=on_error)
        found = metrics.probabilities(detector.logits(made.images, on_progress=on_progress))
    kept = [table.windows[i] for i in made.kept]
    overall, by_place = scores_by_location(kept, found, threshold=detector.card.threshold)
    return {
        "model": str(Path(folder) / MODEL),
        "table": str(labels_table),
        **asdict(overall),
        "locations": {place: asdict(scores) for place, scores in by_place.items()},
        "uncertain": table.uncertain,
        "too_short": table.too_short,
        "skipped": [*table.skipped, *made.skipped],
    }
