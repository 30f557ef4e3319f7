"""Where a journal is kept: a study in one of Optuna's storages, used as a log of entries.

An entry is an Optuna trial; its user attributes are the content. Entries are numbered in the
order in which they were appended, by all workers together: that is what a journal is built on.
Importing this module imports Optuna, which takes a while.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import optuna
import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage, run_grpc_proxy_server
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from qbee.errors import ModelFileError, ParameterError, StoreError

# How long a worker waits for another one's transaction, and for a server that is starting.
BUSY_S = 60.0
CONNECT_S = 10.0
FILE, NETWORK = "sqlite:///", "grpc://"

State = Literal["running", "finished", "failed", "void"]
_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "running",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "void",
}
_OPTUNA_STATES = {state: optuna_state for optuna_state, state in _STATES.items()}


@dataclass(frozen=True)
class Entry:
    """One entry; a state other than "running" is final, and so is the content then."""

    number: int
    state: State
    content: dict[str, Any]


class Store:
    """Entries of one study; ``address`` says in messages where they are."""

    def __init__(self, storage: BaseStorage, study_id: int, address: str):
        self._storage, self._study_id, self.address = storage, study_id, address

    def append(self, content: dict[str, Any], *, state: State) -> int:
        """Number of a new entry, which is stored whole or not at all.

        After an interruption of the network it may be stored twice.
        """
        template = create_trial(state=_OPTUNA_STATES[state], user_attrs=content)
        entry_id = self._call(self._storage.create_new_trial, self._study_id, template)
        return self._call(self._storage.get_trial, entry_id).number

    def entries(self) -> list[Entry]:
        """All entries in the order of their numbers."""
        found = self._call(self._storage.get_all_trials, self._study_id, deepcopy=False)
        return [Entry(each.number, _STATES[each.state], each.user_attrs) for each in found]

    def annotate(self, number: int, key: str, value: Any) -> bool:
        """Whether the entry was still running, so that this part of its content is set now."""
        return self._change(self._storage.set_trial_user_attr, number, key, value)

    def close(self, number: int, state: State, *, value: float | None = None) -> bool:
        """Whether the entry was still running and has this state now.

        ``value`` is for programs that show Optuna's studies.
        """
        values = None if value is None else [value]
        change = self._storage.set_trial_state_values
        return self._change(change, number, _OPTUNA_STATES[state], values)

    def _change(self, change, number: int, *arguments) -> bool:
        id_of = self._storage.get_trial_id_from_study_id_trial_number
        entry_id = self._call(id_of, self._study_id, number)
        try:
            self._call(change, entry_id, *arguments)
        except UpdateFinishedTrialError:
            return False
        return True

    def _call(self, function, *arguments, **settings):
        """Result of a call, made again if the server was away and comes back."""
        with _errors_of(self.address):
            try:
                return function(*arguments, **settings)
            except grpc.RpcError as error:
                is_away = error.code() is grpc.StatusCode.UNAVAILABLE
                if not (is_away and isinstance(self._storage, GrpcStorageProxy)):
                    raise
                self._storage.wait_server_ready(timeout=CONNECT_S)
                return function(*arguments, **settings)


@contextmanager
def _errors_of(address: str) -> Iterator[None]:
    """Turn the errors of databases and servers into ours."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise _database_error(address, error) from error
    except grpc.RpcError as error:
        reason = (error.details() or error.code().name).splitlines()[0]
        raise StoreError(f"{address}: the server failed: {reason}") from error
    except ConnectionError as error:
        raise StoreError(f"{address}: no server of a journal answers there") from error
    except json.JSONDecodeError as error:
        raise ModelFileError(f"{address}: damaged content: {error}") from error


def _database_error(address: str, error: Exception) -> StoreError | ModelFileError:
    cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
    reason = str(getattr(cause, "orig", None) or cause or error).splitlines()[0]
    # Locked, full or read-only: the file itself is sound.
    is_operational = isinstance(cause, sqlalchemy.exc.OperationalError)
    return (StoreError if is_operational else ModelFileError)(f"{address}: {reason}")


