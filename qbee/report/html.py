"""One self-contained HTML page about a run: scores, data, search, plots and provenance."""

from __future__ import annotations

import base64
import math
from importlib import resources
from pathlib import Path

import jinja2

from qbee.errors import ModelFileError, ParameterError
from qbee.files import write_text

PARTS = {"train": "train", "validation": "validation", "test": "test", "dropped": "left out"}
# Section and caption of the figures of `qbee.report`; others come last under their name.
FIGURES = {
    "confusion_and_pr": ("scores", "Confusion matrix and precision-recall curve"),
    "mel_examples": ("scores", "Example windows: what the detector sees and what it says"),
    "accuracy_vs_size": ("search", "Trials: metric against file length"),
    "trial_scores": ("search", "Score and metric of every trial"),
    "bits_per_point": ("search", "Bits of the points on the front"),
    "hypervolume": ("search", "Hypervolume over CPU time"),
    "bits_per_layer": ("layers", "Bits per layer"),
    "training_curves": ("training", "Training and fine-tuning"),
}
NONE = "–"


def write(results: dict, images: dict[str, Path], path: Path) -> None:
    """Write the report as one HTML file that loads nothing from elsewhere.

    Parameters
    ----------
    results : content of the project's results.json; float, int8 and winner are scored on the test
        windows; scores may be None, and so may verify and search as a whole
    images : PNG files by name; names of functions of `qbee.report` get their place

    Raises
    ------
    ParameterError
        naming an entry that ``results`` lacks.
    ModelFileError
        if an image cannot be read.
    """
    figures = _figures(images)
    try:
        page = _template().render(
            r=results,
            models=_models(results),
            layers=_compared_layers(results.get("verify") or {}),
            places=_places(results["data"]["splits"]),
            shared_places=_shared_places(results["data"]["splits"]),
            window_s=_window_s(results["front_end"]),
            parts=PARTS,
            figures=figures,
        )
    except KeyError as error:
        raise ParameterError(f"results lack the entry {error}") from error
    except jinja2.UndefinedError as error:
        raise ParameterError(f"results lack an entry: {error.message}") from error
    write_text(path, page)


def _template() -> jinja2.Template:
    """The page; undefined entries are errors, and every value is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(score=_score, count=_count, ratio=_ratio, decimal=_decimal)
    source = resources.files("qbee.report").joinpath("template.html")
    return environment.from_string(source.read_text(encoding="utf-8"))


def _is_missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _score(value: float | None) -> str:
    return NONE if _is_missing(value) else f"{value:.3f}"


def _count(value: float | None) -> str:
    return NONE if _is_missing(value) else f"{value:,.0f}"


def _decimal(value: float | None) -> str:
    return NONE if _is_missing(value) else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return NONE if _is_missing(value) else f"{value:.2f} ×"


def _figures(images: dict[str, Path]) -> dict[str, list[dict[str, str]]]:
    """Captions and data addresses of the images, by section."""
    sections: dict[str, list[dict[str, str]]] = {"other": []}
    own = [name for name in images if name not in FIGURES]
    for name in [name for name in FIGURES if name in images] + own:
        section, caption = FIGURES.get(name, ("other", name.replace("_", " ")))
        figure = {"caption": caption, "source": _data_address(images[name])}
        sections.setdefault(section, []).append(figure)
    return sections


def _data_address(path: Path) -> str:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def _models(results: dict) -> list[dict]:
    """Rows of the table of models: float, int8 and winner, with scores and file length."""
    float_model, int8, winner = results["float"], results["int8"], results["winner"]
    int8_bytes = int8["tflite_bytes"]
    rows = [
        ("float", float_model, float_model["f1"], float_model["size_bytes"]),
        ("int8", int8, int8["f1"], int8_bytes),
        ("winner", winner, winner["f1_tflm"], winner["tflite_bytes"]),
    ]
    return [
        {
            "name": name,
            "f1": f1,
            **{key: scores[key] for key in ("precision", "recall", "auc")},
            "size_bytes": size_bytes,
            "ratio": size_bytes / int8_bytes if size_bytes and int8_bytes else None,
        }
        for name, scores, f1, size_bytes in rows
    ]


def _compared_layers(verify: dict) -> str:
    """Sentence on the feature maps that were compared, empty if none was."""
    rows = verify.get("layers") or []
    if not rows:
        return ""
    wrong = [r["layer"] for r in rows if r["tflm_mismatches"] or r["keras_mismatches"]]
    found = f"differences in {', '.join(wrong)}" if wrong else "all equal"
    values = sum(row["values"] for row in rows)
    return f"{values:,} values of {len(rows)} layers on {verify['layer_windows']} windows: {found}."


def _places(splits: dict) -> list[str]:
    """Names of all locations of all parts, sorted."""
    return sorted({place for part in PARTS for place in splits[part]["locations"]})


def _shared_places(splits: dict) -> list[str]:
    """Locations that gave both training and test windows."""
    return sorted(set(splits["train"]["locations"]) & set(splits["test"]["locations"]))


def _window_s(front_end: dict) -> float:
    """Length of a window in seconds."""
    return front_end["n_frames"] * front_end["hop_samples"] / front_end["sample_rate_hz"]
