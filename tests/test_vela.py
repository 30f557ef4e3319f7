"""Arm's compiler for Ethos-U takes the files for it, and leaves nothing to the CPU."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from qbee.export.delivery import ExportSettings, deliver
from qbee.keras import make_repeatable
from qbee.models import registry
from qbee.quantize import calibrate, convert, fold
from qbee.quantize.scheme import uniform


@pytest.mark.skipif(shutil.which("vela") is None, reason="vela (extra ethos-u) is not installed")
@pytest.mark.parametrize("limit", [None, 150_000], ids=["whole", "strips"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["beenet1", "beenet2", "beenet3"])
def test_all_operators_run_on_the_npu(tmp_path, name, bits, limit):
    make_repeatable(0)
    net = fold.fold(registry.build(name))
    x = np.random.default_rng(0).normal(size=(4, 128, 128, 1)).astype(np.float32)
    maps = calibrate.calibrate(net, x, seed=0, method="minmax")
    model = convert.quantized_model(net, uniform(net, bits=bits, map_bits=8), maps)
    settings = ExportSettings(target="ethos-u", max_arena_bytes=limit)
    delivery = deliver(convert.to_fixed_point(model), settings)
    path = tmp_path / "model.tflite"
    path.write_bytes(delivery.exported.content)
    command = ["vela", path, "--output-dir", tmp_path, "--accelerator-config", "ethos-u55-128"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"CPU operators = 0 ", done.stdout)
    assert re.search(r"NPU operators = [1-9]\d* \(100.0%\)", done.stdout)
