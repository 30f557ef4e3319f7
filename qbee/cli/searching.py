"""Commands about searches and search spaces."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from qbee.cli.options import (
    Board,
    Folder,
    Limit,
    MaxArena,
    MaxBytes,
    Model,
    Objectives,
    Strategy,
    Top,
    Trials,
    Workers,
    limits_of,
    popped_limits,
)
from qbee.cli.terminal import Terminal, app, console, percent, print_line


class RunByDefault(TyperGroup):
    """A group whose command "run" need not be said: ``qbee search FOLDER``."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Put "run" before arguments that begin with no command."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


class Across(StrEnum):
    """On which folds trials are scored."""

    holdout = "holdout"
    cv = "cv"
    lolo = "lolo"


searches = typer.Typer(
    cls=RunByDefault,
    help="Search the bit widths of every layer: qbee search FOLDER (run), pick, serve.",
    no_args_is_help=True,
)
spaces = typer.Typer(help="Search spaces.", no_args_is_help=True)
app.add_typer(searches, name="search")
app.add_typer(spaces, name="space")

Store = Annotated[
    str | None,
    typer.Option(help="Journal of another machine, grpc://HOST:PORT (see 'qbee search serve')."),
]
Logs = Annotated[Path | None, typer.Option("--tensorboard", help="Folder for TensorBoard's logs.")]


@searches.command()
def run(
    ctx: typer.Context,
    out: Folder,
    trials: Trials = None,
    strategy: Strategy = None,
    objectives: Objectives = None,
    max_bytes: MaxBytes = None,
    max_arena: MaxArena = None,
    limit: Limit = None,
    board: Board = None,
    across: Annotated[
        Across | None, typer.Option(help="Score trials on the validation windows or inner folds.")
    ] = None,
    top: Top = None,
    workers: Workers = 1,
    store: Store = None,
    logs: Logs = None,
) -> None:
    """Search and fine-tune the best; continues, also with other options. No trial is repeated."""
    from qbee.job import verbs

    # Typer makes an empty list of an option that is not given.
    given: dict[str, Any] = dict(ctx.params) | {"objectives": objectives or None}
    given["limits"] = popped_limits(given)
    with Terminal() as watcher:
        job = verbs.search(**given, watcher=watcher)
    print_front(job)


def print_front(job) -> None:
    """Print the front of a search, and what became of its fine-tuned trials."""
    tuned = {one.trial.number: one for one in job.contenders}
    search, winner = job.search, job.winner
    shown = {trial.number: trial for trial in [*search.front, *(t.trial for t in tuned.values())]}
    table = Table(
        title=f"{len(search.trials)} trials, front by {', '.join(search.settings.objectives)}"
    )
    for heading in ("trial", "from", "bytes", "arena", "loss", "F1 (90 %)", "tuned", "test"):
        table.add_column(heading)
    for number, trial in sorted(
        shown.items(), key=lambda item: item[1].measured.costs["tflite_bytes"]
    ):
        m, one = trial.measured, tuned.get(number)
        last = ["", ""]
        if one is not None:
            last = [
                percent(one.again.measured.metrics["f1"]),
                percent(job.split.scores(one.model).f1),
            ]
        table.add_row(
            f"[bold]{number}[/bold]" if number == winner.number else str(number),
            trial.proposal.origin,
            f"{m.costs['tflite_bytes']:.0f}",
            f"{m.costs['arena_bytes'] / 1000:.0f}k",
            f"{m.metrics['loss']:.4f}",
            f"{100 * m.metrics['f1']:.1f} ({100 * m.interval[0]:.0f}–{100 * m.interval[1]:.0f})",
            *last,
        )
    console.print(table)
    labels = job.labels_of("validation")
    print_line(
        f"F1 of trials is from {search.scored_on} (90 % interval of {search.space.metric}); "
        f"there are {len(labels)} validation windows, {labels.sum()} with buzz. Test windows chose "
        f"nothing. Winner: trial {winner.number}. Scheme: {job.folder / 'scheme.json'}"
    )


@searches.command()
def pick(
    out: Folder,
    max_bytes: MaxBytes = None,
    max_arena: MaxArena = None,
    limit: Limit = None,
    board: Board = None,
    metric: Annotated[str, typer.Option(help="Metric by which the best is taken.")] = "f1",
    to: Annotated[Path, typer.Option(help="File for the scheme.")] = Path("scheme.json"),
) -> None:
    """Write the scheme of the best trial within limits."""
    from qbee.files import check_output
    from qbee.job import verbs
    from qbee.search.limits import Limits

    check_output(to, ".json")
    limits = limits_of(limit, board, max_bytes=max_bytes, max_arena=max_arena)
    trial = verbs.pick(out, limits or Limits(), metric=metric)
    trial.scheme.save(to)
    m = trial.measured
    assert m is not None
    print_line(
        f"Trial {trial.number} ({trial.proposal.origin}): {metric} {m.metrics[metric]:.4f} "
        f"in its trial, {m.costs['tflite_bytes']:.0f} bytes. Scheme: {to}"
    )


@searches.command()
def serve(
    out: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 13000,
) -> None:
    """Let other machines join this search: there, --store grpc://HOST:PORT and the same folder.

    There is no password: listen on trusted networks only.
    """
    from qbee.job.searching import JOURNAL
    from qbee.job.verbs import resumed
    from qbee.search import store

    work = resumed(out).work
    print_line(f"Serving the journal of {out} at grpc://{host}:{port}; interrupt to end.")
    store.serve(work / JOURNAL, host=host, port=port)


@spaces.command()
def show(
    space: Annotated[
        Path | None, typer.Argument(help="Search space (JSON); the default one without.")
    ] = None,
    model: Model = "beenet1",
    picture: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
) -> None:
    """Show the menus of a search space for a network, and how many schemes there are."""
    from qbee.files import check_output
    from qbee.job.settings import default_space
    from qbee.models import registry
    from qbee.quantize.fold import fold
    from qbee.report import space_plot
    from qbee.search.domain import Domain
    from qbee.search.space import SearchSpace

    if picture is not None:
        check_output(picture, ".png")
    found = default_space() if space is None else SearchSpace.load(space)
    domain = Domain(found, fold(registry.build(model)))
    table = Table(title=f"{model}: {space_plot.size_text(domain.size)}")
    for heading in ("hyperparameter", "menu", "elements"):
        table.add_column(heading)
    settled = {name: (value,) for name, value in domain.settled.items()}
    for name, menu in (domain.menus | settled).items():
        table.add_row(name, ", ".join(map(str, menu)), str(domain.elements.get(name, "")))
    console.print(table)
    if picture is not None:
        space_plot.space(
            domain.menus, domain.settled, domain.elements, picture, size=domain.size, name=model
        )
        print_line(f"Picture: {picture}")
