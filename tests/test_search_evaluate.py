"""A trial is measured as its scheme alone would be, whatever was measured before."""

import numpy as np
import pytest

from qbee.keras import keras
from qbee.models import registry
from qbee.quantize import calibrate, convert, fold
from qbee.records import FrontEnd
from qbee.search.cost import CostModel, elements, reference_slots, total_bits
from qbee.search.domain import Domain
from qbee.search.evaluate import Evaluator, Ground
from qbee.search.score import Bomp, ForgivingFactor
from qbee.search.space import SearchSpace, Seed
from qbee.search.trial import Fidelity, Proposal, Trial
from qbee.train import metrics
from qbee.train.fit import Examples, TrainSettings, predict

WINDOWS, TRAIN = 160, range(96)
GROUNDS = (range(96, 128), range(128, 160))
COSTS = ("bits", "tflite_bytes", "arena_bytes")
CALIBRATED, TRAINED = Fidelity(epochs=0, windows=64), Fidelity(epochs=1, windows=64)
SPACE = SearchSpace(
    kernel_bits=(4, 8, 16),
    map_bits=(4, 8, 16),
    bias_bits=(31,),
    groups="network",
    seeds=(Seed(kernel=8, map=8),),
    score=ForgivingFactor(),
    trial_epochs=1,
    trial_windows=64,
    trial_max_rate=1e-3,
    max_f1_drop=0.01,
)


def random_examples():
    """Noise, in which buzzes raise a band."""
    rng = np.random.default_rng(0)
    images = rng.normal(-60, 6, (WINDOWS, 32, 32)).astype(np.float32)
    labels = rng.random(WINDOWS) < 0.4
    images[labels, 8:12] += rng.uniform(0, 12, (labels.sum(), 1, 1))
    return Examples(images, labels, FrontEnd(n_mels=32, n_frames=32))


class Lab:
    """A network with everything that trials of it need.

    ``head`` multiplies the head's first weights, so that the output map, whose range is that of
    the logits before any training, has room for better ones.
    """

    def __init__(self, *, head=20.0):
        self.examples = random_examples()
        keras.utils.set_random_seed(1)
        self.model = registry.build("beenet3", n_mels=32, n_frames=32)
        layer = self.model.get_layer("head")
        layer.set_weights([head * weights for weights in layer.get_weights()])
        self.net = fold.fold(self.model)
        self.maps = calibrate.calibrate(self.net, self.examples.inputs(TRAIN), seed=0)
        self.domain = Domain(SPACE, self.net)
        self.grounds = {}
        self.models = {}

    def ground(self, validation):
        """The ground of these windows, with what was compiled for it."""
        if validation not in self.grounds:
            self.grounds[validation] = self.new_ground(validation)
        return self.grounds[validation]

    def new_ground(self, validation):
        logits = predict(self.model, self.examples, validation)
        return Ground(
            self.net,
            self.maps,
            self.examples,
            train=TRAIN,
            validation=validation,
            float_logits=logits,
        )

    def evaluator(self, *, grounds=GROUNDS[:1], space=SPACE, is_new=False):
        ground = self.new_ground if is_new else self.ground
        found = [ground(validation) for validation in grounds]
        settings = TrainSettings(batch_windows=16, max_rate=SPACE.trial_max_rate)
        return Evaluator(
            space, self.domain, lambda width: found, CostModel(COSTS), settings, seed=3
        )

    def trial(self, kernel, map_, fidelity=CALIBRATED):
        point = {"network.kernel": kernel, "network.map": map_}
        proposal = Proposal(point=point, fidelity=fidelity, origin="test")
        scheme = self.domain.scheme(point)
        return Trial(number=0, proposal=proposal, scheme=scheme, seed=3, state="running")

    def alone(self, scheme):
        """Quantized model of a scheme, built for it."""
        key = scheme.model_dump_json()
        if key not in self.models:
            self.models[key] = convert.quantized_model(self.net, scheme, self.maps)
        return self.models[key]

    def logits_alone(self, scheme, validation):
        return predict(self.alone(scheme), self.examples, validation)


@pytest.fixture(scope="module")
def lab():
    return Lab()


@pytest.fixture(scope="module")
def evaluator(lab):
    return lab.evaluator()


def without_time(measured):
    return measured.model_copy(update={"cpu_seconds": 0.0})


SCHEMES = pytest.mark.parametrize(("kernel", "map_"), [(4, 4), (16, 8)])


