"""The command line: parses, calls, prints."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from qbee.errors import QbeeError
from qbee.job.watcher import Watcher

if TYPE_CHECKING:
    from qbee.doctor.records import Examination

app = typer.Typer(
    name="qbee",
    help="Take a bee-buzz detector from field recordings to a microcontroller.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()


class OnError(StrEnum):
    """What to do with a recording that cannot be read."""

    stop = "stop"
    skip = "skip"


class Rest(StrEnum):
    """What the stretches of a recording are that no event covers."""

    ignore = "ignore"
    no_buzz = "no_buzz"
    uncertain = "uncertain"


class Bits(StrEnum):
    """Bit widths a scheme can have."""

    four = "4"
    eight = "8"
    sixteen = "16"


class Standardize(StrEnum):
    """How mel images are brought to one level."""

    window = "window"
    fold = "fold"


Labels = Annotated[
    Path,
    typer.Option(
        help="Table of labelled segments: a CSV (file, start_s, end_s or duration_s, label, "
        "location), a Raven selection table, Audacity labels, or a folder of these.",
    ),
]
Model = Annotated[str, typer.Option(help="Network: beenet1 (largest), beenet2 or beenet3.")]
Out = Annotated[Path, typer.Option(help="Folder for all results; made if it does not exist.")]
Epochs = Annotated[
    int, typer.Option(min=1, help="Epochs of float training, of 1024 windows at least.")
]
FineTune = Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning of the winner.")]
Folds = Annotated[
    int,
    typer.Option(min=3, help="Parts the recordings are cut into: one validates, one is scored."),
]
Trials = Annotated[int, typer.Option(min=1, help="Bit-width schemes to try.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Equal seeds give equal results on one machine.")
]
Space = Annotated[
    Path | None, typer.Option(help="Search space (JSON); the one for BeeNets by default.")
]
HowToStandardize = Annotated[
    Standardize,
    typer.Option(help="Level each window by itself, or all by the training windows."),
]
Augment = Annotated[bool, typer.Option(help="Vary the training images (for small data).")]
Balance = Annotated[bool, typer.Option(help="Weigh the rarer class up in training.")]
StopAfter = Annotated[
    int | None,
    typer.Option(min=1, help="End a training that has not got better for so many epochs."),
]
Errors = Annotated[
    OnError, typer.Option(help="Stop at a recording that cannot be read, or skip and report it.")
]
Unannotated = Annotated[
    Rest,
    typer.Option(help="What the stretches are that a Raven or Audacity table leaves out."),
]
TestLocation = Annotated[
    str | None,
    typer.Option(help="Score on this location and train on the others."),
]
Folder = Annotated[Path, typer.Argument(help="Result folder of a job.")]


class _Terminal(Watcher):
    """Shows the stages of a job as progress bars."""

    def __init__(self) -> None:
        self.bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._task: Any = None

    def __enter__(self) -> _Terminal:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.bars.stop()

    def _close(self) -> None:
        if self._task is not None:
            total = self.bars.tasks[self._task].total or 1
            self.bars.update(self._task, total=total, completed=total)

    def stage(self, title: str) -> None:
        """Begin a new bar."""
        self._close()
        self._task = self.bars.add_task(title, total=None, text="")

    def progress(self, done: int, total: int, text: str) -> None:
        """Move the current bar."""
        if self._task is not None:
            self.bars.update(self._task, completed=done, total=total, text=text)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.bars.console.print(text, markup=False)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _summary(results: dict[str, Any], out: Path) -> None:
    """Print what a finished job found."""
    test = results["data"]["splits"]["test"]
    title = f"F1 on {test['windows']} test windows, {test['positives']} with buzz"
    table = Table("", "F1", "bytes", title=title)
    table.add_row("float", _percent(results["float"]["f1"]), str(results["float"]["size_bytes"]))
    table.add_row("int8", _percent(results["int8"]["f1"]), str(results["int8"]["tflite_bytes"]))
    winner = results["winner"]
    table.add_row(
        "mixed precision, on TFLite Micro",
        _percent(winner["f1_tflm"]),
        str(winner["tflite_bytes"]),
    )
    console.print(table)
    check = results["verify"]
    console.print(
        f"numpy == Keras == TFLite Micro on {check['windows']} windows: "
        f"{check['mismatches']} mismatches. Arena: {winner['arena_bytes']} bytes."
    )
    left_out = results["data"]
    console.print(
        f"Left out: {left_out['uncertain']} uncertain windows, {left_out['too_short']} segments "
        f"too short, {len(left_out['skipped'])} recordings skipped."
    )
    for message in left_out["skipped"]:
        console.print(f"  skipped: {message}", markup=False)
    console.print(f"Report: {out / 'report.html'}", markup=False, soft_wrap=True)
    if check["mismatches"]:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Out = Path("demo_out"),
    epochs: Epochs = 20,
    trials: Trials = 10,
    seed: Seed = 0,
) -> None:
    """Do the whole job on generated soundscapes: the quickest way to see what qbee does."""
    from qbee.job import verbs

    with _Terminal() as watcher:
        results = verbs.demo(out, epochs=epochs, trials=trials, seed=seed, watcher=watcher)
    _summary(results, out)


@app.command()
def synth(
    out: Out,
    seed: Seed = 0,
    recordings: Annotated[int, typer.Option(min=1, help="Recordings per location.")] = 8,
    duration_s: Annotated[float, typer.Option(min=8, help="Length of a recording, s.")] = 180.0,
    buzzes: Annotated[
        Path | None, typer.Option(help="Folder of real buzz clips to mix (with --backgrounds).")
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="Folder of real backgrounds to mix the buzzes into.")
    ] = None,
) -> None:
    """Make labelled recordings: soundscapes of nest boxes, or mixtures of real sounds."""
    from qbee.audio import mixing
    from qbee.audio import synth as generator

    if (buzzes is None) != (backgrounds is None):
        raise typer.BadParameter("--buzzes and --backgrounds go together")
    if buzzes is None or backgrounds is None:
        table = generator.soundscapes(
            out, seed=seed, recordings_per_location=recordings, duration_s=duration_s
        )
    else:
        table = mixing.mix(
            buzzes, backgrounds, out, seed=seed, recordings=recordings, duration_s=duration_s
        )
    console.print(f"Labels: {table}", markup=False, soft_wrap=True)


@app.command()
def run(
    ctx: typer.Context,
    labels: Labels,
    model: Model,
    out: Out,
    epochs: Epochs = 20,
    trials: Trials = 10,
    fine_tune_epochs: FineTune = 5,
    folds: Folds = 5,
    seed: Seed = 0,
    space: Space = None,
    standardize: HowToStandardize = Standardize.window,
    augment: Augment = True,
    balance_classes: Balance = False,
    stop_after_epochs: StopAfter = None,
    on_error: Errors = OnError.stop,
    unannotated: Unannotated = Rest.ignore,
    test_location: TestLocation = None,
) -> None:
    """Do the whole job: labelled recordings in, a verified .tflite out. Resumes if interrupted."""
    from qbee.job import verbs

    with _Terminal() as watcher:
        results = verbs.run(**ctx.params, watcher=watcher)
    _summary(results, out)


@app.command()
def train(
    ctx: typer.Context,
    labels: Labels,
    model: Model,
    out: Out,
    epochs: Epochs = 20,
    trials: Trials = 10,
    fine_tune_epochs: FineTune = 5,
    folds: Folds = 5,
    seed: Seed = 0,
    space: Space = None,
    standardize: HowToStandardize = Standardize.window,
    augment: Augment = True,
    balance_classes: Balance = False,
    stop_after_epochs: StopAfter = None,
    on_error: Errors = OnError.stop,
    unannotated: Unannotated = Rest.ignore,
    test_location: TestLocation = None,
) -> None:
    """First stage: read the recordings and train the float model."""
    from qbee.job import verbs

    with _Terminal() as watcher:
        job = verbs.train(**ctx.params, watcher=watcher)
        scores = job.float_scores[0]
    console.print(
        f"Float F1 {_percent(scores.f1)} on {scores.windows} test windows, "
        f"{scores.positives} with buzz."
    )


@app.command()
def search(out: Folder) -> None:
    """Second stage: search the bit widths of every layer and fine-tune the winner."""
    from qbee.job import verbs

    with _Terminal() as watcher:
        winner = verbs.search(out, watcher=watcher).winner
    found = winner.measured
    console.print(
        f"Winner: trial {winner.number} ({winner.origin}), validation F1 {_percent(found.f1)}, "
        f"{found.tflite_bytes} bytes. Scheme: {out / 'scheme.json'}",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def export(out: Folder) -> None:
    """Third stage: write the .tflite, its C source and the front end."""
    from qbee.job import verbs

    with _Terminal() as watcher:
        job = verbs.export(out, watcher=watcher)
    console.print(
        f"{len(job.micro.content)} bytes: {out / 'model.tflite'}", markup=False, soft_wrap=True
    )


@app.command()
def verify(out: Folder) -> None:
    """Last stage: compare numpy, Keras and TFLite Micro, score the device's outputs, report."""
    from qbee.job import verbs

    with _Terminal() as watcher:
        results = verbs.verify(out, watcher=watcher)
    _summary(results, out)