def open_store(place: str | Path, name: str, *, create: bool) -> Store:
    """The store of this name at a place, made if need be.

    Parameters
    ----------
    place : path of an SQLite file, "sqlite:///<path>", or "grpc://<host>:<port>" (see ``serve``)
    create : False refuses a name that is not there yet

    Raises
    ------
    ParameterError
        if the place is written wrongly, or does not have the name.
    ModelFileError
        if the file is no database of Optuna's.
    StoreError
        if the server does not answer, or the file is locked or cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    text = str(place)
    if isinstance(place, str) and text.startswith(NETWORK):
        storage, address = _connect(text), text
    elif isinstance(place, str) and "://" in text and not text.startswith(FILE):
        raise ParameterError(f"store={text!r} must be a file, {FILE}<file> or {NETWORK}host:port")
    else:
        path = Path(text.removeprefix(FILE) if isinstance(place, str) else place)
        if not (create or path.exists()):
            raise ParameterError(f"{path}: no such file")
        storage, address = open_file(path), str(path)
    with _errors_of(address):
        study_id = _study_id(storage, name, address=address, create=create)
    return Store(storage, study_id, address)


def _study_id(storage: BaseStorage, name: str, *, address: str, create: bool) -> int:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        if not create:
            known = sorted(study.study_name for study in storage.get_all_studies())
            message = f"name={name!r} must be one of the journals of {address}: {known}"
            raise ParameterError(message) from None
    try:
        return storage.create_new_study([StudyDirection.MAXIMIZE], name)
    except DuplicatedStudyError:
        # Another worker was faster.
        return storage.get_study_id_from_name(name)


def _connect(url: str) -> BaseStorage:
    host, colon, port = url.removeprefix(NETWORK).rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise ParameterError(f"store={url!r} must be {NETWORK}host:port")
    with _quiet(), _errors_of(url):
        storage = GrpcStorageProxy(host=host, port=int(port))
        storage.wait_server_ready(timeout=CONNECT_S)
    return storage


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna calls its gRPC proxy experimental; we pin Optuna's version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def _only_one_in(folder: Path) -> Iterator[None]:
    """Let only one process at a time do this in a folder; a killed one holds up nobody."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_file(path: Path) -> BaseStorage:
    """Optuna's storage in an SQLite file, made if need be; every transaction is exclusive.

    Raises
    ------
    ParameterError
        if the folder does not exist.
    ModelFileError
        if the file is no database of Optuna's.
    """
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise ParameterError(f"{path}: the folder does not exist")

    def connection() -> sqlite3.Connection:
        # No implicit transactions: SQLAlchemy's hook below begins them.
        return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)

    # The URL only says what kind it is: in a URL, "?" and "{" of a path would mean something.
    with _errors_of(str(path)), _only_one_in(path.parent):
        try:
            storage = RDBStorage("sqlite:///journal", {"creator": connection})
        except RuntimeError as error:
            raise ModelFileError(f"{path}: {str(error).splitlines()[0]}") from error
    # Optuna reads a state and then writes it, with a row lock that SQLite does not have.
    sqlalchemy.event.listen(storage.engine, "begin", _begin_exclusively)
    return optuna.storages.get_storage(storage)


def _begin_exclusively(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def serve(path: Path, *, host: str, port: int) -> None:
    """Let workers on other machines use the journals of an SQLite file, until interrupted.

    Whoever reaches the port can read and change them: for networks of your own only.

    Raises
    ------
    ParameterError
        if the port cannot be had.
    ModelFileError
        if the file is no database of Optuna's.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # gRPC would share a port with another server without a word.
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ParameterError(f"{host}:{port}: cannot listen there: {error.strerror}") from error
    with _quiet():
        run_grpc_proxy_server(open_file(path), host=host, port=port)
