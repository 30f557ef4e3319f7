"""Plots are readable PNGs and the report is one page that loads nothing and trusts nothing."""

import copy
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qbee.errors import ModelFileError, ParameterError
from qbee.records import FrontEnd
from qbee.report import html, plots
from qbee.train.metrics import evaluate

FRONT_END = FrontEnd(n_mels=16, n_frames=32)
SPLIT = {
    "windows": 100,
    "positives": 25,
    "locations": {"meadow": {"windows": 100, "positives": 25}},
}
SCORES = {"f1": 0.9, "precision": 0.88, "recall": 0.92, "auc": 0.97}
PLACE = {**SCORES, "windows": 431, "positives": 107, "false_positives": 9, "threshold": 0.43}
NOWHERE = {"windows": 0, "positives": 0, "locations": {}}
RESULTS = {
    "model": "beenet3",
    "seed": 0,
    "created": "2026-01-01",
    "versions": {"qbee": "0.1", "numpy": "2.4"},
    "front_end": FRONT_END.model_dump(),
    "threshold": 0.43,
    "threshold_from": "validation windows",
    "data": {
        "table": "labels.csv",
        "windows": 2000,
        "positives": 500,
        "uncertain": 120,
        "too_short": 3,
        "skipped": ["bad.wav: is empty"],
        "splits": {"train": SPLIT, "validation": SPLIT, "test": SPLIT, "dropped": NOWHERE},
    },
    "float": {**SCORES, "threshold": 0.5, "windows": 431, "positives": 107, "size_bytes": 61000},
    "int8": {**SCORES, "tflite_bytes": 20000},
    "winner": {
        **SCORES,
        "f1_keras": 0.9,
        "f1_tflm": 0.9012,
        "tflite_bytes": 15000,
        "arena_bytes": 54321,
        "bits": {"stem": {"kernel": 4, "bias": 31, "map": 16}},
        "locations": {"meadow": PLACE},
    },
    "verify": {"windows": 431, "mismatches": 0, "layers": "all 9 layers equal"},
    "search": {
        "trials": 12,
        "cpu_seconds": 123.4,
        "schemes": 19683,
        "winner_trial": 7,
        "rule": "smallest file within 1.0 point of the float F1",
    },
}


def trial(number, f1=0.9, size_bytes=20000, origin="bayesian"):
    """Trial with its F1 as score."""
    fields = {"number": number, "score": f1, "f1": f1}
    return {**fields, "tflite_bytes": size_bytes, "origin": origin}


def epoch(number, f1=0.8):
    """Entry of a training history."""
    losses = {"train_loss": 1 / number, "validation_loss": 1.2 / number}
    return {"epoch": number, "validation_f1": f1, **losses}


