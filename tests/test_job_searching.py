"""The search of a job through the command line: continued, limited, shared and picked from."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import SMALL_JOB, qbee

from qbee import cli
from qbee.job.settings import SearchSettings, default_space
from qbee.job.verbs import resumed
from qbee.models import registry
from qbee.quantize.fold import fold
from qbee.quantize.scheme import Scheme
from qbee.search.domain import Domain

OF_A_SEARCH = ["search.db", "baselines.json", "chosen.json"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process; gives what it prints, or the one line of its error."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["qbee", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        assert stopped.value.code == code, printed.err
        if not code:
            return printed.out
        (line,) = [text for text in printed.err.splitlines() if text.startswith("qbee: ")]
        assert "Traceback" not in printed.err
        return line

    return run


@pytest.fixture
def finished(finished_job, tmp_path):
    """A copy of a finished job that may be changed."""
    return shutil.copytree(finished_job, tmp_path / "finished")


@pytest.fixture
def trained(finished):
    """A job whose float network is trained and whose search has not begun."""
    for name in ("model.tflite", "results.json", "report.html", "scheme.json", "search.json"):
        (finished / name).unlink()
    for path in (finished / "work").glob("tuned_*"):
        path.unlink()
    for name in OF_A_SEARCH:
        (finished / "work" / name).unlink()
    return finished


def trials_of(folder):
    return resumed(folder).search.journal.trials


def unchanging(trial):
    """What of a finished trial is the same wherever it is measured."""
    assert trial.state == "finished", trial.failure
    return (
        trial.point,
        trial.proposal.fidelity,
        trial.measured.model_copy(update={"cpu_seconds": 0}),
    )


def files_of(folder):
    """Content of a folder's own files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def continued(finished_job, tmp_path_factory):
    """A finished search continued with another strategy and more trials, of which two are tuned."""
    folder = tmp_path_factory.mktemp("continued")
    job = shutil.copytree(finished_job, folder / "job")
    printed = qbee("search", job, "--trials", "5", "--strategy", "nsga2", "--top", "2",
                   "--objective", "f1", "--objective", "arena_bytes",
                   "--tensorboard", folder / "logs").stdout  # fmt: skip
    qbee("verify", job)
    return job, folder / "logs", printed


def test_a_search_continues_and_measures_only_new_trials(continued, finished_job):
    before, after = trials_of(finished_job), trials_of(continued[0])
    assert [trial.number for trial in after] == [0, 1, 2, 3, 4]
    assert after[:3] == before
    assert len({json.dumps([t.point, t.proposal.fidelity.windows]) for t in after}) == 5
    # NSGA-II goes through the seeds that were not tried, then goes on by itself.
    assert "sensitivity" not in [trial.proposal.origin for trial in after[3:]]
    assert [trial.state for trial in after[3:]] == ["finished", "finished"]


def test_what_was_asked_of_a_search_is_kept_and_reported(continued):
    folder, _, printed = continued
    asked = SearchSettings.load(folder / "search.json")
    assert (asked.strategy, asked.trials, asked.top) == ("nsga2", 5, 2)
    found = json.loads((folder / "results.json").read_text())["search"]
    assert found["strategy"] == "nsga2"
    assert found["objectives"] == ["f1", "arena_bytes"]
    assert found["scored_on"] == "holdout"
    assert (found["trials"], found["failed"]) == (5, 0)
    assert "5 trials, front by f1, arena_bytes" in printed
    assert f"Winner: trial {found['winner_trial']}." in printed


def test_every_fine_tuned_trial_has_validation_and_test_f1(continued):
    found = json.loads((continued[0] / "results.json").read_text())
    tuned = {one["trial"]: one for one in found["search"]["fine_tuned"]}
    front = [one["trial"] for one in found["search"]["pareto"]]
    assert len(tuned) == min(2, len({*front, *tuned}))
    for one in tuned.values():
        assert 0 <= one["validation_f1"] <= 1
        assert 0 <= one["test_f1"] <= 1
        assert one["tflite_bytes"] > 8000
    winner = tuned[found["search"]["winner_trial"]]
    assert winner["test_f1"] == found["winner"]["f1_keras"]
    assert winner["tflite_bytes"] == pytest.approx(found["winner"]["tflite_bytes"], abs=64)


def test_trials_are_written_for_tensorboard(continued):
    events = list(continued[1].glob("events.out.tfevents.*"))
    content = b"".join(path.read_bytes() for path in events)
    for tag in (b"score", b"metrics/f1", b"costs/tflite_bytes"):
        # Also of the trials that were there before.
        assert content.count(tag) >= 5


