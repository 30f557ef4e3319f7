"""Files: written whole or not at all, read with one clear error."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbee import arrays, files
from qbee.errors import ModelFileError, ParameterError
from qbee.records import FrontEnd

FRONT_ENDS = [
    FrontEnd(),
    FrontEnd(sample_rate_hz=8000, n_mels=40, fmin_hz=0, fmax_hz=4000, power_floor=1e-7),
    FrontEnd(standardize="fold", mean_db=-71.25, std_db=0.1 + 0.2),
]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_block_that_ends_well_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    with files.replacing(path) as partial:
        partial.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert partial.suffix == ".tflite"
        assert partial.parent == tmp_path
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["model.tflite"]


@pytest.mark.parametrize("error", [RuntimeError("full"), KeyboardInterrupt()])
def test_an_error_inside_the_block_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "scheme.json"
    path.write_text("old")
    with pytest.raises(type(error)), files.replacing(path) as partial:
        partial.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["scheme.json"]


def test_an_error_inside_the_block_creates_no_file(tmp_path):
    with pytest.raises(RuntimeError), files.replacing(tmp_path / "new.json") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert names_in(tmp_path) == []


@given(st.text())
def test_text_is_read_as_it_was_written(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    files.write_text(path, text)
    # Python reads all line ends as \n; the files of qbee are JSON, where that is no loss.
    assert files.read_text(path) == text.replace("\r\n", "\n").replace("\r", "\n")


def test_unreadable_text_is_named_in_one_error(tmp_path):
    (tmp_path / "latin.json").write_bytes("Bärlauch".encode("latin-1"))
    with pytest.raises(ModelFileError, match=r"latin\.json: is not UTF-8 text"):
        files.read_text(tmp_path / "latin.json")
    with pytest.raises(ModelFileError, match=r"none\.json: No such file"):
        files.read_text(tmp_path / "none.json")
    with pytest.raises(ModelFileError, match="Is a directory"):
        files.read_text(tmp_path)


def test_a_folder_is_made_with_its_parents_and_is_empty(tmp_path):
    made = files.make_folder(tmp_path / "a" / "b")
    assert made == tmp_path / "a" / "b"
    assert names_in(made) == []
    assert files.make_folder(made) == made


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ParameterError, match="taken.*cannot write to this folder"):
        files.make_folder(tmp_path / "taken" / "b")
    with pytest.raises(ParameterError, match="taken: cannot write to this folder"):
        files.make_folder(tmp_path / "taken")


def stored_arrays():
    return {
        "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
        "codes": np.array([-(2**40), 2**40]),
        "empty": np.zeros((0, 5), np.int8),
        "scalar": np.array(3.5),
    }


def test_arrays_and_values_are_equal_after_the_trip(tmp_path):
    path, values = tmp_path / "a.npz", {"history": [{"epoch": 1, "loss": 0.1}], "name": "Grün"}
    arrays.save(path, stored_arrays(), values)
    back, back_values = arrays.load(path)
    assert back_values == values
    assert list(back) == list(stored_arrays())
    for name, array in stored_arrays().items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_values_are_optional(tmp_path):
    arrays.save(tmp_path / "a.npz", stored_arrays())
    assert arrays.load(tmp_path / "a.npz")[1] == {}


def test_every_truncation_of_a_file_of_arrays_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    arrays.save(path, {"w": np.arange(12.0)}, {"a": 1})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"a\.npz"):
            arrays.load(path)


@pytest.mark.parametrize("mask", [0x01, 0x08, 0x80, 0xFF])
def test_no_flipped_byte_gives_other_values(tmp_path, mask):
    path = tmp_path / "a.npz"
    weights = np.arange(12.0)
    arrays.save(path, {"w": weights}, {"a": 1})
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= mask
        path.write_bytes(damaged)
        try:
            back, values = arrays.load(path)
        except ModelFileError:
            refused += 1
            continue
        # Some bytes do not matter (time stamps), others rename or hide an entry.
        assert values == {"a": 1}
        for array in back.values():
            np.testing.assert_array_equal(array, weights)
    assert refused > len(whole) // 2


def test_an_array_of_python_objects_is_refused_and_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    path = tmp_path / "a.npz"
    text = np.frombuffer(b"{}", np.uint8)
    np.savez(path, json=text, w=np.array([Trap()], object))
    with pytest.raises(ModelFileError, match=r"a\.npz: damaged, or not a file of weights"):
        arrays.load(path)
    assert names_in(tmp_path) == ["a.npz"]


def test_files_of_another_kind_are_no_arrays(tmp_path):
    (tmp_path / "text.npz").write_text("no zip")
    np.save(tmp_path / "one.npy", np.arange(3))
    np.savez(tmp_path / "foreign.npz", w=np.arange(3))
    np.savez(tmp_path / "no_json.npz", json=np.frombuffer(b"{broken", np.uint8))
    for name in names_in(tmp_path):
        with pytest.raises(ModelFileError, match=f"{name}: damaged, or not a file of weights"):
            arrays.load(tmp_path / name)
    with pytest.raises(ModelFileError, match=r"none\.npz: No such file"):
        arrays.load(tmp_path / "none.npz")


def test_an_interrupted_save_leaves_the_old_arrays(tmp_path):
    path = tmp_path / "a.npz"
    arrays.save(path, {"w": np.zeros(2)})
    with pytest.raises(TypeError):
        arrays.save(path, {"w": np.ones(2)}, {"not json": object()})
    np.testing.assert_array_equal(arrays.load(path)[0]["w"], np.zeros(2))
    assert names_in(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_front_end_is_equal_after_the_trip_through_json(tmp_path, front_end):
    front_end.save(tmp_path / "f.json")
    assert FrontEnd.load(tmp_path / "f.json") == front_end
    assert json.loads((tmp_path / "f.json").read_text())["n_mels"] == front_end.n_mels


def test_the_default_front_end_is_a_window_of_four_seconds_every_two():
    assert FrontEnd().window_s == 4.0
    assert FrontEnd().window_hop_s == 2.0


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"n_mel": 64}, "n_mel: "),
        ({"n_mels": "many"}, "n_mels: "),
        ({"n_mels": 64.5}, "n_mels: "),
        ({"standardize": "batch"}, "standardize: "),
        ({"sample_rate_hz": None}, "sample_rate_hz: "),
        ({"fmax_hz": 2001.0}, r"fmax_hz=2001.0.*sample_rate_hz/2=2000.0"),
        ({"fmin_hz": 1450.0}, "fmin_hz=1450.0"),
        ({"hop_samples": 0}, "hop_samples"),
        ({"window_hop_frames": 0}, "window_hop_frames=0"),
        ({"mean_db": -70.0}, "mean_db and std_db"),
        ({"mean_db": -70.0, "std_db": 0.0}, "std_db=0.0"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, changed, named):
    path = tmp_path / "f.json"
    path.write_text(json.dumps(FrontEnd().model_dump() | changed))
    with pytest.raises(ModelFileError, match=rf"f\.json: .*{named}"):
        FrontEnd.load(path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null"])
def test_a_document_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ModelFileError, match=r"f\.json: the document: "):
        FrontEnd.load(tmp_path / "f.json")


def test_a_record_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        FrontEnd().n_mels = 1
