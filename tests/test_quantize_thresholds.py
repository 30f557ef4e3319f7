"""FAT: trained thresholds and point-wise factors, and how they fold into an ordinary network."""

import inspect

import numpy as np
import pytest

from qbee.errors import ParameterError
from qbee.export import tflite
from qbee.keras import keras, make_repeatable, tf
from qbee.quantize import convert, fixed_net, fixed_point, student, thresholds
from qbee.quantize.calibrate import calibrate
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import Node
from qbee.quantize.layers import QuantizedLayer, QuantizedOp, kernel_quantizer
from qbee.quantize.scheme import LayerBits, Scheme, uniform
from qbee.quantize.student import Student, on_grid
from qbee.quantize.thresholds import FatSettings, Training, tune
from qbee.runtime.interpreter import MicroModel

SHAPE = (6, 6, 2)
BOTH = FatSettings(cycles=2, cycle_epochs=4, batch_inputs=8, max_rate=0.02, thresholds=True)
QUICK = BOTH.model_copy(update={"cycles": 1, "cycle_epochs": 1})
MODES = pytest.mark.parametrize("is_per_tensor", [False, True], ids=["vector", "scalar"])
# Factors and steps are float32, and a quotient of two steps has the error of both.
ULPS = 4e-7


def random_net(nodes, shapes, *, outputs, head=None, seed=0):
    """Network of random kernels of these shapes."""
    rng = np.random.default_rng(seed)
    kernels = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    biases = {name: rng.normal(0, 0.2, outputs[name]).astype(np.float32) for name in shapes}
    return FoldedNet("small", SHAPE, nodes, kernels, biases, head)


def residual_net():
    """A block whose sum is signed, a mean, a softmax; depthwise filters differ by ten."""
    same, map_ = {"window": (3, 3), "padding": ((1, 1), (1, 1))}, (6, 6, 4)
    nodes = (
        Node("stem", "conv", ("input",), map_, activation="relu", **same),
        Node("dw", "depthwise", ("stem",), map_, activation="relu6", **same),
        Node("pw", "conv", ("dw",), map_),
        Node("sum", "add", ("stem", "pw"), map_),
        Node("mean", "mean", ("sum",), (4,)),
        Node("head", "dense", ("mean",), (3,)),
    )
    shapes = {"stem": (3, 3, 2, 4), "dw": (3, 3, 4, 1), "pw": (1, 1, 4, 4), "head": (4, 3)}
    outputs = {"stem": 4, "dw": 4, "pw": 4, "head": 3}
    net = random_net(nodes, shapes, outputs=outputs, head="softmax")
    net.kernels["head"] *= np.float32(5)
    net.kernels["dw"] *= np.float32([0.1, 0.3, 1, 0.5]).reshape(1, 1, -1, 1)
    return net


def images(n=28, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (n, *SHAPE)).astype(np.float32)


NET, INPUTS = residual_net(), images()
FOUR = uniform(NET, bits=4)
# Free steps, and asymmetric formats of the signed maps: the widest case of FAT.
MAPS = calibrate(NET, INPUTS, seed=0, method="minmax", alpha="auto", is_affine=True)
UNSIGNED = ("stem", "dw")


def numbers(maps, scheme=FOUR):
    """Number format of each map at the scheme's width."""
    widths = {"input": scheme.input_bits} | {n: bits.map for n, bits in scheme.layers.items()}
    return {name: maps[name][bits] for name, bits in widths.items()}


def student_of(*, is_per_tensor=False, scheme=FOUR, maps=MAPS, trained=("thresholds", "points")):
    return Student(
        NET,
        scheme,
        maps,
        thresholds="thresholds" in trained,
        points="points" in trained,
        alpha="auto",
        is_per_tensor=is_per_tensor,
    )


def with_random_factors(one, seed=3):
    """Factors anywhere within their limits, which the constraint knows."""
    rng = np.random.default_rng(seed)
    for variable in one.variables:
        ends = (variable.constraint(tf.fill(variable.shape, v)) for v in (-9.0, 9.0))
        lowest, highest = (np.asarray(end) for end in ends)
        variable.assign(lowest + rng.random(variable.shape) * (highest - lowest))
    return one


