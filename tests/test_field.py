"""Detection and review through the command line, with the detector of a small job."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SMALL_JOB, qbee
from field_toys import name_of
from pyarrow import parquet
from selenium.webdriver.common.keys import Keys

from qbee.data import labels, windows
from qbee.detector import Detector
from qbee.field.detecting import Summary, detect
from qbee.train import metrics

START = datetime(2024, 5, 1, 22, 30)
TABLES = [
    "windows.csv",
    "windows.parquet",
    "events.csv",
    "recordings.csv",
    "problems.csv",
    "cuts.csv",
    "activity_by_hour.csv",
    "activity_by_day.csv",
]


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def card(tmp_path_factory, recordings) -> Path:
    """A recorder's card: soundscapes under names of AudioMoth, two of which continue."""
    folder = tmp_path_factory.mktemp("card with a space") / "log č"
    folder.mkdir()
    sources = sorted(recordings.parent.glob("*.wav"))[:4]
    starts = [START, START + timedelta(seconds=44), START + timedelta(hours=1)]
    starts.append(START + timedelta(days=2))
    for source, start in zip(sources, starts, strict=True):
        shutil.copy(source, folder / name_of(start))
    return folder


ZONES = {"recorder_zone": "UTC", "zone": "Europe/Ljubljana"}


@pytest.fixture(scope="module")
def threshold(tmp_path_factory, finished_job, card) -> float:
    """One that a quarter of the windows reach: so little training says buzz to none, or to all."""
    out = tmp_path_factory.mktemp("first")
    detect([card], finished_job, out, clip_count=0)
    return float(
        np.quantile([float(row["probability"]) for row in rows(out / "windows.csv")], 0.75)
    )


@pytest.fixture(scope="module")
def options(threshold) -> list[str]:
    """Options of the command."""
    zones = ["--recorder-zone", ZONES["recorder_zone"], "--zone", ZONES["zone"]]
    return [*zones, "--threshold", repr(threshold), "--clips", "3"]


@pytest.fixture(scope="module")
def heard(tmp_path_factory, finished_job, card, options) -> Path:
    """Folder of a detection of that card."""
    out = tmp_path_factory.mktemp("heard")
    qbee("detect", card, "--model", finished_job, "--out", out, *options)
    return out


def test_windows_are_the_detectors_on_the_same_sound(heard, finished_job, card, threshold):
    table = rows(heard / "windows.csv")
    detector = Detector.load(finished_job, engine="litert")
    front_end = detector.card.front_end
    at = 0
    for path in sorted(card.iterdir()):
        part = [row for row in table if row["file"] == str(path)]
        assert part == table[at : at + len(part)]
        at += len(part)
        starts_s = [float(row["start_s"]) for row in part]
        segments = [windows.Window(path, start_s, False, "x") for start_s in starts_s]
        images = windows.images(segments, front_end).images
        expected = metrics.probabilities(detector.logits(images))
        found = [float(row["probability"]) for row in part]
        # Probabilities are kept as float32.
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert [row["is_buzz"] == "true" for row in part] == (expected >= threshold).tolist()
    assert at == len(table)


def test_parquet_and_csv_hold_the_same(heard):
    columns = parquet.read_table(heard / "windows.parquet").to_pydict()
    table = rows(heard / "windows.csv")
    assert [row["file"] for row in table] == columns["file"]
    assert [float(row["start_s"]) for row in table] == columns["start_s"]
    assert [row["start_time"] for row in table] == columns["start_time"]
    found = [np.float32(row["probability"]) for row in table]
    assert found == [np.float32(value) for value in columns["probability"]]


def test_times_are_in_the_zone_that_was_asked_for(heard):
    first = rows(heard / "windows.csv")[0]
    assert first["start_time"] == "2024-05-02T00:30:00.000+02:00"
    assert first["location"] == "log č"
    days = {row["date"] for row in rows(heard / "activity_by_day.csv")}
    assert days == {"2024-05-02", "2024-05-04"}


