"""A search whose trials cost nothing: damage and cost are sums over the hyperparameters."""

from functools import cache

import numpy as np
from twin_nets import built, separable

from qbee.quantize.scheme import Scheme
from qbee.search import repair, strategies
from qbee.search.domain import Domain
from qbee.search.limits import Limits
from qbee.search.score import ForgivingFactor
from qbee.search.space import SearchSpace, Seed
from qbee.search.strategy import Task
from qbee.search.trial import Fidelity, Measured, Trial

SPACE = SearchSpace(
    kernel_bits=(4, 8, 16),
    map_bits=(4, 8, 16),
    bias_bits=(31,),
    groups="layer",
    seeds=(Seed(kernel=4, map=4), Seed(kernel=8, map=8), Seed(kernel=4, map=8)),
    score=ForgivingFactor(),
    trial_epochs=1,
    trial_windows=640,
    trial_max_rate=1e-4,
    max_f1_drop=0.01,
)
OBJECTIVES = ("loss", "tflite_bytes")


@cache
def net():
    """A folded network of four layers."""
    return built(separable).net


def domain_of(*, widest_map=16, **changes):
    space = SearchSpace.model_validate({**SPACE.model_dump(), **changes})
    return Domain(space, net(), widest_map=widest_map)


class ToyProbe:
    """Damage as of rounding noise, 4^-bits; bytes as of a file and of maps in memory."""

    def __init__(self, domain, *, seed=0):
        self.domain = domain
        rng = np.random.default_rng(seed)
        self.sensitivity = {name: float(rng.lognormal(3, 1.5)) for name in domain.menus}
        self.looks = 0

    def damage(self, point):
        self.looks += 1
        return 0.01 + sum(self.sensitivity[n] * 4.0**-bits for n, bits in point.items())

    def costs(self, point):
        sizes = {n: self.domain.elements.get(n, 0) * bits for n, bits in point.items()}
        kernels = sum(size for name, size in sizes.items() if name.endswith(".kernel"))
        maps = sum(size for name, size in sizes.items() if name.endswith(".map"))
        return {
            "bits": 1000 + sum(sizes.values()),
            "tflite_bytes": 300 + kernels / 8,
            "arena_bytes": 200 + maps / 8,
        }


def task_of(domain=None, *, max_trials=12, search_seed=0, limits=None, probe=None):
    domain = domain or domain_of()
    probe = probe or ToyProbe(domain)

    def repaired(point):
        return repair.repair(
            point,
            menus=domain.menus,
            costs_of=probe.costs,
            limits=limits or Limits(),
            elements=domain.elements,
        )

    return Task(
        domain=domain,
        fidelity=domain.space.fidelity,
        objectives=OBJECTIVES,
        max_trials=max_trials,
        search_seed=search_seed,
        probe=probe,
        repaired=repaired,
    )


def measured(costs, *, loss=0.5, f1=None, precision=1.0, is_collapsed=False):
    """Measurements of these costs."""
    f1 = 1 / (1 + loss) if f1 is None else f1
    return Measured(
        metrics={"loss": loss, "f1": f1, "average_precision": precision},
        interval=(f1 - 0.1, f1 + 0.1),
        costs=costs,
        score=f1 - costs["tflite_bytes"] / 10_000,
        is_collapsed=is_collapsed,
        cpu_seconds=0.0,
    )


def measure_with(probe):
    """The measurement of a trial whose loss is its damage."""
    return lambda trial: measured(probe.costs(trial.point), loss=probe.damage(trial.point))


def trial_of(proposal, number, scheme: Scheme, **outcome):
    return Trial(number=number, proposal=proposal, scheme=scheme, seed=0, **outcome)


def running(task, proposal, number):
    scheme = task.domain.scheme(proposal.point)
    return trial_of(proposal, number, scheme, state="running")


def finished(task, proposal, number, measure=None):
    trial = running(task, proposal, number)
    found = (measure or measure_with(task.probe))(trial)
    return trial.model_copy(update={"state": "finished", "measured": found})


def failed(task, proposal, number):
    trial = running(task, proposal, number)
    return trial.model_copy(update={"state": "failed", "failure": "out of memory"})


def searched(name, task, *, is_always_new=False, failing=(), trials=(), measure=None):
    """Trials until there are ``max_trials`` or the strategy has nothing more to propose."""
    strategy, trials = strategies.get(name)(task), list(trials)
    while len(trials) < task.max_trials:
        strategy = strategies.get(name)(task) if is_always_new else strategy
        proposal = strategy.propose(list(trials))
        if proposal is None:
            break
        number = len(trials)
        if number in failing:
            trials.append(failed(task, proposal, number))
        else:
            trials.append(finished(task, proposal, number, measure))
    return trials


def whole(trials, fidelity: Fidelity):
    """Trials that trained as long as trials can."""
    return [trial for trial in trials if trial.proposal.fidelity == fidelity]
