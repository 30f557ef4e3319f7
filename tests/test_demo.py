"""The demo as a newcomer runs it keeps its promises."""

import json

import pytest
from conftest import qbee


@pytest.mark.slow
def test_the_demo_gives_a_smaller_detector_as_good_as_float(tmp_path):
    qbee("demo", "--out", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    winner = results["winner"]
    # Within one point of F1 of the float network, on the same test windows.
    assert abs(winner["f1_tflm"] - results["float"]["f1"]) <= 0.01
    assert winner["tflite_bytes"] <= 0.85 * results["int8"]["tflite_bytes"]
    assert results["verify"]["windows"] >= 200
    assert results["verify"]["mismatches"] == 0
