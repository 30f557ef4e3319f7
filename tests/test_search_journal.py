"""The journal of a search; run as a script, this file is one of its workers or its server."""

import random
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from qbee.errors import ModelFileError, ParameterError, StoreError
from qbee.quantize.scheme import LayerBits, Scheme
from qbee.search.journal import Journal
from qbee.search.trial import Fidelity, Measured, Proposal
from qbee.search.worker import Worker

MAX_TRIALS = 12
PATIENCE_S = 60


def scheme_of(point):
    return Scheme(layers={"dense": LayerBits(kernel=8, bias=31, map=point["dense.map"])})


def proposal(step, *, epochs=0):
    point = {"dense.map": 8, "width": step}
    return Proposal(point=point, fidelity=Fidelity(epochs=epochs, windows=64), origin="toy")


def propose(trials):
    """The next step after the widest; every fourth trial repeats a step at another fidelity."""
    step = len(trials)
    return proposal(step - 1, epochs=1) if step % 4 == 3 else proposal(step)


def measure(trial):
    f1 = 1 / (3 + trial.point["width"])
    return Measured(
        metrics={"f1": f1, "loss": 1 - f1},
        interval=(f1, f1),
        costs={"bits": 100 * trial.number},
        score=f1 + trial.proposal.fidelity.epochs,
        is_collapsed=False,
        cpu_seconds=time.process_time(),
    )


def journal_in(store, *, name="toy", identity=None, seed=5, lease_s=60.0, **settings):
    identity = identity or {"weights": "abc"}
    return Journal(
        store,
        name=name,
        identity=identity,
        scheme_of=scheme_of,
        seed=seed,
        lease_s=lease_s,
        **settings,
    )


def work(store, *, measuring_s):
    """One worker's whole life; says on stdout which trials it begins and ends."""
    journal = journal_in(store)
    while True:
        trial = journal.begin(propose, max_trials=MAX_TRIALS)
        if trial is None and not journal.is_waiting:
            return
        if trial is None:
            time.sleep(0.05)
            continue
        print("begun", trial.number, flush=True)
        with journal.leased(trial.number):
            time.sleep(measuring_s)
        if trial.number == 5:
            journal.fail(5, "out of memory")
        else:
            journal.finish(trial.number, measure(trial))
        print("ended", trial.number, flush=True)


def started(*arguments):
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(trials):
    """Trials without what no two runs have in common."""
    found = [trial.model_dump() for trial in trials]
    for trial in found:
        if trial["measured"]:
            trial["measured"].pop("cpu_seconds")
    return found


