"""A model on trial: what TFLite Micro and LiteRT make of the same inputs."""

import importlib.util

import numpy as np
import pytest
from rich.console import Console
from test_export import integer_net, map_net
from test_runtime_sandbox import aborting

from qbee.errors import ModelFileError, ParameterError
from qbee.export import strips, tflite
from qbee.quantize import fixed_net
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT
from qbee.report import trial_table
from qbee.runtime import trial
from qbee.runtime.flatbuffer import Author, Op, Type, packed, schema
from qbee.runtime.inspection import inspect
from qbee.runtime.interpreter import MicroModel
from qbee.runtime.litert import LiteRtModel
from qbee.runtime.trial import Trial

needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="ai-edge-litert is not installed"
)
STEP = 2.0**-5


@pytest.fixture(scope="module")
def net():
    return integer_net()


@pytest.fixture(scope="module")
def exported(net):
    return tflite.write(net).content


@pytest.fixture(scope="module")
def found(exported):
    return trial.run(exported, source="m.tflite")


def with_two_inputs():
    author = Author()
    sources = [author.tensor((1, 4), Type.INT8, scale=1.0) for _ in range(2)]
    output = author.tensor((1, 4), Type.INT8, scale=1.0)
    author.operator(Op.ADD, sources, output, schema.AddOptionsT())
    return packed(author.model(sources, [output]))


def test_a_trial_is_equal_after_the_trip(found):
    assert Trial.model_validate_json(found.model_dump_json()) == found


def test_random_inputs_are_the_default_and_always_the_same(found, exported):
    assert (found.inputs, found.seed, found.windows) == ("random", 0, 8)
    again = trial.run(exported, source="m.tflite")
    assert again.ranges == found.ranges
    assert trial.run(exported, source="m.tflite", seed=1).ranges != found.ranges


def test_memory_types_and_counts_are_told(found, exported):
    assert found.arena_bytes == MicroModel(exported).arena_bytes()
    assert found.predicted_arena_bytes == inspect(exported, "m").arena.total_bytes
    assert (found.input_type, found.output_types) == ("int8", ("int8",))
    assert found.operators["CONV_2D int8 with int8 kernel"] == 3
    assert found.outputs_vary
    assert found.median_ms > 0


def test_ranges_are_those_of_the_specification(net, exported):
    codes = np.random.default_rng(3).integers(-128, 128, (20, *net.input_shape), dtype=np.int8)
    found = trial.run(exported, source="m", windows=codes)
    assert (found.inputs, found.seed, found.windows) == ("given", None, 20)
    expected = fixed_net.forward(net, codes)
    last = found.ranges[-1]
    logits = expected[net.nodes[-1].name]
    assert (last.op, last.type) == ("FULLY_CONNECTED", "int8")
    assert (last.lowest, last.highest) == (logits.min(), logits.max())
    assert last.at_lowest == np.mean(logits == -128)
    assert last.at_highest == np.mean(logits == 127)
    assert [seen.operator for seen in found.ranges] == list(range(len(found.ranges)))


def test_real_windows_are_quantized_as_the_model_says(net, exported):
    x = np.random.default_rng(0).normal(0, 1, (3, *net.input_shape)).astype(np.float32)
    codes = np.clip(np.floor(x.astype(float) / STEP + 0.5), -128, 127).astype(np.int8)
    real, whole = (trial.run(exported, source="m", windows=w) for w in (x, codes))
    assert real.ranges == whole.ranges
    # Axes of length 1 may be left out or added.
    for shaped in (x[..., 0], x[:, None]):
        assert trial.run(exported, source="m", windows=shaped).ranges == real.ranges


@pytest.mark.parametrize(
    ("windows", "match"),
    [
        (np.zeros((2, 16, 15, 1)), r"windows=\[2, 16, 15, 1\] must be \[n, \*\[1, 16, 16, 1\]\]"),
        (np.zeros((0, 16, 16, 1)), "one window or more"),
        (np.full((1, 16, 16, 1), np.nan), "windows must be finite"),
        (np.zeros((1, 16, 16, 1), np.int32), "windows of type int32 must be real numbers or int8"),
    ],
)
def test_windows_that_do_not_fit_are_refused(exported, windows, match):
    with pytest.raises(ParameterError, match=match):
        trial.run(exported, source="m", windows=windows)


