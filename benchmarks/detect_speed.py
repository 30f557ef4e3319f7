"""Speed and memory of `qbee detect`, from 16 kHz WAV files to finished tables.

Run with ``python -m benchmarks.detect_speed``; about eight minutes on two cores. BeeNet3 with
8-bit and with 4-bit kernels and maps (random weights, which cost what trained ones do) hears hum
in noise through LiteRT. The speed is that of the command line: user and system time of all its
processes for two hours of files, and for four, less that for a minute, which is what starting,
probing the file and drawing cost. Then the stages of the process that listens are timed one after
the other: each is what its part of the pipeline takes more than the part before. Last, the command
hears one file of twelve hours: the peak memory of a process is what Linux says of it (VmHWM). The
last line is JSON.
"""

import os

# Before numpy is imported, here and in the processes that are measured.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from benchmarks import outcome
from benchmarks.exactness import trained_looking
from benchmarks.frontend import RATE_HZ, write_recording
from qbee.audio import load, mel
from qbee.audio.faults import FaultMeter
from qbee.detect.listening import listen
from qbee.detect.recordings import Dating, inspect
from qbee.detector import FRONT_END, MODEL, Card
from qbee.export.delivery import ExportSettings, deliver
from qbee.field.detecting import FileEars, detect
from qbee.quantize import convert
from qbee.quantize.calibrate import calibrate
from qbee.quantize.scheme import uniform
from qbee.records import FrontEnd

# Bits of kernels and maps: seconds of audio per CPU second at least.
LEAST_SPEED = {8: 1000.0, 4: 800.0}
# So many that what starting costs, which varies by half a second, is a small part.
FILES, FILE_S, SHORT_S, LONG_S = 12, 600, 60, 12 * 3600
MOST_MB, MOST_UNEVEN = 600.0, 0.1
# Other programs on the machine only ever add to the CPU time, so the least of some runs counts.
REPEATS = 3
SAMPLING_S = 0.05


def write_detectors(folder: Path) -> dict[int, Path]:
    """Result folders of BeeNet3 by bits, with what a detection needs."""
    net, x = trained_looking("beenet3", 128, 0)
    maps, front_end = calibrate(net, x, seed=0), FrontEnd()
    card = Card(front_end=front_end, threshold=0.5)
    found = {}
    for bits in LEAST_SPEED:
        model = convert.quantized_model(net, uniform(net, bits=bits), maps)
        fixed = convert.to_fixed_point(model)
        delivery = deliver(fixed, ExportSettings(), metadata=card.to_metadata())
        found[bits] = folder / f"bits{bits}"
        found[bits].mkdir()
        (found[bits] / MODEL).write_bytes(delivery.exported.content)
        front_end.save(found[bits] / FRONT_END)
    return found


def write_recordings(folder: Path, count: int, seconds: int) -> list[Path]:
    """Files of a recorder that continue each other."""
    folder.mkdir()
    begun = datetime(2024, 5, 1, 20)
    starts = [begun + timedelta(seconds=seconds * number) for number in range(count)]
    return [write_recording(folder / f"{start:%Y%m%d_%H%M%S}.wav", seconds) for start in starts]


def command(paths: Sequence[Path], model: Path, out: Path) -> list[str]:
    """The detection of some files. How many clips are cut does not depend on their length."""
    start = [sys.executable, "-m", "qbee", "detect", *map(str, paths)]
    return [*start, "--model", str(model), "--out", str(out), "--clips", "0"]


