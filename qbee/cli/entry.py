"""The entry point of the command line."""

from __future__ import annotations

import io
import sys
from typing import NoReturn

import typer

# Importing them makes their commands known.
from qbee.cli import deploy, field, jobs, models, searching  # noqa: F401
from qbee.cli.terminal import app
from qbee.errors import QbeeError


def main() -> None:
    """Run the command line; an error on purpose is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files need not be text.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except QbeeError as error:
        _stop(str(error), code=2)
    except typer.TyperException as error:
        _stop(f"{error.format_message()} (see --help)", code=2)
    except OSError as error:
        # A full disk, a folder without permission, a file that is gone.
        name = f"{error.filename}: " if error.filename else ""
        _stop(f"{name}{error.strerror or error}", code=2)
    except (KeyboardInterrupt, typer.Abort):
        _stop("stopped; the same command continues", code=130)
    raise SystemExit(code or 0)


def _stop(message: str, *, code: int) -> NoReturn:
    print(f"qbee: {message}", file=sys.stderr)
    raise SystemExit(code)