def converted(net, maps, *, is_per_tensor=False, scheme=FOUR, alpha="auto"):
    """Quantized Keras model up to the logits."""
    mode = {"alpha": alpha, "is_per_tensor": is_per_tensor}
    return convert.logits_model(convert.quantized_model(net, scheme, maps, **mode))


def kernel_layers(model):
    return [layer for layer in model.layers if isinstance(layer, QuantizedLayer)]


def rmse(a, b):
    return float(np.sqrt(np.mean((np.float64(a) - b) ** 2)))


def tuned_net(settings, *, seed=0, **changes):
    make_repeatable(0)
    return tune(NET, FOUR, MAPS, INPUTS, settings=settings, seed=seed, alpha="auto", **changes)


@pytest.fixture(scope="module")
def tuned_twice():
    """Networks with thresholds and points trained, by whether a kernel has one step in all."""
    return {mode: tuned_net(BOTH, is_per_tensor=mode) for mode in (False, True)}


def pushed(sign):
    """A student whose factors training pushes up or down, all of them, as far as they go."""
    one = student_of()
    optimizer = Training(one, INPUTS, BOTH.model_copy(update={"max_rate": 0.5})).optimizer
    for _ in range(4):
        optimizer.apply_gradients([(-sign * tf.ones_like(v), v) for v in one.variables])
    return one


@pytest.fixture(scope="module")
def extremes():
    """Students with all factors at their lower and at their upper limits."""
    return pushed(-1), pushed(1)


def at_limits(extremes, factors_of):
    """Two arrays [factors] of what ``factors_of`` finds in the two students."""
    return (
        np.concatenate([factor.numpy().ravel() for factor in factors_of(one)]) for one in extremes
    )


def test_point_wise_factors_stay_within_a_quarter_of_one(extremes):
    low, high = at_limits(
        extremes,
        lambda one: [f for k in one.kernels.values() for f in (k.point_factors, k.bias_factors)],
    )
    np.testing.assert_array_equal(low, np.float32(0.75))
    np.testing.assert_array_equal(high, np.float32(1.25))


def test_thresholds_of_maps_stay_between_half_of_the_calibrated_ones_and_all(extremes):
    low, high = at_limits(extremes, lambda one: [map_.scale for map_ in one.maps.values()])
    np.testing.assert_array_equal(low, np.float32(0.5))
    np.testing.assert_array_equal(high, np.float32(1))


def test_left_ends_of_asymmetric_maps_move_by_minus_0_2_to_0_4_of_the_range(extremes):
    moving = [name for name, one in extremes[0].maps.items() if one.shift is not None]
    assert {"input", "pw", "sum", "mean"} <= set(moving)
    assert not set(UNSIGNED) & set(moving)
    low, high = at_limits(extremes, lambda one: [one.maps[name].shift for name in moving])
    np.testing.assert_array_equal(low, np.float32(-0.2))
    np.testing.assert_array_equal(high, np.float32(0.4))


def test_thresholds_of_kernels_stay_between_half_of_where_they_start_and_the_peaks(extremes):
    kernels = extremes[0].kernels.values()
    starts = np.concatenate([kernel.start.ravel() for kernel in kernels])
    low, high = at_limits(extremes, lambda one: [kernel.scale for kernel in one.kernels.values()])
    np.testing.assert_array_equal(low, np.float32(0.5) * starts)
    np.testing.assert_array_equal(high, np.float32(1))
    assert starts.min() < 1


def test_thresholds_of_kernels_start_where_the_squared_error_is_least():
    """FAT's start, the peak, is among the candidates: 8 bits take it, 4 bits cut outliers off."""
    kernel = np.random.default_rng(0).normal(0, 1, (3, 3, 64, 4)).astype(np.float32)
    kernel[0, 0, 0, 0] = 8
    for bits, low, high in ((4, 0.3, 0.7), (8, 1, 1)):
        quantizer = kernel_quantizer("conv", bits, "auto")
        shares = student.best_scales(kernel, quantizer)
        assert shares.shape == (1, 1, 1, 4)
        assert low <= shares.ravel()[0] <= high
        peaks, errors = np.abs(kernel).max((0, 1, 2)), {}
        for share in student.START_SHARES:
            steps = share * peaks / quantizer.max_code
            codes = np.clip(np.rint(kernel / steps), -quantizer.max_code, quantizer.max_code)
            errors[share] = np.mean((codes * steps - kernel) ** 2, (0, 1, 2))
        best = [min(errors, key=lambda share: errors[share][i]) for i in range(4)]  # noqa: B023
        np.testing.assert_array_equal(shares.ravel(), best)


