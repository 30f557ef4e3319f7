"""LiteRT runs what is exported for it, close to TFLite Micro."""

import numpy as np
import pytest
from twin_nets import NETS, built, random_scheme

from qbee.export.delivery import ExportSettings, deliver
from qbee.keras import make_repeatable
from qbee.runtime.interpreter import MicroModel
from qbee.runtime.litert import LiteRtModel

# A layer's ties are rounded to another code than on TFLite Micro, and later layers pass that on.
# Measured on these networks: at most 2 steps with XNNPACK and 1 without.
LARGEST_DIFFERENCE = 3


@pytest.fixture(scope="module")
def cases():
    make_repeatable(7)
    return {make: built(make) for make in NETS}


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize(("kernel", "map_"), [(8, 8), (4, 8), (8, 16), (16, 16)])
def test_outputs_are_within_a_few_steps(cases, make, kernel, map_):
    case = cases[make]
    _, net = case.quantized(random_scheme(case.net, 0, kernel=kernel, map=map_))
    content = deliver(net, ExportSettings(target="litert")).exported.content
    on_device = MicroModel(content)
    expected = on_device.predict(case.inputs)
    for xnnpack in (True, False):
        found = LiteRtModel(content, xnnpack=xnnpack).predict(case.inputs)
        steps = np.abs(found - expected) / on_device.output.step
        assert steps.max() <= LARGEST_DIFFERENCE, f"xnnpack={xnnpack}"
