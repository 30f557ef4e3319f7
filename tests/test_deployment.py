"""qbee export: for a target, within a limit of memory, as firmware; nothing half-written."""

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import qbee
from twin_nets import built, squeeze_excite

from qbee import cli
from qbee.detector import Card
from qbee.errors import ExportError, ModelFileError, ParameterError
from qbee.export.delivery import ExportSettings, deliver
from qbee.job import any_model, deployment
from qbee.keras import make_repeatable
from qbee.quantize.scheme import uniform
from qbee.runtime.interpreter import MicroModel

SHARED = ["model.tflite", "model_data.h", "model_data.cc", "frontend.json", "fidelity.json"]


@pytest.fixture(scope="module")
def job(finished_job, tmp_path_factory):
    """A finished job that may be changed."""
    folder = tmp_path_factory.mktemp("job") / "job"
    shutil.copytree(finished_job, folder)
    return folder


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command that must fail; gives its one line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["qbee", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        (line,) = [line for line in lines if line.startswith("qbee: ")]
        return line

    return run


def outputs(model, seed=0):
    codes = np.random.default_rng(seed).integers(-128, 128, (3, *model.input_shape[1:]))
    return model.run(codes)


def test_a_limit_of_memory_is_kept_and_the_outputs_stay_the_same(job, tmp_path):
    done = qbee("export", job, "--max-arena", "160k", "--out", tmp_path / "small")
    assert "x the multiplications" in done.stdout
    assert all((tmp_path / "small" / name).stat().st_size for name in SHARED)
    small, whole = (MicroModel.load(f / "model.tflite") for f in (tmp_path / "small", job))
    assert small.arena_bytes() <= 160_000 < whole.arena_bytes()
    np.testing.assert_array_equal(outputs(small), outputs(whole))
    stored = json.loads((tmp_path / "small" / "fidelity.json").read_text())
    assert stored["arena_bytes"] == small.arena_bytes()
    assert stored["file_bytes"] == len(small.content)
    assert stored["recompute"] <= 1.3
    assert not (job / "export.json").exists()


@pytest.mark.slow
def test_exported_into_the_job_itself_it_is_what_verify_verifies(job):
    qbee("export", job, "--max-recompute", "1.1")
    assert not (job / "results.json").exists()
    exported = MicroModel.load(job / "model.tflite")
    verified = json.loads(qbee("verify", job, "--json").stdout)
    assert verified["mismatches"] == 0 < verified["windows"]
    assert MicroModel.load(job / "model.tflite").content == exported.content
    assert {row["tflm_mismatches"] for row in verified["layers"]} == {0}
    # Rows that strips read of the input are no layer of Keras.
    assert {row["keras_mismatches"] for row in verified["layers"]} <= {0, None}
    assert json.loads((job / "verify.json").read_text()) == verified
    assert json.loads((job / "results.json").read_text())["verify"] == verified
    assert "0 mismatches" in qbee("verify", job).stdout
    deployment.export(job)
    assert MicroModel.load(job / "model.tflite").arena_bytes() > 500_000


@pytest.mark.parametrize("kind", ["int8", "float"])
def test_int8_and_float_are_exported_beside_the_job(job, tmp_path, kind):
    before = (job / "model.tflite").read_bytes()
    qbee("export", job, "--kind", kind, "--out", tmp_path)
    model = MicroModel.load(tmp_path / "model.tflite")
    assert model.input_shape == (1, 128, 128, 1)
    assert model.input.dtype == {"int8": np.int8, "float": np.float32}[kind]
    assert (job / "model.tflite").read_bytes() == before


def test_firmware_goes_with_the_model_it_was_made_for(job, tmp_path):
    qbee("export", job, "--firmware", "--out", tmp_path)
    found = (tmp_path / "firmware" / "src" / "model_data.cc").read_text()
    assert found == (tmp_path / "model_data.cc").read_text()
    assert (tmp_path / "firmware" / "README.md").stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-arena", "30k"], "max_arena=30000: the smallest arena found has"),
        (["--max-arena", "lots"], "'lots' is no number of bytes such as 200000, 200k or 256Ki"),
        (["--max-arena", "0"], "'0' is no number of bytes such as 200000, 200k or 256Ki"),
        (["--max-recompute", "0.5"], "Invalid value for '--max-recompute'"),
        (["--max-recompute", "inf"], "Invalid value for '--max-recompute'"),
        (["--target", "avr"], "target='avr' must be one of tflm, litert, ethos-u"),
        (["--kind", "float", "--firmware"], "goes without firmware"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(
    job, tmp_path, refused, options, message
):
    assert message in refused("export", job, *options, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_an_arena_that_is_larger_on_the_device_than_predicted_is_refused():
    """Sigmoids take some bytes that the prediction does not count exactly."""
    make_repeatable(0)
    case = built(squeeze_excite, windows=2)
    _, net = case.quantized(uniform(case.net, bits=8))
    delivery = deliver(net, ExportSettings())
    measured = MicroModel(delivery.exported.content).arena_bytes()
    fits, too_small = (ExportSettings(max_arena_bytes=measured - less) for less in (0, 1))
    assert deployment.on_device(delivery, fits).arena_bytes() == measured
    with pytest.raises(ExportError, match=f"the arena has {measured} bytes"):
        deployment.on_device(delivery, too_small)


def test_int8_does_not_overwrite_the_winner(job, refused):
    assert "kind='int8' must be given another folder" in refused("export", job, "--kind", "int8")


def test_a_folder_without_a_network_is_refused(tmp_path, refused):
    found = refused("export", tmp_path)
    assert f"{tmp_path}: holds neither job.json of a job nor quantized.keras" in found


def test_an_unfinished_job_is_not_trained_on_the_way(job, tmp_path):
    unfinished = tmp_path / "job"
    shutil.copytree(job, unfinished)
    (unfinished / "work" / "chosen.json").unlink()
    with pytest.raises(ModelFileError, match="is not finished; continue it with 'search'"):
        deployment.export(unfinished)


def test_the_folder_of_another_job_is_not_written_to(job, tmp_path):
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ParameterError, match="is the folder of another job"):
        deployment.export(job, out=tmp_path)


def test_firmware_beside_a_new_model_is_made_anew(job, tmp_path):
    deployment.export(job, out=tmp_path, has_firmware=True)
    deployment.export(job, ExportSettings(has_metadata=False), out=tmp_path)
    found = (tmp_path / "firmware" / "src" / "model_data.cc").read_text()
    assert found == (tmp_path / "model_data.cc").read_text()


def test_strict_export_of_a_job_with_narrow_maps_fails_and_names_the_layer(job, tmp_path):
    scheme = json.loads((job / "scheme.json").read_text())
    done = qbee("export", job, "--strict", "--out", tmp_path / "out", check=False)
    # Maps of 4 bits are stored in 8; the space of the job has no 16 bits.
    is_narrow = any(bits["map"] == 4 for bits in scheme["layers"].values())
    assert done.returncode == (2 if is_narrow else 0)


def test_a_model_quantized_from_anybodys_is_exported_again_in_strips(tmp_path):
    from qbee.models import registry

    registry.build("beenet3", n_mels=32, n_frames=32).save(tmp_path / "model.keras")
    inputs = np.random.default_rng(0).normal(size=(8, 32, 32, 1)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    result = tmp_path / "result"
    any_model.quantize_file(tmp_path / "model.keras", tmp_path / "inputs.npy", result)
    whole = MicroModel.load(result / "model.tflite")
    delivered = deployment.export(
        result,
        ExportSettings(max_recompute=2.0),
        out=tmp_path / "small",
    )
    small = MicroModel.load(tmp_path / "small" / "model.tflite")
    assert delivered.arena_bytes == small.arena_bytes() < whole.arena_bytes()
    np.testing.assert_array_equal(outputs(small), outputs(whole))
    assert any_model.Quantized.load(result / any_model.REPORT).arena_bytes == whole.arena_bytes()
    deployment.export(result, deployment.ExportSettings(max_recompute=2.0))
    report = any_model.Quantized.load(result / any_model.REPORT)
    assert (report.tflite_bytes, report.arena_bytes) == (len(small.content), small.arena_bytes())


def test_the_file_says_what_it_was_trained_on_unless_told_not_to(job, tmp_path):
    results = json.loads((job.parent / "job" / "job.json").read_text())
    content = (job / "model.tflite").read_bytes()
    training = Card.of_model(content, source="model").training
    assert training.model == results["model"] == "beenet3"
    assert training.windows > training.positives > 0
    assert (training.epochs, training.seed) == (results["epochs"], results["seed"])
    bare = deployment.export(job, ExportSettings(has_metadata=False), out=tmp_path / "bare")
    assert bare.delivery.fidelity.metadata_bytes == 0
    assert bare.tflite_bytes < len(content)
    with pytest.raises(ModelFileError, match="has no 'qbee' metadata"):
        Card.of_model((tmp_path / "bare" / "model.tflite").read_bytes(), source="model")
