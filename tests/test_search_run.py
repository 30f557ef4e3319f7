"""A worker's loop, the winner it ends with, the other score, and the logs it leaves."""

import math

import numpy as np
import pytest
import search_toys as toys
from hypothesis import given
from hypothesis import strategies as st
from search_toys import measured, searched, task_of

from qbee.errors import DataError, ExportError, ParameterError
from qbee.keras import tf
from qbee.search import choice, run, strategies
from qbee.search.board_logs import BoardLogs
from qbee.search.journal import Journal
from qbee.search.limits import Limits
from qbee.search.score import Bomp
from qbee.search.trial import Fidelity, Proposal

TRIALS = 6


def journal_of(task, folder):
    return Journal(
        folder / "search.db", name="toy", identity={}, scheme_of=task.domain.scheme, seed=0
    )


def worked(folder, measure=None, *, name="random", task=None):
    """Trials of the journal, and those that were heard of."""
    task, heard = task or task_of(max_trials=TRIALS), []
    journal = journal_of(task, folder)
    run.work(
        journal,
        strategies.get(name)(task),
        measure or toys.measure_with(task.probe),
        max_trials=task.max_trials,
        on_trial=heard.append,
    )
    return journal.trials, heard


def test_every_trial_is_measured_once_and_heard_of_once(tmp_path):
    task, numbers = task_of(max_trials=TRIALS), []

    def measure(trial):
        numbers.append(trial.number)
        return toys.measure_with(task.probe)(trial)

    trials, heard = worked(tmp_path, measure)
    assert numbers == list(range(TRIALS))
    assert heard == trials == searched("random", task)


def test_a_search_that_is_over_is_only_told_again(tmp_path):
    trials, _ = worked(tmp_path)

    def measure(trial):
        raise AssertionError("there is nothing to measure")

    assert worked(tmp_path, measure) == (trials, trials)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ParameterError("no such scheme"), "ParameterError: no such scheme"),
        (ExportError("no such op\nin detail"), "ExportError: no such op"),
        (DataError("diverged"), "DataError: diverged"),
        (ValueError("\n  empty array\n"), "ValueError: empty array"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (MemoryError(), "MemoryError: MemoryError"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), "ResourceExhaustedError: OOM"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_written_down_in_one_line_and_the_search_goes_on(tmp_path, error, reason):
    task = task_of(max_trials=TRIALS)

    def measure(trial):
        if trial.number == 2:
            raise error
        return toys.measure_with(task.probe)(trial)

    trials, heard = worked(tmp_path, measure)
    assert [trial.state for trial in trials] == ["finished"] * 2 + ["failed"] + ["finished"] * 3
    assert trials[2].failure == reason
    assert trials[2].measured is None
    assert heard == trials


def test_metrics_that_are_no_numbers_are_a_failure(tmp_path):
    task = task_of(max_trials=1)
    trials, _ = worked(
        tmp_path, lambda t: measured(task.probe.costs(t.point), loss=math.nan), task=task
    )
    assert trials[0].state == "failed"
    assert len(trials[0].failure.splitlines()) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, AssertionError])
def test_what_is_no_failure_of_a_trial_ends_the_loop(tmp_path, error):
    task = task_of(max_trials=TRIALS)

    def measure(trial):
        if trial.number == 3:
            raise error("stop")
        return toys.measure_with(task.probe)(trial)

    with pytest.raises(error, match="stop"):
        worked(tmp_path, measure)
    trials = journal_of(task, tmp_path).trials
    assert [trial.state for trial in trials] == ["finished"] * 3 + ["running"]


def test_trials_of_another_worker_are_waited_for_and_heard_of(tmp_path):
    task, heard = task_of(max_trials=2), []
    other, ours = journal_of(task, tmp_path), journal_of(task, tmp_path)
    strategy = strategies.get("random")(task)
    theirs = other.begin(strategy.propose, max_trials=2)
    measure = toys.measure_with(task.probe)

    def hear(trial):
        heard.append(trial.number)
        if trial.number == 1:
            other.finish(0, measure(theirs))

    run.work(ours, strategy, measure, max_trials=2, on_trial=hear, wait_s=0.01)
    assert heard == [1, 0]


