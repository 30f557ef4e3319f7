"""The exported file of a result folder, made ready in a process that listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qbee.detect.crew import Ears
from qbee.detector import Detector, Engine


@dataclass(frozen=True)
class FileEars:
    """Opens the detector of a result folder, which this process or its parent has probed."""

    folder: Path
    engine: Engine

    def __call__(self) -> Ears:
        """The detector."""
        detector = Detector.load(self.folder, engine=self.engine, is_probed=True)
        return Ears(detector.card.front_end, detector.logits)