@MODES
def test_any_factors_fold_into_the_steps_and_the_kernels_exactly(is_per_tensor):
    one = with_random_factors(student_of(is_per_tensor=is_per_tensor))
    net, maps = one.folded(MAPS)
    for layer in kernel_layers(converted(net, maps, is_per_tensor=is_per_tensor)):
        kernel = one.kernels[layer.name]
        trained = kernel.steps(kernel.weights()[0]).numpy()
        source = one.maps[layer.node.inputs[0]].step
        quantized, bias, _ = kernel.quantized(source)
        found, steps, found_bias = layer.quantized()
        assert trained.size == (1 if is_per_tensor or layer.name == "head" else layer.channels)
        np.testing.assert_array_equal(steps, np.broadcast_to(trained.ravel(), layer.channels))
        np.testing.assert_array_equal(found, quantized)
        np.testing.assert_array_equal(found_bias, bias)


@MODES
def test_trained_steps_are_the_peaks_of_weights_times_points_times_the_scale(is_per_tensor):
    one = with_random_factors(student_of(is_per_tensor=is_per_tensor))
    for name, kernel in one.kernels.items():
        weights = NET.kernels[name] * kernel.point_factors.numpy()
        shared = tuple(i for i, length in enumerate(kernel.scale.shape) if length == 1)
        expected = np.abs(weights).max(shared, keepdims=True) / 7 * kernel.scale.numpy()
        np.testing.assert_allclose(kernel.steps(kernel.weights()[0]), expected, rtol=ULPS)


def test_formats_of_maps_are_the_calibrated_ones_with_the_factors_in_them():
    one = with_random_factors(student_of())
    before, after = numbers(MAPS), numbers(one.folded(MAPS)[1])
    for name, number in before.items():
        scale = one.maps[name].scale.numpy()
        assert after[name].step == np.float32(number.step) * scale
        assert after[name].codes[1] - after[name].codes[0] == 2**number.bits - 1
        if one.maps[name].shift is None:
            assert after[name].lowest == number.lowest
            continue
        left = number.lowest * number.step + one.maps[name].shift.numpy() * one.maps[name].range
        wanted = np.clip(left / after[name].step, -(2 ** (number.bits - 1)), 0)
        # Zero is a code, so the left end is the code next to it.
        assert abs(after[name].lowest - wanted) <= 0.5 + 1e-5


def test_formats_at_widths_that_the_scheme_does_not_name_stay():
    one = with_random_factors(student_of())
    after = one.folded(MAPS)[1]
    for name, number in numbers(MAPS).items():
        for bits in set(MAPS[name]) - {number.bits}:
            assert after[name][bits] == MAPS[name][bits]


MIXED = Scheme(
    layers={
        "stem": LayerBits(kernel=8, bias=16, map=16),
        "dw": LayerBits(kernel=4, bias=31, map=8),
        "pw": LayerBits(kernel=8, bias=31, map=4),
        "sum": LayerBits(map=8),
        "mean": LayerBits(map=4),
        "head": LayerBits(kernel=4, bias=16, map=8),
    }
)
SCHEMES = {"4 bits": FOUR, "8 bits": uniform(NET, bits=8), "mixed": MIXED}


@MODES
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_device_computes_what_the_student_does(is_per_tensor, scheme):
    one = with_random_factors(student_of(is_per_tensor=is_per_tensor, scheme=scheme))
    net, maps = one.folded(MAPS)
    found = converted(net, maps, is_per_tensor=is_per_tensor, scheme=scheme)
    number = numbers(maps, scheme)["head"]
    codes = found(INPUTS, training=False).numpy() / number.step
    expected = one.logits(tf.constant(INPUTS)).numpy() / number.step
    # Float32 sums of the student fall on the other side of a half now and then.
    assert np.mean(np.abs(codes - expected) > 0.01) < 0.02
    assert len(np.unique(expected.round())) > 8
    # With calibrated instead of trained formats it would be another network.
    wrong = converted(net, MAPS, is_per_tensor=is_per_tensor, scheme=scheme)
    assert np.mean(np.abs(wrong(INPUTS, training=False) / number.step - expected) > 1) > 0.3


