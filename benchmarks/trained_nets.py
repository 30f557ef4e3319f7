"""Quantization of nets that others trained: the four MLPerf Tiny models.

Run with ``python -m benchmarks.trained_nets FOLDER``, where FOLDER has the float models of
mlcommons/tiny in ``models/`` and evaluation data as .npz; about fifteen minutes on two cores. No
labels are used but for scoring. The 8-bit networks (kernels and maps, power-of-two steps) are
calibrated on 100 inputs. For 4-bit kernels with 8-bit maps the inputs are halved: calibration and
label-free fine-tuning on one half, scores on the other, and the same with the halves changed.
'po2' trains point-wise factors under power-of-two steps, 'free' thresholds and point-wise factors.
Scores are accuracy, or the area under the ROC curve for the autoencoder. The last line is JSON.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks import outcome
from qbee.export import tflite
from qbee.keras import keras, make_repeatable, tf
from qbee.quantize import convert, ops, thresholds
from qbee.quantize.calibrate import Maps, calibrate
from qbee.quantize.fold import FoldedNet, fold
from qbee.quantize.quantizers import Alpha
from qbee.quantize.scheme import Scheme, uniform
from qbee.quantize.thresholds import FatSettings
from qbee.runtime.interpreter import MicroModel

CALIBRATION_INPUTS, EXACT_INPUTS, SEED = 100, 10, 0
LARGEST_LOSS = {"accuracy": 0.01, "AUC": 0.02}
LEAST_RECOVERED = 0.7
PO2, FREE = FatSettings(), FatSettings(thresholds=True)
# Frames of five consecutive rows of a recording are one input of the autoencoder.
STACKED_ROWS = 5


@dataclass(frozen=True)
class Task:
    """A model and its data; ``x`` is [n, *input_shape], or [n, frames, 640]."""

    name: str
    metric: str
    net: FoldedNet
    x: np.ndarray
    y: np.ndarray
    reference_bytes: int

    def inputs(self, chosen: np.ndarray) -> np.ndarray:
        """Network inputs of some examples; every fourth frame of a recording."""
        x = self.x[chosen]
        return x if self.metric == "accuracy" else x[:, ::4].reshape(-1, x.shape[-1])


def _frames(x: np.ndarray) -> np.ndarray:
    rows = x.astype(np.float32)
    count = rows.shape[1] - STACKED_ROWS + 1
    return np.concatenate([rows[:, i : i + count] for i in range(STACKED_ROWS)], axis=2)


def _dequantized(x: np.ndarray, path: Path) -> np.ndarray:
    """Real inputs of codes of the reference model's input."""
    reference = MicroModel.load(path).input
    codes = x.astype(np.float32) - reference.zero_point
    return (codes * np.float32(reference.step)).reshape(-1, 49, 10, 1)


def load(folder: Path) -> list[Task]:
    """The four tasks."""
    models = folder / "models"
    kws = models / "kws_ref_model.tflite"
    found = []
    for name, model, data, reference, prepare in (
        ("ResNet-8", "pretrainedResnet", "ic01", "pretrainedResnet_quant", np.float32),
        ("DS-CNN", "kws_ref_model", "kws01", "kws_ref_model", lambda x: _dequantized(x, kws)),
        ("MobileNetV1", "vww_96", "vww01", "vww_96_int8", lambda x: x.astype(np.float32) / 255),
        ("autoencoder", "ad01", "ad01", "ad01_int8", _frames),
    ):
        with np.load(folder / f"{data}_dev.npz", allow_pickle=False) as stored:
            x, y = prepare(stored["x"]), stored["y"]
        net = fold(keras.models.load_model(models / f"{model}.h5", compile=False))
        metric = "AUC" if name == "autoencoder" else "accuracy"
        size = (models / f"{reference}.tflite").stat().st_size
        found.append(Task(name, metric, net, x, y, size))
    return found


def score(task: Task, predict, chosen: np.ndarray) -> float:
    """Accuracy, or AUC of the mean squared error, on some examples."""
    x, y = task.x[chosen], task.y[chosen]
    if task.metric == "accuracy":
        logits = np.concatenate([predict(x[i : i + 100]) for i in range(0, len(x), 100)])
        return float(np.mean(logits.argmax(1) == y))
    return float(roc_auc_score(y, [np.mean((one - predict(one)) ** 2) for one in x]))


def compiled(model):
    """Function from inputs to outputs of a quantized model, up to its logits."""
    logits = convert.logits_model(model)
    run = tf.function(lambda x: logits(x, training=False), reduce_retracing=True)
    return lambda x: run(tf.constant(x)).numpy()


