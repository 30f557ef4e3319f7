"""What the entries of a store mean: trials, claims on them, and what a search is about.

A log is made of entries under keys ("trial 3"); of the entries with one key the first counts, and
the others are void. As a store numbers entries in one order for all workers, exactly one of
those who want the same key gets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from qbee.errors import ModelFileError, ParameterError
from qbee.records import Record
from qbee.search.store import Entry, Store
from qbee.search.trial import Trial
from qbee.search.worker import Lease

R = TypeVar("R", bound=Record)
IDENTITY = "identity"


class _Identity(Record):
    """What all workers of a search must agree on."""

    identity: dict[str, str]


@dataclass(frozen=True)
class Row:
    """A trial, its entry in the store, and how often it was given out again."""

    trial: Trial
    entry: int
    attempt: int
    lease: Lease

    @property
    def lease_field(self) -> str:
        """Where the entry has the lease as renewed in this attempt."""
        return _lease_field(self.attempt)


def _trial_key(number: int) -> str:
    return f"trial {number}"


def _claim_key(number: int, attempt: int) -> str:
    return f"claim {number}.{attempt}"


def _lease_field(attempt: int) -> str:
    return f"lease {attempt}"


class Log:
    """Entries of one search."""

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name

    def add(self, number: int, content: dict[str, Any], lease: Lease) -> bool:
        """Whether this became the trial of that number; no other one can any more."""
        return self._append(_trial_key(number), content, lease, is_open=True)

    def claim(self, row: Row, lease: Lease) -> bool:
        """Whether the trial, as seen in this row, now has this lease and no other one."""
        return self._append(_claim_key(row.trial.number, row.attempt + 1), {}, lease, is_open=False)

    def _append(self, key: str, content: dict[str, Any], lease: Lease, *, is_open: bool) -> bool:
        """Whether the new entry is the one that counts under the key."""
        number = self.store.append(
            {"key": key, "lease": lease.model_dump(mode="json"), **content},
            state="running" if is_open else "void",
        )
        winner = self._lease(self._first()[key], "lease").worker
        # Not by number: an interrupted network may have stored our entry twice.
        if winner.token == lease.worker.token:
            return True
        if is_open:
            self.store.close(number, "void")
        return False

    def agree_on(self, identity: dict[str, str], lease: Lease) -> None:
        """Keep the identity of a new search; refuse another one.

        Raises
        ------
        ParameterError
            naming the first thing that differs.
        """
        if IDENTITY not in self._first():
            self._append(IDENTITY, {IDENTITY: identity}, lease, is_open=False)
        entry = self._first()[IDENTITY]
        kept = self._read(_Identity, entry, {IDENTITY: entry.content.get(IDENTITY)}).identity
        for field in sorted({*kept, *identity}):
            ours, theirs = identity.get(field), kept.get(field)
            if ours != theirs:
                raise ParameterError(
                    f"{self.store.address}: search {self.name!r} was begun with "
                    f"{field}={theirs!r}, not {ours!r}"
                )

    def _first(self) -> dict[str, Entry]:
        """The entry that counts, by key."""
        found: dict[str, Entry] = {}
        for entry in self.store.entries():
            key = entry.content.get("key")
            if not isinstance(key, str):
                where = f"{self.store.address}: search {self.name!r}: entry {entry.number}"
                raise ModelFileError(f"{where}: key={key!r} must be a text")
            found.setdefault(key, entry)
        return found

    def rows(self) -> list[Row]:
        """All trials in the order of their numbers."""
        entries = self._first()
        rows: list[Row] = []
        while (entry := entries.get(_trial_key(len(rows)))) is not None:
            rows.append(self._read_row(len(rows), entry, entries))
        return rows

    def row(self, number: int) -> Row:
        """One trial.

        Raises
        ------
        ParameterError
            if there is none of this number.
        """
        entries = self._first()
        entry = entries.get(_trial_key(number))
        if entry is None:
            raise ParameterError(f"number={number} must be a trial of {self.store.address}")
        return self._read_row(number, entry, entries)

    def _read_row(self, number: int, entry: Entry, entries: dict[str, Entry]) -> Row:
        attempt, holder = 0, entry
        while (claim := entries.get(_claim_key(number, attempt + 1))) is not None:
            attempt, holder = attempt + 1, claim
        renewed = _lease_field(attempt)
        if renewed in entry.content:
            lease = self._lease(entry, renewed)
        else:
            lease = self._lease(holder, "lease")
        return Row(self._trial(number, entry), entry.number, attempt, lease)

    def _trial(self, number: int, entry: Entry) -> Trial:
        fields = ["proposal", "scheme", "seed"]
        content = {field: entry.content[field] for field in fields if field in entry.content}
        # These two may be there before the state is; without them the state is a lie.
        if entry.state == "finished":
            content["measured"] = entry.content.get("measured", {})
        if entry.state == "failed":
            content["failure"] = entry.content.get("failure", {})
        return self._read(Trial, entry, {"number": number, "state": entry.state, **content})

    def _lease(self, entry: Entry, key: str) -> Lease:
        return self._read(Lease, entry, entry.content.get(key))

    def _read(self, kind: type[R], entry: Entry, content: Any) -> R:
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or kind.__name__.lower()
            where = f"{self.store.address}: search {self.name!r}: {entry.content['key']}"
            raise ModelFileError(f"{where}: {field}: {first['msg']}") from error