def children_s() -> float:
    """CPU time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command_s(paths: Sequence[Path], model: Path) -> float:
    """CPU time of a detection, of all its processes: the least of some runs."""
    seconds = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as out:
            begin = children_s()
            line = command(paths, model, Path(out) / "out")
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            seconds.append(children_s() - begin)
    return min(seconds)


def cpu_s(work: Callable[[], object]) -> float:
    """CPU time of some work in this process: the least of some runs, after one to warm up."""
    seconds = []
    for number in range(1 + REPEATS):
        begin = time.process_time()
        work()
        if number:
            seconds.append(time.process_time() - begin)
    return min(seconds)


def stages_s(paths: Sequence[Path], model: Path) -> dict[str, float]:
    """CPU time of each stage of listening to files."""
    ears = FileEars(model, "litert")()
    front_end, found = ears.front_end, [inspect(path, Dating()) for path in paths]

    def decode(path: Path) -> None:
        for _ in load.stream(path, sample_rate_hz=RATE_HZ):
            pass

    def resample(path: Path) -> None:
        for _ in load.stream(path, sample_rate_hz=front_end.sample_rate_hz):
            pass

    def image(path: Path) -> None:
        for _ in mel.windows(path, front_end):
            pass

    def meter(path: Path) -> None:
        for _ in mel.windows(path, front_end, listener=FaultMeter(RATE_HZ).add):
            pass

    def hear() -> None:
        for one in found:
            listen(
                one,
                skip_samples=0,
                front_end=front_end,
                logits=ears.logits,
                on_progress=lambda seconds: None,
            )

    steps = {"decode": decode, "resample": resample, "mel": image, "silence, clipping": meter}
    whole = [cpu_s(lambda step=step: [step(path) for path in paths]) for step in steps.values()]
    whole.append(cpu_s(hear))
    names = [*steps, "standardise, inference"]
    before = [0.0, *whole[:-1]]
    return {n: more - less for n, more, less in zip(names, whole, before, strict=True)}


def output_s(paths: Sequence[Path], model: Path) -> float:
    """CPU time of tables and plots of files that are heard already."""
    with tempfile.TemporaryDirectory() as out:
        return cpu_s(lambda: detect(paths, model, Path(out), clip_count=0))


class Speed(NamedTuple):
    """CPU seconds of detections by one detector."""

    fixed: float
    once: float
    twice: float
    stages: dict[str, float]

    @property
    def audio_s(self) -> float:
        """Seconds of audio per CPU second, of all processes."""
        return (2 * FILES * FILE_S - SHORT_S) / (self.twice - self.fixed)

    @property
    def worker_audio_s(self) -> float:
        """The same of listening and writing in one process."""
        return FILES * FILE_S / sum(self.stages.values())

    @property
    def unevenness(self) -> float:
        """How far twice the files are from twice the CPU time, as a share."""
        return abs((self.twice - self.fixed) / (2 * (self.once - self.fixed)) - 1)


def measured(short: Path, paths: Sequence[Path], model: Path) -> Speed:
    """Speed of a detector on the files, the first half of them and a short one."""
    half = paths[:FILES]
    stages = stages_s(half, model)
    stages["tables"] = output_s(half, model) - output_s([short], model)
    fixed, once, twice = (command_s(some, model) for some in ([short], half, paths))
    return Speed(fixed, once, twice, stages)


def peak_mb(process: int) -> float:
    """Peak resident memory of a process and of those it started, the largest of them, in MB."""
    peak = 0.0
    # It may have ended.
    with suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        peak = int(found[1]) / 2**10 if found else 0.0
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        peak = max([peak, *(peak_mb(int(child)) for child in children)])
    return peak


def long_file(folder: Path, model: Path) -> tuple[float, float]:
    """Peak memory in MB and CPU seconds of a detection of one long file."""
    (path,) = write_recordings(folder / "long", 1, LONG_S)
    peak, begin = 0.0, children_s()
    line = command([path], model, folder / "out")
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, peak_mb(process.pid))
            time.sleep(SAMPLING_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    path.unlink()
    return peak, children_s() - begin


def show(bits: int, speed: Speed) -> None:
    """Print what a detector takes."""
    print(f"BeeNet3, {bits} bits, {FILES} files of {FILE_S / 60:.0f} min")
    for name, seconds in speed.stages.items():
        print(f"  {name:<42}{seconds:>8.2f} CPU s")
    print(f"  {'these stages':<42}{speed.worker_audio_s:>8.0f} s of audio per CPU second")
    print(
        f"  {'the command, all its processes':<42}{speed.audio_s:>8.0f} s of audio per CPU second"
    )
    print(f"  {'not counted: starting, probing, drawing':<42}{speed.fixed:>8.2f} CPU s")
    share = 100 * speed.unevenness
    print(f"  {'twice the files, off twice the time':<42}{share:>8.1f} %", flush=True)


def misses(speeds: dict[int, Speed], peak: float) -> dict[str, bool]:
    """Say for each bar, in words, what missing it means, and whether it is missed."""
    found = {f"{peak:.0f} MB are more than {MOST_MB:.0f}": peak > MOST_MB}
    for bits, speed in speeds.items():
        least = LEAST_SPEED[bits]
        slowest = min(speed.audio_s, speed.worker_audio_s)
        found[f"{bits} bits: {slowest:.0f} s a CPU second, below {least:.0f}"] = slowest < least
        uneven = f"{bits} bits: twice the files are {100 * speed.unevenness:.0f} % off"
        found[uneven] = speed.unevenness > MOST_UNEVEN
    return found


def main() -> None:
    """Measure, print tables and the JSON line; exit with 1 if a bar is missed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = write_detectors(folder)
        (short,) = write_recordings(folder / "short", 1, SHORT_S)
        paths = write_recordings(folder / "field", 2 * FILES, FILE_S)
        speeds = {}
        for bits, model in models.items():
            speeds[bits] = measured(short, paths, model)
            show(bits, speeds[bits])
        peak, seconds = long_file(folder, models[8])
    print(
        f"a file of {LONG_S / 3600:.0f} h: {peak:.0f} MB at most, {seconds:.0f} CPU s", flush=True
    )
    outcome.finish(
        "detect_speed",
        ours=speeds[8].audio_s,
        theirs=LEAST_SPEED[8],
        unit="s of audio per CPU second, and what is asked for",
        missed=misses(speeds, peak),
        four_bits=speeds[4].audio_s,
        peak_mb=peak,
    )


if __name__ == "__main__":
    main()