def test_limits_that_cannot_be_met_leave_the_job_as_it_was(finished, run):
    before = files_of(finished)
    for option in (["--max-bytes", "1k"], ["--limit", "tflite_bytes<=1k"]):
        line = run("search", finished, *option, "--trials", "9", code=2)
        assert "is the lowest this network can reach, the limit is 1 000" in line
        lowest = int(line.split("tflite_bytes=")[1].split(" is")[0].replace(" ", ""))
        assert 7000 < lowest < 9000
    assert files_of(finished) == before
    assert len(trials_of(finished)) == 3


@pytest.mark.parametrize("strategy", ["sensitivity", "bayesian"])
def test_a_winner_keeps_the_limit_of_the_file_and_trials_beyond_it_do_not_count(
    finished, run, strategy
):
    run("search", finished, "--max-bytes", "10k", "--trials", "5", "--strategy", strategy)
    trials = trials_of(finished)
    within = [trial for trial in trials if trial.measured.costs["tflite_bytes"] <= 10_000]
    # Trials of the first search had no limit.
    assert len(within) == 5
    assert trials[3:] == [trial for trial in within if trial.number >= 3]
    job = resumed(finished)
    assert job.search_settings.limits.at_most == {"tflite_bytes": 10_000}
    assert job.winner.measured.costs["tflite_bytes"] <= 10_000
    assert len(job.micro.content) <= 10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--board", "moon"], "board='moon' must be one of nRF52833, nRF52840, RP2040"),
        (["--strategy", "luck"], "strategy='luck' must be one of random, bayesian, nsga2, tpe"),
        (["--objective", "luck"], "objective='luck' must be one of loss, f1, accuracy"),
        (["--objective", "f1"], "objectives=['f1'] must have a metric and a cost"),
        (["--limit", "tflite_bytes<9k"], "limit='tflite_bytes<9k' must look like"),
        (["--limit", "luck<=9k"], "cost='luck' must be one of bits, tflite_bytes"),
        (["--limit", "bits<=0"], "limit='bits<=0' must be positive"),
        (["--max-bytes", "few"], "'few' is no number of bytes such as"),
        (["--trials", "0"], "Invalid value for '--trials'"),
        (["--across", "space"], "Invalid value for '--across'"),
        (["--store", "grpc://127.0.0.1"], "store='grpc://127.0.0.1' must be grpc://host:port"),
    ],
)
def test_what_cannot_be_asked_of_a_search_is_one_line(finished_job, run, options, message):
    before = files_of(finished_job)
    assert message in run("search", finished_job, *options, code=2)
    assert files_of(finished_job) == before


def test_a_job_with_limits_of_an_unknown_board_is_not_begun(recordings, tmp_path, run):
    out = tmp_path / "out"
    options = ["--labels", recordings, "--out", out, *SMALL_JOB, "--board", "moon"]
    assert "board='moon' must be one of" in run("run", *options, code=2)
    assert not out.exists()


def test_the_scheme_of_the_best_trial_within_limits_is_picked(finished_job, run, tmp_path):
    sound = [trial for trial in trials_of(finished_job) if not trial.measured.is_collapsed]
    trials = {trial.measured.costs["tflite_bytes"]: trial for trial in sound}
    smallest = trials[min(trials)]
    to = tmp_path / "mine.json"
    limit = f"tflite_bytes<={min(trials):.0f}"
    printed = run("search", "pick", finished_job, "--limit", limit, "--to", to)
    assert f"Trial {smallest.number} ({smallest.proposal.origin})" in printed
    assert Scheme.load(to) == smallest.scheme
    run("search", "pick", finished_job, "--metric", "loss", "--to", to)
    best = min(trials.values(), key=lambda trial: trial.measured.metrics["loss"])
    assert Scheme.load(to) == best.scheme


def test_picking_within_limits_that_no_trial_keeps_names_the_lowest(finished_job, run, tmp_path):
    to = tmp_path / "mine.json"
    line = run("search", "pick", finished_job, "--max-bytes", "1k", "--to", to, code=2)
    assert line.startswith("qbee: no whole trial has tflite_bytes<=1 000; the lowest are ")
    assert "metric='luck'" in run(
        "search", "pick", finished_job, "--metric", "luck", "--to", to, code=2
    )
    assert "scheme.txt" in run(
        "search", "pick", finished_job, "--to", tmp_path / "scheme.txt", code=2
    )
    assert not list(tmp_path.iterdir())


