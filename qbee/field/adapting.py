"""A finished detector for another recorder: its levels and its weights, without any labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qbee.audio import mel
from qbee.data import scaling
from qbee.detect import sampling
from qbee.detect.recordings import find
from qbee.detect.sampling import Sample
from qbee.errors import DataError, ParameterError
from qbee.files import check_replaceable, replacing_folder
from qbee.job.deployment import check_finished
from qbee.job.settings import FILE as JOB_FILE
from qbee.job.settings import MAX_SEED
from qbee.job.stages import SCHEME, Job, on_device
from qbee.job.verbs import resumed
from qbee.job.watcher import Watcher
from qbee.quantize import convert, thresholds
from qbee.quantize.fold import FoldedNet
from qbee.quantize.thresholds import FatSettings
from qbee.records import FrontEnd, OnError, Record
from qbee.verify import compare

FILE = "adapt.json"
# A quarter of them, two, is held out.
LEAST_WINDOWS, HELD_OUT_SHARE = 8, 0.25
THRESHOLD_FROM = "the job: chosen on labelled validation windows of its own recorders"
PREDICT_WINDOWS = 64


class Adaptation(Record):
    """What was adapted to what, and what can be known of it without labels.

    Attributes
    ----------
    recordings : those windows were taken from
    skipped : a message for each recording that could not be used
    mean_db, std_db : of the new front end; None, as those before, where windows are levelled one
        by one
    rmse_before, rmse_after : of the logits on held-out windows of the new recorder, to those of
        the job's float network, before and after fine-tuning; both hear through the new front end
    mismatches : held-out windows whose logits differ between numpy, Keras and TFLite Micro
    """

    job: str
    recordings: tuple[str, ...]
    skipped: tuple[str, ...]
    windows: int
    held_out_windows: int
    seed: int
    mean_db_before: float | None
    std_db_before: float | None
    mean_db: float | None
    std_db: float | None
    rmse_before: float
    rmse_after: float | None
    mismatches: int
    threshold: float
    threshold_from: str = THRESHOLD_FROM


@dataclass(frozen=True)
class _Heard:
    """What was sampled, as inputs of a network."""

    sample: Sample
    front_end: FrontEnd

    @property
    def held_out(self) -> int:
        """Number of windows at the end that are held out: of whole recordings but for one."""
        return int(HELD_OUT_SHARE * len(self.sample.images))

    def inputs(self, part: slice) -> np.ndarray:
        """Standardised inputs [n, n_mels, n_frames, 1] of some windows."""
        return mel.standardize(self.sample.images[part], self.front_end)[..., None]

    @property
    def tuning_inputs(self) -> np.ndarray:
        """Those to fine-tune with."""
        return self.inputs(slice(len(self.sample.images) - self.held_out))

    @property
    def held_out_inputs(self) -> np.ndarray:
        """Those to report on."""
        return self.inputs(slice(len(self.sample.images) - self.held_out, None))


def adapt(
    job: Path,
    recordings: Sequence[str | Path],
    out: Path,
    *,
    windows: int = 512,
    fine_tune: bool = False,
    on_error: OnError = "stop",
    seed: int = 0,
    watcher: Watcher | None = None,
) -> Adaptation:
    """Adapt the detector of a finished job to a new recorder, by recordings without labels.

    Where all windows are levelled by one mean and standard deviation, those are taken anew from
    the new recorder's windows. ``out`` is then a folder that ``detect`` and ``evaluate`` take. The
    threshold stays the job's: no new one can be chosen without labels.

    Parameters
    ----------
    job : result folder of ``run``
    recordings : files, folders (with all below them) and patterns, of the new recorder only
    out : written whole or not at all; an adaptation that is there is replaced
    windows : int >= 8, to take at most; a quarter of them is held out, to report on
    fine_tune : also fine-tune the quantized network towards the float network (FAT), on the new
        recorder's windows
    on_error : what to do with a recording that cannot be used

    Raises
    ------
    ParameterError
        if there is nothing to adapt: windows are levelled one by one and ``fine_tune`` is off.
    QbeeError
        with one line, if anything about the input is wrong.
    """
    watcher, out = watcher or Watcher(), Path(out)
    _check(Path(job), out, windows, seed)
    source = resumed(job, watcher)
    check_finished(source.folder)
    _check_purpose(source, fine_tune)
    watcher.stage("Sampling windows")
    sample = _sample(source, find(recordings), windows, seed, on_error)
    heard = _Heard(sample, scaling.fit(sample.images, range(len(sample.images)), source.front_end))
    before = source.fine_tuned[0]
    model = _fine_tuned(source, heard, seed) if fine_tune else before
    watcher.stage("Export and verify")
    with replacing_folder(out, mark=Path(FILE), kind="adaptation") as folder:
        found = _written(folder, source, heard, model, before, seed)
    return found


def _check(job: Path, out: Path, windows: int, seed: int) -> None:
    if out.resolve() == job.resolve() or (out / JOB_FILE).exists():
        raise ParameterError(f"out={str(out)!r} is the folder of a job; give another one")
    check_replaceable(out, mark=Path(FILE), kind="adaptation")
    if windows < LEAST_WINDOWS:
        raise ParameterError(f"windows={windows} must be at least {LEAST_WINDOWS}")
    if not 0 <= seed <= MAX_SEED:
        raise ParameterError(f"seed={seed} must be from 0 to {MAX_SEED}")


def _check_purpose(job: Job, fine_tune: bool) -> None:
    if job.settings.front_end.standardize == "window" and not fine_tune:
        raise ParameterError(
            f"{job.folder}: standardize='window' levels every window by itself, so there are no "
            "levels to adapt; fine-tune (--fine-tune), or train with --standardize fold"
        )


def _sample(job: Job, paths: list[Path], windows: int, seed: int, on_error: OnError) -> Sample:
    """Windows of the new recorder; at least so many that some can be held out."""
    found = sampling.sample(
        paths,
        job.settings.front_end,
        windows=windows,
        seed=seed,
        on_error=on_error,
        on_progress=lambda done, total: job.watcher.progress(done, total, "recordings"),
    )
    for message in found.skipped:
        job.watcher.note(message)
    if len(found.images) < LEAST_WINDOWS:
        because = f", as {found.skipped[0]}" if found.skipped else ""
        raise DataError(
            f"the recordings hold {len(found.images)} windows of "
            f"{job.settings.front_end.window_s:g} s; {LEAST_WINDOWS} are needed{because}"
        )
    return found


def _network(job: Job) -> FoldedNet:
    """The winner's network with the weights it was fine-tuned to with labels."""
    net, model = job.search.network_of(job.winner).folded, job.fine_tuned[0]
    weights = {name: model.get_layer(name).get_weights() for name in net.weighted}
    return net.with_weights(
        {name: kernel for name, (kernel, _) in weights.items()},
        {name: bias for name, (_, bias) in weights.items()},
    )


