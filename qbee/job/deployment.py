"""A finished network out of its folder: for a target, within a limit of memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from qbee.detector import MODEL
from qbee.errors import ModelFileError
from qbee.export.delivery import Delivery, ExportSettings, deliver
from qbee.export.interpreter import MicroModel
from qbee.files import make_folder, write_bytes, write_text
from qbee.job import any_model, results, verbs
from qbee.job.any_model import KERAS_MODEL
from qbee.job.outputs import REPORT
from qbee.job.settings import FILE
from qbee.job.stages import EXPORT_SETTINGS, FIDELITY, Job
from qbee.job.watcher import Watcher

DEFAULT_SETTINGS, FIRMWARE = ExportSettings(), "firmware"


@dataclass(frozen=True)
class Delivered:
    """What was exported, where to, and the arena that TFLite Micro reports for it."""

    delivery: Delivery
    folder: Path
    arena_bytes: int


def export(
    folder: Path,
    settings: ExportSettings = DEFAULT_SETTINGS,
    *,
    out: Path | None = None,
    has_firmware: bool = False,
    watcher: Watcher | None = None,
) -> Delivered:
    """Export the network of a result folder of ``run`` or ``quantize``.

    Exported into the folder of a job itself, the file replaces the one there, and is what
    ``verify`` verifies from then on.

    Raises
    ------
    QbeeError
        if there is no finished network, or it cannot be exported as asked.
    """
    folder = Path(folder)
    watcher = watcher or Watcher()
    if (folder / FILE).exists():
        return _of_job(verbs.resumed(folder, watcher), settings, out, has_firmware)
    if not (folder / KERAS_MODEL).exists():
        raise ModelFileError(f"{folder}: holds neither {FILE} of a job nor {KERAS_MODEL}")
    if has_firmware:
        raise ModelFileError(f"{folder}: firmware needs the front end of a job of 'run'")
    watcher.stage("Exporting the .tflite")
    delivery = deliver(any_model.integers(folder / KERAS_MODEL), settings)
    micro = MicroModel(delivery.exported.content, source=MODEL)
    target = make_folder(out or folder)
    summary = delivery.summary() | {"arena_bytes": micro.arena_bytes()}
    write_text(target / FIDELITY, json.dumps(summary, indent=2) + "\n")
    write_bytes(target / MODEL, micro.content)
    return Delivered(delivery, target, micro.arena_bytes())


def _of_job(job: Job, settings: ExportSettings, out: Path | None, has_firmware: bool) -> Delivered:
    job.watcher.stage("Exporting the .tflite")
    job.export_settings = settings
    micro = MicroModel(job.delivery.exported.content, source=MODEL)
    target = make_folder(out or job.folder)
    if out is None:
        # Results of another file must not stand beside this one.
        for name in (results.FILE, REPORT):
            (job.folder / name).unlink(missing_ok=True)
        settings.save(job.folder / EXPORT_SETTINGS)
    job.write_files(target, micro)
    if has_firmware:
        job.write_firmware(target / FIRMWARE, micro)
    return Delivered(job.delivery, target, micro.arena_bytes())