def test_events_activity_and_summary_agree(heard):
    summary = Summary.load(heard / "summary.json")
    events = rows(heard / "events.csv")
    assert summary.events == len(events) > 0
    assert summary.windows == len(rows(heard / "windows.csv"))
    for table in ("activity_by_hour", "activity_by_day"):
        found = rows(heard / f"{table}.csv")
        assert sum(int(row["events"]) for row in found) == len(events)
    listened = sum(float(row["listened_s"]) for row in rows(heard / "activity_by_hour.csv"))
    assert listened / 3600 == pytest.approx(summary.heard_hours, abs=1e-5)
    recordings = rows(heard / "recordings.csv")
    assert [row["continues"] for row in recordings] == ["no", "yes", "no", "no"]
    assert sum(int(row["events"]) for row in recordings) == len(events)
    (cut,) = rows(heard / "cuts.csv")
    assert Path(cut["file_before"]).name == name_of(START)


def test_clips_are_the_sound_of_the_surest_events(heard):
    table = rows(heard / "clips" / "clips.csv")
    assert 1 <= len(table) <= 3
    surest = sorted(
        (float(r["peak_probability"]) for r in rows(heard / "events.csv")), reverse=True
    )
    assert [float(row["peak_probability"]) for row in table] == surest[: len(table)]
    for row in table:
        clip, rate = soundfile.read(heard / "clips" / row["clip"])
        whole, _ = soundfile.read(row["file"])
        first = round(float(row["start_s"]) * rate)
        # FLAC of 16 bits from a file of 16 bits.
        np.testing.assert_array_equal(clip, whole[first : first + len(clip)])
        assert (heard / "clips" / row["clip"]).with_suffix(".png").exists()


def test_raven_tables_read_as_labels(heard, card):
    tables = sorted((heard / "raven").rglob("*.txt"))
    assert tables
    stem = tables[0].name.removesuffix(".Table.1.selections.txt")
    segments = labels.read(tables[0], recording=card / f"{stem}.wav", location="x")
    assert {segment.label for segment in segments} == {"buzz"}


def test_another_threshold_takes_no_listening_and_tables_follow(
    heard, finished_job, card, tmp_path
):
    out = tmp_path / "copy"
    shutil.copytree(heard, out)
    parts = {p: p.stat().st_mtime_ns for p in (out / "work" / "parts").iterdir()}
    summary = detect([card], finished_job, out, threshold=1.0, clip_count=3)
    assert all(path.stat().st_mtime_ns == at for path, at in parts.items())
    assert summary.events == 0 == len(rows(out / "events.csv"))
    assert not list((out / "raven").rglob("*.txt"))
    assert not list((out / "clips").glob("*.flac"))
    with_time = rows(out / "windows.csv")[0]["start_time"]
    assert with_time == "2024-05-01T22:30:00.000"


def test_micro_and_keras_give_the_same_and_litert_nearly(heard, finished_job, card, tmp_path):
    found = {}
    for engine in ("tflm", "keras"):
        out = tmp_path / engine
        detect([card], finished_job, out, engine=engine, clip_count=0)
        found[engine] = [float(row["probability"]) for row in rows(out / "windows.csv")]
    assert found["tflm"] == found["keras"]
    litert = [float(row["probability"]) for row in rows(heard / "windows.csv")]
    # LiteRT rounds some sums in another way, which moves logits by a step or two.
    step = Detector.load(finished_job).model.output.step
    margins = [np.log(np.array(p) / (1 - np.array(p))) for p in (found["tflm"], litert)]
    # Each probability is a float32, whose logit is known to 1e-3 near 0.999.
    assert np.abs(margins[0] - margins[1]).max() <= 4 * step + 1e-3