@MODES
def test_a_tuned_network_is_equal_in_numpy_keras_and_on_tflite_micro(tuned_twice, is_per_tensor):
    tuned = tuned_twice[is_per_tensor]
    model = converted(tuned.net, tuned.maps, is_per_tensor=is_per_tensor)
    integers = convert.to_fixed_point(model)
    parts = [layer for layer in model.layers if isinstance(layer, QuantizedOp)]
    every = keras.Model(model.inputs, [layer.output for layer in parts])
    codes = fixed_net.forward(integers, fixed_point.quantize(INPUTS, integers.input_map))
    for layer, output in zip(parts, every(INPUTS, training=False), strict=True):
        found = output.numpy().astype(np.float64) / layer.target.step
        np.testing.assert_allclose(found, codes[layer.name], rtol=1e-6, err_msg=layer.name)
        assert len(np.unique(codes[layer.name])) > 2, layer.name
    on_device = MicroModel(tflite.write(integers).content).predict(INPUTS)
    np.testing.assert_array_equal(on_device, fixed_net.predict(integers, INPUTS))


@MODES
def test_the_loss_falls_to_that_of_the_device_that_runs_the_result(tuned_twice, is_per_tensor):
    tuned, wanted = tuned_twice[is_per_tensor], thresholds.logits(NET, INPUTS)
    assert len(tuned.losses) == 1 + BOTH.cycles * BOTH.cycle_epochs
    assert min(tuned.losses) < 0.8 * tuned.losses[0]
    mode = {"is_per_tensor": is_per_tensor}
    before, after = (
        convert.to_fixed_point(converted(net, maps, **mode))
        for net, maps in ((NET, MAPS), (tuned.net, tuned.maps))
    )
    # Rounding of some float32 sums; RMSE of the logits, not of the softmax after them.
    device = [rmse(fixed_net.predict(integers, INPUTS), wanted) for integers in (before, after)]
    assert device[0] == pytest.approx(tuned.losses[0], rel=0.02)
    assert device[1] == pytest.approx(min(tuned.losses), rel=0.02)
    assert device[0] > 1 > rmse(tf.nn.softmax(wanted), 0)


def test_another_network_can_be_the_teacher_and_is_come_closer_to():
    """As where a quantized network was trained already, and is no longer its float network."""
    trained = NET.with_weights(
        {name: 0.9 * kernel for name, kernel in NET.kernels.items()}, NET.biases
    )
    make_repeatable(0)
    tuned = tune(trained, FOUR, MAPS, INPUTS, settings=BOTH, seed=0, alpha="auto", teacher=NET)
    wanted = thresholds.logits(NET, INPUTS)
    for net, maps, loss in (
        (trained, MAPS, tuned.losses[0]),
        (tuned.net, tuned.maps, min(tuned.losses)),
    ):
        assert rmse(converted(net, maps)(INPUTS), wanted) == pytest.approx(loss, rel=0.02)
    assert min(tuned.losses) < 0.8 * tuned.losses[0]


def test_the_best_epoch_counts_and_not_the_last():
    rough = BOTH.model_copy(update={"max_rate": 0.5, "cycle_epochs": 2})
    tuned = tuned_net(rough)
    assert tuned.losses[-1] > min(tuned.losses)
    model = converted(tuned.net, tuned.maps)
    found = rmse(model(INPUTS, training=False), thresholds.logits(NET, INPUTS))
    assert found == pytest.approx(min(tuned.losses), rel=0.02)


def test_a_network_that_training_makes_worse_stays_as_it_is():
    wild = QUICK.model_copy(update={"max_rate": 0.9, "thresholds": False})
    eight = uniform(NET, bits=8)
    make_repeatable(0)
    tuned = tune(NET, eight, MAPS, INPUTS, settings=wild, seed=0)
    assert tuned.losses[1] > tuned.losses[0]
    assert tuned.maps == MAPS
    for name, kernel in NET.kernels.items():
        np.testing.assert_array_equal(tuned.net.kernels[name], kernel)


