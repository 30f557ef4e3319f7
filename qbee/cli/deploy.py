"""Commands on the way to the device: export, verify, inspect."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qbee.cli.jobs import summary
from qbee.cli.options import AsJson, MaxArena
from qbee.cli.terminal import Terminal, app, console, print_line
from qbee.files import check_output, read_bytes


class Kind(StrEnum):
    """Which network of a job is exported."""

    winner = "winner"
    int8 = "int8"
    float = "float"


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Result folder of 'run' or of 'quantize'.")],
    kind: Annotated[
        Kind, typer.Option(help="Of a job: the winner, plain 8 bits, or the float network.")
    ] = Kind.winner,
    target: Annotated[str, typer.Option(help="What runs it: tflm, litert or ethos-u.")] = "tflm",
    max_arena: MaxArena = None,
    max_recompute: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=1000,
            help="Multiplications allowed, as a multiple, for computing layers in strips. Alone, "
            "it gives the smallest arena; with --max-arena, 1.3 unless given.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Fail if anything is stored in more bits than asked for.")
    ] = False,
    metadata: Annotated[
        bool,
        typer.Option(help="Keep front end, labels, threshold and training in the file, for qbee."),
    ] = True,
    firmware: Annotated[
        bool, typer.Option(help="Also write a C++ library for Arduino, PlatformIO, Zephyr, CMake.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; by default, the result folder.")
    ] = None,
) -> None:
    """Write the .tflite for a target, its C source and its fidelity table."""
    from qbee.export.delivery import ExportSettings
    from qbee.job import deployment
    from qbee.report import fidelity_table

    settings = ExportSettings(
        target=target,
        max_arena_bytes=max_arena,
        max_recompute=max_recompute,
        is_strict=strict,
        has_metadata=metadata,
    )
    with Terminal() as watcher:
        delivered = deployment.export(
            folder, settings, kind=kind.value, out=out, has_firmware=firmware, watcher=watcher
        )
    if delivered.delivery is not None:
        console.print(fidelity_table.table(delivered.delivery.fidelity))
        for line in fidelity_table.sentences(delivered.delivery):
            print_line(line)
    console.print(
        f"{delivered.tflite_bytes} bytes; arena on TFLite Micro: {delivered.arena_bytes} bytes."
    )
    sizes = {"arena_bytes": delivered.arena_bytes, "tflite_bytes": delivered.tflite_bytes}
    print_line(fidelity_table.fits(**sizes))
    print_line(f"Model: {delivered.folder / 'model.tflite'}")


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="Result folder of a job, or any .tflite file.")],
    windows: Annotated[
        Path | None, typer.Option(help="Inputs for a file: a .npy array (n, ...).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare numpy, Keras and TFLite Micro and score a job; or try out a .tflite of anybody."""
    if path.is_dir():
        _verify_job(path, windows, as_json)
    else:
        _verify_file(path, windows, as_json)


def _verify_job(folder: Path, windows: Path | None, as_json: bool) -> None:
    from qbee.job import verbs
    from qbee.report import fidelity_table

    if windows is not None:
        raise typer.BadParameter("--windows goes with a .tflite file; a job has its test windows")
    if as_json:
        results = verbs.verify(folder)
        print(json.dumps(results["verify"], indent=2))
        raise typer.Exit(int(results["verify"]["mismatches"] > 0))
    with Terminal() as watcher:
        results = verbs.verify(folder, watcher=watcher)
    console.print(fidelity_table.verification(results["verify"]))
    for sentence in fidelity_table.comparisons(results["verify"]):
        console.print(sentence, markup=False)
    summary(results, folder)


def _verify_file(path: Path, windows: Path | None, as_json: bool) -> None:
    from qbee.report import trial_table
    from qbee.runtime import trial

    content = read_bytes(path)
    inputs = None if windows is None else trial.read_windows(windows)
    if as_json:
        print(trial.run(content, source=str(path), windows=inputs).model_dump_json(indent=2))
        return
    with Terminal() as watcher:
        watcher.stage("Running it")
        found = trial.run(
            content,
            source=str(path),
            windows=inputs,
            on_progress=lambda done, total: watcher.progress(done, total, ""),
        )
    console.print(trial_table.table(found))
    for sentence in trial_table.sentences(found):
        console.print(sentence, markup=False)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A .tflite of anybody.")],
    as_json: AsJson = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the arena over time here (.png).")
    ] = None,
) -> None:
    """Say what is in a .tflite: operators, widths, bytes, scales, and its arena over time."""
    from qbee.report import arena_plot, inspection_table
    from qbee.runtime.inspection import inspect as examined

    if picture is not None:
        check_output(picture, ".png")
    found = examined(read_bytes(path), str(path))
    if picture is not None:
        arena_plot.arena(found, picture)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    console.print(inspection_table.table(found))
    for sentence in inspection_table.sentences(found):
        console.print(sentence, markup=False)
    if picture is not None:
        print_line(f"Picture: {picture}")
