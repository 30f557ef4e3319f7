"""Bad input: one line that names what is wrong, exit code 2, and nothing half-written."""

import csv
import json
import sys

import numpy as np
import pytest
import soundfile

from qbee import cli
from qbee.cli import jobs
from qbee.job.settings import default_space

RATE_HZ = 8000
HEADER = ["file", "start_s", "end_s", "label", "location"]


@pytest.fixture
def failing(monkeypatch, capsys, tmp_path):
    """Run a command that must fail; gives its one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["qbee", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("qbee: ")
        assert not list(tmp_path.rglob("*.partial*"))
        assert not list(tmp_path.rglob("model.tflite"))
        return lines[0]

    return run


def sound(seconds, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE_HZ)).astype(np.float32)


@pytest.fixture
def table(tmp_path):
    """Write a label table of good recordings with the rows given on top, and give its path."""

    def write(*rows, header=HEADER, good=12, locations=2):
        for number in range(good):
            soundfile.write(tmp_path / f"good{number}.wav", sound(10, number), RATE_HZ)
            label = ("buzz", "no_buzz")[number % 2]
            place = f"place{number // 2 % locations}"
            rows = (*rows, [f"good{number}.wav", 0, 10, label, place])
        path = tmp_path / "labels.csv"
        with path.open("w", newline="") as stream:
            csv.writer(stream).writerows([header, *rows])
        return path

    return write


@pytest.fixture
def run_fails(failing, tmp_path):
    """Run the job on a table and give the one line it says."""

    def run(labels, *more):
        out = tmp_path / "out"
        line = failing("run", "--labels", labels, "--model", "beenet3", "--out", out, *more)
        assert not (out / "job.json").exists()
        return line

    return run


def test_a_missing_recording(run_fails, table):
    line = run_fails(table(["gone.wav", 0, 4, "buzz", "a"]))
    assert "labels.csv: row 2" in line
    assert "gone.wav" in line


def test_a_zero_byte_wav(run_fails, table, tmp_path):
    (tmp_path / "empty.wav").touch()
    line = run_fails(table(["empty.wav", 0, 4, "buzz", "a"]))
    assert "empty.wav" in line
    assert "empty" in line.split("empty.wav", 1)[1]


def test_a_truncated_flac(run_fails, table, tmp_path):
    whole = tmp_path / "whole.flac"
    soundfile.write(whole, sound(60), RATE_HZ)
    (tmp_path / "cut.flac").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    line = run_fails(table(["cut.flac", 0, 60, "buzz", "a"]))
    assert "cut.flac" in line


def test_a_text_file_named_wav(run_fails, table, tmp_path):
    (tmp_path / "notes.wav").write_text("dear diary, no bees today\n" * 20)
    assert "notes.wav" in run_fails(table(["notes.wav", 0, 4, "buzz", "a"]))


def test_a_segment_of_no_length(run_fails, table):
    line = run_fails(table(["good0.wav", 3, 3, "buzz", "a"]))
    assert "labels.csv: row 2" in line
    assert "3" in line


def test_a_segment_beyond_the_end(run_fails, table):
    line = run_fails(table(["good0.wav", 8, 20, "buzz", "place0"]))
    assert "row 2: the segment ends at 20" in line
    assert "lasts 10.000 s" in line


def test_samples_that_are_no_numbers(run_fails, table, tmp_path):
    broken = sound(10)
    broken[5 * RATE_HZ] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, RATE_HZ, subtype="FLOAT")
    line = run_fails(table(["nan.wav", 0, 10, "buzz", "a"]))
    assert "nan.wav" in line
    assert "finite" in line


def test_a_typo_in_a_label(run_fails, table):
    line = run_fails(table(["good0.wav", 0, 4, "buz", "a"]))
    assert "row 2" in line
    assert "'buz'" in line
    assert "no_buzz" in line


def test_a_missing_column(run_fails, table):
    line = run_fails(table(header=["file", "start_s", "end_s", "kind", "location"]))
    assert "label" in line
    assert "kind" in line


def test_one_class_only(run_fails, tmp_path):
    soundfile.write(tmp_path / "a.wav", sound(60), RATE_HZ)
    path = tmp_path / "labels.csv"
    path.write_text("file,start_s,end_s,label,location\na.wav,0,60,no_buzz,here\n")
    assert "0 buzz windows" in run_fails(path)


def test_fewer_recordings_than_folds(run_fails, table):
    assert "too few for n_folds=9" in run_fails(table(), "--folds", "9")


def test_one_location_for_leaving_one_out(run_fails, table):
    line = run_fails(table(locations=1), "--test-location", "place0")
    assert "1 location" in line


def test_an_unknown_location(run_fails, table):
    assert "must be one of place0, place1" in run_fails(table(), "--test-location", "moon")


def test_an_out_folder_that_cannot_be_written(failing, table, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    line = failing("run", "--labels", table(), "--model", "beenet3", "--out", out)
    assert "file/out" in line
    assert "cannot write" in line


def test_an_unknown_model_lists_the_known(failing, table, tmp_path):
    line = failing("run", "--labels", table(), "--model", "bee", "--out", tmp_path / "out")
    assert "model='bee' must be one of beenet1, beenet2, beenet3" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "space.json"),
        ('{"kernel_bits": [3]}', "space.json: kernel_bits.0"),
        (default_space().model_dump_json().replace('"trial_epochs":1', '"trial_epochs":-1'),
         "space.json: trial_epochs"),
    ],
)  # fmt: skip
def test_a_damaged_search_space(run_fails, table, tmp_path, text, message):
    (tmp_path / "space.json").write_text(text)
    assert message in run_fails(table(), "--space", tmp_path / "space.json")


def test_what_a_csv_table_leaves_out_cannot_be_labelled(run_fails, table):
    assert "unannotated must not be given" in run_fails(table(), "--unannotated", "no_buzz")


def test_a_missing_table(run_fails, tmp_path):
    assert "labels.csv" in run_fails(tmp_path / "labels.csv")


def test_evaluating_a_folder_without_a_model(failing, table, tmp_path):
    assert "model.tflite" in failing("evaluate", tmp_path, "--labels", table())


def test_evaluating_a_damaged_model(monkeypatch, capsys, table, tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100))
    monkeypatch.setattr(sys, "argv", ["qbee", "evaluate", str(tmp_path), "--labels", str(table())])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "model.tflite" in capsys.readouterr().err


def test_searching_in_a_folder_without_a_job(failing, tmp_path):
    assert "no job was begun" in failing("search", tmp_path)


def test_skipping_what_cannot_be_read_is_counted(monkeypatch, capsys, table, tmp_path):
    from qbee.data import labels, windows
    from qbee.records import FrontEnd

    (tmp_path / "empty.wav").touch()
    path = table(["empty.wav", 0, 4, "buzz", "a"])
    made = windows.from_segments(labels.read(path), FrontEnd(), on_error="skip")
    assert len(made.skipped) == 1
    assert "empty.wav" in made.skipped[0]
    assert len(made.windows) == 12 * 4


def test_help_names_every_stage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qbee", "--help"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    verbs = ("demo", "synth", "run", "train", "search", "space", "export", "verify", "evaluate")
    for verb in verbs:
        assert verb in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "beenet3"],
        ["run", "--folds", "2"],
        ["fly"],
        ["synth", "--out", "x", "--buzzes", "y"],
        ["demo", "--seed", str(2**32)],
    ],
)
def test_a_wrong_use_of_the_command_line_is_one_line(failing, arguments):
    assert "--help" in failing(*arguments)


def test_a_space_without_a_layer_of_the_network(failing, table, tmp_path):
    space = default_space().model_dump()
    space["groups"] = {"stem": ["stem"], "block1": ["block1_*"], "head": ["head"]}
    (tmp_path / "space.json").write_text(json.dumps(space))
    out = tmp_path / "out"
    line = failing("run", "--labels", table(), "--model", "beenet3", "--out", out,
                   "--space", tmp_path / "space.json")  # fmt: skip
    assert "block2_dw" in line
    assert not out.exists()


def test_results_whose_settings_are_missing_are_not_taken_up(failing, table, tmp_path):
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    (out / "work" / "float.npz").touch()
    line = failing("run", "--labels", table(), "--model", "beenet3", "--out", out)
    assert "float.npz of a job whose job.json is missing" in line


def test_markup_in_a_location_is_printed_as_it_is(monkeypatch, capsys):
    scores = dict.fromkeys(("f1", "precision", "recall", "auc"), 0.5) | {
        "windows": 2, "positives": 1, "threshold": 0.5}  # fmt: skip
    found = scores | {"model": "[/b]m", "table": "t", "locations": {"[/b]place": scores},
                      "uncertain": 0, "too_short": 0, "skipped": ["[/i] bad"]}  # fmt: skip
    jobs.print_scores(found)
    printed = capsys.readouterr().out
    assert "[/b]place" in printed
    assert "[/i] bad" in printed