@contextmanager
def server(path, port):
    process = started("serve", path, port)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def a_worker(**changes):
    return Worker.here().model_copy(update=changes)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Trials of a search that one worker did without a disturbance."""
    path = tmp_path_factory.mktemp("undisturbed") / "journal.sqlite"
    work(path, measuring_s=0)
    return journal_in(path).trials


def test_trials_are_numbered_without_gaps_and_come_back_as_they_went_in(undisturbed):
    assert [trial.number for trial in undisturbed] == list(range(MAX_TRIALS))
    assert [trial.proposal for trial in undisturbed] == [
        propose(undisturbed[:number]) for number in range(MAX_TRIALS)
    ]
    finished = [trial for trial in undisturbed if trial.number != 5]
    assert {trial.state for trial in finished} == {"finished"}
    assert all(trial.seed == 5 and trial.scheme == scheme_of(trial.point) for trial in finished)
    assert all(trial.measured.score == measure(trial).score for trial in finished)


def test_a_failed_trial_counts_and_keeps_its_reason(undisturbed):
    failed = undisturbed[5]
    assert (failed.state, failed.failure, failed.measured) == ("failed", "out of memory", None)


def test_a_store_may_be_given_as_a_url_and_paths_are_taken_literally(tmp_path):
    path = tmp_path / "50% {odd}?name.sqlite"
    begun = journal_in(path).begin(propose, max_trials=1)
    assert path.exists()
    assert journal_in(f"sqlite:///{path}").trials == [begun]


def test_one_store_holds_searches_of_several_names(path):
    begun = journal_in(path, name="one").begin(propose, max_trials=1)
    assert journal_in(path, name="other").trials == []
    assert journal_in(path, name="one").trials == [begun]


def test_another_identity_is_refused_naming_what_differs(path):
    journal_in(path, identity={"weights": "abc", "settings": "1"})
    with pytest.raises(ParameterError, match="begun with weights='abc', not 'xyz'"):
        journal_in(path, identity={"weights": "xyz", "settings": "1"})
    with pytest.raises(ParameterError, match="begun with settings='1', not None"):
        journal_in(path, identity={"weights": "abc"})
    with pytest.raises(ParameterError, match="begun with seed='5', not '6'"):
        journal_in(path, identity={"weights": "abc", "settings": "1"}, seed=6)


def test_a_search_ends_when_the_budget_is_spent_or_the_strategy_gives_up(path):
    journal = journal_in(path)
    assert journal.begin(lambda trials: None, max_trials=1) is None
    assert not journal.is_waiting
    trial = journal.begin(propose, max_trials=1)
    assert journal.begin(propose, max_trials=1) is None
    assert journal.is_waiting
    journal.finish(trial.number, measure(trial))
    assert not journal.is_waiting


def test_what_was_tried_at_a_fidelity_is_not_tried_again(path):
    journal = journal_in(path)
    assert journal.begin(lambda trials: proposal(1), max_trials=9).number == 0
    assert journal.begin(lambda trials: proposal(1), max_trials=9) is None
    assert journal.begin(lambda trials: proposal(1, epochs=2), max_trials=9).number == 1
    assert len(journal.trials) == 2


def test_of_two_workers_who_propose_at_once_the_later_one_proposes_again(path):
    slow, fast = journal_in(path), journal_in(path)
    seen = []

    def propose_slowly(trials):
        seen.append(len(trials))
        if not trials:
            assert fast.begin(propose, max_trials=9).number == 0
        return propose(trials)

    trial = slow.begin(propose_slowly, max_trials=9)
    assert (trial.number, trial.proposal) == (1, proposal(1))
    assert seen == [0, 1]
    assert [t.number for t in slow.trials] == [0, 1]


def test_the_budget_holds_when_two_workers_propose_at_once(path):
    slow, fast = journal_in(path), journal_in(path)

    def propose_slowly(trials):
        fast.begin(propose, max_trials=1)
        return proposal(7)

    assert slow.begin(propose_slowly, max_trials=1) is None
    assert [trial.proposal for trial in slow.trials] == [proposal(0)]


def test_a_dead_workers_trial_is_given_out_at_once(path):
    dead = journal_in(path, worker=a_worker(pid=dead_pid()))
    begun = dead.begin(propose, max_trials=1)
    assert journal_in(path).begin(propose, max_trials=1) == begun


def test_a_later_process_with_the_pid_of_a_dead_worker_keeps_nothing(path):
    here = Worker.here()
    dead = journal_in(path, worker=a_worker(started=here.started - 1))
    begun = dead.begin(propose, max_trials=1)
    assert journal_in(path).begin(propose, max_trials=1) == begun


def test_a_living_workers_trial_is_its_own(path):
    journal_in(path).begin(propose, max_trials=1)
    assert journal_in(path).begin(propose, max_trials=1) is None


@pytest.mark.parametrize("lease_s, is_given_out", [(60.0, False), (0.001, True)])
def test_a_worker_of_another_machine_loses_its_trial_with_its_lease(path, lease_s, is_given_out):
    far = journal_in(path, lease_s=lease_s, worker=a_worker(place="elsewhere", pid=dead_pid()))
    begun = far.begin(propose, max_trials=1)
    time.sleep(0.01)
    assert journal_in(path).begin(propose, max_trials=1) == (begun if is_given_out else None)


def test_a_lease_is_renewed_while_a_trial_is_measured(path):
    far = journal_in(path, lease_s=3.0, worker=a_worker(place="elsewhere"))
    begun = far.begin(propose, max_trials=1)
    (before,) = far._log.rows()
    with far.leased(begun.number):
        deadline = time.time() + PATIENCE_S
        while far._log.row(0).lease.until <= before.lease.until and time.time() < deadline:
            time.sleep(0.02)
    assert far._log.row(0).lease.until > before.lease.until


def test_only_one_of_two_workers_takes_a_trial_over(path):
    dead = journal_in(path, worker=a_worker(pid=dead_pid()))
    dead.begin(propose, max_trials=1)
    one, other = journal_in(path), journal_in(path)
    (row,) = one._log.rows()
    assert one._log.claim(row, one._new_lease())
    assert not other._log.claim(row, other._new_lease())
    assert other.begin(propose, max_trials=1) is None


def test_a_worker_who_comes_back_from_the_dead_changes_nothing(path):
    lost = journal_in(path, lease_s=0.001, worker=a_worker(place="elsewhere"))
    begun = lost.begin(propose, max_trials=1)
    time.sleep(0.01)
    journal = journal_in(path)
    assert journal.begin(propose, max_trials=1) == begun
    with lost.leased(begun.number):
        time.sleep(0.05)
    assert journal._log.row(0).lease.worker == journal.worker
    finished = journal.finish(begun.number, measure(begun))
    assert lost.fail(begun.number, "late") == finished
    assert lost.finish(begun.number, measure(begun)) == finished
    assert journal.trials == [finished]


def test_a_worker_killed_before_the_last_step_leaves_a_running_trial(path, monkeypatch):
    dead = journal_in(path, worker=a_worker(pid=dead_pid()))
    begun = dead.begin(propose, max_trials=1)
    monkeypatch.setattr(dead._log.store, "close", lambda *_, **__: None)
    assert dead.finish(begun.number, measure(begun)) == begun
    journal = journal_in(path)
    assert journal.begin(propose, max_trials=1) == begun
    assert journal.finish(begun.number, measure(begun)).state == "finished"


def test_killing_a_worker_again_and_again_changes_no_result(path, undisturbed):
    rng = random.Random(3)
    for _ in range(6):
        process = started("work", path, 0.05)
        # It dies at some moment after it began something, unless all is done.
        if process.stdout.readline():
            time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
    work(path, measuring_s=0)
    assert results(journal_in(path).trials) == results(undisturbed)


def two_workers_one_killed(store):
    """Numbers ended by the one that lives, and the number that the killed one had."""
    doomed, other = started("work", store, PATIENCE_S), started("work", store, 0.05)
    held = int(doomed.stdout.readline().split()[1])
    doomed.kill()
    doomed.communicate()
    said, complaints = other.communicate(timeout=PATIENCE_S)
    assert other.returncode == 0, complaints
    assert complaints == ""
    return [int(line.split()[1]) for line in said.splitlines() if line.startswith("ended")], held


def test_two_workers_share_a_file_and_one_finishes_the_others_trial(path, undisturbed):
    ended, held = two_workers_one_killed(path)
    assert sorted(ended) == list(range(MAX_TRIALS))
    assert held in ended
    assert results(journal_in(path).trials) == results(undisturbed)


def test_two_workers_share_a_server_and_one_finishes_the_others_trial(path, undisturbed):
    port = free_port()
    store = f"grpc://127.0.0.1:{port}"
    with server(path, port):
        ended, held = two_workers_one_killed(store)
        there = journal_in(store).trials
    assert sorted(ended) == list(range(MAX_TRIALS))
    assert held in ended
    assert there == journal_in(path).trials
    assert results(there) == results(undisturbed)


def test_workers_on_one_file_do_each_trial_once(path, undisturbed):
    workers = [started("work", path, 0.01) for _ in range(2)]
    said = [worker.communicate(timeout=PATIENCE_S)[0] for worker in workers]
    ended = [line for line in "".join(said).splitlines() if line.startswith("ended")]
    assert len(ended) == len(set(ended)) == MAX_TRIALS
    assert results(journal_in(path).trials) == results(undisturbed)


def test_a_worker_outlives_a_restart_of_its_server(path):
    port = free_port()
    with server(path, port):
        journal = journal_in(f"grpc://127.0.0.1:{port}")
        trial = journal.begin(propose, max_trials=1)
    with server(path, port):
        finished = journal.finish(trial.number, measure(trial))
        with pytest.raises(ParameterError, match=f"127.0.0.1:{port}: cannot listen"):
            from qbee.search.store import serve

            serve(path, host="127.0.0.1", port=port)
        with pytest.raises(ParameterError, match=r"name='misspelt' must be one of .*\['toy'\]"):
            journal_in(f"grpc://127.0.0.1:{port}", name="misspelt", create=False)
    assert journal_in(path).trials == [finished]


def test_a_server_that_does_not_answer_is_an_error_of_one_line(monkeypatch):
    from qbee.search import store

    monkeypatch.setattr(store, "CONNECT_S", 0.2)
    with pytest.raises(StoreError, match=r"^grpc://127.0.0.1:\d+: no server .*$"):
        journal_in(f"grpc://127.0.0.1:{free_port()}")


@pytest.mark.parametrize("text", ["grpc://host", "grpc://:5", "grpc://host:x", "redis://host"])
def test_a_store_that_is_written_wrongly_is_refused(text):
    with pytest.raises(ParameterError, match=f"store='{text}' must be"):
        journal_in(text)


def test_a_store_that_is_not_there_is_refused(path):
    with pytest.raises(ParameterError, match="nowhere/x.sqlite: the folder does not exist"):
        journal_in(path.parent / "nowhere" / "x.sqlite")
    with pytest.raises(ParameterError, match="no such file"):
        journal_in(path, create=False)
    assert not path.exists()


def test_a_file_that_is_no_database_is_refused_and_left_alone(path):
    path.write_text("trials of another kind\n" * 100)
    with pytest.raises(ModelFileError, match=r"^.*journal\.sqlite: file is not a database$"):
        journal_in(path)
    assert path.read_text().startswith("trials of another kind")


def test_a_locked_file_is_an_error_of_one_line(path, monkeypatch):
    import sqlite3

    from qbee.search import store

    monkeypatch.setattr(store, "BUSY_S", 0.1)
    journal = journal_in(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match=r"^.*journal\.sqlite: database is locked$"):
        journal.begin(propose, max_trials=1)
    holder.close()


@pytest.mark.parametrize(
    "field, content, message",
    [
        ("proposal", '{"point": {"width": "wide"}}', "trial 0: proposal.point.width: "),
        ("scheme", "{}", "trial 0: scheme.layers: Field required"),
        ("measured", '{"metrics": {}}', "trial 0: measured.interval: Field required"),
        ("lease", "7", "trial 0: lease: "),
        ("key", "null", "entry 1: key=None must be a text"),
        ("key", '{"a', "damaged content"),
    ],
)
def test_damaged_content_is_reported_with_trial_and_field(path, field, content, message):
    import sqlite3

    journal = journal_in(path)
    trial = journal.begin(propose, max_trials=1)
    journal.finish(trial.number, measure(trial))
    with sqlite3.connect(path) as database:
        change = "UPDATE trial_user_attributes SET value_json=? WHERE key=? AND trial_id=2"
        assert database.execute(change, (content, field)).rowcount == 1
    with pytest.raises(ModelFileError, match=message):
        journal_in(path).trials  # noqa: B018


def test_a_lease_of_no_length_is_refused(path):
    with pytest.raises(ParameterError, match="lease_s=0 must be positive"):
        journal_in(path, lease_s=0)


def test_a_number_that_was_never_given_out_is_refused(path):
    with pytest.raises(ParameterError, match="number=3"):
        journal_in(path).fail(3, "unknown")


def test_importing_the_journal_imports_neither_tensorflow_nor_optuna():
    code = "import sys, qbee.search.journal; print({'tensorflow', 'optuna'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


if __name__ == "__main__":
    task, place, number = sys.argv[1:]
    if task == "serve":
        from qbee.search.store import serve

        serve(Path(place), host="127.0.0.1", port=int(number))
    else:
        work(place, measuring_s=float(number))
