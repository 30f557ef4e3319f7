"""Models and inputs of anybody are checked before they are loaded."""

import json
import zipfile

import h5py
import numpy as np
import pytest

from qbee.errors import DataError, ModelFileError
from qbee.keras import keras, qkeras
from qbee.quantize import calibrate, convert, fold, stored
from qbee.quantize.scheme import uniform

layers = keras.layers


def small_model(*more):
    return keras.Sequential(
        [layers.Conv2D(2, 3, input_shape=(6, 6, 1)), *more, layers.Flatten(), layers.Dense(2)]
    )


def saved(model, path):
    model.save(path)
    return path


@pytest.fixture(params=["keras", "h5"])
def suffix(request):
    return request.param


def test_a_plain_model_comes_back(tmp_path, suffix):
    model = small_model(layers.BatchNormalization(), layers.ReLU())
    found = stored.load_model(saved(model, tmp_path / f"m.{suffix}"))
    x = np.ones((2, 6, 6, 1), np.float32)
    np.testing.assert_array_equal(found(x), model(x))


def test_qkeras_layers_and_our_quantizers_come_back(tmp_path, suffix):
    string = "quantized_kernel(4,alpha='auto',scale_axis=3)"
    model = small_model(
        qkeras.QConv2D(3, 3, kernel_quantizer=string, bias_quantizer="quantized_bias(16)"),
        qkeras.QActivation("quantized_bits_featuremap(8,keep_negative=False,step=0.125)"),
    )
    found = stored.load_model(saved(model, tmp_path / f"m.{suffix}"))
    x = np.ones((2, 6, 6, 1), np.float32)
    np.testing.assert_array_equal(found(x), model(x))


def test_a_quantized_model_comes_back_with_the_same_integers(tmp_path, suffix):
    net = fold.fold(small_model(layers.ReLU()))
    x = np.random.default_rng(0).normal(0, 1, (8, 6, 6, 1)).astype(np.float32)
    maps = calibrate.calibrate(net, x, seed=0)
    model = convert.quantized_model(net, uniform(net, bits=8), maps)
    found = stored.load_model(saved(model, tmp_path / f"m.{suffix}"))
    for mine, theirs in zip(
        convert.to_fixed_point(model).nodes, convert.to_fixed_point(found).nodes, strict=True
    ):
        assert (mine.node, mine.target) == (theirs.node, theirs.target)
        if mine.weights is not None:
            np.testing.assert_array_equal(mine.weights.kernel, theirs.weights.kernel)
            np.testing.assert_array_equal(mine.weights.bias, theirs.weights.bias)


def test_a_lambda_layer_is_refused_before_it_can_run(tmp_path, suffix):
    path = saved(small_model(layers.Lambda(lambda x: x)), tmp_path / f"m.{suffix}")
    with pytest.raises(ModelFileError, match=r"'Lambda'.* is not loaded: only layers"):
        stored.load_model(path)


def test_a_class_of_a_foreign_package_is_refused(tmp_path):
    path = saved(small_model(), tmp_path / "m.keras")
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(content["config.json"])
    description["config"]["layers"][1]["module"] = "subprocess"
    content["config.json"] = json.dumps(description).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(ModelFileError, match="of subprocess is not loaded: only layers"):
        stored.load_model(path)


def test_files_that_hold_no_model_are_named(tmp_path):
    weights = tmp_path / "weights.h5"
    small_model().save_weights(weights)
    text = tmp_path / "text.keras"
    text.write_text("no model")
    damaged = tmp_path / "damaged.h5"
    with h5py.File(damaged, "w") as file:
        file.attrs["model_config"] = "{"
    for path, why in (
        (tmp_path / "none.h5", "no such file"),
        (text, "not a Keras model"),
        (weights, "not a Keras model"),
        (damaged, "not a Keras model"),
    ):
        with pytest.raises(ModelFileError, match=f"{path.name}: .*{why}"):
            stored.load_model(path)


def test_an_unknown_layer_is_one_line(tmp_path):
    path = saved(small_model(), tmp_path / "m.h5")
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace("Dense", "Tense")
    with pytest.raises(ModelFileError, match=r"'Tense' is not loaded") as caught:
        stored.load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((3, 5, 6, 1)), r"its shape is \(3, 5, 6, 1\), the model takes \(n, 6, 6, 1\)"),
        (np.zeros((0, 6, 6, 1)), "its shape is"),
        (np.full((1, 6, 6, 1), np.nan), "not finite"),
        (np.full((1, 6, 6, 1), "a"), "not a .npy array of numbers"),
        (np.full((1, 6, 6, 1), None), "not a .npy array of numbers"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path, array, why):
    path = tmp_path / "x.npy"
    np.save(path, array)
    with pytest.raises(DataError, match=f"x.npy: .*{why}"):
        stored.load_inputs(path, small_model())


def test_inputs_become_float32(tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, 6, 6, 1), 200, np.uint8))
    found = stored.load_inputs(tmp_path / "x.npy", small_model())
    assert found.dtype == np.float32
    assert np.all(found == 200)