def test_points_under_power_of_two_steps_keep_the_formats_of_the_maps():
    maps = calibrate(NET, INPUTS, seed=0)
    points = BOTH.model_copy(update={"thresholds": False})
    make_repeatable(0)
    tuned = tune(NET, FOUR, maps, INPUTS, settings=points, seed=0)
    assert tuned.maps == maps
    assert min(tuned.losses) < 0.9 * tuned.losses[0]
    for name, kernel in NET.kernels.items():
        ratios = tuned.net.kernels[name] / kernel
        assert ratios.min() >= 0.75 - ULPS
        assert ratios.max() <= 1.25 + ULPS
        assert len(np.unique(ratios)) > 3
    model = converted(tuned.net, maps, alpha="auto_po2")
    found = rmse(model(INPUTS, training=False), thresholds.logits(NET, INPUTS))
    assert found == pytest.approx(min(tuned.losses), rel=0.02)


def test_thresholds_alone_only_clip_the_kernels():
    tuned = tuned_net(BOTH.model_copy(update={"points": False}))
    assert min(tuned.losses) < 0.9 * tuned.losses[0]
    clipped = 0
    for name, kernel in NET.kernels.items():
        after = tuned.net.kernels[name]
        np.testing.assert_array_equal(tuned.net.biases[name], NET.biases[name])
        is_same = after == kernel
        limit = np.abs(after).max() if name == "head" else np.abs(after).max((0, 1), keepdims=True)
        if name in ("stem", "pw"):
            limit = np.abs(after).max((0, 1, 2), keepdims=True)
        assert np.all(is_same | (np.abs(after) == limit)), name
        clipped += np.sum(~is_same)
    assert clipped > 0


def test_the_float_network_and_the_formats_that_went_in_are_not_changed():
    net, maps, inputs = residual_net(), {n: dict(by) for n, by in MAPS.items()}, INPUTS.copy()
    make_repeatable(0)
    tuned = tune(net, FOUR, maps, inputs, settings=QUICK, seed=0, alpha="auto")
    assert tuned.net is not net
    assert maps == MAPS
    np.testing.assert_array_equal(inputs, INPUTS)
    for name, kernel in NET.kernels.items():
        np.testing.assert_array_equal(net.kernels[name], kernel)
        np.testing.assert_array_equal(net.biases[name], NET.biases[name])


def test_the_same_seed_gives_the_same_network_and_another_one_another():
    tuned = [tuned_net(QUICK, seed=seed) for seed in (5, 5, 6)]
    same, other = [tuned[0].losses == tuned[i].losses for i in (1, 2)]
    assert same
    assert not other
    assert tuned[0].maps == tuned[1].maps
    for name in NET.weighted:
        first, second = (t.net.kernels[name] for t in tuned[:2])
        np.testing.assert_array_equal(first, second)


def test_progress_is_told_after_every_epoch():
    told = []
    tuned = tuned_net(
        BOTH.model_copy(update={"cycle_epochs": 2}), on_progress=lambda *seen: told.append(seen)
    )
    assert told == [(i, 4, tuned.losses[i]) for i in range(1, 5)]


def test_nothing_but_inputs_is_needed_of_the_data():
    parameters = inspect.signature(tune).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    assert needed == ["net", "scheme", "maps", "inputs", "settings", "seed"]


def test_thresholds_under_power_of_two_steps_are_refused():
    with pytest.raises(ParameterError, match="thresholds=True must have alpha='auto'"):
        tune(NET, FOUR, MAPS, INPUTS, settings=BOTH, seed=0)


def test_nothing_to_train_is_refused():
    nothing = FatSettings(thresholds=False, points=False)
    with pytest.raises(ParameterError, match="nothing is left to train"):
        tune(NET, FOUR, MAPS, INPUTS, settings=nothing, seed=0)


def test_no_inputs_are_refused():
    with pytest.raises(ParameterError, match="inputs must hold at least one"):
        tune(NET, FOUR, MAPS, INPUTS[:0], settings=BOTH, seed=0, alpha="auto")


