"""Twenty-five kills at random moments of one detection: it ends as if there had been none.

Run with ``python -m benchmarks.detect_kills``; about three minutes on two cores. A BeeNet3 (8 bits,
random weights) hears 200 short recordings, some of them damaged, with two processes: once without
a disturbance, and into another folder by commands that are killed with SIGKILL after a random
time, all processes together or, every third time, only the first one, whose others must then end
by themselves. Some of the kills come before or after the listening. Then the same command may
finish. Ours is the number of files outside of the
folder ``work`` (tables, label files, plots, clips) that are missing, too many or not the same
byte by byte. Theirs is 0. The last line is JSON.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import outcome
from benchmarks.detect_speed import write_detectors

KILLS, SEED, WORKERS = 25, 0, 2
LOCATIONS, FILES_EACH, FILE_S, RATE_HZ = 4, 50, 120, 8000
DAMAGED_EVERY = 40
# One kill of so many comes while the processes start, or when all files are heard.
STARTING_EVERY, STARTING_S = 5, 4.0
# The others come so long after a file is heard; all files take about ten seconds.
LISTENING_S = 4.0
# Processes end with the first one; those that are just being started need a moment to know of it.
MOST_ORPHANED_S = 3.0
# Of a detection that is complete, but for damaged files.
SOME_DAMAGED = 1


def write_recordings(folder: Path) -> Path:
    """Recordings of some places that continue each other: hum that comes and goes in noise."""
    rng = np.random.default_rng(SEED)
    t = np.arange(FILE_S * RATE_HZ) / RATE_HZ
    hum = sum(0.1 / k * np.sin(2 * np.pi * 230 * k * t) for k in range(1, 6))
    noise = 0.02 * rng.standard_normal(len(t))
    for number in range(LOCATIONS * FILES_EACH):
        place, begun = folder / f"box{number % LOCATIONS}", datetime(2024, 5, 1, 20)
        place.mkdir(parents=True, exist_ok=True)
        start = begun + timedelta(seconds=FILE_S * (number // LOCATIONS))
        path = place / f"{start:%Y%m%d_%H%M%S}.wav"
        loudness = np.repeat(rng.uniform(0, 1, FILE_S // 4) ** 4, 4 * RATE_HZ)
        soundfile.write(path, loudness * hum + np.roll(noise, number * RATE_HZ), RATE_HZ)
        if number % DAMAGED_EVERY == 0:
            path.write_bytes(path.read_bytes()[: rng.integers(0, path.stat().st_size)])
    return folder


def detection(recordings: Path, model: Path, out: Path) -> list[str]:
    """The command line."""
    start = [sys.executable, "-m", "qbee", "detect", str(recordings), "--model", str(model)]
    options = ["--workers", str(WORKERS), "--on-error", "skip", "--clips", "3"]
    return [*start, "--out", str(out), *options]


def finish(command: list[str]) -> None:
    """Run a detection to its end."""
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code != SOME_DAMAGED:
        raise subprocess.CalledProcessError(code, command)


def is_alive(group: int) -> bool:
    """Whether a process of a group runs; one that has ended may still be listed."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


def orphaned_s(group: int) -> float:
    """Seconds until all processes of a group have ended by themselves; then they are killed."""
    begin = time.monotonic()
    while is_alive(group) and time.monotonic() - begin < 2 * MOST_ORPHANED_S:
        time.sleep(0.05)
    seconds = time.monotonic() - begin
    if is_alive(group):
        os.killpg(group, signal.SIGKILL)
    return seconds


def parts(out: Path) -> dict[str, int]:
    """What is kept of the recordings that were heard, and since when."""
    found = (out / "work" / "parts").glob("[!.]*.npz")
    return {path.name: path.stat().st_mtime_ns for path in found}


def wait_for_moment(running: subprocess.Popen, number: int, out: Path, moment: float) -> None:
    """Wait until a detection is to be killed; ``moment`` is in [0, 1)."""
    before = len(parts(out))
    if number % STARTING_EVERY == 0 or before == LOCATIONS * FILES_EACH:
        time.sleep(STARTING_S * moment)
        return
    while len(parts(out)) == before and running.poll() is None:
        time.sleep(0.01)
    time.sleep(LISTENING_S * moment)


def kill_often(command: list[str], out: Path) -> tuple[int, float]:
    """Start the detection and kill it, many times.

    Returns
    -------
    kills in mid-run, and the longest time that processes outlived the first one
    """
    rng, in_time, longest_s = np.random.default_rng(SEED), 0, 0.0
    for number in range(KILLS):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        wait_for_moment(running, number, out, rng.uniform())
        was_running, is_first_only = running.poll() is None, number % 3 == 2
        in_time += was_running
        if is_first_only:
            running.kill()
            longest_s = max(longest_s, orphaned_s(running.pid))
        elif was_running:
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        what = "the first process" if is_first_only else "all processes"
        state = f"{len(parts(out))} files heard" if was_running else "it was over"
        print(f"  kill {number + 1} of {what}: {state}", flush=True)
    return in_time, longest_s


def contents(out: Path) -> dict[str, bytes]:
    """All that a detection shows; what a killed process was just writing begins with a dot."""
    files = [path for path in out.rglob("[!.]*") if path.is_file()]
    named = {str(path.relative_to(out)): path for path in files}
    return {n: path.read_bytes() for n, path in named.items() if not n.startswith("work/")}


def main() -> None:
    """Measure and print the JSON line; exit with 1 if the folders differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, sounds = write_detectors(folder)[8], write_recordings(folder / "field")
        whole, killed = folder / "whole", folder / "killed"
        finish(detection(sounds, model, whole))
        command = detection(sounds, model, killed)
        in_time, orphans_s = kill_often(command, killed)
        kept = parts(killed)
        finish(command)
        again = sum(parts(killed)[part] != since for part, since in kept.items())
        wanted, found = contents(whole), contents(killed)
    different = sorted(n for n in wanted | found if wanted.get(n) != found.get(n))
    events = wanted["events.csv"].count(b"\n") - 1
    outcome.finish(
        "detect_kills",
        ours=len(different),
        theirs=0,
        unit=f"files of {len(wanted)} that differ after {KILLS} kills",
        missed={
            f"these differ: {', '.join(different)}": bool(different),
            f"{again} files that were heard are heard again": again > 0,
            f"processes outlive the first one by {orphans_s:.1f} s": orphans_s > MOST_ORPHANED_S,
            "nothing is detected, so nothing is compared": events == 0,
        },
        kills_in_mid_run=in_time,
        heard_again=again,
        orphans_s=orphans_s,
        recordings=LOCATIONS * FILES_EACH,
        events=events,
    )


if __name__ == "__main__":
    main()
