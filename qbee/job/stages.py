"""The stages of a job; each keeps what it finished and takes it up again when run once more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from qbee.detector import FRONT_END, MODEL, Card, Training, margin_threshold
from qbee.errors import ExportError
from qbee.export import c_array, firmware, tflite
from qbee.export.delivery import Delivery, ExportSettings, deliver
from qbee.files import make_folder, write_bytes, write_text
from qbee.job import stock_search
from qbee.job.data import Prepared, prepare
from qbee.job.network import Network
from qbee.job.searching import Search
from qbee.job.settings import SEARCH_FILE, JobSettings, SearchSettings
from qbee.job.stock_search import StockSearch
from qbee.job.training import Split
from qbee.job.watcher import Watcher
from qbee.keras import keras, make_repeatable
from qbee.quantize import convert
from qbee.quantize.fold import FoldedNet
from qbee.quantize.scheme import uniform
from qbee.records import Fold, FrontEnd, Record, Window
from qbee.runtime.interpreter import MicroModel
from qbee.search.trial import Trial
from qbee.train import goals, metrics
from qbee.train.fit import Epoch, Examples
from qbee.train.goals import Goal

# Measured on BeeNet1: 4-bit kernels need it to come as far as 8 bits, which gain too.
FINE_TUNE_MAX_RATE = 5e-4
SCHEME, EXPORT_SETTINGS, FIDELITY = "scheme.json", "export.json", "fidelity.json"
FIRMWARE, CHOSEN, GOAL = "firmware", "chosen.json", "goal.json"
# What is known of a file only after it was verified.
REPORTS = ("results.json", "verify.json", "report.html")
# Trials are priced with a threshold that is written with many digits.
LONG_THRESHOLD = 1 / 3


def on_device(delivery: Delivery, settings: ExportSettings) -> MicroModel:
    """The file on TFLite Micro, which may need some bytes more than were predicted.

    Raises
    ------
    ExportError
        if its arena is larger than the settings allow.
    """
    micro = MicroModel(delivery.exported.content, source=MODEL)
    limit, found = settings.max_arena_bytes, micro.arena_bytes()
    if limit is not None and found > limit:
        raise ExportError(f"max_arena={limit}: the arena has {found} bytes on TFLite Micro")
    return micro


class Chosen(Record):
    """The winner, and what the search was asked for when it won."""

    trial: Trial
    search: SearchSettings


@dataclass(frozen=True)
class Tuned:
    """A trial that was fine-tuned.

    Attributes
    ----------
    again : the trial, with what was measured after the fine-tuning
    """

    trial: Trial
    model: keras.Model
    history: list[Epoch]
    again: Trial


class Job:
    """One job in one folder: data, float model, search, fine-tuned winner, files.

    What takes time is computed, or read from the folder, when it is first used.

    Parameters
    ----------
    store : journal of the search, if not the folder's own
    """

    def __init__(
        self,
        folder: Path,
        settings: JobSettings,
        watcher: Watcher | None = None,
        *,
        store: str | None = None,
    ):
        self.folder, self.settings, self.store = Path(folder), settings, store
        self.watcher = watcher or Watcher()
        self.work = make_folder(self.folder / "work")
        self._tuned: dict[int, Tuned] = {}
        make_repeatable(settings.seed)

    @cached_property
    def data(self) -> Prepared:
        """Windows, split and images."""
        return prepare(self.folder, self.settings, self.watcher)

    @cached_property
    def split(self) -> Split:
        """The job's windows and the trainings on them."""
        data = self.data
        return Split(self.work, data.examples, data.fold, self.settings, self.watcher)

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
        return self.split.labels_of(part)

    def probabilities(self, model, part: str) -> np.ndarray:
        """Probabilities of buzz of the windows of a part."""
        return self.split.probabilities(model, part)

    @property
    def search_settings(self) -> SearchSettings:
        """What is asked of the search: as last asked for in this folder."""
        stored = self.folder / SEARCH_FILE
        return SearchSettings.load(stored) if stored.exists() else SearchSettings()

    @cached_property
    def search(self) -> Search:
        """The search of bit widths."""
        return self.search_for(self.search_settings)

    def search_for(self, settings: SearchSettings) -> Search:
        """The search of bit widths with other settings than those last asked for."""
        metadata = self.card(threshold=LONG_THRESHOLD).to_metadata()
        windows = self.data.table.windows
        kind = StockSearch if settings.strategy == stock_search.NAME else Search
        return kind(self.network, windows, settings, metadata, store=self.store)

    @cached_property
    def network(self) -> Network:
        """The float network with all its channels."""
        return Network(self.split)

    @property
    def trained(self) -> tuple[keras.Model, list[Epoch]]:
        """The trained float model and its history."""
        return self.network.trained

    @cached_property
    def float_scores(self) -> tuple[metrics.Scores, float]:
        """The float model's scores on the test windows, and best F1 on the validation windows."""
        model = self.trained[0]
        validation = metrics.best_f1(
            self.labels_of("validation"), self.probabilities(model, "validation")
        )
        return self.split.scores(model), validation

    @property
    def folded(self) -> FoldedNet:
        """The float model with batch norm folded."""
        return self.network.folded

    def card(self, threshold: float, front_end: FrontEnd | None = None) -> Card:
        """What travels with a model of this job, which may hear through another front end."""
        labels, settings = self.labels_of("train"), self.settings
        training = Training(
            model=settings.model,
            windows=len(labels),
            positives=int(labels.sum()),
            epochs=settings.epochs,
            fine_tune_epochs=settings.fine_tune_epochs,
            seed=settings.seed,
        )
        return Card(
            front_end=front_end or self.front_end,
            threshold=threshold,
            goal=None if self.goal == Goal() else str(self.goal),
            training=training,
        )

    def exported(self, model, threshold: float) -> bytes:
        """The .tflite of a quantized model."""
        written = tflite.write(
            convert.to_fixed_point(model), metadata=self.card(threshold).to_metadata()
        )
        return written.content

    @cached_property
    def plain_int8(self) -> tuple[keras.Model, metrics.Scores]:
        """Plain int8, calibrated and not fine-tuned, and its scores on the test windows."""
        model = self.network.quantized(uniform(self.folded, bits=8))
        return model, self.split.scores(model)

    @cached_property
    def int8(self) -> tuple[metrics.Scores, int]:
        """Scores on the test windows and bytes of plain int8."""
        model, found = self.plain_int8
        return found, len(self.exported(model, found.threshold))

    @property
    def searched(self) -> list[Trial]:
        """Trials of the search, also failed ones."""
        return self.search.trials

    def tuned(self, trial: Trial) -> Tuned:
        """A trial fine-tuned, and measured again on the validation windows."""
        if trial.number not in self._tuned:
            network = self.search.network_of(trial)
            model = network.quantized(trial.scheme)
            settings = self.split.train_settings(
                epochs=self.settings.fine_tune_epochs, max_rate=FINE_TUNE_MAX_RATE
            )
            history = self.split.fitted(model, self.search.tuned_name(trial), settings)
            card = self.card(self.split.threshold(model)).to_metadata()
            again = self.search.measured_again(trial, model, card)
            self._tuned[trial.number] = Tuned(trial, model, history, again)
        return self._tuned[trial.number]

    @cached_property
    def contenders(self) -> list[Tuned]:
        """The search's winner and its neighbours on the front, fine-tuned."""
        return [self.tuned(trial) for trial in self.search.contenders()]

    @cached_property
    def winner(self) -> Trial:
        """The trial that is exported, as the search measured it; chosen after fine-tuning."""
        stored = self.work / CHOSEN
        if stored.exists() and (found := Chosen.load(stored)).search == self.search_settings:
            return found.trial
        chosen = self.search.choose_again([one.again for one in self.contenders])
        trial = self._tuned[chosen.number].trial
        if stored.exists() and Chosen.load(stored).trial != trial:
            # Files of the winner before must not stand beside the scheme of this one.
            for name in (MODEL, *c_array.FILES, FIDELITY, *REPORTS):
                (self.folder / name).unlink(missing_ok=True)
        trial.scheme.save(self.folder / SCHEME)
        Chosen(trial=trial, search=self.search_settings).save(stored)
        return trial

    @property
    def fine_tuned(self) -> tuple[keras.Model, list[Epoch]]:
        """The winner's quantized model, fine-tuned, and its history."""
        found = self.tuned(self.winner)
        return found.model, found.history

    @property
    def goal(self) -> Goal:
        """What the decision threshold of the winner is for: as last asked for in this folder."""
        stored = self.folder / GOAL
        return Goal.load(stored) if stored.exists() else Goal()

    @cached_property
    def threshold(self) -> float:
        """Decision threshold of the winner, from the validation windows."""
        return self.threshold_for(self.goal)

    def threshold_for(self, goal: Goal) -> float:
        """Threshold of the winner that reaches a goal on the validation windows."""
        found = self.probabilities(self.fine_tuned[0], "validation")
        return goals.threshold(goal, self.windows_of("validation"), found, self.front_end)

    def false_alarms(self, part: str, probability: np.ndarray) -> goals.FalseAlarms:
        """False alarms of the winner, by its probabilities of a part's windows."""
        quiet = goals.Quiet(self.windows_of(part), self.front_end)
        return quiet.alarms(probability, self.threshold)

    @cached_property
    def export_settings(self) -> ExportSettings:
        """How the winner is exported: as last asked for in this folder, or by the limits."""
        stored = self.folder / EXPORT_SETTINGS
        settings = ExportSettings.load(stored) if stored.exists() else ExportSettings()
        return self.within_limits(settings)

    def within_limits(self, settings: ExportSettings) -> ExportSettings:
        """The same, with an arena no larger than the search was asked for."""
        plan = self.search.export_settings.max_arena_bytes
        asked = [limit for limit in (settings.max_arena_bytes, plan) if limit is not None]
        return settings.model_copy(update={"max_arena_bytes": min(asked, default=None)})

    @cached_property
    def delivery(self) -> Delivery:
        """The winner as a file for its target."""
        return self.delivered(self.fine_tuned[0], self.threshold, self.export_settings)

    def delivered(
        self,
        model,
        threshold: float,
        settings: ExportSettings,
        front_end: FrontEnd | None = None,
    ) -> Delivery:
        """A quantized model of this job as a file for its target; front end as of ``card``."""
        card = self.card(threshold, front_end).to_metadata()
        return deliver(convert.to_fixed_point(model), settings, metadata=card)

    @cached_property
    def micro(self) -> MicroModel:
        """The exported winner on TFLite Micro; written to the folder when first used.

        Raises
        ------
        ExportError
            if its arena is larger than was asked for.
        """
        micro = on_device(self.delivery, self.export_settings)
        self.write_files(self.folder, self.delivery, micro, self.threshold)
        return micro

    def write_files(
        self,
        folder: Path,
        delivery: Delivery,
        micro: MicroModel,
        threshold: float,
        front_end: FrontEnd | None = None,
    ) -> None:
        """Write the .tflite, its C source, front end and fidelity table; renew firmware.

        The front end is the job's unless another one is given, as to ``delivered``.
        """
        front_end = front_end or self.front_end
        c_array.write(
            folder,
            micro.content,
            front_end,
            arena_bytes=micro.arena_bytes(),
            input_map=delivery.net.input_map,
            labels=self.card(threshold).labels,
            margin_threshold=margin_threshold(threshold, micro.output.step),
        )
        front_end.save(folder / FRONT_END)
        summary = delivery.summary() | {"arena_bytes": micro.arena_bytes()}
        write_text(folder / FIDELITY, json.dumps(summary, indent=2) + "\n")
        write_bytes(folder / MODEL, micro.content)
        if (folder / FIRMWARE).exists():
            # That of another model must not stand beside this one.
            self.write_firmware(folder / FIRMWARE, micro, threshold, front_end)

    def write_firmware(
        self,
        folder: Path,
        micro: MicroModel,
        threshold: float,
        front_end: FrontEnd | None = None,
    ) -> None:
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
            front_end or self.front_end,
            labels=labels,
            margin_threshold=margin_threshold(threshold, micro.output.step),
            windows=examples,
        )