def test_logits_that_overflow_are_refused():
    huge = residual_net()
    huge.kernels["head"] *= np.float32(1e30)
    with pytest.raises(ParameterError, match="the loss overflows"):
        tune(huge, FOUR, MAPS, INPUTS, settings=QUICK, seed=0, alpha="auto")


def dense_net(kernel):
    """A dense layer that reads the input."""
    node = Node("head", "dense", ("input",), (kernel.shape[1],))
    kernel = np.asarray(kernel, np.float32)
    bias = np.zeros(kernel.shape[1], np.float32)
    return FoldedNet("dense", kernel.shape[:1], (node,), {"head": kernel}, {"head": bias})


def test_a_network_that_is_right_already_stays_so():
    net, x = dense_net(np.zeros((3, 2))), np.random.default_rng(0).random((30, 3), np.float32)
    maps = calibrate(net, x, seed=0, alpha="auto")
    scheme = uniform(net, bits=8)
    tuned = tune(net, scheme, maps, x, settings=QUICK, seed=0, alpha="auto")
    assert tuned.losses == (0.0, 0.0)
    np.testing.assert_array_equal(tuned.net.kernels["head"], net.kernels["head"])


def test_fewer_inputs_than_a_batch_are_one_batch_and_a_rest_is_left_out(monkeypatch):
    sizes = []
    monkeypatch.setattr(Training, "_trained", lambda self, x, wanted: sizes.append(len(x)))
    monkeypatch.setattr(thresholds.tf, "function", lambda f: f)
    net, x = dense_net(np.eye(3)), np.random.default_rng(0).random((21, 3), np.float32)
    maps, scheme = calibrate(net, x, seed=0, alpha="auto"), uniform(net, bits=8)
    for inputs in (x[:5], x):
        tune(net, scheme, maps, inputs, settings=QUICK, seed=0, alpha="auto")
    assert sizes == [5, 8, 8]


def test_each_cycle_starts_at_the_full_rate_without_memory_and_ends_near_none(monkeypatch):
    """Adam's first step moves each factor by the rate itself, if it remembers nothing."""
    moves = []
    trained = Training._trained

    def watched(self, x, wanted):
        before = [v.numpy() for v in self.student.variables]
        trained(self, x, wanted)
        pairs = zip(self.student.variables, before, strict=True)
        moves.append(np.concatenate([np.abs(v.numpy() - b).ravel() for v, b in pairs]).max())

    monkeypatch.setattr(Training, "_trained", watched)
    monkeypatch.setattr(thresholds.tf, "function", lambda f: f)
    rng = np.random.default_rng(0)
    net, x = dense_net(rng.normal(0, 1, (3, 2))), rng.random((24, 3), np.float32)
    maps = calibrate(net, x, seed=0, alpha="auto")
    scheme = uniform(net, bits=8)
    settings = BOTH.model_copy(update={"thresholds": False, "max_rate": 1e-3})
    tune(net, scheme, maps, x, settings=settings, seed=0, alpha="auto")
    steps = 3 * settings.cycle_epochs
    assert len(moves) == 2 * steps
    for cycle in (moves[:steps], moves[steps:]):
        # Factors near 1 are float32: their differences are off by up to 1e-7.
        assert cycle[0] == pytest.approx(1e-3, rel=1e-3)
        # cosine annealing: rate at step i is (1 + cos(pi i / steps)) / 2, here 0.4 % of the first;
        # a move can be some times the rate when gradients point one way
        assert cycle[-1] < 0.05 * cycle[0]


def gradients(function, *values):
    variables = [tf.Variable(value, dtype=tf.float32) for value in values]
    with tf.GradientTape() as tape:
        result = function(*variables)
    return result, tape.gradient(result, variables)


STEP_OF_A_MAP = float(np.float32(0.02))
X = np.float32([-9.3, -4.1, -0.55, 0.0, 0.2, 0.49, 1.7, 3.4, 8.2])
STEP, LOWEST, HIGHEST = 0.5, -8.0, 7.0
INSIDE = (X / STEP >= LOWEST) & (X / STEP <= HIGHEST)


def test_values_go_to_the_nearest_code_and_saturate():
    found = on_grid(tf.constant(X), STEP, LOWEST, HIGHEST)
    np.testing.assert_array_equal(found, np.clip(np.floor(X / STEP + 0.5), -8, 7) * STEP)