def test_a_search_ends_when_the_domain_is_exhausted(tmp_path):
    task = task_of(toys.domain_of(groups="network", map_bits=(8,)), max_trials=50)
    trials, heard = worked(tmp_path, task=task)
    assert len(trials) == len(heard) == task.domain.size == 3


WHOLE, SHORT = Fidelity(epochs=1, windows=640), Fidelity(epochs=1, windows=320)


def finished(number, *, fidelity=WHOLE, **found):
    """A trial of these measurements; ``size_bytes`` is its file's."""
    task = task_of()
    point = task.domain.random(np.random.default_rng(number))
    proposal = Proposal(point=point, fidelity=fidelity, origin="toy")
    costs = {"tflite_bytes": found.pop("size_bytes", 1000.0), "arena_bytes": 500.0}
    return toys.finished(task, proposal, number, lambda trial: measured(costs, **found))


def failed(number):
    proposal = finished(number).proposal
    return toys.failed(task_of(), proposal, number)


SOME = (
    finished(0, f1=0.90, size_bytes=3000.0),
    finished(1, f1=0.85, size_bytes=2000.0),
    finished(2, f1=0.60, size_bytes=1000.0),
)


def floats(f1):
    """Metrics of the float network."""
    return {"f1": f1, "average_precision": 1.0}


def test_the_winner_is_the_smallest_file_that_is_nearly_as_good_as_float():
    chosen = choice.choose(SOME, floats=floats(0.90), max_f1_drop=0.1)
    assert chosen == SOME[1]
    assert "smallest .tflite" in choice.rule_of(chosen, floats=floats(0.90), max_f1_drop=0.1)
    assert "10.0 points below" in choice.rule_of(chosen, floats=floats(0.90), max_f1_drop=0.1)


def test_a_trial_that_orders_windows_worse_than_float_does_not_win():
    for precision, winner in ((0.9, SOME[1]), (0.899, SOME[0])):
        found = SOME[1].measured
        found = found.model_copy(
            update={"metrics": found.metrics | {"average_precision": precision}}
        )
        trials = [SOME[0], SOME[1].model_copy(update={"measured": found})]
        chosen = choice.choose(trials, floats=floats(0.90), max_f1_drop=0.1)
        assert chosen.number == winner.number


def test_of_equal_files_the_higher_score_wins():
    twins = [finished(3, f1=0.88, size_bytes=2000.0), finished(4, f1=0.89, size_bytes=2000.0)]
    assert choice.choose([*SOME, *twins], floats=floats(0.9), max_f1_drop=0.1) == twins[1]


def test_without_a_good_trial_the_one_of_highest_f1_wins():
    chosen = choice.choose(SOME, floats=floats(10.0), max_f1_drop=0.01)
    assert chosen == SOME[0]
    assert "average precision were at most 1.0" in choice.rule_of(
        chosen, floats=floats(10.0), max_f1_drop=0.01
    )


TRIALS_WITH_SIZES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=8
).map(
    lambda pairs: [
        finished(i, f1=f1, size_bytes=1000.0 * size) for i, (f1, size) in enumerate(pairs)
    ]
)


@given(TRIALS_WITH_SIZES, st.floats(0, 1), st.floats(0, 0.5))
def test_no_good_trial_is_smaller_than_the_winner(trials, float_f1, max_f1_drop):
    chosen = choice.choose(trials, floats=floats(float_f1), max_f1_drop=max_f1_drop)
    good = [t for t in trials if t.measured.metrics["f1"] >= float_f1 - max_f1_drop]
    assert chosen in (good or trials)
    for trial in good:
        assert chosen.measured.costs["tflite_bytes"] <= trial.measured.costs["tflite_bytes"]


def test_only_finished_whole_trials_within_the_limits_are_eligible():
    trials = [*SOME, failed(3), finished(4, fidelity=SHORT)]
    assert choice.eligible(trials, fidelity=WHOLE) == list(SOME)
    limits = Limits(at_most={"tflite_bytes": 2000})
    assert choice.eligible(trials, fidelity=WHOLE, limits=limits) == list(SOME[1:])


