"""results.json: every number of a finished job, each with what it was computed on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np

from qbee.detector import MODEL, scores_by_location
from qbee.errors import ModelFileError
from qbee.files import write_text
from qbee.job.stages import Job, Tuned
from qbee.quantize import convert
from qbee.records import Window
from qbee.runtime import trial
from qbee.search import energy
from qbee.train import metrics
from qbee.train.goals import FalseAlarms
from qbee.verify import Verification, compare, compare_layers

FILE, VERIFICATION = "results.json", "verify.json"
# Test windows on which every feature map is compared, not only the output.
LAYER_WINDOWS = 10
# Test windows on which LiteRT is compared.
LITERT_WINDOWS = 64
PARTS = ("train", "validation", "test", "dropped")
PACKAGES = ("qbee", "tensorflow", "tf_keras", "qkeras", "keras-tuner", "tflite-micro", "numpy")


def counts(windows: Sequence[Window]) -> dict[str, Any]:
    """Number of windows and positives, in all and by location."""
    places = Counter(w.location for w in windows)
    buzzes = Counter(w.location for w in windows if w.is_buzz)
    return {
        "windows": len(windows),
        "positives": sum(buzzes.values()),
        "locations": {
            place: {"windows": places[place], "positives": buzzes[place]}
            for place in sorted(places)
        },
    }


def _data(job: Job) -> dict[str, Any]:
    table = job.data.table
    return {
        "tables": list(job.settings.labels),
        "windows": len(table.windows),
        "positives": sum(w.is_buzz for w in table.windows),
        "uncertain": table.uncertain,
        "too_short": table.too_short,
        "skipped": list(table.skipped),
        "splits": {part: counts(job.windows_of(part)) for part in PARTS},
    }


def verify(job: Job) -> tuple[Verification, np.ndarray]:
    """Compare numpy, Keras and TFLite Micro on the test windows; also the device's logits."""
    model = job.fine_tuned[0]
    test = np.asarray(job.fold.test)
    return compare(
        convert.to_fixed_point(model),
        model,
        job.micro,
        lambda start, stop: job.examples.inputs(test[start:stop]),
        len(test),
        on_progress=lambda done, total: job.watcher.progress(done, total, "windows verified"),
    )


def check_layers(job: Job) -> list[dict[str, Any]]:
    """Every feature map in all three on a few test windows, with the fidelity of its layer."""
    inputs = job.examples.inputs(np.asarray(job.fold.test)[:LAYER_WINDOWS])
    found = compare_layers(job.delivery, job.fine_tuned[0], inputs)
    # Pools and reshapes have maps, but no sums.
    stored = {row.layer: row for row in job.delivery.fidelity.layers if row.largest_sum is not None}
    columns = ("largest_sum", "is_exact_in_float32")
    sums = {name: (row.largest_sum, row.is_exact_in_float32) for name, row in stored.items()}
    return [
        check.model_dump() | dict(zip(columns, sums.get(check.layer, (None, True)), strict=True))
        for check in found
    ]


def compare_with_litert(job: Job) -> dict[str, Any]:
    """LiteRT beside TFLite Micro on some test windows; why not, where it takes too much."""
    test = np.asarray(job.fold.test)[:LITERT_WINDOWS]
    try:
        found = trial.run(job.micro.content, source=MODEL, windows=job.examples.inputs(test))
    except ModelFileError as error:
        # Such as limits of time or memory: the comparison is extra, the verification is not.
        return {"litert_windows": 0, "litert": [], "litert_refused": str(error)}
    return {
        "litert_windows": found.windows,
        # Times differ from run to run; results of equal jobs are equal.
        "litert": [one.model_dump(exclude={"median_ms"}) for one in found.litert],
        "litert_refused": None,
    }


def _float(job: Job) -> dict[str, Any]:
    model = job.trained[0]
    parameters = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return asdict(job.float_scores[0]) | {"parameters": parameters, "size_bytes": 4 * parameters}