def calibrated(task: Task, chosen: np.ndarray, alpha: Alpha) -> Maps:
    """Number formats from at most 100 inputs of some examples."""
    inputs = task.inputs(chosen)
    few = np.random.default_rng(SEED).permutation(len(inputs))[:CALIBRATION_INPUTS]
    return calibrate(task.net, inputs[few], seed=SEED, alpha=alpha)


def eight_bits(task: Task) -> dict[str, float]:
    """Score, size and inputs on which TFLite Micro differs, calibrated only."""
    everything = np.arange(len(task.x))
    maps = calibrated(task, everything, "auto_po2")
    model = convert.quantized_model(task.net, uniform(task.net, bits=8), maps)
    predict = compiled(model)
    content = tflite.write(convert.to_fixed_point(model)).content
    inputs = task.inputs(everything)[:EXACT_INPUTS]
    differs = np.any(MicroModel(content).predict(inputs) != predict(inputs), axis=1)
    found = score(task, predict, everything)
    return {"w8a8": found, "bytes": len(content), "differ": int(differs.sum())}


def tuned(
    task: Task, scheme: Scheme, half: np.ndarray, other: np.ndarray, settings: FatSettings
) -> tuple[float, float]:
    """Scores on the other half: calibrated only, and fine-tuned on this half."""
    alpha: Alpha = "auto" if settings.thresholds else "auto_po2"
    maps = calibrated(task, half, alpha)
    before = compiled(convert.quantized_model(task.net, scheme, maps, alpha=alpha))
    result = thresholds.tune(
        task.net, scheme, maps, task.inputs(half), settings=settings, seed=SEED, alpha=alpha
    )
    after = compiled(convert.quantized_model(result.net, scheme, result.maps, alpha=alpha))
    return score(task, before, other), score(task, after, other)


def four_bits(task: Task, predict) -> dict[str, float]:
    """Mean scores over the two halves of 4-bit kernels with 8-bit maps."""
    order = np.random.default_rng(SEED).permutation(len(task.x))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    scheme = uniform(task.net, bits=4, map_bits=8)
    rows = []
    for half, other in ((first, second), (second, first)):
        make_repeatable(SEED)
        po2, free = (tuned(task, scheme, half, other, settings) for settings in (PO2, FREE))
        rows.append([score(task, predict, other), *po2, *free])
    names = ("float", "w4a8 po2", "w4a8 po2 tuned", "w4a8 free", "w4a8 free tuned")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def recovered(row: dict[str, float], kind: str) -> float:
    """Share of what 4-bit power-of-two kernels lost that fine-tuning brings back."""
    lost = row["float"] - row["w4a8 po2"]
    return (row[f"w4a8 {kind} tuned"] - row["w4a8 po2"]) / lost


def in_float(net: FoldedNet):
    """Function from inputs to outputs of a float network."""
    run = tf.function(lambda x: ops.output(net, x), reduce_retracing=True)
    return lambda x: run(tf.constant(x)).numpy()


def measure(task: Task) -> dict[str, float]:
    """All figures of a task."""
    run = in_float(task.net)
    whole = {"float, all": score(task, run, np.arange(len(task.x)))}
    return whole | eight_bits(task) | four_bits(task, run)


def problems(task: Task, row: dict[str, float]) -> dict[str, bool]:
    """What is wrong with a task's figures, in words, and whether it is so."""
    lost, bar = row["float, all"] - row["w8a8"], LARGEST_LOSS[task.metric]
    share = recovered(row, "free")
    return {
        f"{task.name}: 8 bits lose {lost:.3f}, more than {bar}": lost > bar,
        f"{task.name}: TFLite Micro differs": row["differ"] > 0,
        f"{task.name}: {share:.2f} recovered, less than {LEAST_RECOVERED}": share < LEAST_RECOVERED,
    }


def main() -> None:
    """Measure, print a Markdown table and the JSON line; exit with 1 if a bar is missed."""
    missed, rows = {}, {}
    for task in load(Path(sys.argv[1])):
        row = rows[task.name] = measure(task)
        if len(rows) == 1:
            print(f"| net | metric | {' | '.join(row)} | recovered po2 | recovered free |")
            print("|---" * (len(row) + 4) + "|")
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
        shares = [f"{100 * recovered(row, kind):.0f} %" for kind in ("po2", "free")]
        print(f"| {task.name} | {task.metric} | {' | '.join(cells + shares)} |", flush=True)
        missed |= problems(task, row)
    outcome.finish(
        "trained_nets",
        ours=float(np.mean([row["w8a8"] for row in rows.values()])),
        theirs=float(np.mean([row["float, all"] for row in rows.values()])),
        unit="mean score, 8 bits and float",
        missed=missed,
        **rows,
    )


if __name__ == "__main__":
    main()
