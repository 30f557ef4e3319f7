"""Whoever wants to hear what a job does."""

from __future__ import annotations


class Watcher:
    """Hears what a job does; this one says nothing."""

    def stage(self, title: str) -> None:
        """Hear that a stage begins."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Hear that ``done`` of ``total`` steps of the stage are finished."""

    def note(self, text: str) -> None:
        """Hear something worth a line."""