@SCHEMES
def test_metrics_without_training_are_those_of_the_model_of_the_scheme(
    lab, evaluator, kernel, map_
):
    trial = lab.trial(kernel, map_)
    logits = lab.logits_alone(trial.scheme, GROUNDS[0])
    labels = lab.examples.labels[list(GROUNDS[0])]
    found = evaluator.measure(trial)
    assert found.metrics == {name: metrics.get(name)(labels, logits) for name in metrics.names()}
    folds = [(labels, logits)]
    assert found.interval == metrics.bootstrap_interval(metrics.get("f1"), folds, seed=3)
    assert not found.is_collapsed
    assert found.cpu_seconds > 0


@SCHEMES
def test_costs_are_those_of_the_integers_of_the_scheme(lab, evaluator, kernel, map_):
    trial = lab.trial(kernel, map_)
    net = convert.to_fixed_point(lab.alone(trial.scheme))
    expected = CostModel(COSTS).costs(net, trial.scheme)
    assert evaluator.measure(trial).costs == expected
    assert evaluator.costs(trial.point) == expected


def test_the_score_weighs_the_metric_against_the_reference(lab, evaluator):
    found = evaluator.measure(lab.trial(4, 8))
    sizes, factor = elements(lab.net), SPACE.score
    assert found.score == factor.score(
        found.metrics["f1"],
        trial_bits=round(found.costs["bits"]),
        reference_bits=total_bits(sizes, reference_slots(sizes, factor)),
    )


def test_another_metric_and_score_are_used_if_the_space_says_so(lab):
    space = SPACE.model_copy(update={"metric": "auc", "score": Bomp()})
    found = lab.evaluator(space=space).measure(lab.trial(8, 8))
    size_bits = 8 * found.costs["tflite_bytes"]
    assert found.score == Bomp().score(found.metrics["auc"], size_bits=size_bits)
    lowest, highest = found.interval
    assert lowest < found.metrics["auc"] < highest


def test_a_wide_scheme_learns_from_training(lab, evaluator):
    before = evaluator.measure(lab.trial(16, 16))
    longer = Fidelity(epochs=8, windows=96)
    after = evaluator.measure(lab.trial(16, 16, longer))
    assert after.metrics["loss"] < before.metrics["loss"]


def test_a_trained_trial_is_the_same_whatever_was_measured_before(lab, evaluator):
    first, second = lab.trial(4, 8, TRAINED), lab.trial(16, 16, TRAINED)
    alone = lab.evaluator(is_new=True).measure(first)
    evaluator.measure(second)
    evaluator.damage(second.point)
    evaluator.costs(second.point)
    assert without_time(evaluator.measure(first)) == without_time(alone)
    assert without_time(evaluator.measure(first)) == without_time(alone)


def test_costs_of_a_point_are_with_the_float_weights_although_trials_were_trained(lab):
    trial = lab.trial(4, 8)
    expected = CostModel(COSTS).costs(convert.to_fixed_point(lab.alone(trial.scheme)), trial.scheme)
    evaluator = lab.evaluator()
    evaluator.measure(lab.trial(4, 8, TRAINED))
    assert evaluator.costs(lab.trial(4, 8).point) == expected


def test_damage_falls_with_more_bits_and_does_not_depend_on_trials_before(lab, evaluator):
    damages = [evaluator.damage(lab.trial(bits, bits).point) for bits in (4, 8, 16)]
    assert damages[0] > damages[1] > damages[2] > 0
    evaluator.measure(lab.trial(4, 4, TRAINED))
    assert [evaluator.damage(lab.trial(bits, bits).point) for bits in (4, 8, 16)] == damages


def test_over_two_grounds_metrics_are_means(lab):
    trial = lab.trial(4, 4)
    parts = [lab.evaluator(grounds=[ground]).measure(trial) for ground in GROUNDS]
    both = lab.evaluator(grounds=GROUNDS).measure(trial)
    for name, value in both.metrics.items():
        # The mean of two floats is rounded once.
        expected = np.mean([part.metrics[name] for part in parts])
        assert value == pytest.approx(expected, rel=1e-15)
    assert both.costs == parts[0].costs


def test_every_metric_of_the_float_network_is_known(lab):
    logits = predict(lab.model, lab.examples, GROUNDS[0])
    labels = lab.examples.labels[list(GROUNDS[0])]
    found = lab.ground(GROUNDS[0]).float_metrics
    assert found == {name: metrics.get(name)(labels, logits) for name in metrics.names()}


def test_a_network_whose_head_is_zero_has_collapsed():
    lab = Lab(head=0.0)
    found = lab.evaluator().measure(lab.trial(8, 8))
    assert found.is_collapsed
    assert found.metrics["auc"] == 0.5
