"""Commands that take anybody's model: quantize, doctor, inspect, export and verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from qbee.cli.options import Bits, KernelSteps, Out, Seed, Steps
from qbee.cli.terminal import Terminal, app, console, percent, print_line
from qbee.files import check_output

if TYPE_CHECKING:
    from qbee.doctor.records import Examination


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
    steps: Steps = KernelSteps.channel,
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
    with Terminal() as watcher:
        found = any_model.quantize_file(
            **ctx.params | widths | {"steps": steps.value}, watcher=watcher
        )
    table = Table(title=f"On {found.held_out_inputs} inputs that were held out")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("float weights, bytes", str(found.float_bytes))
    table.add_row(".tflite, bytes", str(found.tflite_bytes))
    table.add_row("arena of TFLite Micro, bytes", str(found.arena_bytes))
    table.add_row("error of the outputs", percent(found.rms_error))
    table.add_row("same class as float", percent(found.same_class))
    table.add_row("mismatches numpy, Keras, TFLite Micro", str(found.mismatches))
    console.print(table)
    print_line(f"Model: {out / 'model.tflite'}")
    if found.mismatches:
        raise typer.Exit(1)


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
            check_output(path, suffix)
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
