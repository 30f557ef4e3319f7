"""Journal of a search: trials that several workers share and that survive their deaths.

Every change is one step that a store makes whole or not at all: a worker may be killed at any
moment, and its trial is given out again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbee.errors import ParameterError, StoreError
from qbee.quantize.scheme import Scheme
from qbee.search.trial import Measured, Point, Proposal, Trial
from qbee.search.worker import Lease, Worker

if TYPE_CHECKING:
    from qbee.search.log import Row

logger = logging.getLogger(__name__)

Propose = Callable[[list[Trial]], Proposal | None]

# How often a strategy may propose what was tried before it counts as exhausted.
MAX_REPEATS = 5


class Journal:
    """Trials of one search, of which a worker measures one at a time.

    Parameters
    ----------
    store : path of an SQLite file, "sqlite:///<path>", or "grpc://<host>:<port>"
    name : name of the search in the store
    identity : what decides the results, for example digests of weights and settings; ``seed`` is
        added
    scheme_of : scheme of a point
    seed : seed of every trial
    lease_s : how long after its last sign of life a worker of another machine loses its trial;
        the clocks of the machines must agree better than that
    create : False refuses a name that the store does not have
    worker : by default a new one in this process

    Raises
    ------
    ParameterError
        if the search in the store has another identity, naming what differs, or ``lease_s`` is
        not positive.
    ModelFileError
        if the store or an entry is damaged.
    StoreError
        if the store cannot be reached.
    """

    def __init__(
        self,
        store: str | Path,
        *,
        name: str,
        identity: dict[str, str],
        scheme_of: Callable[[Point], Scheme],
        seed: int,
        lease_s: float = 60.0,
        create: bool = True,
        worker: Worker | None = None,
    ):
        if lease_s <= 0:
            raise ParameterError(f"lease_s={lease_s} must be positive")
        # Optuna takes longer to import than the rest of qbee.search together.
        from qbee.search.log import Log
        from qbee.search.store import open_store

        self.name, self.seed, self.lease_s = name, seed, lease_s
        self.worker = worker or Worker.here()
        self._scheme_of = scheme_of
        self._log = Log(open_store(store, name, create=create), name)
        self._log.agree_on({**identity, "seed": str(seed)}, self._new_lease())

    @property
    def trials(self) -> list[Trial]:
        """All trials in the order of their numbers."""
        return [row.trial for row in self._log.rows()]

    @property
    def is_waiting(self) -> bool:
        """Whether trials are running: they may come back, so a search is not over yet."""
        return any(trial.state == "running" for trial in self.trials)

    def begin(self, propose: Propose, *, max_trials: int) -> Trial | None:
        """The next trial for this worker, who must finish or fail it.

        First come trials whose worker died or has not renewed its lease; then, if there are
        fewer than ``max_trials``, what ``propose`` makes of the trials so far.

        Returns
        -------
        Trial or None if there is nothing to do (now: see ``is_waiting``): the trials are all
        given out, or ``propose`` gave None or, several times, what was tried at that fidelity.
        """
        repeats = 0
        while repeats < MAX_REPEATS:
            rows = self._log.rows()
            abandoned = next((row for row in rows if self._is_abandoned(row)), None)
            if abandoned is not None:
                if self._log.claim(abandoned, self._new_lease()):
                    return abandoned.trial
                continue
            trials = [row.trial for row in rows]
            proposal = propose(trials) if len(trials) < max_trials else None
            if proposal is None:
                return None
            if any(_is_same(trial.proposal, proposal) for trial in trials):
                repeats += 1
            elif self._log.add(len(trials), self._content(proposal), self._new_lease()):
                return self._log.row(len(trials)).trial
        return None

    def finish(self, number: int, measured: Measured) -> Trial:
        """The trial as finished; if another worker was faster, as that one left it."""
        row = self._log.row(number)
        # Kept before the state says so: a finished trial always has its measurements.
        if self._log.store.annotate(row.entry, "measured", measured.model_dump(mode="json")):
            self._log.store.close(row.entry, "finished", value=measured.score)
        return self._log.row(number).trial

    def fail(self, number: int, reason: str) -> Trial:
        """The trial as failed; if another worker was faster, as that one left it."""
        row = self._log.row(number)
        if self._log.store.annotate(row.entry, "failure", reason):
            self._log.store.close(row.entry, "failed")
        return self._log.row(number).trial

    @contextmanager
    def leased(self, number: int) -> Iterator[None]:
        """Renew the lease of a trial that was begun, as long as the block runs."""
        is_over = threading.Event()
        arguments = (self._log.row(number), is_over)
        thread = threading.Thread(target=self._renew, args=arguments, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            # A renewal under way harms nobody; a server that hangs must not hold up the result.
            thread.join(timeout=1.0)

    def _renew(self, row: Row, is_over: threading.Event) -> None:
        """Renew a lease until the event, or until the trial is finished or given to another."""
        while row.lease.worker.token == self.worker.token:
            lease = self._new_lease().model_dump(mode="json")
            try:
                if not self._log.store.annotate(row.entry, row.lease_field, lease):
                    return
            except StoreError as error:
                logger.warning("trial %d: lease not renewed: %s", row.trial.number, error)
            if is_over.wait(self.lease_s / 3):
                return

    def _new_lease(self) -> Lease:
        return Lease(worker=self.worker, until=time.time() + self.lease_s)

    def _is_abandoned(self, row: Row) -> bool:
        return row.trial.state == "running" and row.lease.is_over(seen_from=self.worker)

    def _content(self, proposal: Proposal) -> dict[str, Any]:
        return {
            "proposal": proposal.model_dump(mode="json"),
            "scheme": self._scheme_of(proposal.point).model_dump(mode="json"),
            "seed": self.seed,
        }


def _is_same(one: Proposal, other: Proposal) -> bool:
    return one.point == other.point and one.fidelity == other.fidelity
