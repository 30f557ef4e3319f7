"""Adapting to a new recorder: levels follow it, decisions stay, and no labels are needed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import qbee

from qbee import detector
from qbee.audio import load, mel, synth
from qbee.detect import sampling
from qbee.detector import Card, Detector
from qbee.errors import AudioError, DataError, ModelFileError, ParameterError
from qbee.export.delivery import ExportSettings
from qbee.field import adapting
from qbee.field.adapting import Adaptation, adapt
from qbee.field.detecting import detect
from qbee.job import deployment, verbs
from qbee.job.verbs import resumed
from qbee.quantize import thresholds
from qbee.quantize.scheme import Scheme
from qbee.records import FrontEnd
from qbee.train import metrics

FEW = 24
QUIETER_DB = 20.0


def quieter(source: Path, target: Path) -> Path:
    """The same recordings, 20 dB quieter and without rounding, and a few of their labels."""
    target.mkdir()
    rows = (source / "labels.csv").read_text().splitlines()[:4]
    (target / "labels.csv").write_text("\n".join(rows) + "\n")
    for path in source.glob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(target / path.name, samples / 10, rate, subtype="FLOAT")
    return target


def rmse(a, b):
    return float(np.sqrt(np.mean((np.float64(a) - b) ** 2)))


@pytest.fixture(scope="session")
def loud(tmp_path_factory) -> Path:
    """Folder of small soundscapes and their labels."""
    folder = tmp_path_factory.mktemp("loud")
    return synth.soundscapes(folder, seed=5, recordings_per_location=2, duration_s=44.0).parent


@pytest.fixture(scope="session")
def quiet(loud, tmp_path_factory) -> Path:
    """Folder of the same, 20 dB quieter."""
    return quieter(loud, tmp_path_factory.mktemp("quiet") / "recordings")


@pytest.fixture(scope="session")
def fold_job(loud, tmp_path_factory) -> Path:
    """Result folder of the smallest job whose windows are levelled all alike."""
    folder = tmp_path_factory.mktemp("job")
    space = json.loads((Path(__file__).parent / "small_space.json").read_text())
    (folder / "space.json").write_text(json.dumps({**space, "trial_windows": 64}))
    job = verbs.train(
        loud / "labels.csv", "beenet3", folder / "job", epochs=1, fine_tune_epochs=1, folds=3,
        space=folder / "space.json", standardize="fold",
    )  # fmt: skip
    verbs.search(job.folder, trials=1, top=1)
    deployment.export(job.folder, ExportSettings())
    return job.folder


@pytest.fixture(scope="session")
def adapted(fold_job, loud, quiet, tmp_path_factory) -> dict[str, Path]:
    """The job adapted to the loud and to the quiet recordings, and fine-tuned to the quiet."""
    folder = tmp_path_factory.mktemp("adapted")
    adapt(fold_job, [loud], folder / "loud", windows=FEW)
    adapt(fold_job, [quiet], folder / "quiet", windows=FEW)
    adapt(fold_job, [quiet], folder / "tuned", windows=FEW, fine_tune=True)
    return {name: folder / name for name in ("loud", "quiet", "tuned")}


@pytest.fixture(scope="session")
def images(fold_job, loud, quiet):
    """Windows that overlap, of the loud recordings and of the quiet ones."""
    front_end = FrontEnd.load(fold_job / "frontend.json")
    found = {"loud": [], "quiet": []}
    for name in sorted(path.name for path in loud.glob("*_01.wav")):
        found["loud"].append(np.concatenate([*mel.windows(loud / name, front_end)]))
        found["quiet"].append(np.concatenate([*mel.windows(quiet / name, front_end)]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def report(folder) -> Adaptation:
    return Adaptation.load(folder / adapting.FILE)


def opened(folder) -> Detector:
    """Detector of a folder on LiteRT, which is many times faster and gives the same integers."""
    return Detector.load(folder, engine="litert")


def margins(one: Detector, windows):
    logits = one.logits(windows)
    return logits[:, 1] - logits[:, 0]


def decisions(folder, found):
    return metrics.sigmoid(found) >= opened(folder).card.threshold


def test_levels_follow_a_recorder_that_is_20_db_quieter(adapted):
    loud, quiet = report(adapted["loud"]), report(adapted["quiet"])
    assert quiet.mean_db == pytest.approx(loud.mean_db - QUIETER_DB, abs=1e-3)
    assert quiet.std_db == pytest.approx(loud.std_db, abs=1e-3)
    assert quiet.mean_db_before == loud.mean_db_before != loud.mean_db


def test_levels_are_those_of_the_sampled_windows(fold_job, quiet, adapted):
    front_end = resumed(fold_job).settings.front_end
    paths = sorted(quiet.glob("*.wav"))
    sampled = sampling.sample(paths, front_end, windows=FEW, seed=0).images
    assert report(adapted["quiet"]).mean_db == pytest.approx(sampled.mean(dtype=np.float64))
    assert report(adapted["quiet"]).std_db == pytest.approx(sampled.std(dtype=np.float64))


def test_the_adapted_detector_hears_in_the_quiet_what_it_hears_in_the_loud(adapted, images):
    in_loud = margins(opened(adapted["loud"]), images["loud"])
    in_quiet = margins(opened(adapted["quiet"]), images["quiet"])
    in_both = [decisions(adapted[name], found) for name, found in
               (("loud", in_loud), ("quiet", in_quiet))]  # fmt: skip
    np.testing.assert_array_equal(*in_both)
    # An input next to the border of two codes may fall on the other side.
    assert np.mean(in_loud == in_quiet) > 0.9
    assert len(np.unique(in_loud)) > 3


def test_shifting_level_and_mean_together_leaves_the_original_decisions(fold_job, images):
    one = opened(fold_job)
    front_end = one.card.front_end
    shifted = front_end.model_copy(update={"mean_db": front_end.mean_db - QUIETER_DB})
    other = Detector(one.model, one.card.model_copy(update={"front_end": shifted}))
    in_loud, in_quiet = margins(one, images["loud"]), margins(other, images["quiet"])
    expected = decisions(fold_job, in_loud)
    np.testing.assert_array_equal(decisions(fold_job, in_quiet), expected)
    assert np.mean(in_loud == in_quiet) > 0.9
    # Without a new mean it hears something else.
    unadapted = decisions(fold_job, margins(one, images["quiet"]))
    assert np.mean(unadapted == expected) < 0.8


def test_the_new_levels_are_everywhere_in_the_folder(adapted):
    folder, found = adapted["quiet"], report(adapted["quiet"])
    card = Card.of_model((folder / "model.tflite").read_bytes(), source="model.tflite")
    assert card.front_end == FrontEnd.load(folder / "frontend.json")
    assert (card.front_end.mean_db, card.front_end.std_db) == (found.mean_db, found.std_db)
    header = (folder / "model_data.h").read_text()
    for name, value in (("QBEE_MEAN_DB", found.mean_db), ("QBEE_STD_DB", found.std_db)):
        assert f"{name} {float(np.float32(value))!r}f" in header
    source = (folder / "model_data.cc").read_text()
    array = source[source.index("{") + 1 : source.index("}")]
    stored = bytes(int(number, 16) for number in array.replace("\n", " ").split(","))
    assert stored == (folder / "model.tflite").read_bytes()


def test_threshold_and_scheme_stay_the_jobs(fold_job, adapted):
    one = opened(fold_job)
    for folder in adapted.values():
        assert opened(folder).card.threshold == one.card.threshold
        assert report(folder).threshold == one.card.threshold
        assert "labelled" in report(folder).threshold_from
        assert Scheme.load(folder / "scheme.json") == Scheme.load(fold_job / "scheme.json")
        assert (folder / "fidelity.json").stat().st_size


def test_without_fine_tuning_the_weights_stay_the_jobs(fold_job, adapted, images):
    card = opened(adapted["quiet"]).card
    with_old_weights = Detector(opened(fold_job).model, card)
    expected = with_old_weights.logits(images["quiet"])
    found = opened(adapted["quiet"]).logits(images["quiet"])
    np.testing.assert_array_equal(found, expected)
    assert report(adapted["quiet"]).rmse_after is None


def test_fine_tuning_comes_closer_to_the_float_network(fold_job, adapted, quiet):
    """On the windows it was done with, and on those that were held out the report says how far."""
    before, after = (opened(adapted[name]) for name in ("quiet", "tuned"))
    paths = sorted(quiet.glob("*.wav"))
    sampled = sampling.sample(paths, before.card.front_end, windows=FEW, seed=0).images
    wanted = thresholds.logits(resumed(fold_job).folded, before.inputs(sampled))
    errors = [(one.logits(sampled) - wanted) for one in (before, after)]
    cut = len(sampled) - report(adapted["tuned"]).held_out_windows
    tuned = [rmse(error[:cut], 0) for error in errors]
    assert tuned[1] < tuned[0]
    held_out = [rmse(error[cut:], 0) for error in errors]
    found = report(adapted["tuned"])
    assert [found.rmse_before, found.rmse_after] == pytest.approx(held_out)
    assert report(adapted["quiet"]).rmse_before == pytest.approx(found.rmse_before)


def test_the_tuned_file_is_equal_in_numpy_keras_and_both_interpreters(adapted, images):
    found = report(adapted["tuned"])
    assert (found.mismatches, found.held_out_windows) == (0, FEW // 4)
    micro, litert = (Detector.load(adapted["tuned"], engine=e) for e in ("tflm", "litert"))
    few = images["quiet"][:8]
    np.testing.assert_array_equal(micro.logits(few), litert.logits(few))


def test_an_adapted_folder_detects_and_is_evaluated(adapted, quiet, tmp_path):
    one = quiet / "forest_01.wav"
    summary = detect([one], adapted["tuned"], tmp_path / "heard", clip_count=0)
    assert (summary.used, summary.left_out, summary.windows) == (1, 0, 21)
    assert detector.evaluate(adapted["tuned"], quiet / "labels.csv")["windows"] > 0


@pytest.fixture
def window_job(fold_job, tmp_path) -> Path:
    """The same job as if windows were levelled one by one."""
    folder = shutil.copytree(fold_job, tmp_path / "window_job")
    settings = json.loads((folder / "job.json").read_text())
    settings["front_end"]["standardize"] = "window"
    (folder / "job.json").write_text(json.dumps(settings))
    return folder


def test_windows_levelled_one_by_one_leave_only_fine_tuning(window_job, quiet, tmp_path):
    with pytest.raises(ParameterError, match=r"no levels to adapt; fine-tune \(--fine-tune\)"):
        adapt(window_job, [quiet], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = adapt(window_job, [quiet], tmp_path / "out", windows=8, fine_tune=True)
    assert found.mean_db is None is found.mean_db_before
    assert found.rmse_after is not None
    assert found.mismatches == 0
    assert opened(tmp_path / "out").card.front_end.standardize == "window"


def test_a_recording_that_cannot_be_read_stops_or_is_skipped(fold_job, quiet, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    both = [quiet, tmp_path / "broken.wav"]
    with pytest.raises(AudioError, match=r"broken.wav: .* \(--on-error skip goes on\)"):
        adapt(fold_job, both, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = adapt(fold_job, both, tmp_path / "out", windows=8, on_error="skip")
    assert [Path(message.split(":")[0]).name for message in found.skipped] == ["broken.wav"]
    assert len(found.recordings) == 6


def test_bad_input_leaves_nothing_behind(fold_job, quiet, tmp_path):
    short = tmp_path / "short"
    short.mkdir()
    soundfile.write(short / "a.wav", np.random.default_rng(0).normal(0, 0.1, 48000), 8000)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(fold_job / "job.json", unfinished)
    out = tmp_path / "out"
    for kind, message, given in (
        (ModelFileError, "no job was begun in this folder", (short, [quiet])),
        (ModelFileError, "not finished; continue it with 'search'", (unfinished, [quiet])),
        (ParameterError, "nowhere: no such file or folder", (fold_job, [tmp_path / "nowhere"])),
        (DataError, "hold 1 windows of 4 s; 8 are needed", (fold_job, [short])),
    ):
        with pytest.raises(kind, match=message):
            adapt(*given, out)
    for changes in ({"windows": 7}, {"seed": -1}):
        with pytest.raises(ParameterError, match=f"{[*changes][0]}="):
            adapt(fold_job, [quiet], out, **changes)
    assert not list(tmp_path.glob("*out*"))


def test_folders_of_jobs_and_of_anything_else_are_not_overwritten(fold_job, quiet, tmp_path):
    before = sorted(path.name for path in fold_job.iterdir())
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(fold_job / "job.json", other)
    for out in (fold_job, other):
        with pytest.raises(ParameterError, match="is the folder of a job"):
            adapt(fold_job, [quiet], out)
    with pytest.raises(ParameterError, match="is no adaptation folder, so it is not replaced"):
        adapt(fold_job, [quiet], quiet)
    assert sorted(path.name for path in fold_job.iterdir()) == before
    assert [path.name for path in other.iterdir()] == ["job.json"]


def test_the_command_line_replaces_an_earlier_adaptation(fold_job, quiet, adapted, tmp_path):
    out = shutil.copytree(adapted["loud"], tmp_path / "out")
    done = qbee("adapt", fold_job, quiet, "--out", out, "--windows", FEW)
    assert report(out) == report(adapted["quiet"])
    assert "24 windows of 6 recordings" in done.stdout
    assert "mean level, dB" in done.stdout
    assert "TFLite Micro equals numpy and Keras on 6 of them" in done.stdout
    assert "labelled windows of the old recorder" in done.stdout
    for name in ("model.tflite", "model_data.h", "frontend.json"):
        assert (out / name).read_bytes() == (adapted["quiet"] / name).read_bytes()


def test_shares_are_equal_as_far_as_there_is_room():
    assert sampling.shares([10, 10, 10], 12) == [4, 4, 4]
    assert sampling.shares([1, 10, 10], 12) == [1, 5, 6]
    assert sampling.shares([10, 2, 3], 100) == [10, 2, 3]
    assert sampling.shares([], 5) == []


def toys(folder, *, count=5, seconds=30, rate=4000):
    rng = np.random.default_rng(0)
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", rng.normal(0, 0.1, seconds * rate), rate)
    return sorted(folder.glob("*.wav"))


def test_equal_seeds_sample_equal_windows(tmp_path):
    paths = toys(tmp_path)
    first, again, other = (
        sampling.sample(paths, FrontEnd(), windows=12, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert first.recordings == again.recordings
    assert not np.array_equal(first.images, other.images)


def test_sampled_windows_are_windows_of_the_recordings_and_all_different(tmp_path):
    paths, front_end = toys(tmp_path), FrontEnd()
    found = sampling.sample(paths, front_end, windows=12, seed=0)
    assert len(found.images) == 12
    assert set(found.recordings) == {str(path) for path in paths}
    every = [mel.images(path, front_end, np.arange(7) * front_end.window_s) for path in paths]
    known = {image.tobytes() for image in np.concatenate(every)}
    sampled = {image.tobytes() for image in found.images}
    assert len(sampled) == 12
    assert sampled <= known
    # More than there are is all of them.
    assert len(sampling.sample(paths, front_end, windows=1000, seed=0).images) == 35


def test_no_more_recordings_are_read_than_are_wanted(tmp_path, monkeypatch):
    paths, front_end = toys(tmp_path), FrontEnd()
    monkeypatch.setattr(sampling, "MOST_RECORDINGS", 2)
    found = sampling.sample(paths, front_end, windows=10, seed=0)
    assert (len(found.recordings), len(found.images)) == (2, 10)


@pytest.mark.parametrize(
    ("seconds", "rate", "message"),
    [(3, 4000, "3.000 s are shorter than a window of 4 s"), (30, 2000, "2000 Hz hold no sound")],
)
def test_recordings_that_say_nothing_are_skipped_with_a_reason(tmp_path, seconds, rate, message):
    soundfile.write(tmp_path / "odd.wav", np.ones(seconds * rate) / 10, rate)
    paths = [tmp_path / "odd.wav", *toys(tmp_path)]
    with pytest.raises(AudioError, match=message):
        sampling.sample(paths, FrontEnd(), windows=40, seed=0)
    found = sampling.sample(paths, FrontEnd(), windows=40, seed=0, on_error="skip")
    assert len(found.recordings) == 5
    assert message in found.skipped[0]


def test_damage_behind_the_header_is_found_and_the_rest_is_used(tmp_path):
    paths = toys(tmp_path)
    samples, rate = soundfile.read(paths[0])
    samples[-1] = np.nan
    soundfile.write(paths[0], samples, rate, subtype="FLOAT")
    assert load.info(paths[0]).duration_s == 30
    found = sampling.sample(paths, FrontEnd(), windows=10, seed=0, on_error="skip")
    assert (len(found.recordings), len(found.images)) == (4, 8)
    assert "not finite" in found.skipped[0]


def test_names_that_are_no_text_can_be_reported(tmp_path):
    for path in toys(tmp_path, count=2):
        path.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff" + path.name.encode())))
    broken = tmp_path / os.fsdecode(b"\xfe.wav")
    broken.write_bytes(b"no sound")
    found = sampling.sample(
        [*tmp_path.glob("*.wav")], FrontEnd(), windows=8, seed=0, on_error="skip"
    )
    assert all("\\xff" in name for name in found.recordings)
    assert "\\xfe.wav" in found.skipped[0]
    json.dumps([*found.recordings, *found.skipped], ensure_ascii=False).encode()
