"""Trials as scalars for TensorBoard, which need not be installed to write them."""

from __future__ import annotations

from pathlib import Path

from qbee.keras import tf
from qbee.search.trial import Trial


class BoardLogs:
    """Writes metrics, costs and the score of each trial, by its number."""

    def __init__(self, folder: Path):
        self.writer = tf.summary.create_file_writer(str(folder))
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        self.metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin)

    def add(self, trial: Trial) -> None:
        """Write a trial, if it is finished."""
        if trial.measured is None:
            return
        m = trial.measured
        values = {"score": m.score, "cpu_seconds": m.cpu_seconds}
        values |= {f"metrics/{name}": value for name, value in m.metrics.items()}
        values |= {f"costs/{name}": value for name, value in m.costs.items()}
        with self.writer.as_default():
            for name, value in values.items():
                tf.summary.write(name, tf.constant(value), trial.number, metadata=self.metadata)
        self.writer.flush()
