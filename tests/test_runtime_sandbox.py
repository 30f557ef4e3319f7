"""A model of unknown origin never ends the process that asks about it."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_export import METADATA, integer_net, map_net

from qbee.detector import FRONT_END, MODEL, Card, Detector
from qbee.errors import ModelFileError, QbeeError
from qbee.export import strips, tflite
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT
from qbee.records import FrontEnd
from qbee.runtime import checks, sandbox, worker
from qbee.runtime.flatbuffer import Author, Op, Type, packed, schema
from qbee.runtime.inspection import inspect
from qbee.runtime.interpreter import MicroModel
from qbee.runtime.sandbox import Sandbox

# Mutations of each of the four models below.
MUTATIONS = 125
NUMBER = MapType(8, -128, 2.0**-5)
# Seconds of CPU time that a small model cannot take.
LIMIT_S = 3.0


def one_operator(op, options, shape, *, output_scale=1.0):
    """A file with one operator, on maps of one shape; two inputs for a sum."""
    author = Author()
    source = author.tensor(shape, Type.INT8, scale=1.0)
    output = author.tensor(shape, Type.INT8, scale=output_scale)
    inputs = [source, source] if op == Op.ADD else [source]
    author.operator(op, inputs, output, options)
    return packed(author.model([source], [output]))


def aborting():
    """A sum whose step is too fine for TFLite Micro's kernel, which aborts the process."""
    return one_operator(Op.ADD, schema.AddOptionsT(), (1, 4), output_scale=1e-9)


def endless():
    """A pool of four million windows of four million numbers."""
    options = schema.Pool2DOptionsT()
    options.padding, options.strideH, options.strideW = tflite.SAME, 1, 1
    options.filterHeight = options.filterWidth = 2048
    return one_operator(Op.MAX_POOL_2D, options, (1, 2048, 2048, 1))


def roomy():
    """Two maps of 64 MiB."""
    return one_operator(Op.RELU, None, (1, 1 << 26))


@pytest.fixture(scope="module")
def exported():
    return tflite.write(integer_net()).content


@pytest.fixture(scope="module")
def box():
    with Sandbox(limit_s=LIMIT_S) as found:
        yield found


def test_the_sandbox_computes_what_this_process_does(exported, box):
    net = integer_net()
    codes = np.random.default_rng(0).integers(-128, 128, (3, *net.input_shape))
    model = MicroModel(exported)
    outputs, measured = box.run(exported, codes, source="m")
    np.testing.assert_array_equal(outputs[0], model.run(codes))
    assert outputs[0].dtype == np.int8
    assert measured["arena_bytes"] == model.arena_bytes()
    assert len(measured["durations_s"]) == 3
    # The thread's clock is finer than a run; that of a process with a limit is not.
    assert all(0 < duration < LIMIT_S for duration in measured["durations_s"])


def test_ranges_are_those_of_the_tensors_themselves(exported, box):
    net = integer_net()
    codes = np.random.default_rng(0).integers(-128, 128, (2, *net.input_shape))
    tensors, found = box.ranges(exported, codes, source="m")
    model = MicroModel(exported, keep_all=True)
    model.run(codes)
    for index, rows in zip(tensors, found, strict=True):
        expected = model.tensor(index)
        np.testing.assert_array_equal(rows[-1][:2], [expected.min(), expected.max()])
        at_limits = [np.sum(expected == -128), np.sum(expected == 127)]
        np.testing.assert_array_equal(rows[-1][2:], [*at_limits, expected.size])


def test_an_abort_is_one_error_and_the_next_model_runs(exported, box):
    with pytest.raises(ModelFileError, match=r"^m: TFLite Micro crashes on it \(SIGABRT\)$"):
        box.probe(aborting(), source="m")
    box.probe(exported, source="m")
    # Also where the process has run another model before.
    with pytest.raises(ModelFileError, match="SIGABRT"):
        box.probe(aborting(), source="m")


def test_what_does_not_end_is_one_error():
    with (
        Sandbox(limit_s=0.5) as box,
        pytest.raises(ModelFileError, match="^m: TFLite Micro does not end on it$"),
    ):
        box.probe(endless(), source="m")


def test_what_needs_too_much_memory_is_one_error():
    # An arena of 256 MiB is tried, which is not there beside Python and numpy.
    with Sandbox(memory_bytes=1 << 29) as box:
        with pytest.raises(ModelFileError, match="^m: it needs too much memory$"):
            box.probe(roomy(), source="m")
        box.probe(one_operator(Op.RELU, None, (1, 8)), source="m")


def test_a_refusal_is_passed_on_and_needs_no_new_process(exported, box):
    with pytest.raises(ModelFileError, match="^m.tflite: not a .tflite file"):
        box.probe(b"nothing", source="m.tflite")
    box.probe(exported, source="m")
    with pytest.raises(ModelFileError, match="m.tflite: not a .tflite file"):
        sandbox.probe(b"nothing", source="m.tflite")


def test_windows_of_another_shape_are_one_error(exported, box):
    with pytest.raises(ModelFileError, match="m: TFLite Micro refuses it: .*reshape"):
        box.run(exported, np.zeros((1, 3)), source="m")


def test_the_child_ends_with_its_sandbox(exported):
    with Sandbox() as box:
        box.probe(exported, source="m")
        process = box._child._process
        assert process.poll() is None
    assert process.poll() is not None


