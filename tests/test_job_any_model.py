"""qbee quantize: two files in, a verified folder out."""

import json

import numpy as np
import pytest
from conftest import qbee

from qbee.errors import DataError, ParameterError
from qbee.job.any_model import quantize_file
from qbee.keras import keras, make_repeatable
from qbee.quantize import stored

layers = keras.layers


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small residual network with a softmax, and inputs for it."""
    folder = tmp_path_factory.mktemp("files")
    make_repeatable(3)
    x = inputs = keras.Input((12, 12, 1))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
    y = layers.Conv2D(8, 3, padding="same")(x)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, x).save(folder / "model.keras")
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (60, 12, 12, 1)) * rng.uniform(0.3, 2, (60, 1, 1, 1))
    np.save(folder / "x.npy", images.astype(np.float32))
    return folder / "model.keras", folder / "x.npy"


def test_eight_bits_keep_the_outputs_and_are_exact(files, tmp_path):
    found = quantize_file(*files, tmp_path)
    assert found.mismatches == 0
    assert found.held_out_inputs == 15
    # 8-bit steps are at most 1/128 of a map's peak; a few layers of that.
    assert found.rms_error < 0.05
    assert found.tflite_bytes == (tmp_path / "model.tflite").stat().st_size
    assert json.loads((tmp_path / "quantize.json").read_text()) == found.model_dump()
    again = stored.load_model(tmp_path / "quantized.keras")
    assert again.output_shape == (None, 3)


def test_fine_tuning_brings_four_bits_closer_to_float(files, tmp_path):
    before = quantize_file(*files, tmp_path / "a", kernels=4)
    after = quantize_file(*files, tmp_path / "b", kernels=4, fine_tune=True)
    free = quantize_file(*files, tmp_path / "c", kernels=4, fine_tune=True, free_steps=True)
    assert after.rms_error < 0.8 * before.rms_error
    assert free.rms_error < 0.8 * before.rms_error
    assert before.mismatches == after.mismatches == free.mismatches == 0
    assert after.tflite_bytes == before.tflite_bytes


def test_a_scheme_says_the_bits_of_every_layer(files, tmp_path):
    first = quantize_file(*files, tmp_path / "a", kernels=8)
    scheme = json.loads((tmp_path / "a" / "scheme.json").read_text())
    name = next(iter(scheme["layers"]))
    scheme["layers"][name]["kernel"] = 16
    (tmp_path / "mine.json").write_text(json.dumps(scheme))
    wide = quantize_file(*files, tmp_path / "b", scheme=tmp_path / "mine.json")
    assert wide.tflite_bytes > first.tflite_bytes
    assert json.loads((tmp_path / "b" / "scheme.json").read_text()) == scheme
    scheme["layers"]["other"] = scheme["layers"].pop(name)
    (tmp_path / "mine.json").write_text(json.dumps(scheme))
    with pytest.raises(ParameterError, match="scheme names the layers"):
        quantize_file(*files, tmp_path / "c", scheme=tmp_path / "mine.json")
    assert not (tmp_path / "c").exists()


def test_too_few_inputs_are_refused(files, tmp_path):
    np.save(tmp_path / "few.npy", np.zeros((3, 12, 12, 1), np.float32))
    with pytest.raises(DataError, match="3 inputs: at least 4 are needed"):
        quantize_file(files[0], tmp_path / "few.npy", tmp_path / "out")


def test_the_command_line_says_what_it_made(files, tmp_path):
    done = qbee("quantize", files[0], "--inputs", files[1], "--out", tmp_path / "o", "--maps", "16")
    assert done.returncode == 0, done.stderr
    assert "same class as float" in done.stdout
    assert (tmp_path / "o" / "model.tflite").exists()


def test_bad_input_is_one_line_and_exit_code_2(files, tmp_path):
    for arguments, why in (
        ([files[1], "--inputs", files[1]], "must be a .keras or .h5 file"),
        ([files[0], "--inputs", files[0]], "not a .npy array"),
        ([files[0], "--inputs", files[1], "--calibration", "guess"], "method='guess'"),
        ([files[0], "--inputs", files[1], "--kernels", "5"], "'5' is not one of"),
    ):
        done = qbee("quantize", *arguments, "--out", tmp_path / "o", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert why in done.stderr
    assert not list((tmp_path / "o").rglob("*"))