def _fine_tuned(job: Job, heard: _Heard, seed: int):
    """The winner, fine-tuned towards the logits of the job's float network."""
    job.watcher.stage("Fine-tuning without labels")
    network, scheme = job.search.network_of(job.winner), job.winner.scheme
    tuned = thresholds.tune(
        _network(job),
        scheme,
        network.maps,
        heard.tuning_inputs,
        # The kernels of a job have steps of powers of two, which leave no thresholds to train.
        settings=FatSettings(thresholds=False),
        seed=seed,
        is_per_tensor=network.one_step,
        teacher=job.folded,
        on_progress=lambda done, total, loss: job.watcher.progress(
            done, total, f"RMSE of logits {loss:.3g}"
        ),
    )
    return convert.quantized_model(tuned.net, scheme, tuned.maps, is_per_tensor=network.one_step)


def _rmse(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.float64(found) - wanted) ** 2)))


def _logits(model, inputs: np.ndarray) -> np.ndarray:
    """Logits [n, 2] of a quantized Keras model."""
    parts = range(0, len(inputs), PREDICT_WINDOWS)
    return np.concatenate([model(inputs[i : i + PREDICT_WINDOWS], training=False) for i in parts])


def _written(folder: Path, job: Job, heard: _Heard, model, before, seed: int) -> Adaptation:
    """Write the adapted detector to ``folder``, and compare it on held-out windows."""
    front_end, old = heard.front_end, job.front_end
    # A detector needs its card, whatever the job's own file was exported for.
    settings = job.export_settings.model_copy(update={"has_metadata": True})
    delivery = job.delivered(model, job.threshold, settings, front_end)
    micro = on_device(delivery, settings)
    inputs = heard.held_out_inputs
    wanted = thresholds.logits(job.folded, inputs)
    proof, logits = compare(
        delivery.net, model, micro, lambda start, stop: inputs[start:stop], len(inputs)
    )
    found = Adaptation(
        job=sampling.plain(str(job.folder.resolve())),
        recordings=heard.sample.recordings,
        skipped=heard.sample.skipped,
        windows=len(heard.sample.images),
        held_out_windows=len(inputs),
        seed=seed,
        mean_db_before=old.mean_db,
        std_db_before=old.std_db,
        mean_db=front_end.mean_db,
        std_db=front_end.std_db,
        rmse_before=_rmse(_logits(before, inputs), wanted),
        rmse_after=None if model is before else _rmse(logits, wanted),
        mismatches=proof.mismatches,
        threshold=job.threshold,
    )
    job.write_files(folder, delivery, micro, job.threshold, front_end)
    job.winner.scheme.save(folder / SCHEME)
    found.save(folder / FILE)
    return found
