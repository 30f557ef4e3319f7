"""Float and quantized trainings on one split of a job's windows; each is kept when it is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from qbee.errors import DataError
from qbee.files import make_folder, write_text
from qbee.job.settings import JobSettings
from qbee.job.watcher import Watcher
from qbee.records import Fold, read_as
from qbee.train import fit, metrics, weights
from qbee.train.augment import Augmentation
from qbee.train.fit import Epoch, Examples, TrainSettings

# Small training sets are gone through several times per epoch, to at least so many windows.
EPOCH_WINDOWS = 1024


class Split:
    """Windows to train on, to choose with and to score on, and the trainings done on them.

    Parameters
    ----------
    work : folder for what is kept
    """

    def __init__(
        self,
        work: Path,
        examples: Examples,
        fold: Fold,
        settings: JobSettings,
        watcher: Watcher,
    ):
        self.work, self.examples, self.fold = make_folder(work), examples, fold
        self.settings, self.watcher = settings, watcher

    def indices(self, part: str) -> np.ndarray:
        """Windows of 'train', 'validation' or 'test'."""
        return np.asarray(getattr(self.fold, part), int)

    def labels_of(self, part: str) -> np.ndarray:
        """Labels of a part, bool."""
        return self.examples.labels[self.indices(part)]

    @property
    def has_both_classes(self) -> bool:
        """Whether windows with and without buzz are in every part."""
        parts = ("train", "validation", "test")
        return all(len(set(self.labels_of(part))) == 2 for part in parts)

    def logits(self, model, part: str) -> np.ndarray:
        """Logits [n, 2] of the windows of a part."""
        return fit.predict(model, self.examples, self.indices(part))

    def probabilities(self, model, part: str) -> np.ndarray:
        """Probabilities of buzz of the windows of a part."""
        return metrics.probabilities(self.logits(model, part))

    def threshold(self, model) -> float:
        """Decision threshold of a model, from the validation windows."""
        found = self.probabilities(model, "validation")
        return metrics.best_threshold(self.labels_of("validation"), found)

    def scores(self, model) -> metrics.Scores:
        """Scores on the test windows at the threshold that is best on the validation windows."""
        found = self.probabilities(model, "test")
        return metrics.evaluate(self.labels_of("test"), found, threshold=self.threshold(model))

    def train_settings(
        self, *, epochs: int, max_rate: float, epoch_windows: int = EPOCH_WINDOWS
    ) -> TrainSettings:
        """Training as the job was asked for."""
        return TrainSettings(
            epochs=epochs,
            max_rate=max_rate,
            epoch_windows=epoch_windows,
            balance_classes=self.settings.balance_classes,
            stop_after_epochs=self.settings.stop_after_epochs,
            augmentation=Augmentation() if self.settings.augment else None,
        )

    def fitted(self, model, name: str, settings: TrainSettings) -> list[Epoch]:
        """Train ``model``, or load it if ``<name>.npz`` has it; the history either way.

        Raises
        ------
        DataError
            if the training windows have one class only.
        """
        stored, history_file = self.work / f"{name}.npz", self.work / f"{name}.json"
        adapter = TypeAdapter(list[Epoch])
        if stored.exists() and history_file.exists():
            weights.load(model, stored)
            return read_as(history_file, adapter)
        for part in ("train", "validation"):
            if len(set(self.labels_of(part))) < 2:
                raise DataError(f"the {part} windows of {self.fold.name} have one class only")
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
