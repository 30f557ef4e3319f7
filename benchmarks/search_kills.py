"""Twenty kills at random times in one search: nothing is lost, doubled or different.

Run with ``python -m benchmarks.search_kills``; about twelve minutes on two cores. A small job is
trained through the command line and copied. One copy is searched without a disturbance. The
other one is searched by processes that are killed with SIGKILL after a random time, then by one
that may finish. Ours is the number of trials of the second journal that are missing, doubled or
different from the first one's but for CPU seconds. Theirs is 0. The last line is JSON.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import outcome
from qbee.audio import synth
from qbee.job.verbs import resumed
from qbee.search.trial import Trial

KILLS, TRIALS, SEED = 20, 40, 0
# An undisturbed process starts measuring after about ten seconds.
SHORTEST_S, LONGEST_S = 6.0, 30.0


def qbee(*arguments: object) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "qbee", *map(str, arguments)]


def prepared(folder: Path) -> Path:
    """A job with a trained float network."""
    table = synth.soundscapes(folder / "sounds", seed=5, recordings_per_location=2, duration_s=44.0)
    job = folder / "job"
    command = qbee("train", "--labels", table, "--model", "beenet3", "--out", job)
    options = ["--epochs", "2", "--fine-tune-epochs", "1", "--folds", "3"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return job


def search_of(job: Path) -> list[str]:
    """The search of a job, by random schemes and by neighbours of the front alike."""
    return qbee("search", job, "--trials", TRIALS)


def kill_often(job: Path) -> None:
    """Start the search and kill it, many times."""
    rng = np.random.default_rng(SEED)
    for number in range(KILLS):
        running = subprocess.Popen(
            search_of(job), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(SHORTEST_S, LONGEST_S))
        was_running = running.poll() is None
        running.kill()
        running.wait()
        print(
            f"  kill {number + 1}: {'in mid-search' if was_running else 'it was over'}", flush=True
        )


def journal(job: Path) -> list[dict]:
    """Trials of a job without their CPU seconds."""
    return [without_time(trial) for trial in resumed(job).search.journal.trials]


def without_time(trial: Trial) -> dict:
    """All of a trial but how long it took."""
    found = trial.model_dump()
    if found["measured"] is not None:
        del found["measured"]["cpu_seconds"]
    return found


def main() -> None:
    """Measure and print the JSON line; exit with 1 if the journals differ."""
    with tempfile.TemporaryDirectory() as name:
        job = prepared(Path(name))
        jobs = {label: Path(name) / label for label in ("undisturbed", "killed")}
        for copy in jobs.values():
            shutil.copytree(job, copy)
        kill_often(jobs["killed"])
        for copy in jobs.values():
            subprocess.run(search_of(copy), check=True, stdout=subprocess.DEVNULL)
        wanted, found = (journal(jobs[label]) for label in ("undisturbed", "killed"))
    different = sum(one != other for one, other in zip(wanted, found, strict=False))
    different += abs(len(wanted) - len(found))
    outcome.finish(
        "search_kills",
        ours=different,
        theirs=0,
        unit=f"trials of {len(wanted)} that differ after {KILLS} kills",
        missed={f"{different} trials differ": different > 0},
        finished=sum(trial["state"] == "finished" for trial in found),
    )


if __name__ == "__main__":
    main()
