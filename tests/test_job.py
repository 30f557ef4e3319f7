"""The whole job: every result it promises, the same after a kill, the same through each door."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import SMALL_JOB, qbee

from qbee.detector import Card, Detector, margin_threshold
from qbee.errors import FrontEndError
from qbee.job.settings import digest
from qbee.job.verbs import resumed
from qbee.quantize.scheme import Scheme
from qbee.records import FrontEnd

PICTURES = ["mel_examples", "training_curves", "trial_scores", "accuracy_vs_size",
            "bits_per_point", "hypervolume", "bits_per_layer", "confusion_and_pr"]  # fmt: skip


@pytest.fixture(scope="session")
def results(finished_job):
    return json.loads((finished_job / "results.json").read_text())


def test_a_job_leaves_every_file_it_promises(finished_job):
    names = ["model.tflite", "model_data.h", "model_data.cc", "frontend.json", "scheme.json",
             "results.json", "report.html", *(f"{name}.png" for name in PICTURES)]  # fmt: skip
    assert [name for name in names if not (finished_job / name).stat().st_size] == []
    assert not list(finished_job.rglob(".*partial*"))


def test_the_device_computes_what_keras_and_numpy_compute(results):
    assert results["verify"]["windows"] == results["data"]["splits"]["test"]["windows"] > 0
    assert results["verify"]["mismatches"] == 0
    assert results["winner"]["f1_tflm"] == results["winner"]["f1_keras"]


def test_results_say_what_they_were_computed_on(results):
    data = results["data"]
    parts = data["splits"].values()
    assert sum(part["windows"] for part in parts) == data["windows"]
    assert sum(part["positives"] for part in parts) == data["positives"]
    test = data["splits"]["test"]
    for model in ("float", "int8", "winner"):
        assert results[model]["windows"] == test["windows"]
        assert results[model]["positives"] == test["positives"]
    assert results["float"]["f1"] is not None
    assert results["int8"]["tflite_bytes"] > 0
    assert results["winner"]["arena_bytes"] > 500_000
    assert results["seed"] == 0
    assert results["versions"]["tensorflow"].startswith("2.")


def test_bytes_and_bits_are_those_of_the_files(finished_job, results):
    assert results["winner"]["tflite_bytes"] == (finished_job / "model.tflite").stat().st_size
    scheme = Scheme.load(finished_job / "scheme.json")
    assert results["winner"]["bits"] == scheme.model_dump()["layers"]


def test_the_c_array_holds_the_model(finished_job):
    source = (finished_job / "model_data.cc").read_text()
    array = source[source.index("{") + 1 : source.index("}")]
    stored = bytes(int(number, 16) for number in array.replace("\n", " ").split(","))
    assert stored == (finished_job / "model.tflite").read_bytes()


def test_the_integer_threshold_of_the_firmware_decides_like_the_probability(finished_job):
    detector = Detector.load(finished_job)
    step, threshold = detector.model.output.step, detector.card.threshold
    margins = np.arange(-255, 256)
    by_probability = 1 / (1 + np.exp(-margins * step)) >= threshold
    header = (finished_job / "model_data.h").read_text()
    smallest = int(header.split("QBEE_MARGIN_THRESHOLD ")[1].split()[0])
    assert smallest == margin_threshold(threshold, step)
    assert ((margins >= smallest) == by_probability).all()


def test_a_job_killed_in_training_ends_like_an_undisturbed_one(tmp_path, recordings, finished_job):
    command = [sys.executable, "-m", "qbee", "run", "--labels", recordings, "--out", tmp_path]
    running = subprocess.Popen(
        [*map(str, command), *SMALL_JOB], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "work" / "float_unfinished.npz").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        os.sched_yield()
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "model.tflite").exists()
    qbee("run", "--labels", recordings, "--out", tmp_path, *SMALL_JOB)
    assert (tmp_path / "model.tflite").read_bytes() == (finished_job / "model.tflite").read_bytes()
    before, after = (
        json.loads((folder / "results.json").read_text()) for folder in (finished_job, tmp_path)
    )
    for part in ("float", "int8", "winner", "verify", "data"):
        assert before[part] == after[part]


def test_a_finished_job_is_not_done_again(recordings, finished_job):
    before = (finished_job / "report.html").stat().st_mtime_ns
    done = qbee("run", "--labels", recordings, "--out", finished_job, *SMALL_JOB)
    assert "is finished" in done.stdout
    assert (finished_job / "report.html").stat().st_mtime_ns == before


def test_a_job_with_other_settings_does_not_touch_the_folder(recordings, finished_job):
    arguments = ["run", "--labels", recordings, "--out", finished_job, *SMALL_JOB, "--seed", "1"]
    done = qbee(*arguments, check=False)
    assert done.returncode == 2
    assert "another seed: 0 then, 1 now" in done.stderr


def test_evaluate_scores_the_test_windows_like_the_job(recordings, finished_job, results):
    found = json.loads(qbee("evaluate", finished_job, "--labels", recordings, "--json").stdout)
    assert found["windows"] == results["data"]["windows"]
    assert found["positives"] == results["data"]["positives"]
    assert found["threshold"] == results["threshold"]
    assert set(found["locations"]) == {"meadow", "orchard", "forest"}
    hits = sum(place["true_positives"] for place in found["locations"].values())
    assert hits == found["true_positives"] >= results["winner"]["true_positives"]
    assert found["f1"] is not None


def test_evaluate_prints_a_table_for_people(recordings, finished_job):
    printed = qbee("evaluate", finished_job, "--labels", recordings).stdout
    assert "orchard" in printed
    assert "F1" in printed


def test_a_front_end_of_another_model_is_refused(finished_job, tmp_path):
    (tmp_path / "model.tflite").write_bytes((finished_job / "model.tflite").read_bytes())
    FrontEnd(fmin_hz=60.0).save(tmp_path / "frontend.json")
    with pytest.raises(FrontEndError, match=r"frontend.json: fmin_hz=60.0, but .* fmin_hz=50.0"):
        Detector.load(tmp_path)


def test_a_front_end_whose_images_the_model_cannot_take_is_refused(finished_job, tmp_path):
    content = (finished_job / "model.tflite").read_bytes()
    other = content.replace(b'"n_mels":128', b'"n_mels":127')
    assert other != content
    (tmp_path / "model.tflite").write_bytes(other)
    FrontEnd(n_mels=127).save(tmp_path / "frontend.json")
    with pytest.raises(FrontEndError, match=r"its input is \(128, 128\), .* \(127, 128\)"):
        Detector.load(tmp_path)


def test_the_search_reports_its_front_and_its_rule(finished_job, results):
    found = results["search"]
    trials = resumed(finished_job).search.journal.trials
    points = [(t.measured.metrics["loss"], t.measured.costs["tflite_bytes"]) for t in trials]
    front = [(p["loss"], p["tflite_bytes"]) for p in found["pareto"]]
    assert found["objectives"] == ["loss", "tflite_bytes"]
    assert front
    for loss, size in front:
        assert not any(z <= loss and s <= size and (z, s) != (loss, size) for z, s in points)
    assert "float model's" in found["rule"]


def test_the_search_says_how_it_searched_and_what_it_chose(finished_job, results):
    found = results["search"]
    assert found["strategy"] == "sensitivity"
    assert found["limits"] == {}
    assert found["scored_on"] == "holdout"
    assert (found["trials"], found["failed"]) == (3, 0)
    assert found["cpu_seconds"] > 0
    # Kernels of four groups of layers and maps of three have two widths each.
    assert found["schemes"] == 2**7
    winner = resumed(finished_job).search.journal.trials[found["winner_trial"]]
    assert winner.scheme == Scheme.load(finished_job / "scheme.json")
    assert found["validation_f1"]["winner"] == winner.measured.metrics["f1"]
    assert 0 < found["validation_f1"]["float"] <= 1
    # Three of the front, if it has so many.
    tuned = {one["trial"]: one for one in found["fine_tuned"]}
    assert 1 <= len(tuned) <= 3
    assert tuned[winner.number]["test_f1"] == results["winner"]["f1_keras"]


def test_a_folder_of_tables_is_another_job_when_one_of_them_changes(tmp_path):
    (tmp_path / "a.txt").write_text("0\t4\tbuzz\n")
    before = digest([tmp_path])
    (tmp_path / "a.wav").write_bytes(b"sound")
    assert digest([tmp_path]) == before
    (tmp_path / "a.txt").write_text("0\t5\tbuzz\n")
    assert digest([tmp_path]) != before


def test_the_card_travels_inside_the_model(finished_job, results):
    content = (finished_job / "model.tflite").read_bytes()
    card = Card.of_model(content, source="model.tflite")
    assert card.threshold == results["threshold"]
    assert card.front_end == FrontEnd.load(finished_job / "frontend.json")
    assert card.labels == ("no_buzz", "buzz")


def test_verify_on_its_own_finds_the_same(finished_job, results):
    printed = qbee("verify", finished_job).stdout
    assert "0 mismatches" in printed
    again = json.loads((finished_job / "results.json").read_text())
    assert again["winner"] == results["winner"]