def test_modules_of_the_present_folder_are_not_loaded(exported, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    with Sandbox() as box:
        box.probe(exported, source="m")


def test_the_child_needs_neither_tensorflow_nor_keras():
    code = "import sys, qbee.runtime.worker; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
    st.lists(st.integers(0, 255), max_size=20),
)
def test_messages_are_equal_after_the_trip(header, numbers):
    sent = worker.packed(header, {"a": np.array(numbers, np.uint8), "b": np.eye(2)})
    length, rest = sent[: worker.LENGTH_BYTES], sent[worker.LENGTH_BYTES :]
    assert int.from_bytes(length, "little") == len(rest)
    found, arrays = worker.unpacked(rest)
    assert found == header
    assert arrays["a"].tolist() == numbers
    np.testing.assert_array_equal(arrays["b"], np.eye(2))


def test_noise_fills_narrow_integers_and_is_small_where_it_may_be_an_index():
    narrow = worker.noise(np.dtype(np.int8), (10_000,), seed=0)
    assert (narrow.min(), narrow.max(), narrow.dtype) == (-128, 127, np.int8)
    assert set(worker.noise(np.dtype(np.int32), (100,), seed=0)) == {0, 1}
    assert worker.noise(np.dtype(np.float32), (3,), seed=0).dtype == np.float32
    same = [worker.noise(np.dtype(np.int8), (9,), seed=s).tolist() for s in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_a_range_leaves_out_what_is_no_number():
    found = worker.range_of(np.array([1.0, np.inf, -2.0, np.nan], np.float32))
    np.testing.assert_array_equal(found, [-2, 1, 0, 0, 4])
    assert np.isnan(worker.range_of(np.array([np.nan]))[:2]).all()
    found = worker.range_of(np.array([-128, 127, 127, 5], np.int8))
    np.testing.assert_array_equal(found, [-128, 127, 1, 2, 4])


def mutated(content, rng):
    """A file with flipped bits, another byte, swapped words, zeros, or without its end."""
    found, at = bytearray(content), int(rng.integers(len(content)))
    kind = rng.integers(5)
    if kind == 0:
        for place in rng.integers(0, len(content), 3):
            found[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        found[at] = int(rng.choice([0, 1, 2, 4, 127, 128, 255]))
    elif kind == 2:
        a, b = (4 * int(v) for v in rng.integers(0, len(content) // 4, 2))
        found[a : a + 4], found[b : b + 4] = found[b : b + 4], found[a : a + 4]
    elif kind == 3:
        found[at : at + 40] = bytes(len(found[at : at + 40]))
    else:
        del found[at:]
    return bytes(found)


def models():
    """Four small files that have most of our operators, types and metadata."""
    halved = {"window": (2, 2), "strides": (2, 2)}
    maps = map_net(
        ("sum", "add", (INPUT, INPUT), (4, 6, 2), NUMBER, {}),
        ("product", "multiply", (INPUT, "sum"), (4, 6, 2), NUMBER, {}),
        ("pool", "max_pool", ("product",), (2, 3, 2), NUMBER, halved),
        ("mean", "mean", ("pool",), (2,), NUMBER, {}),
    )
    cut = strips.cut(integer_net(kernel_bits=4), (strips.Segment("layer1", 2),))
    return {
        "maps": tflite.write(maps, metadata=METADATA),
        "int8": tflite.write(integer_net()),
        "strips": tflite.write(cut, plan_memory=True),
        "int16": tflite.write(integer_net(kernel_bits=16, map_bits=16)),
    }


def test_500_damaged_files_are_run_or_end_in_one_error(box):
    counts = {"ran": 0, "refused": 0}
    for number, exported in enumerate(models().values()):
        rng = np.random.default_rng(number)
        for _ in range(MUTATIONS):
            content = mutated(exported.content, rng)
            try:
                inspect(content, "m.tflite")
                box.probe(content, source="m.tflite")
                counts["ran"] += 1
            except QbeeError as error:
                # One sentence that names the file.
                assert str(error).startswith("m.tflite: ")
                assert "\n" not in str(error)
                counts["refused"] += 1
    # A third of the bytes are kernels, of which any do.
    assert min(counts.values()) > 100


@pytest.fixture
def folder(tmp_path):
    """A result folder of a small detector that was not trained."""
    front_end = FrontEnd(n_mels=16, n_frames=16)
    card = Card(front_end=front_end, threshold=0.5)
    exported = tflite.write(integer_net(), metadata=card.to_metadata())
    (tmp_path / MODEL).write_bytes(exported.content)
    front_end.save(tmp_path / FRONT_END)
    return tmp_path


def test_a_detector_of_a_damaged_file_runs_or_is_one_error(folder):
    content = (folder / MODEL).read_bytes()
    images = np.random.default_rng(0).normal(size=(2, 16, 16))
    expected = Detector.load(folder).logits(images)
    rng, ran, refused = np.random.default_rng(7), 0, 0
    for _ in range(40):
        (folder / MODEL).write_bytes(mutated(content, rng))
        try:
            assert Detector.load(folder).logits(images).shape == expected.shape
            ran += 1
        except QbeeError as error:
            assert str(error).startswith(str(folder))
            refused += 1
    assert min(ran, refused) > 5


def test_a_detector_whose_model_would_abort_is_one_error(folder):
    # No check sees it.
    checks.parsed(aborting(), "m")
    (folder / MODEL).write_bytes(aborting())
    with pytest.raises(ModelFileError, match="model.tflite: TFLite Micro crashes on it"):
        Detector.load(folder)