@app.command()
def evaluate(
    folder: Folder,
    labels: Labels,
    on_error: Errors = OnError.stop,
    unannotated: Unannotated = Rest.ignore,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Score a finished detector on other labelled recordings, through TFLite Micro."""
    from qbee import detector

    with Progress(console=console, transient=True, disable=as_json) as bars:
        task = bars.add_task("Listening", total=None)
        found = detector.evaluate(
            folder,
            labels,
            on_error=on_error.value,
            unannotated=unannotated.value,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    print_scores(found)


@app.command()
def quantize(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(help="Trained Keras model, .keras or .h5.")],
    inputs: Annotated[
        Path, typer.Option(help="Typical inputs without labels: a .npy array (n, ...).")
    ],
    out: Out,
    kernels: Annotated[Bits, typer.Option(help="Bits of all kernels.")] = Bits.eight,
    maps: Annotated[Bits, typer.Option(help="Bits of all feature maps.")] = Bits.eight,
    scheme: Annotated[
        Path | None, typer.Option(help="Bits of every layer (JSON), instead of the two above.")
    ] = None,
    free_steps: Annotated[
        bool, typer.Option(help="Any steps; by default they are powers of two.")
    ] = False,
    calibration: Annotated[
        str, typer.Option(help="How ranges of feature maps are found: mse, minmax, kl, octav, ...")
    ] = "mse",
    fine_tune: Annotated[
        bool, typer.Option(help="Fine-tune without labels, towards the float model.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Quantize anybody's trained Keras model and prove the .tflite on TFLite Micro."""
    from qbee.job import any_model

    widths = {name: int(ctx.params[name].value) for name in ("kernels", "maps")}
    with _Terminal() as watcher:
        found = any_model.quantize_file(**ctx.params | widths, watcher=watcher)
    table = Table(title=f"On {found.held_out_inputs} inputs that were held out")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("float weights, bytes", str(found.float_bytes))
    table.add_row(".tflite, bytes", str(found.tflite_bytes))
    table.add_row("arena of TFLite Micro, bytes", str(found.arena_bytes))
    table.add_row("error of the outputs", _percent(found.rms_error))
    table.add_row("same class as float", _percent(found.same_class))
    table.add_row("mismatches numpy, Keras, TFLite Micro", str(found.mismatches))
    console.print(table)
    console.print(f"Model: {out / 'model.tflite'}", markup=False, soft_wrap=True)
    if found.mismatches:
        raise typer.Exit(1)


def print_scores(found: dict[str, Any]) -> None:
    """Print the scores of a detector on a label table, by location."""
    title = f"{found['model']} on {found['table']}, threshold {found['threshold']:.3f}"
    table = Table(title=escape(title))
    # Names of locations are folded, never cut.
    table.add_column("", overflow="fold")
    for heading in ("windows", "with buzz", "F1", "precision", "recall", "AUC"):
        table.add_column(heading)
    rows = {**found["locations"], "all": found}
    for place, scores in rows.items():
        table.add_row(
            escape(place),
            str(scores["windows"]),
            str(scores["positives"]),
            *(_percent(scores[name]) for name in ("f1", "precision", "recall", "auc")),
        )
    console.print(table)
    console.print(
        f"Left out: {found['uncertain']} uncertain windows, {found['too_short']} segments too "
        f"short, {len(found['skipped'])} recordings skipped."
    )
    for message in found["skipped"]:
        console.print(f"  skipped: {message}", markup=False)


@app.command()
def doctor(
    model: Annotated[Path, typer.Argument(help="Quantized Keras model, .keras or .h5.")],
    inputs: Annotated[Path, typer.Option(help="Inputs of the model: an array (n, ...) as .npy.")],
    fix: Annotated[
        Path | None, typer.Option(help="Write the model with better quantizers here (.keras).")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all measures and findings here (.json).")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the measures here (.png).")] = None,
) -> None:
    """Say what is wrong with the quantizers of a QKeras model, layer by layer, and fix it."""
    from qbee import doctor as po2
    from qbee.quantize import stored
    from qbee.report import doctor_plots, doctor_table

    for path, suffix in ((fix, ".keras"), (json_file, ".json"), (picture, ".png")):
        if path is not None:
            stored.check_output(path, suffix)
    loaded = stored.load_model(model)
    values = stored.load_inputs(inputs, loaded)
    found = po2.examine(loaded, values)
    print_examination(found)
    if json_file is not None:
        found.save(json_file)
    if picture is not None:
        doctor_plots.examination(found, picture)
    if fix is not None:
        fixed, changes = po2.fix(loaded, values)
        stored.save_model(fixed, fix)
        console.print(f"{len(changes)} quantizers replaced: {fix}", markup=False, soft_wrap=True)
        console.print(f"Now {doctor_table.summary(po2.examine(fixed, values))}")


def print_examination(found: Examination) -> None:
    """Print measures and findings of a quantized model."""
    from qbee.report import doctor_table

    console.print(doctor_table.table(found))
    for sentence in doctor_table.sentences(found):
        console.print(sentence, markup=False)
    console.print(doctor_table.summary(found))


def main() -> None:
    """Run the command line; an error on purpose is one line and exit code 2."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except QbeeError as error:
        _stop(str(error), code=2)
    except typer.TyperException as error:
        _stop(f"{error.format_message()} (see --help)", code=2)
    except (KeyboardInterrupt, typer.Abort):
        _stop("stopped; the same command continues", code=130)
    raise SystemExit(code or 0)


def _stop(message: str, *, code: int) -> NoReturn:
    print(f"qbee: {message}", file=sys.stderr)
    raise SystemExit(code)
