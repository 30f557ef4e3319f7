"""The verbs of the package."""

import subprocess
import sys

import pytest

import qbee
from qbee.errors import ParameterError
from qbee.train import fit


def test_every_verb_is_a_function():
    for verb in qbee.__all__:
        assert callable(getattr(qbee, verb)), verb
        assert verb in dir(qbee)


def test_verbs_stay_functions_after_their_stages_are_imported():
    code = "import qbee, qbee.train.fit, qbee.search.cost, qbee.verify; qbee.train.__call__"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert callable(fit.fit)
    assert callable(qbee.train)


def test_detection_is_ready_without_tensorflow():
    # It takes seconds and half a gigabyte in every process that listens.
    code = "import sys, qbee.field.detecting; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_build_gives_the_float_keras_model():
    assert qbee.build("beenet1").output_shape == (None, 2)


def test_a_setting_that_cannot_work_is_a_parameter_error(tmp_path):
    (tmp_path / "labels.csv").touch()
    with pytest.raises(ParameterError, match="epochs=0"):
        qbee.run(tmp_path / "labels.csv", "beenet3", tmp_path / "out", epochs=0)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'qbee' has no attribute 'buzz'"):
        _ = qbee.buzz