def _winner(job: Job, logits: np.ndarray) -> dict[str, Any]:
    threshold = job.threshold
    found = metrics.probabilities(logits)
    overall, by_place = scores_by_location(job.windows_of("test"), found, threshold=threshold)
    keras_found = job.probabilities(job.fine_tuned[0], "test")
    on_keras = metrics.evaluate(job.labels_of("test"), keras_found, threshold=threshold)
    scores = asdict(overall)
    return {
        "f1_keras": on_keras.f1,
        "f1_tflm": scores.pop("f1"),
        **scores,
        "tflite_bytes": len(job.micro.content),
        "arena_bytes": job.micro.arena_bytes(),
        "bits": job.winner.scheme.model_dump()["layers"],
        "macs_by_bits": {
            f"{kernel} x {map_}": macs
            for (kernel, map_), macs in energy.macs_by_widths(job.delivery.laid_out).items()
        },
        "locations": {place: asdict(score) for place, score in by_place.items()},
    }


def _search(job: Job) -> dict[str, Any]:
    search = job.search
    finished = [t.measured for t in search.trials if t.measured is not None]
    winner = job.winner.measured
    assert winner is not None
    return {
        "strategy": search.settings.strategy,
        "objectives": list(search.settings.objectives),
        "limits": search.settings.limits.at_most,
        "scored_on": search.settings.across,
        "trials": len(search.trials),
        "failed": sum(trial.state == "failed" for trial in search.trials),
        "cpu_seconds": round(sum(measured.cpu_seconds for measured in finished), 1),
        "schemes": search.domain.size,
        "winner_trial": job.winner.number,
        "pareto": [
            {"trial": trial.number, **trial.measured.metrics, **trial.measured.costs}
            for trial in search.front
            if trial.measured is not None
        ],
        "fine_tuned": [_contender(job, tuned) for tuned in job.contenders],
        "validation_f1": {"float": search.float_metrics["f1"], "winner": winner.metrics["f1"]},
        "rule": search.rule_of(job.tuned(job.winner).again),
    }


def _contender(job: Job, tuned: Tuned) -> dict[str, Any]:
    """A fine-tuned trial on validation windows, which chose, and test windows, which did not."""
    measured = tuned.again.measured
    assert measured is not None
    return {
        "trial": tuned.trial.number,
        "tflite_bytes": measured.costs["tflite_bytes"],
        "arena_bytes": measured.costs["arena_bytes"],
        "validation_f1": measured.metrics["f1"],
        "test_f1": job.split.scores(tuned.model).f1,
    }


def _alarms(found: FalseAlarms) -> dict[str, Any]:
    return found.model_dump() | {"per_hour": found.per_hour}


def collect(job: Job) -> tuple[dict[str, Any], np.ndarray]:
    """All results, and the exported model's probabilities on the test windows."""
    verification, logits = verify(job)
    int8_scores, int8_bytes = job.int8
    found = {
        "model": job.settings.model,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": job.settings.seed,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "front_end": job.front_end.model_dump(),
        "threshold": job.threshold,
        "threshold_from": "validation windows",
        "goal": str(job.goal),
        "false_alarms": {
            "validation": _alarms(
                job.false_alarms("validation", job.probabilities(job.fine_tuned[0], "validation"))
            ),
            "test": _alarms(job.false_alarms("test", metrics.probabilities(logits))),
        },
        "scored_on": "test windows",
        "data": _data(job),
        "float": _float(job),
        "int8": asdict(int8_scores) | {"tflite_bytes": int8_bytes},
        "winner": _winner(job, logits),
        "verify": verification.model_dump()
        | {"layer_windows": min(LAYER_WINDOWS, len(job.fold.test)), "layers": check_layers(job)}
        | compare_with_litert(job),
        "search": _search(job),
    }
    return found, metrics.probabilities(logits)


def save(job: Job, results: dict[str, Any]) -> None:
    """Write results.json and, of it, verify.json."""
    for name, content in ((VERIFICATION, results["verify"]), (FILE, results)):
        text = json.dumps(content, indent=2, allow_nan=False)
        write_text(job.folder / name, text + "\n")
