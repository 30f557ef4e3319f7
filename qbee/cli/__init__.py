"""The command line: parses, calls, prints."""

from qbee.cli.entry import main

__all__ = ["main"]