def check_is_png(path):
    """Check that a picture can be decoded, has a sensible size and is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 100
        assert max(image.size) <= 2000
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


@pytest.fixture
def path(tmp_path):
    """Where a plot goes."""
    return tmp_path / "plot.png"


@pytest.fixture
def figure(path):
    """A small plot by name."""
    plots.bits_per_layer(RESULTS["winner"]["bits"], path)
    return {"bits_per_layer": path}


@pytest.fixture
def write_page(tmp_path):
    """Write a report and return its text."""

    def write(results, images):
        html.write(results, images, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


@pytest.mark.parametrize("n", [0, 6, 9])
def test_mel_examples_of_any_number_of_windows(path, n):
    images = np.random.default_rng(0).normal(-40, 10, (n, 16, 32)).astype(np.float32)
    labels, found = np.arange(n) % 2 == 0, np.linspace(0, 1, n)
    plots.mel_examples(
        images, FRONT_END, labels, found, 0.5, [f"${i}_{{.wav" for i in range(n)], path
    )
    check_is_png(path)


def test_wrong_examples_have_a_red_frame(path):
    images = np.zeros((2, 16, 32), np.float32)
    images[:, 0, 0] = -10
    frame = np.array([int(plots.FRAME[i : i + 2], 16) for i in (1, 3, 5)])
    counts = []
    for labels in ([True, False], [False, True]):
        plots.mel_examples(images, FRONT_END, labels, [0.9, 0.1], 0.5, ["a", "b"], path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        counts.append(int((pixels == frame).all(axis=-1).sum()))
    assert counts[0] == 0
    assert counts[1] > 1000


def test_mel_ticks_stand_at_their_bands():
    front_end = FrontEnd()
    ticks_hz = plots._mel_ticks_hz(front_end)
    bands = plots._band_of(ticks_hz, front_end)
    assert ticks_hz.tolist() == [50, 200, 400, 800, 1450]
    assert np.all(np.diff(bands) > 0)
    # Slaney's scale is linear below 1 kHz.
    assert (bands[3] - bands[2]) / (bands[2] - bands[1]) == pytest.approx(2)


@pytest.mark.parametrize(
    "histories",
    [
        {"float": [epoch(i) for i in range(1, 9)], "fine-tuning": [epoch(1), epoch(2)]},
        {"float": [epoch(1)], "fine-tuning": []},
        {"float": [epoch(1, None)]},
        {},
    ],
)
def test_training_curves_of_any_length(path, histories):
    plots.training_curves(histories, path, title="beenet3")
    check_is_png(path)


@pytest.mark.parametrize(
    "trials",
    [
        [trial(0, origin="uniform 8"), trial(1, 0.95, 70000), trial(2, None), trial(3, 0.8, 9000)],
        [trial(0)],
        [trial(0, None)],
        [trial(i, 0.5, 1000, f"origin {i}") for i in range(9)],
        [],
    ],
)
def test_search_plots_of_any_trials(path, trials):
    plots.trial_scores(trials, path, 0)
    check_is_png(path)
    plots.pareto(trials, path, 0, {"int8": (0.9, 20000), "float": (None, 61000)})
    check_is_png(path)


def test_bits_of_many_layers(path):
    bits = {"kernel": 16, "bias": 31, "map": 4}
    plots.bits_per_layer({f"a_long_layer_name_{i}": bits for i in range(30)}, path)
    check_is_png(path)


@pytest.mark.parametrize(
    ("labels", "probability"),
    [
        ([1, 0, 1, 0], [0.9, 0.2, 0.3, 0.6]),
        ([1, 0, 1, 0], [0.9, 0.2, 0.8, 0.1]),
        ([0, 0, 0], [0.1, 0.9, 0.2]),
        ([1, 1, 1], [0.1, 0.9, 0.2]),
        ([1, 0], [0.1, 0.2]),
        ([], []),
    ],
    ids=["usual", "no errors", "no buzz", "only buzz", "nothing found", "no windows"],
)
def test_confusion_of_any_windows(path, labels, probability):
    labels, probability = np.array(labels, bool), np.array(probability)
    scores = evaluate(labels, probability, threshold=0.5)
    plots.confusion_and_pr(labels, probability, 0.5, scores, path)
    check_is_png(path)


def test_failed_plot_leaves_the_old_file_and_no_other(path):
    plots.bits_per_layer(RESULTS["winner"]["bits"], path)
    before = path.read_bytes()
    with pytest.raises(KeyError):
        plots.bits_per_layer({"stem": {"kernel": 8}}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_plots_need_neither_pyplot_nor_tensorflow_and_leave_the_style_alone(path):
    code = (
        "import sys, pathlib, matplotlib;"
        "from qbee.report import html, plots;"
        "before = {key: matplotlib.rcParams[key] for key in plots.STYLE};"
        "plots.trial_scores([], pathlib.Path(sys.argv[1]), 0);"
        "assert before == {key: matplotlib.rcParams[key] for key in plots.STYLE};"
        "assert not {'tensorflow', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)


def test_page_loads_nothing_and_contains_the_figures(write_page, figure):
    page = write_page(RESULTS, {**figure, "my_own": figure["bits_per_layer"]})
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<script|@import|<link", page)
    assert "my own" in page


def test_page_states_what_was_measured(write_page, figure):
    page = re.sub(r"<[^>]+>|\s+", " ", write_page(RESULTS, figure))
    page = re.sub(r"\s+", " ", page)
    for statement in (
        "F1 0.901 in 15,000 bytes",
        "54,321",
        "chosen on validation windows",
        "numpy == Keras == TFLite Micro on 431 windows: 0 mismatches",
        "0.75 ×",
        "labelled uncertain 120, too short for a window 3, recordings skipped 1: bad.wav",
        "12 trials in 123 CPU seconds",
        "not how well at a new place",
    ):
        assert statement in page


def test_location_without_buzz_shows_false_positives_instead_of_f1(write_page):
    results = copy.deepcopy(RESULTS)
    results["winner"]["locations"]["marsh"] = {**PLACE, "positives": 0, "recall": None, "auc": None}
    row = re.search(r"<tr><th>marsh</th>(.*)</tr>", write_page(results, {})).group(1)
    assert re.findall(r"<td>(.*?)</td>", row) == ["431", "0", "–", "0.880", "–", "–", "9"]


def test_unknown_scores_are_dashes(write_page):
    results = copy.deepcopy(RESULTS)
    for model in ("float", "int8", "winner"):
        results[model].update(dict.fromkeys(SCORES), f1_tflm=None, f1_keras=None)
    results.update(threshold=None, verify=None, search=None)
    page = write_page(results, {})
    assert "F1 –" in page
    assert not re.search(r"\b(None|nan)\b", page)


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_names_from_outside_cannot_become_markup(write_page, figure, evil):
    results = copy.deepcopy(RESULTS)
    results["data"]["table"] = results["model"] = evil
    results["data"]["skipped"] = [f"{evil}.wav: is empty"]
    results["data"]["splits"]["test"]["locations"][evil] = {"windows": 1, "positives": 0}
    results["winner"]["locations"][evil] = PLACE
    page = write_page(results, {evil: figure["bits_per_layer"]})
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;") >= 5 * evil.count("<")


def test_mismatches_are_shown_as_a_failure(write_page):
    results = {**RESULTS, "verify": {"windows": 9, "mismatches": 2, "layers": ""}}
    assert 'class="verdict bad"' in write_page(results, {})
    assert 'class="verdict bad"' not in write_page(RESULTS, {})


def test_writing_leaves_the_results_as_they_were(write_page, figure):
    before = copy.deepcopy(RESULTS)
    write_page(RESULTS, figure)
    assert before == RESULTS


@pytest.mark.parametrize("key", ["front_end", "created", "winner"])
def test_missing_entry_is_named(write_page, key):
    with pytest.raises(ParameterError, match=key):
        write_page({k: v for k, v in RESULTS.items() if k != key}, {})


def test_missing_image_is_named(write_page, tmp_path):
    with pytest.raises(ModelFileError, match=r"gone\.png"):
        write_page(RESULTS, {"pareto": tmp_path / "gone.png"})