def test_a_run_that_was_killed_ends_with_the_same_tables(
    heard, finished_job, card, options, tmp_path
):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "qbee", "detect", card, "--model", finished_job, "--out", out]
    command = [*map(str, command), *options, "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    parts = out / "work" / "parts"
    while not list(parts.glob("*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "windows.csv").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name in TABLES:
        assert (out / name).read_bytes() == (heard / name).read_bytes(), name


def test_damaged_files_are_told_by_the_exit_code(heard, finished_job, card, tmp_path):
    folder, out = tmp_path / "field", tmp_path / "out"
    shutil.copytree(card, folder)
    (folder / "bad.wav").write_bytes(b"")
    arguments = ["detect", folder, "--model", finished_job, "--out", out]
    done = qbee(*arguments, check=False)
    assert done.returncode == 2
    assert "bad.wav: is empty (0 bytes) (--on-error skip goes on)" in done.stderr
    assert not (out / "windows.csv").exists()
    done = qbee(*arguments, "--on-error", "skip", check=False)
    assert done.returncode == 1
    (problem,) = [row for row in rows(out / "problems.csv") if row["effect"] != "used"]
    assert (Path(problem["file"]).name, problem["kind"]) == ("bad.wav", "unreadable")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["used"], summary["left_out"]) == (4, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.wav"], "none.wav: no such file or folder"),
        (["CARD", "--zone", "Mars"], "zone='Mars'"),
        (["CARD", "--name-pattern", "%Y"], "pattern='%Y'"),
        (["CARD", "--threshold", "0.2", "--keep-threshold", "0.3"], "keep_threshold=0.3"),
        (["CARD", "--start-times", "none.csv"], "none.csv"),
        (["CARD", "--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_line_and_leave_nothing(
    finished_job, card, tmp_path, arguments, message
):
    given = [card if argument == "CARD" else argument for argument in arguments]
    out = tmp_path / "out"
    model = [] if "--model" in arguments else ["--model", finished_job]
    done = qbee("detect", *given, *model, "--out", out, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()


def test_a_review_has_windows_that_do_not_overlap_and_clips_of_them(heard, tmp_path):
    done = qbee("review", heard, "--out", tmp_path / "review", "--top", 2, "--uncertain", 3)
    assert "review.html" in done.stdout
    page = (tmp_path / "review" / "review.html").read_text()
    shown = page[page.index('id="content">') + len('id="content">') :]
    items = json.loads(shown[: shown.index("</script>")])["items"]
    assert [item["group"] for item in items[:5]] == ["top"] * 2 + ["uncertain"] * 3
    for i, one in enumerate(items):
        assert (tmp_path / "review" / one["clip"]).exists()
        for other in items[:i]:
            apart = abs(one["source_start_s"] - other["source_start_s"])
            assert one["source"] != other["source"] or apart >= one["end_s"] - one["start_s"]


def test_a_clip_for_review_is_the_window_that_was_heard(heard, finished_job, tmp_path):
    qbee("review", heard, "--out", tmp_path, "--top", 1, "--uncertain", 1, "--bottom", 1)
    page = (tmp_path / "review.html").read_text()
    shown = page[page.index('id="content">') + len('id="content">') :]
    detector = Detector.load(finished_job, engine="litert")
    for item in json.loads(shown[: shown.index("</script>")])["items"]:
        window = windows.Window(tmp_path / item["clip"], item["start_s"], False, "x")
        image = windows.images([window], detector.card.front_end).images
        found = metrics.probabilities(detector.logits(image))
        # soxr rounds as its blocks lie, which may move a code of the input: a step of the logits.
        assert found == pytest.approx(item["probability"], abs=0.05)


@pytest.mark.parametrize("where", ["nowhere", "itself", "labelled"])
def test_a_review_that_cannot_be_made_is_one_line(heard, tmp_path, where):
    out = {"nowhere": tmp_path, "itself": heard, "labelled": tmp_path}[where]
    if where == "labelled":
        (tmp_path / "labels.csv").write_text("mine\n")
    source = tmp_path if where == "nowhere" else heard
    done = qbee("review", source, "--out", out, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_corrections_made_by_keyboard_train_the_next_detector(reader, heard, recordings, tmp_path):
    folder = tmp_path / "review"
    qbee("review", heard, "--out", folder, "--top", 2, "--uncertain", 2, "--bottom", 2)
    reader.open(folder / "review.html")
    reader.press("n", Keys.ENTER, "b", Keys.ENTER, Keys.ENTER, Keys.ENTER, "s")
    shutil.copy(reader.saved_table(), folder / "labels.csv")
    corrected = labels.read(folder / "labels.csv")
    assert [segment.label for segment in corrected[:3]] == ["no_buzz", "buzz", "buzz"]
    out = tmp_path / "retrained"
    tables = ["--labels", recordings, "--labels", folder / "labels.csv"]
    qbee("run", *tables, "--out", out, *SMALL_JOB)
    results = json.loads((out / "results.json").read_text())
    assert results["data"]["tables"] == [str(recordings), str(folder / "labels.csv")]
    stored = json.loads((out / "work" / "windows.json").read_text())["windows"]
    clips = {segment.path.name for segment in corrected}
    assert clips <= {Path(window["path"]).name for window in stored}
