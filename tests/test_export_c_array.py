"""The C source compiles and holds the front end with its standardization."""

import shutil
import subprocess

import pytest

from qbee.audio.mel import MIN_STD_DB
from qbee.errors import ParameterError
from qbee.export import c_array
from qbee.quantize.fixed_point import MapType
from qbee.records import FrontEnd

BY_FOLD = FrontEnd(standardize="fold", mean_db=-61.5, std_db=7.25, fmin_hz=52.375)


def defines(folder, front_end, **changes):
    """Write a small stand-in of a model; the macros of its header by name."""
    c_array.write(
        folder,
        bytes(range(40)),
        front_end,
        arena_bytes=4096,
        input_map=MapType(8, -128, 2.0**-5),
        margin_threshold=3,
        **{"labels": ("no_buzz", "buzz"), **changes},
    )
    lines = (folder / "model_data.h").read_text().splitlines()
    return dict(
        line.split()[1:] for line in lines if line.startswith("#define") and " " in line[8:]
    )


def test_the_header_standardizes_by_window(tmp_path):
    found = defines(tmp_path, FrontEnd())
    assert found["QBEE_STANDARDIZE_WINDOW"] == "1"
    assert float(found["QBEE_MIN_STD_DB"].removesuffix("f")) == MIN_STD_DB
    assert float(found["QBEE_POWER_FLOOR"].removesuffix("f")) == FrontEnd().power_floor
    assert not {"QBEE_MEAN_DB", "QBEE_STD_DB"} & set(found)


def test_the_header_standardizes_by_fold(tmp_path):
    found = defines(tmp_path, BY_FOLD)
    assert found["QBEE_STANDARDIZE_WINDOW"] == "0"
    assert (found["QBEE_MEAN_DB"], found["QBEE_STD_DB"]) == ("-61.5f", "7.25f")
    assert found["QBEE_FMIN_HZ"] == "52.375f"
    assert "QBEE_MIN_STD_DB" not in found


def test_a_fold_without_its_mean_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ParameterError, match="mean_db=None"):
        defines(tmp_path, FrontEnd(standardize="fold"))
    assert not list(tmp_path.iterdir())


def test_the_header_names_the_outputs(tmp_path):
    defines(tmp_path, FrontEnd())
    header = (tmp_path / "model_data.h").read_text()
    assert "output[0] is the logit of no_buzz, output[1] that of buzz" in header


def test_labels_are_strings_of_c(tmp_path):
    found = defines(tmp_path, FrontEnd(), labels=("quiet", "hornet-2"))
    assert (found["QBEE_LABEL_0"], found["QBEE_LABEL_1"]) == ('"quiet"', '"hornet-2"')
    header = (tmp_path / "model_data.h").read_text()
    assert "output[0] is the logit of quiet, output[1] that of hornet-2" in header


@pytest.mark.parametrize("label", ["", 'a"b', "a\\", "a\nb", "büzz", "a/*b"])
def test_a_label_that_c_would_read_otherwise_is_refused_and_nothing_written(tmp_path, label):
    with pytest.raises(ParameterError, match="must be of letters"):
        defines(tmp_path, FrontEnd(), labels=("no_buzz", label))
    assert not list(tmp_path.iterdir())


def test_the_arena_has_a_margin_and_is_aligned(tmp_path):
    found = defines(tmp_path, FrontEnd())
    assert (found["QBEE_ARENA_MEASURED_BYTES"], found["QBEE_ARENA_BYTES"]) == ("4096", "6144")
    assert [c_array.reserved_arena_bytes(n) for n in (0, 1, 16, 17)] == [2048, 2064, 2064, 2080]


@pytest.mark.parametrize("front_end", [FrontEnd(), BY_FOLD])
def test_a_compiler_takes_both_files(tmp_path, front_end):
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing")
    macros = defines(tmp_path, front_end)
    values = ", ".join(f"double({name})" for name in macros if "LABEL" not in name)
    use = f'#include "model_data.h"\nconst double values[] = {{{values}, double(g_model[0])}};\n'
    (tmp_path / "use.cc").write_text(use)
    for name in ("model_data.cc", "use.cc"):
        command = ["g++", "-fsyntax-only", "-x", "c++", "-std=c++11", "-Wall", "-Werror", name]
        subprocess.run(command, cwd=tmp_path, check=True)