def test_windows_are_read_from_a_file(tmp_path):
    path = tmp_path / "w.npy"
    np.save(path, np.eye(3))
    np.testing.assert_array_equal(trial.read_windows(path), np.eye(3))
    np.savez(tmp_path / "w.npz", a=np.eye(3), b=np.eye(2))
    for name, content in (("none.npy", None), ("text.npy", b"text"), ("w.npz", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ParameterError, match=name):
            trial.read_windows(tmp_path / name)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ParameterError, match="w.npy"):
        trial.read_windows(path)


def test_what_cannot_be_run_is_one_error():
    with pytest.raises(ModelFileError, match="m: TFLite Micro crashes on it"):
        trial.run(aborting(), source="m")
    with pytest.raises(ModelFileError, match="m: it has 2 inputs, and can only be run with one"):
        trial.run(with_two_inputs(), source="m")


def test_progress_ends_with_all_windows_of_all_passes(exported):
    calls = []
    trial.run(exported, source="m", on_progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}


def test_a_constant_output_is_told():
    number = MapType(8, -128, STEP)
    net = map_net(("n", "rescale", (INPUT,), (4, 6, 2), number, {}))
    same = np.zeros((3, 4, 6, 2), np.int8)
    found = trial.run(tflite.write(net).content, source="m", windows=same)
    assert not found.outputs_vary
    assert "Warning: all inputs have the same output." in trial_table.sentences(found)


@needs_litert
def test_litert_without_xnnpack_differs_by_its_rounding_only(net, exported):
    codes = np.random.default_rng(0).integers(-128, 128, (16, *net.input_shape), dtype=np.int8)
    found = trial.run(exported, source="m", windows=codes)
    micro = MicroModel(exported).run(codes).astype(int)
    for one in found.litert:
        model = LiteRtModel(exported, xnnpack=one.runtime == "xnnpack")
        other = model.run(codes).astype(int)
        assert one.numbers == micro.size == 32
        assert one.differing == np.sum(micro != other)
        assert one.largest_difference == np.max(np.abs(micro - other))
        assert one.class_agreement == np.mean(micro.argmax(1) == other.argmax(1))
        # Halves are rounded in another direction, which six layers hardly amplify.
        assert one.largest_difference <= 4
    assert [one.runtime for one in found.litert] == ["xnnpack", "builtin"]


@needs_litert
def test_litert_predicts_like_tflite_micro_within_steps(net, exported):
    x = np.random.default_rng(0).normal(0, 1, (4, *net.input_shape))
    micro, lite = MicroModel(exported), LiteRtModel(exported, xnnpack=False)
    assert lite.input == micro.input
    assert lite.output == micro.output
    assert lite.input_shape == micro.input_shape
    # As above: at most four steps.
    np.testing.assert_allclose(lite.predict(x), micro.predict(x), atol=4 * STEP)


@needs_litert
def test_what_litert_refuses_is_told_beside_the_rest():
    # A plan of the arena is no matter to LiteRT; a convolution of 16 bits without bias is.
    net = strips.cut(integer_net(side=32), (strips.Segment("layer1", 4),))
    found = trial.run(tflite.write(net, plan_memory=True).content, source="m")
    assert all(one.refused is None for one in found.litert)
    author = Author()
    source = author.tensor((1, 4, 4, 1), Type.INT16, scale=1.0)
    kernel = author.tensor((1, 1, 1, 1), Type.INT8, scale=1.0, data=np.ones((1, 1, 1, 1)))
    output = author.tensor((1, 4, 4, 1), Type.INT16, scale=1.0)
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = 1
    author.operator(Op.CONV_2D, [source, kernel], output, options)
    content = packed(author.model([source], [output]))
    with pytest.raises(ModelFileError, match="m: LiteRT refuses it: .*has_bias"):
        LiteRtModel(content, xnnpack=False, source="m")
    found = trial.run(content, source="m")
    assert all("LiteRT refuses it" in one.refused for one in found.litert)
    assert any("does not run it" in sentence for sentence in trial_table.sentences(found))


def test_the_table_fits_a_terminal_of_100_columns(found):
    console = Console(width=100, record=True)
    console.print(trial_table.table(found))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    for seen in found.ranges:
        assert f"{seen.operator:2d}" in text
        assert seen.op in text
    said = " ".join(trial_table.sentences(found))
    assert f"{found.arena_bytes:,} bytes measured" in said
    assert "random numbers (seed 0)" in said
