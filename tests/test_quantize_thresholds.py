"""FAT: trained thresholds and point-wise factors, and how they fold into an ordinary network."""

import numpy as np
import pytest

from qbee.keras import make_repeatable, tf
from qbee.quantize import convert
from qbee.quantize.calibrate import calibrate
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import Node
from qbee.quantize.layers import kernel_quantizer
from qbee.quantize.scheme import uniform
from qbee.quantize.thresholds import FatSettings, Student, tune

SHAPE = (6, 6, 2)
BOTH = FatSettings(cycles=2, cycle_epochs=4, batch_inputs=8, max_rate=0.02, thresholds=True)
THRESHOLDS = BOTH.model_copy(update={"points": False})
POINTS = BOTH.model_copy(update={"thresholds": False})
# Factors are float32: products of limits and steps may be off by an ulp or two.
ULPS = 3e-7


def small_net(seed=0):
    """Residual block whose sum is signed, a mean, and a softmax, with spread depthwise filters."""
    same, map_ = {"window": (3, 3), "padding": ((1, 1), (1, 1))}, (6, 6, 4)
    nodes = (
        Node("stem", "conv", ("input",), map_, activation="relu", **same),
        Node("dw", "depthwise", ("stem",), map_, activation="relu6", **same),
        Node("pw", "conv", ("dw",), map_),
        Node("sum", "add", ("stem", "pw"), map_),
        Node("mean", "mean", ("sum",), (4,)),
        Node("head", "dense", ("mean",), (3,)),
    )
    rng = np.random.default_rng(seed)
    shapes = {"stem": (3, 3, 2, 4), "dw": (3, 3, 4, 1), "pw": (1, 1, 4, 4)}
    shapes["head"] = (4, 3)
    kernels = {name: rng.normal(0, 1, shape) for name, shape in shapes.items()}
    kernels["dw"] *= np.array([0.1, 0.3, 1, 0.5]).reshape(1, 1, -1, 1)
    kernels["head"] *= 3
    biases = {name: rng.normal(0, 0.2, 3 if name == "head" else 4) for name in shapes}
    single = [{k: v.astype(np.float32) for k, v in part.items()} for part in (kernels, biases)]
    return FoldedNet("small", SHAPE, nodes, *single, head="softmax")


def images(n=28, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (n, *SHAPE)).astype(np.float32)


NET, INPUTS = small_net(), images()
SCHEME = uniform(NET, bits=4)
# Free steps, and asymmetric formats of the signed maps: FAT's widest case.
MAPS = calibrate(NET, INPUTS, seed=0, method="minmax", alpha="auto", is_affine=True)
SIGNED = ("input", "pw", "sum", "head")


def widths(scheme=SCHEME):
    return {"input": scheme.input_bits} | {name: bits.map for name, bits in scheme.layers.items()}


def numbers(maps):
    """Number format of each map at the scheme's width."""
    return {name: maps[name][bits] for name, bits in widths().items()}


def steps(net, name, *, is_per_tensor, bits=4):
    op = net.node(name).op
    quantizer = kernel_quantizer(op, bits, "auto", is_per_tensor=is_per_tensor)
    return quantizer.steps(net.kernels[name]).numpy()


def converted(tuned, *, is_per_tensor=False, alpha="auto", scheme=SCHEME):
    model = convert.quantized_model(
        tuned.net, scheme, tuned.maps, alpha=alpha, is_per_tensor=is_per_tensor
    )
    return convert.logits_model(model)


def rmse(a, b):
    return float(np.sqrt(np.mean((np.float64(a) - b) ** 2)))


def student_of(settings=BOTH, *, is_per_tensor=False, scheme=SCHEME, maps=MAPS, alpha="auto"):
    return Student(NET, scheme, maps, settings, alpha, is_per_tensor)


def with_random_factors(student, seed=3):
    """Factors anywhere within their limits."""
    rng = np.random.default_rng(seed)
    for variable in student.variables:
        lowest, highest = (variable.constraint(tf.fill(variable.shape, v)) for v in (-9.0, 9.0))
        variable.assign(lowest + rng.random(variable.shape).astype("f4") * (highest - lowest))
    return student


@pytest.fixture(scope="module", params=[False, True], ids=["vector", "scalar"])
def run(request):
    """Whether there is one step per kernel, and a network tuned in that mode."""
    make_repeatable(0)
    mode = {"is_per_tensor": request.param}
    return request.param, tune(
        NET, SCHEME, MAPS, INPUTS, settings=BOTH, seed=0, alpha="auto", **mode
    )


def test_trained_thresholds_of_kernels_stay_within_fats_limits():
    make_repeatable(0)
    wild = THRESHOLDS.model_copy(update={"max_rate": 0.3})
    tuned = tune(NET, SCHEME, MAPS, INPUTS, settings=wild, seed=0, alpha="auto")
    scales = np.concatenate(
        [
            (
                steps(tuned.net, name, is_per_tensor=False) / steps(NET, name, is_per_tensor=False)
            ).ravel()
            for name in NET.weighted
        ]
    )
    assert scales.min() == pytest.approx(0.5, rel=ULPS)
    assert scales.max() <= 1 + ULPS
    assert len(np.unique(scales)) > 5