def test_collapsed_trials_are_eligible_only_if_all_are():
    collapsed = [finished(n, is_collapsed=True, size_bytes=100.0) for n in (5, 6)]
    assert choice.eligible([*SOME, *collapsed], fidelity=WHOLE) == list(SOME)
    assert choice.eligible(collapsed, fidelity=WHOLE) == collapsed


def test_without_a_whole_trial_none_is_eligible():
    with pytest.raises(ParameterError, match="no whole trial is finished"):
        choice.eligible([failed(0), finished(1, fidelity=SHORT)], fidelity=WHOLE)


def test_limits_that_no_trial_keeps_are_an_error_with_the_lowest_costs():
    limits = Limits(at_most={"tflite_bytes": 999, "arena_bytes": 100})
    message = "no whole trial has tflite_bytes<=999, arena_bytes<=100; the lowest are "
    message += "tflite_bytes=1 000, arena_bytes=500"
    with pytest.raises(ParameterError, match=message):
        choice.best_within(SOME, limits, metric="f1")
    with pytest.raises(ParameterError, match=message):
        choice.eligible(SOME, fidelity=WHOLE, limits=limits)


@pytest.mark.parametrize("metric", ["f1", "loss"])
def test_the_best_within_limits_has_the_best_metric(metric):
    trials = [finished(i, loss=loss) for i, loss in enumerate((0.5, 0.2, 0.3))]
    assert choice.best_within(trials, Limits(), metric=metric) == trials[1]
    limits = Limits(at_most={"tflite_bytes": 2000})
    assert choice.best_within(SOME, limits, metric=metric) == SOME[1]


def test_the_front_is_sorted_by_its_last_objective():
    beaten = finished(7, f1=0.7, size_bytes=2500.0)
    assert choice.front([SOME[0], beaten, *SOME[1:]], ("f1", "tflite_bytes")) == list(SOME[::-1])
    assert choice.front([SOME[0], beaten, *SOME[1:]], ("tflite_bytes", "f1")) == list(SOME)


def test_the_scalarisation_of_bomp_nas_is_its_equation_1():
    # 12 500 bytes are 10^5 bits: 0.9 / 0.8 + 8 / 5.
    found = Bomp().of(0.9, {"tflite_bytes": 12_500}, reference_bits=1)
    assert found == pytest.approx(1.125 + 1.6, rel=1e-12)
    other = Bomp(reference_metric=0.5, reference_size=6.0)
    assert other.score(0.25, size_bits=1000) == pytest.approx(0.5 + 2.0, rel=1e-12)


@given(st.floats(0, 1), st.integers(1, 10**7), st.integers(1, 10**7))
def test_a_larger_file_never_scores_more(metric, one, other):
    small, large = (Bomp().score(metric, size_bits=8 * size) for size in sorted((one, other)))
    assert small >= large


def test_a_file_of_a_bit_has_no_score():
    with pytest.raises(ParameterError, match="size_bits=1 must be above 1"):
        Bomp().score(0.5, size_bits=1)


def events_in(folder):
    files = [str(file) for file in folder.glob("events.out.tfevents.*")]
    assert files
    for content in tf.data.TFRecordDataset(files):
        yield tf.compat.v1.Event.FromString(content.numpy())


def test_logs_are_scalars_by_trial_that_tensorboard_reads(tmp_path):
    logs = BoardLogs(tmp_path / "logs")
    for trial in (*SOME, failed(3)):
        logs.add(trial)
    found = {}
    for event in events_in(tmp_path / "logs"):
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    wanted = {}
    for trial in SOME:
        m = trial.measured
        values = {"score": m.score, "cpu_seconds": m.cpu_seconds}
        values |= {f"metrics/{name}": value for name, value in m.metrics.items()}
        values |= {f"costs/{name}": value for name, value in m.costs.items()}
        wanted |= {(name, trial.number): value for name, value in values.items()}
    # Scalars are float32.
    assert found == {key: float(np.float32(value)) for key, value in wanted.items()}
