"""The report is one page that loads nothing and trusts nothing."""

import copy
import re

import pytest

from qbee.errors import ModelFileError, ParameterError
from qbee.records import FrontEnd
from qbee.report import html, search_plots

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
    "goal": "precision>=0.9",
    "false_alarms": {
        "validation": {
            "alarms": 7,
            "hours": 0.5,
            "recordings": 4,
            "of_quiet_recordings": True,
            "per_hour": 14.0,
        },
        "test": {
            "alarms": 0,
            "hours": 0.0,
            "recordings": 0,
            "of_quiet_recordings": False,
            "per_hour": None,
        },
    },
    "data": {
        "tables": ["labels.csv"],
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
    "verify": {
        "windows": 431,
        "mismatches": 0,
        "layer_windows": 10,
        "layers": [
            {"layer": "stem", "values": 4000, "keras_mismatches": 0, "tflm_mismatches": 0},
            {"layer": "flatten", "values": 96, "keras_mismatches": None, "tflm_mismatches": 0},
        ],
    },
    "search": {
        "strategy": "sensitivity",
        "objectives": ["loss", "tflite_bytes"],
        "limits": {},
        "scored_on": "holdout",
        "trials": 12,
        "failed": 0,
        "cpu_seconds": 123.4,
        "schemes": 19683,
        "winner_trial": 7,
        "pareto": [],
        "fine_tuned": [],
        "validation_f1": {"float": 0.9, "winner": 0.89},
        "rule": "smallest file within 1.0 point of the float F1",
    },
}


@pytest.fixture
def figure(tmp_path):
    """A small plot by name."""
    path = tmp_path / "plot.png"
    search_plots.bits_per_layer(RESULTS["winner"]["bits"], path)
    return {"bits_per_layer": path}


@pytest.fixture
def write_page(tmp_path):
    """Write a report and return its text."""

    def write(results, images):
        html.write(results, images, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


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
        "for precision&gt;=0.9 on validation windows",
        "validation 4 recordings without buzz 0.50 7 14.00",
        "stretches without buzz of 0 recordings",
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
    results["data"]["tables"], results["model"], results["goal"] = [evil], evil, evil
    results["data"]["skipped"] = [f"{evil}.wav: is empty"]
    results["data"]["splits"]["test"]["locations"][evil] = {"windows": 1, "positives": 0}
    results["winner"]["locations"][evil] = PLACE
    page = write_page(results, {evil: figure["bits_per_layer"]})
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;") >= 5 * evil.count("<")


def test_mismatches_are_shown_as_a_failure(write_page):
    results = {**RESULTS, "verify": {"windows": 9, "mismatches": 2, "layers": []}}
    assert 'class="verdict bad"' in write_page(results, {})
    assert 'class="verdict bad"' not in write_page(RESULTS, {})


def test_layers_that_were_compared_are_one_sentence(write_page):
    assert "4,096 values of 2 layers on 10 windows: all equal." in write_page(RESULTS, {})
    results = copy.deepcopy(RESULTS)
    results["verify"]["layers"][0]["tflm_mismatches"] = 3
    page = write_page(results, {})
    assert "4,096 values of 2 layers on 10 windows: differences in stem." in page
    assert "tflm_mismatches" not in page


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
        write_page(RESULTS, {"accuracy_vs_size": tmp_path / "gone.png"})