def test_picking_from_a_search_without_trials_is_one_line(trained, run, tmp_path):
    to = tmp_path / "mine.json"
    assert "no whole trial is finished" in run("search", "pick", trained, "--to", to, code=2)
    assert not to.exists()


@pytest.mark.slow
def test_workers_killed_in_the_search_end_like_one_undisturbed(trained, recordings, finished_job):
    """Two workers; the kill ends the helper too, and the trials of both are given out again."""
    options = ["--labels", recordings, "--out", trained, *SMALL_JOB, "--workers", "2"]
    command = [sys.executable, "-m", "qbee", "run", *map(str, options)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = trained / "work" / "search.db"
    deadline = time.monotonic() + 300
    # A trial is running or done.
    while not (journal.exists() and b'"trial 0"' in journal.read_bytes()):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (trained / "model.tflite").exists()
    qbee("run", *options)
    before, after = trials_of(finished_job), trials_of(trained)
    assert [trial.number for trial in after] == [0, 1, 2]
    assert list(map(unchanging, after)) == list(map(unchanging, before))
    assert (trained / "model.tflite").read_bytes() == (finished_job / "model.tflite").read_bytes()


@pytest.mark.slow
def test_trials_scored_on_every_location_are_means_over_them(trained, run):
    printed = run("search", trained, "--across", "lolo", "--trials", "1")
    assert "F1 of trials is from inner folds" in printed
    job = resumed(trained)
    grounds = job.search.grounds(100)
    known = [*job.windows_of("train"), *job.windows_of("validation")]
    assert len(grounds) == len({window.location for window in known})
    test = set(job.fold.test)
    assert not any(test & {*ground.train, *ground.validation} for ground in grounds)
    (trial,) = trials_of(trained)
    assert trial.state == "finished"
    assert json.loads((trained / "search.json").read_text())["across"] == "lolo"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_stock_autoqkeras_is_a_strategy_with_a_journal_of_its_own(trained, run):
    options = ("search", trained, "--strategy", "autoqkeras", "--trials", 1)
    assert "not know the limits" in run(*options, "--max-bytes", "9k", code=2)
    first = run(*options)
    (trial,) = trials_of(trained)
    assert (trial.number, trial.proposal.origin) == (0, "autoqkeras")
    assert trial.scheme == Scheme.load(trained / "scheme.json")
    assert run(*options).splitlines()[-1] == first.splitlines()[-1]
    assert trials_of(trained) == [trial]


def test_another_machine_measures_trials_of_a_served_journal(finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    (other / "work" / "search.db").unlink()
    port = free_port()
    command = [sys.executable, "-m", "qbee", "search"]
    serving = subprocess.Popen(
        [*command, "serve", str(finished), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        here = subprocess.Popen([*command, str(finished), "--trials", "6"],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        there = qbee("search", other, "--trials", "6", "--store", f"grpc://127.0.0.1:{port}")
        assert here.wait(timeout=300) == 0
    finally:
        serving.terminate()
        serving.wait()
    trials = trials_of(finished)
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4, 5]
    assert {trial.state for trial in trials} == {"finished"}
    assert len({json.dumps([t.point, t.proposal.fidelity.windows]) for t in trials}) == 6
    assert "6 trials" in there.stdout
    assert not (other / "work" / "search.db").exists()


def test_serving_a_folder_without_a_job_is_one_line(run, tmp_path):
    assert "no job was begun" in run("search", "serve", tmp_path, code=2)


def test_a_space_is_shown_with_its_true_number_of_schemes(tmp_path):
    picture = tmp_path / "space.png"
    printed = qbee("space", "show", "--model", "beenet3", "--picture", picture).stdout
    # Kernels of four groups of layers and maps of three have three widths each.
    assert "beenet3: 2,187 schemes" in printed
    assert "stem.kernel" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_damaged_space_is_not_shown_but_its_field_named(run, tmp_path):
    (tmp_path / "space.json").write_text('{"kernel_bits": [3]}')
    assert "space.json: kernel_bits.0" in run("space", "show", tmp_path / "space.json", code=2)


def test_a_branching_network_can_be_searched():
    domain = Domain(default_space(), fold(registry.build("resnet9", n_mels=32, n_frames=32)))
    point = domain.random(np.random.default_rng(0))
    scheme = domain.scheme(point)
    assert set(scheme.layers) == set(domain.layers)
    # The sum of a branch has a map of its own, but no kernel.
    sums = [name for name, bits in scheme.layers.items() if bits.kernel is None]
    assert sums
    assert all(f"{default_space().group_of(name)}.map" in point for name in sums)
