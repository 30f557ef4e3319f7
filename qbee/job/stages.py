"""The stages of a job; each keeps what it finished and takes it up again when run once more."""

from __future__ import annotations

import gc
import json
import time
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from qbee.detector import FRONT_END, MODEL, Card, Training, margin_threshold
from qbee.export import c_array, firmware, tflite
from qbee.export.delivery import Delivery, ExportSettings, deliver
from qbee.files import make_folder, write_bytes, write_text
from qbee.job.data import Prepared, prepare
from qbee.job.settings import JobSettings
from qbee.job.watcher import Watcher
from qbee.keras import keras, make_repeatable
from qbee.models import registry
from qbee.quantize import calibrate, convert, fold
from qbee.quantize.fold import FoldedNet
from qbee.quantize.scheme import Scheme, uniform
from qbee.quantize.sharing import one_step_of
from qbee.records import Fold, FrontEnd, Window, read_as
from qbee.runtime.interpreter import MicroModel
from qbee.search import cost, tuner
from qbee.search.tuner import Measured, Trial
from qbee.train import fit, metrics, weights
from qbee.train.augment import Augmentation
from qbee.train.fit import Epoch, Examples, TrainSettings

CALIBRATION_WINDOWS = 256
FINE_TUNE_MAX_RATE = 2e-4
# Small training sets are gone through several times per epoch, to at least so many windows.
EPOCH_WINDOWS = 1024
SCHEME, EXPORT_SETTINGS, FIDELITY = "scheme.json", "export.json", "fidelity.json"


