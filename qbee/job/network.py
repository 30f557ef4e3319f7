"""A float network of some width, trained on a split, and what is made of it."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from pydantic import TypeAdapter

from qbee.files import write_text
from qbee.job.training import Split
from qbee.keras import keras
from qbee.models import registry
from qbee.quantize import calibrate, convert, fold
from qbee.quantize.fold import FoldedNet
from qbee.quantize.scheme import Scheme
from qbee.quantize.sharing import OneStep, one_step_of
from qbee.records import read_as
from qbee.search.evaluate import Ground
from qbee.train.fit import Epoch

CALIBRATION_WINDOWS = 256
FLOAT_MAX_RATE = 1e-3
WHOLE_WIDTH = 100


class Network:
    """The job's network with a percentage of its channels; computed or read when first used."""

    def __init__(self, split: Split, width: int = WHOLE_WIDTH):
        self.split, self.width = split, width
        self._logits: dict[str, np.ndarray] = {}
        self.suffix = "" if width == WHOLE_WIDTH else f"_{width}"

    @cached_property
    def trained(self) -> tuple[keras.Model, list[Epoch]]:
        """The trained float model and its history."""
        settings, front_end = self.split.settings, self.split.examples.front_end
        keras.utils.set_random_seed(settings.seed)
        model = registry.build(
            settings.model,
            n_mels=front_end.n_mels,
            n_frames=front_end.n_frames,
            width=self.width,
        )
        training = self.split.train_settings(epochs=settings.epochs, max_rate=FLOAT_MAX_RATE)
        return model, self.split.fitted(model, f"float{self.suffix}", training)

    @cached_property
    def folded(self) -> FoldedNet:
        """The float model with batch norm folded."""
        return fold.fold(self.trained[0])

    @property
    def one_step(self) -> OneStep:
        """Kernels that have one step."""
        return one_step_of(self.split.settings.steps, self.folded)

    @cached_property
    def maps(self) -> calibrate.Maps:
        """Static number formats of every map at every width, from training windows."""
        stored = self.split.work / f"maps{self.suffix}.json"
        adapter = TypeAdapter(calibrate.Maps)
        if stored.exists():
            return read_as(stored, adapter)
        seed = self.split.settings.seed
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(self.split.indices("train"))[:CALIBRATION_WINDOWS]
        inputs = self.split.examples.inputs(chosen)
        found = calibrate.calibrate(self.folded, inputs, seed=seed)
        write_text(stored, adapter.dump_json(found).decode())
        return found

    def quantized(self, scheme: Scheme):
        """Quantized model of a scheme with the float model's weights."""
        return convert.quantized_model(self.folded, scheme, self.maps, is_per_tensor=self.one_step)

    def float_logits(self, part: str) -> np.ndarray:
        """Logits [n, 2] of the float model for the windows of a part."""
        if part not in self._logits:
            self._logits[part] = self.split.logits(self.trained[0], part)
        return self._logits[part]

    def ground(self, reference: Network, part: str) -> Ground:
        """The network to search, scored on the windows of a part.

        Parameters
        ----------
        reference : network whose decisions in floating point are compared with
        """
        return Ground(
            self.folded,
            self.maps,
            self.split.examples,
            train=self.split.fold.train,
            validation=getattr(self.split.fold, part),
            float_logits=reference.float_logits(part),
            one_step=self.one_step,
        )