def test_gradients_pass_rounding_and_stop_where_values_saturate():
    _, (found,) = gradients(lambda x: on_grid(x, STEP, LOWEST, HIGHEST), X)
    np.testing.assert_array_equal(found, INSIDE)
    assert 0 < INSIDE.sum() < len(X)


def test_the_gradient_of_a_step_is_the_rounding_error_inside_and_the_last_code_outside():
    """Derivative of ``s * (u + r)`` with ``u = x / s`` and a rounding error r that is constant."""
    codes = np.clip(X / STEP, LOWEST, HIGHEST)
    expected = np.where(INSIDE, np.floor(codes + 0.5) - codes, codes)
    for i, x in enumerate(X):
        _, (found,) = gradients(lambda step: on_grid(x, step, LOWEST, HIGHEST), STEP)  # noqa: B023
        assert found.numpy() == pytest.approx(expected[i], abs=1e-5)


def test_the_gradient_of_a_step_is_the_slope_of_the_grid_where_values_saturate():
    """There the function is smooth, and finite differences are the derivative."""
    x = X[~INSIDE]

    def total(step):
        return tf.reduce_sum(on_grid(tf.constant(x), step, LOWEST, HIGHEST))

    _, (found,) = gradients(total, STEP)
    slope = (total(STEP + 2**-8) - total(STEP - 2**-8)) / 2**-7
    assert found.numpy() == pytest.approx(float(slope), rel=1e-5)


def test_gradients_of_asymmetric_thresholds_are_those_of_clipping_between_them():
    """Left end ``L = Tl + shift R`` and right end ``L + scale R`` (FAT, eq. 21-23).

    Saturated values move with the end they sit on; where nothing saturates, only rounding errors
    depend on the step.
    """
    number = fixed_point.MapType(8, -50, 0.03125)
    values = np.float32([-9, -5, 5, 7, 9, 20])
    range_ = 255 * number.step
    one = student.StudentMap(number, thresholds=True)
    # A left end on the grid, so that rounding it does not show.
    one.scale.assign(0.5)
    one.shift.assign(20 / 255)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(one(tf.constant(values)))
    by_scale, by_shift = tape.gradient(total, [one.scale, one.shift])
    left = -30 * number.step
    right = left + 0.5 * range_
    below, above = np.sum(values < left), np.sum(values > right)
    assert (below, above) == (2, 4)
    assert by_shift.numpy() == pytest.approx((below + above) * range_, rel=1e-5)
    assert by_scale.numpy() == pytest.approx(above * range_, rel=1e-5)


@pytest.mark.parametrize("shift", [-0.2, 0.0, 0.4])
@pytest.mark.parametrize("scale", [0.5, 0.77, 1.0])
def test_every_asymmetric_grid_holds_zero_and_fits_the_device(scale, shift):
    for lowest in (-120, -60, -3):
        one = student.StudentMap(fixed_point.MapType(8, lowest, STEP_OF_A_MAP), thresholds=True)
        one.scale.assign(scale)
        one.shift.assign(shift)
        assert one(tf.constant(0.0)).numpy() == 0
        number = one.folded()
        assert -128 <= number.lowest <= 0 <= number.codes[1]
        assert number.step == pytest.approx(STEP_OF_A_MAP * scale, rel=ULPS)


def test_maps_that_are_not_asymmetric_keep_their_codes():
    for lowest in (0, -128):
        one = student.StudentMap(fixed_point.MapType(8, lowest, STEP_OF_A_MAP), thresholds=True)
        assert one.shift is None
        one.scale.assign(0.6)
        assert one.folded().lowest == lowest


def test_a_step_of_an_accumulator_brings_the_devices_double_rounding():
    """Of accumulators of 0.3 steps, the device rounds halves of a step first: 0.3 becomes 0.5."""
    one = student.StudentMap(fixed_point.MapType(8, 0, 1.0), thresholds=False)
    codes = np.arange(0, 60)
    expected = fixed_point.requantize_int32(codes, 0.3)
    y = tf.constant(codes * 0.3, tf.float32)
    np.testing.assert_array_equal(one(y, tf.constant(0.3, tf.float64)), expected)
    assert not np.array_equal(one(y), expected)