class Job:
    """One job in one folder: data, float model, search, fine-tuned winner, files.

    What takes time is computed, or read from the folder, when it is first used.
    """

    def __init__(self, folder: Path, settings: JobSettings, watcher: Watcher | None = None):
        self.folder, self.settings = Path(folder), settings
        self.watcher = watcher or Watcher()
        self.work = make_folder(self.folder / "work")
        make_repeatable(settings.seed)

    @cached_property
    def data(self) -> Prepared:
        """Windows, split and images."""
        return prepare(self.folder, self.settings, self.watcher)

    @property
    def fold(self) -> Fold:
        """Training, validation and test windows."""
        return self.data.fold

    @property
    def examples(self) -> Examples:
        """Images, labels and the front end fitted to the training windows."""
        return self.data.examples

    @property
    def front_end(self) -> FrontEnd:
        """Front end of the model, with the scale of the training windows if it uses one."""
        return self.examples.front_end

    def windows_of(self, part: str) -> list[Window]:
        """Windows of 'train', 'validation', 'test' or 'dropped'."""
        return [self.data.table.windows[i] for i in getattr(self.fold, part)]

    def labels_of(self, part: str) -> np.ndarray:
        """Labels of a part, bool."""
        return self.examples.labels[np.asarray(getattr(self.fold, part), int)]

    def probabilities(self, model, part: str) -> np.ndarray:
        """Probabilities of buzz of the windows of a part."""
        return metrics.probabilities(fit.predict(model, self.examples, getattr(self.fold, part)))

    def scores(self, model) -> metrics.Scores:
        """Scores on the test windows at the threshold that is best on the validation windows."""
        threshold = metrics.best_threshold(
            self.labels_of("validation"), self.probabilities(model, "validation")
        )
        found = self.probabilities(model, "test")
        return metrics.evaluate(self.labels_of("test"), found, threshold=threshold)

    def _fitted(self, model, name: str, settings: TrainSettings) -> list[Epoch]:
        """Train ``model``, or load it if ``work/<name>.npz`` has it; the history either way."""
        stored, history_file = self.work / f"{name}.npz", self.work / f"{name}.json"
        adapter = TypeAdapter(list[Epoch])
        if stored.exists() and history_file.exists():
            weights.load(model, stored)
            return read_as(history_file, adapter)
        checkpoint = self.work / f"{name}_unfinished.npz"
        history = fit.fit(
            model,
            self.examples,
            train=self.fold.train,
            validation=self.fold.validation,
            settings=settings,
            seed=self.settings.seed,
            checkpoint=checkpoint,
            on_progress=self.watcher.progress,
        )
        write_text(history_file, adapter.dump_json(history).decode())
        weights.save(model, stored)
        checkpoint.unlink()
        return history

    def _train_settings(
        self, *, epochs: int, max_rate: float, epoch_windows: int = EPOCH_WINDOWS
    ) -> TrainSettings:
        return TrainSettings(
            epochs=epochs,
            max_rate=max_rate,
            epoch_windows=epoch_windows,
            balance_classes=self.settings.balance_classes,
            stop_after_epochs=self.settings.stop_after_epochs,
            augmentation=Augmentation() if self.settings.augment else None,
        )

    @cached_property
    def trained(self) -> tuple[keras.Model, list[Epoch]]:
        """The trained float model and its history."""
        front_end = self.front_end
        keras.utils.set_random_seed(self.settings.seed)
        model = registry.build(
            self.settings.model, n_mels=front_end.n_mels, n_frames=front_end.n_frames
        )
        settings = self._train_settings(epochs=self.settings.epochs, max_rate=1e-3)
        return model, self._fitted(model, "float", settings)

    @cached_property
    def float_scores(self) -> tuple[metrics.Scores, float]:
        """The float model's scores on the test windows, and best F1 on the validation windows."""
        model = self.trained[0]
        validation = metrics.best_f1(
            self.labels_of("validation"), self.probabilities(model, "validation")
        )
        return self.scores(model), validation

    @cached_property
    def folded(self) -> FoldedNet:
        """The float model with batch norm folded."""
        return fold.fold(self.trained[0])

    @cached_property
    def maps(self) -> calibrate.Maps:
        """Static number formats of every map at every width, from training windows."""
        stored, adapter = self.work / "maps.json", TypeAdapter(calibrate.Maps)
        if stored.exists():
            return read_as(stored, adapter)
        rng = np.random.default_rng(self.settings.seed)
        train = np.asarray(self.fold.train)
        chosen = rng.permutation(train)[:CALIBRATION_WINDOWS]
        inputs = self.examples.inputs(chosen)
        found = calibrate.calibrate(self.folded, inputs, seed=self.settings.seed)
        write_text(stored, adapter.dump_json(found).decode())
        return found

    def quantized(self, scheme: Scheme):
        """Quantized model of a scheme with the float model's weights."""
        one_step = one_step_of(self.settings.steps, self.folded)
        return convert.quantized_model(self.folded, scheme, self.maps, is_per_tensor=one_step)

    def card(self, threshold: float) -> Card:
        """What travels with a model of this job."""
        labels, settings = self.labels_of("train"), self.settings
        training = Training(
            model=settings.model,
            windows=len(labels),
            positives=int(labels.sum()),
            epochs=settings.epochs,
            fine_tune_epochs=settings.fine_tune_epochs,
            seed=settings.seed,
        )
        return Card(front_end=self.front_end, threshold=threshold, training=training)

    def exported(self, model, threshold: float) -> bytes:
        """The .tflite of a quantized model."""
        written = tflite.write(
            convert.to_fixed_point(model), metadata=self.card(threshold).to_metadata()
        )
        return written.content

    @cached_property
    def plain_int8(self) -> tuple[keras.Model, metrics.Scores]:
        """Plain int8, calibrated and not fine-tuned, and its scores on the test windows."""
        model = self.quantized(uniform(self.folded, bits=8))
        return model, self.scores(model)

    @cached_property
    def int8(self) -> tuple[metrics.Scores, int]:
        """Scores on the test windows and bytes of plain int8."""
        model, found = self.plain_int8
        return found, len(self.exported(model, found.threshold))

    def _measure(self, scheme: Scheme, number: int) -> Measured:
        """Fine-tune a scheme for a short while and score it on the validation windows."""
        begun = time.process_time()
        model = self.quantized(scheme)
        self._briefly_tune(model)
        f1, f1_error = self._compared(model)
        factor = self.settings.space.forgiving_factor
        elements = cost.elements(self.folded)
        bits = cost.total_bits(elements, cost.slots(scheme))
        reference = cost.total_bits(elements, cost.reference_slots(elements, factor))
        size = len(self.exported(model, threshold=0.5))
        # Without this, Keras keeps every trial's model.
        keras.backend.clear_session()
        gc.collect()
        return Measured(
            f1=f1,
            f1_error=f1_error,
            bits=bits,
            tflite_bytes=size,
            score=factor.score(f1, trial_bits=bits, reference_bits=reference),
            cpu_seconds=time.process_time() - begun,
        )

    def _briefly_tune(self, model) -> None:
        """Fine-tune a trial's model in place, without looking at the validation windows."""
        space = self.settings.space
        if not space.trial_epochs:
            return
        rng = np.random.default_rng(self.settings.seed)
        train = rng.permutation(np.asarray(self.fold.train))[: space.trial_windows]
        settings = self._train_settings(
            epochs=space.trial_epochs, max_rate=space.trial_max_rate, epoch_windows=1
        )
        fit.tune(
            model, self.examples, train=train.tolist(), settings=settings, seed=self.settings.seed
        )

    def _compared(self, model) -> tuple[float, float]:
        """Highest F1 on the validation windows, and its standard error against float."""
        truth = self.labels_of("validation")
        found = self.probabilities(model, "validation")
        decided = found >= metrics.best_threshold(truth, found)
        error = metrics.f1_difference_error(truth, decided, self._float_decisions)
        return metrics.best_f1(truth, found), error

    @cached_property
    def _float_decisions(self) -> np.ndarray:
        """Decisions of the float model on the validation windows, bool."""
        found = self.probabilities(self.trained[0], "validation")
        return found >= metrics.best_threshold(self.labels_of("validation"), found)

    @cached_property
    def searched(self) -> list[Trial]:
        """Finished trials of the search."""
        total = self.settings.trials

        def heard(trial: Trial) -> None:
            m = trial.measured
            text = f"F1 {m.f1:.3f}, {m.tflite_bytes} B, score {m.score:.3f} ({trial.origin})"
            self.watcher.progress(trial.number + 1, total, text)

        trials, failed = tuner.search(
            self.settings.space,
            {name: self.folded.kernels[name].size for name in self.folded.weighted},
            self._measure,
            max_trials=total,
            seed=self.settings.seed,
            folder=self.work,
            on_trial=heard,
        )
        for message in failed:
            self.watcher.note(f"a trial failed: {message}")
        return trials

    @cached_property
    def winner(self) -> Trial:
        """The trial that is fine-tuned and exported; chosen once, as its weights depend on it."""
        stored = self.work / "chosen.json"
        if stored.exists():
            return Trial.load(stored)
        drop = self.settings.space.max_f1_drop
        chosen = tuner.choose(self.searched, float_f1=self.float_scores[1], max_f1_drop=drop)
        chosen.scheme.save(self.folder / SCHEME)
        chosen.save(stored)
        return chosen

    @cached_property
    def fine_tuned(self) -> tuple[keras.Model, list[Epoch]]:
        """The winner's quantized model, fine-tuned, and its history."""
        model = self.quantized(self.winner.scheme)
        settings = self._train_settings(
            epochs=self.settings.fine_tune_epochs, max_rate=FINE_TUNE_MAX_RATE
        )
        return model, self._fitted(model, "winner", settings)

    @cached_property
    def threshold(self) -> float:
        """Decision threshold of the winner, from the validation windows."""
        found = self.probabilities(self.fine_tuned[0], "validation")
        return metrics.best_threshold(self.labels_of("validation"), found)

    @cached_property
    def export_settings(self) -> ExportSettings:
        """How the winner is exported: as last asked for in this folder."""
        stored = self.folder / EXPORT_SETTINGS
        return ExportSettings.load(stored) if stored.exists() else ExportSettings()

    @cached_property
    def delivery(self) -> Delivery:
        """The winner as a file for its target."""
        return self.delivered(self.fine_tuned[0], self.threshold, self.export_settings)

    def delivered(self, model, threshold: float, settings: ExportSettings) -> Delivery:
        """A quantized model of this job as a file for its target."""
        card = self.card(threshold).to_metadata()
        return deliver(convert.to_fixed_point(model), settings, metadata=card)

    @cached_property
    def micro(self) -> MicroModel:
        """The exported winner on TFLite Micro; written to the folder when first used."""
        micro = MicroModel(self.delivery.exported.content, source=MODEL)
        self.write_files(self.folder, self.delivery, micro, self.threshold)
        return micro

    def write_files(
        self, folder: Path, delivery: Delivery, micro: MicroModel, threshold: float
    ) -> None:
        """Write the .tflite, its C source, its front end and its fidelity table."""
        c_array.write(
            folder,
            micro.content,
            self.front_end,
            arena_bytes=micro.arena_bytes(),
            input_map=delivery.net.input_map,
            labels=self.card(threshold).labels,
            margin_threshold=margin_threshold(threshold, micro.output.step),
        )
        self.front_end.save(folder / FRONT_END)
        summary = delivery.summary() | {"arena_bytes": micro.arena_bytes()}
        write_text(folder / FIDELITY, json.dumps(summary, indent=2) + "\n")
        write_bytes(folder / MODEL, micro.content)

    def write_firmware(self, folder: Path, micro: MicroModel, threshold: float) -> None:
        """Write a C++ library with a test window of each class."""
        labels = self.card(threshold).labels
        examples = {}
        for label, is_buzz in zip(labels, (False, True), strict=True):
            chosen = np.flatnonzero(self.labels_of("test") == is_buzz)[:1]
            for index in np.asarray(self.fold.test)[chosen]:
                examples[label] = np.asarray(self.examples.images[index])
        firmware.write(
            folder,
            micro,
            self.front_end,
            labels=labels,
            margin_threshold=margin_threshold(threshold, micro.output.step),
            windows=examples,
        )
