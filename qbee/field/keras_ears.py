"""The quantized Keras model of a job, made ready in a process that listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qbee.audio import mel
from qbee.detect.crew import Ears
from qbee.job.verbs import resumed


@dataclass(frozen=True)
class KerasEars:
    """Opens the winner of the job in a folder."""

    folder: Path

    def __call__(self) -> Ears:
        """The model."""
        job = resumed(self.folder)
        model, front_end = job.fine_tuned[0], job.front_end

        def logits(images):
            return model(mel.standardize(images, front_end)[..., None], training=False).numpy()

        return Ears(front_end, logits)
