"""A finished network out of its folder: for a target, within a limit of memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qbee.detector import MODEL
from qbee.errors import ModelFileError, ParameterError
from qbee.export import float_file
from qbee.export.delivery import Delivery, ExportSettings, deliver
from qbee.files import make_folder, write_bytes, write_text
from qbee.job import any_model, verbs
from qbee.job.any_model import KERAS_MODEL
from qbee.job.settings import FILE, SEARCH_FILE, SearchSettings
from qbee.job.stages import (
    CHOSEN,
    EXPORT_SETTINGS,
    FIDELITY,
    FIRMWARE,
    REPORTS,
    Chosen,
    Job,
    on_device,
)
from qbee.job.watcher import Watcher
from qbee.runtime.interpreter import MicroModel

DEFAULT_SETTINGS = ExportSettings()
Kind = Literal["winner", "int8", "float"]


@dataclass(frozen=True)
class Delivered:
    """What was exported and where to, and the arena that TFLite Micro reports for it.

    ``delivery`` is None for a file in floating point.
    """

    delivery: Delivery | None
    folder: Path
    arena_bytes: int
    tflite_bytes: int


def export(
    folder: Path,
    settings: ExportSettings = DEFAULT_SETTINGS,
    *,
    kind: Kind = "winner",
    out: Path | None = None,
    has_firmware: bool = False,
    watcher: Watcher | None = None,
) -> Delivered:
    """Export the network of a result folder of ``run`` or ``quantize``.

    Exported into the folder of a job itself, the winner's file replaces the one there, and is
    what ``verify`` verifies from then on.

    Parameters
    ----------
    kind : 'winner', 'int8' or 'float'
        of a job: the fine-tuned winner of the search, plain 8 bits, or the float network (which
        TensorFlow's converter writes, without settings or firmware). The latter two need ``out``.

    Raises
    ------
    QbeeError
        if there is no finished network, or it cannot be exported as asked.
    """
    folder = Path(folder)
    watcher = watcher or Watcher()
    if (folder / FILE).exists():
        if kind != "winner" and (out is None or Path(out).resolve() == folder.resolve()):
            raise ParameterError(f"kind={kind!r} must be given another folder to write to")
        check_finished(folder, kind)
        if kind == "float" and (has_firmware or settings != DEFAULT_SETTINGS):
            raise ParameterError("kind='float' goes without firmware, target and limits")
        if (
            out is not None
            and (Path(out) / FILE).exists()
            and Path(out).resolve() != folder.resolve()
        ):
            raise ParameterError(f"out={str(out)!r} is the folder of another job")
        job = verbs.resumed(folder, watcher)
        watcher.stage("Exporting the .tflite")
        if kind == "float":
            return _in_float(job, make_folder(out or folder))
        return _of_job(job, settings, kind, out, has_firmware)
    if not (folder / KERAS_MODEL).exists():
        raise ModelFileError(f"{folder}: holds neither {FILE} of a job nor {KERAS_MODEL}")
    if has_firmware or kind != "winner":
        raise ParameterError(f"{folder}: firmware, int8 and float need a job of 'run'")
    watcher.stage("Exporting the .tflite")
    delivery = deliver(any_model.integers(folder / KERAS_MODEL), settings)
    micro = on_device(delivery, settings)
    target = make_folder(out or folder)
    summary = delivery.summary() | {"arena_bytes": micro.arena_bytes()}
    write_text(target / FIDELITY, json.dumps(summary, indent=2) + "\n")
    write_bytes(target / MODEL, micro.content)
    if target.resolve() == folder.resolve() and (folder / any_model.REPORT).exists():
        # What else it says is of the integers, which are the same.
        now = {"tflite_bytes": len(micro.content), "arena_bytes": micro.arena_bytes()}
        report = any_model.Quantized.load(folder / any_model.REPORT)
        report.model_copy(update=now).save(folder / any_model.REPORT)
    return Delivered(delivery, target, micro.arena_bytes(), len(micro.content))


def check_finished(folder: Path, kind: Kind = "winner") -> None:
    """Refuse to train on the way to an export.

    Raises
    ------
    ModelFileError
        naming the verb that the job has to be continued with.
    """
    name, verb = (CHOSEN, "search") if kind == "winner" else ("float.json", "train")
    stored, asked = folder / "work" / name, folder / SEARCH_FILE
    is_finished = stored.exists()
    if is_finished and kind == "winner" and asked.exists():
        is_finished = Chosen.load(stored).search == SearchSettings.load(asked)
    if not is_finished:
        raise ModelFileError(f"{folder}: this job is not finished; continue it with '{verb}'")


def _of_job(
    job: Job, settings: ExportSettings, kind: Kind, out: Path | None, has_firmware: bool
) -> Delivered:
    if kind == "winner":
        model, threshold = job.fine_tuned[0], job.threshold
        settings = job.within_limits(settings)
    else:
        model, scores = job.plain_int8
        threshold = scores.threshold
    delivery = job.delivered(model, threshold, settings)
    micro = on_device(delivery, settings)
    target = make_folder(out or job.folder)
    if target.resolve() == job.folder.resolve():
        # Results of another file must not stand beside this one.
        for name in REPORTS:
            (job.folder / name).unlink(missing_ok=True)
        settings.save(job.folder / EXPORT_SETTINGS)
    job.write_files(target, delivery, micro, threshold)
    if has_firmware:
        job.write_firmware(target / FIRMWARE, micro, threshold)
    return Delivered(delivery, target, micro.arena_bytes(), len(micro.content))


def _in_float(job: Job, target: Path) -> Delivered:
    content = float_file.converted(job.trained[0])
    micro = MicroModel(content, source=MODEL)
    write_bytes(target / MODEL, content)
    return Delivered(None, target, micro.arena_bytes(), len(content))
