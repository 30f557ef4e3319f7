"""The firmware folder: what it holds, what it refuses, and that it compiles and passes on a host.

With QBEE_TFLM naming a source tree of TFLite Micro (its third-party headers downloaded, for the
slow tests its static library built too), the C++ is compiled against it and run.
"""

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.audio import mel
from qbee.errors import FrontEndError, ModelFileError, ParameterError
from qbee.export import c_array, firmware, targets, tflite
from qbee.quantize import fixed_point
from qbee.quantize.fixed_net import FixedNet, FixedNode, FixedWeights
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT, NO_PADDING, Node, same_padding
from qbee.records import FrontEnd
from qbee.runtime.interpreter import MicroModel

SIDE = 16
SMALL = FrontEnd(n_mels=SIDE, n_frames=SIDE)
BY_FOLD = FrontEnd(n_mels=SIDE, n_frames=SIDE, standardize="fold", mean_db=-61.3, std_db=7.1)
LABELS = ("no_buzz", "buzz")
BYTE, WIDE = MapType(8, -128, 2.0**-5), MapType(16, -32768, 2.0**-12)
AFFINE = MapType(8, -100, float(np.float32(0.031)))
FLAGS = ["-std=c++17", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Werror"]
DOWNLOADS = "tensorflow/lite/micro/tools/make/downloads"
THIRD_PARTY = {
    "flatbuffers/include": "flatbuffers/flatbuffers.h",
    "gemmlowp": "fixedpoint/fixedpoint.h",
    "ruy": "ruy/profiler/instrumentation.h",
}
# What may stand between the first convolution and the head: (op, window).
MIDDLES = {
    "conv": (1, 1),
    "depthwise": (3, 3),
    "add": (1, 1),
    "multiply": (1, 1),
    "max_pool": (2, 2),
    "average_pool": (2, 2),
    "sigmoid": (1, 1),
}


class Net:
    """Random integers, layer by layer."""

    def __init__(self, *, source=BYTE, side=SIDE, kernel_bits=8, map_bits=8, seed=0):
        self.rng, self.bits = np.random.default_rng(seed), kernel_bits
        self.inner = MapType(map_bits, 0, 2.0**-4)
        self.source, self.side = source, side
        self.nodes, self.name, self.number = [], INPUT, source
        self.shape = (side, side, 1)

    def append(self, op, shape, target, weights=None, inputs=1, **changes):
        node = Node(f"n{len(self.nodes)}", op, (self.name,) * inputs, shape, **changes)
        self.nodes.append(FixedNode(node, (self.number,) * inputs, target, weights))
        self.name, self.shape, self.number = node.name, shape, target
        return self

    def weights(self, kernel_shape, outputs, target):
        """Steps that make outputs about a third of their range."""
        limit = fixed_point.max_kernel_code(self.bits)
        terms = int(np.prod(kernel_shape)) // outputs
        growth = limit * np.sqrt(terms) * self.number.codes[1] * self.number.step
        step = 2.0 ** -int(np.log2(growth / (target.codes[1] * target.step)))
        kernel, bias = (self.rng.integers(-limit, limit, s) for s in (kernel_shape, outputs))
        return FixedWeights(kernel, self.bits, np.full(outputs, step, np.float32), bias)

    def weighted(self, op, channels, window=(3, 3), pool=1):
        height, width, depth = self.shape
        kernel = (*window, depth, 1 if op == "depthwise" else channels)
        weights = self.weights(kernel, channels, self.inner)
        shape = (height // pool, width // pool, channels)
        padding = same_padding(self.shape, window, (1, 1))
        changes = {"window": window, "padding": padding, "activation": "relu", "pool": pool}
        return self.append(op, shape, self.inner, weights, **changes)

    def middle(self, op):
        window, (height, width, channels) = MIDDLES[op], self.shape
        if op in ("conv", "depthwise"):
            return self.weighted(op, channels, window)
        if op.endswith("pool"):
            shape = (height // 2, width // 2, channels)
            changes = {"window": window, "strides": window, "padding": NO_PADDING}
            return self.append(op, shape, self.number, **changes)
        if op == "sigmoid":
            # The device's logistic function reads 8 bits.
            self.append("rescale", self.shape, MapType(8, 0, 2.0**-4))
            return self.append(op, self.shape, fixed_point.SIGMOID_MAP)
        return self.append(op, self.shape, self.inner, inputs=2)

    def head(self, *, outputs=2, target=BYTE, is_mean=False):
        if is_mean:
            self.append("mean", self.shape[2:], self.number)
        else:
            self.append("reshape", (int(np.prod(self.shape)),), self.number)
        weights = self.weights((*self.shape, outputs), outputs, target)
        self.append("dense", (outputs,), target, weights)
        shape = (self.side, self.side, 1)
        return FixedNet("net", shape, self.source, tuple(self.nodes))


def content_of(net):
    return tflite.write(net).content


def small_net(*middles, is_mean=False, outputs=2, target=BYTE, **changes):
    net = Net(**changes).weighted("conv", 4, pool=2)
    for op in middles:
        net.middle(op)
    return net.head(is_mean=is_mean, outputs=outputs, target=target)


def beenet3(**changes):
    """Layers and image of a BeeNet3."""
    net = Net(side=128, **changes)
    net.weighted("conv", 32, pool=2).weighted("depthwise", 32)
    net.weighted("conv", 32, (1, 1), pool=2).weighted("depthwise", 32)
    return net.weighted("conv", 64, (1, 1), pool=4).head()


def windows_of(front_end, names=LABELS, seed=1):
    rng = np.random.default_rng(seed)
    shape = (front_end.n_mels, front_end.n_frames)
    return {name: rng.normal(-60, 9, shape).astype(np.float32) for name in names}


def write(folder, net=None, front_end=SMALL, **changes):
    """Firmware folder of a net; the model on TFLite Micro."""
    model = MicroModel(content_of(small_net() if net is None else net), source="m.tflite")
    values = {"labels": LABELS, "margin_threshold": 3, "windows": windows_of(front_end)}
    firmware.write(folder, model, front_end, **{**values, **changes})
    return model


def parsed(content):
    return schema.ModelT.InitFromPackedBuf(content, 0)


def packed(model):
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def names_in(content):
    """Names of all operators of a .tflite, read without the package."""
    known = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    model = parsed(content)
    return {known[model.operatorCodes[o.opcodeIndex].builtinCode] for o in all_operators(model)}


def all_operators(model):
    return [operator for graph in model.subgraphs for operator in graph.operators]


def numbers_after(text, start):
    """Integers of the C array whose definition begins with ``start``."""
    body = text[text.index(start) :]
    body = body[body.index("{") + 1 : body.index("}")]
    return [int(number, 0) for number in body.split(",")]


def defines(folder):
    found = re.findall(r"^#define (\w+) (.+)$", (folder / "src/model_data.h").read_text(), re.M)
    return dict(found)


def test_importing_it_does_not_import_tensorflow():
    code = "import sys, qbee.export.firmware; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "firmware"
    write(folder)
    return folder


@settings(max_examples=25, deadline=None)
@given(
    middles=st.lists(st.sampled_from(list(MIDDLES)), max_size=3),
    is_mean=st.booleans(),
    kernel_bits=st.sampled_from([4, 8, 16]),
    map_bits=st.sampled_from([8, 16]),
)
def test_the_resolver_has_exactly_the_operators_of_the_model(
    tmp_path_factory, middles, is_mean, kernel_bits, map_bits
):
    net = small_net(*middles, is_mean=is_mean, kernel_bits=kernel_bits, map_bits=map_bits)
    folder = tmp_path_factory.mktemp("ops") / "firmware"
    used = names_in(write(folder, net).content)
    header = (folder / "src/qbee_ops.h").read_text()
    methods = re.findall(r"ops->(\w+)\(\)", header)
    assert sorted(m.lower() for m in methods) == sorted(
        "add" + name.replace("_", "").lower() for name in used
    )
    assert f"MicroMutableOpResolver<{len(used)}>" in header
    assert all(name in (folder / "README.md").read_text() for name in used)


def test_an_operator_without_a_method_is_named():
    model = parsed(content_of(small_net()))
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.NON_MAX_SUPPRESSION_V4
    model.operatorCodes[0].deprecatedBuiltinCode = 120
    with pytest.raises(ModelFileError, match=r"m\.tflite: .* no operator NON_MAX_SUPPRESSION_V4"):
        firmware.operators(packed(model), source="m.tflite")


def test_a_custom_operator_is_named():
    model = parsed(content_of(small_net()))
    code = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = code
    model.operatorCodes[0].customCode = b"ethos-u"
    with pytest.raises(ModelFileError, match="m: .* no operator CUSTOM 'ethos-u'"):
        firmware.operators(packed(model), source="m")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_a_damaged_model_is_refused(share):
    content = content_of(small_net())
    with pytest.raises(ModelFileError, match="m.tflite: "):
        firmware.operators(content[: int(share * len(content))], source="m.tflite")


def test_every_operator_of_the_exporter_has_a_method():
    assert set(targets.TFLM.operators) <= set(firmware._METHODS)


def test_operators_are_listed_once_in_the_order_of_use():
    found = firmware.operators(content_of(small_net("max_pool", "depthwise")))
    assert found == ["CONV_2D", "MAX_POOL_2D", "DEPTHWISE_CONV_2D", "RESHAPE", "FULLY_CONNECTED"]


def test_the_array_holds_the_model(tmp_path):
    model = write(tmp_path / "firmware")
    source = (tmp_path / "firmware/src/model_data.cc").read_text()
    assert bytes(numbers_after(source, "alignas(16) const unsigned char g_model")) == model.content
    assert f"g_model_len = {len(model.content)};" in source


@pytest.mark.parametrize("source", [BYTE, AFFINE, WIDE])
@pytest.mark.parametrize("target", [BYTE, WIDE])
@pytest.mark.parametrize("front_end", [SMALL, BY_FOLD])
def test_constants_are_those_of_model_and_front_end(tmp_path, source, target, front_end):
    net = small_net(source=source, target=target)
    model = write(tmp_path / "firmware", net, front_end, margin_threshold=-5)
    found = defines(tmp_path / "firmware")
    assert float(found["QBEE_INPUT_STEP"].removesuffix("f")) == model.input.step == source.step
    assert int(found["QBEE_INPUT_ZERO_POINT"]) == model.input.zero_point == source.zero_point
    assert int(found["QBEE_MARGIN_THRESHOLD"]) == -5
    assert (found["QBEE_LABEL_0"], found["QBEE_LABEL_1"]) == ('"no_buzz"', '"buzz"')
    assert [int(found[f"QBEE_{n}"]) for n in ("N_MELS", "N_FRAMES", "N_FFT")] == [16, 16, 512]
    if front_end is BY_FOLD:
        assert np.float32(found["QBEE_MEAN_DB"].removesuffix("f")) == np.float32(-61.3)
        assert np.float32(found["QBEE_STD_DB"].removesuffix("f")) == np.float32(7.1)
    for bits, header, name in (
        (16 if source.is_wide else 8, "qbee_input.h", "InputCode"),
        (16 if target.is_wide else 8, "qbee_detector.h", "OutputCode"),
    ):
        text = (tmp_path / "firmware/src" / header).read_text()
        assert f"using {name} = std::int{bits}_t;" in text


def test_the_arena_is_what_was_measured_and_a_margin(tmp_path):
    measured = write(tmp_path / "firmware").arena_bytes()
    found = defines(tmp_path / "firmware")
    reserved = int(found["QBEE_ARENA_BYTES"])
    assert int(found["QBEE_ARENA_MEASURED_BYTES"]) == measured
    assert 0 <= reserved - measured - c_array.ARENA_MARGIN_BYTES < 16
    assert reserved % 16 == 0
    assert (
        f"{reserved} bytes of RAM: {measured} measured"
        in (tmp_path / "firmware/README.md").read_text()
    )


@pytest.mark.parametrize("source", [BYTE, AFFINE, WIDE])
@pytest.mark.parametrize("front_end", [SMALL, BY_FOLD])
def test_vectors_are_what_tflite_micro_computes(tmp_path, source, front_end):
    model = write(tmp_path / "firmware", small_net(source=source), front_end)
    text = (tmp_path / "firmware/src/qbee_self_test.cc").read_text()
    table = re.findall(r'\{"(\w+)", kInput(\d), \{ (-?\d+), (-?\d+) \} \}', text)
    images = windows_of(front_end)
    assert [row[0] for row in table] == list(images)
    for (_, number, *output), image in zip(table, images.values(), strict=True):
        codes = np.array(numbers_after(text, f"InputCode kInput{number}["))
        codes = codes.reshape(1, SIDE, SIDE, 1)
        assert len(np.unique(codes)) > 10
        assert model.run(codes)[0].tolist() == [int(code) for code in output]
        # ... and of the image in dB, by the way that the detector of the package goes.
        inputs = mel.standardize(image, front_end)[None, ..., None]
        expected = np.array([int(code) for code in output]) - model.output.zero_point
        np.testing.assert_array_equal(model.predict(inputs)[0], expected * model.output.step)


def test_windows_of_any_name_and_number_become_vectors(tmp_path):
    write(tmp_path / "firmware", windows=windows_of(SMALL, names=("quiet night",)))
    assert "kTestVectorCount = 1;" in (tmp_path / "firmware/src/qbee_self_test.h").read_text()
    assert '{"quiet night", ' in (tmp_path / "firmware/src/qbee_self_test.cc").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"windows": {}}, ParameterError, "windows={} must hold at least one"),
        ({"windows": windows_of(SMALL, names=['"'])}, ParameterError, "'\"' must be of letters"),
        ({"labels": ("no\\", "buzz")}, ParameterError, "must be of letters"),
        ({"windows": {"a": np.zeros((3, 4))}}, ParameterError, r"images.shape=\(3, 4\)"),
        ({"windows": {"a": np.full((SIDE, SIDE), np.nan)}}, ParameterError, r"\['a'\] must be fin"),
        ({"front_end": FrontEnd()}, FrontEndError, r"its input is \(1, 16, 16, 1\)"),
        ({"net": small_net(outputs=3)}, ModelFileError, r"its output is \[\(1, 3\)\]"),
        (
            {"front_end": SMALL.model_copy(update={"standardize": "fold"})},
            ParameterError,
            "mean_db=None",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        write(tmp_path / "firmware", **changes)
    assert not list(tmp_path.iterdir())


def test_an_earlier_firmware_folder_is_replaced_as_a_whole(tmp_path):
    write(tmp_path / "firmware")
    (tmp_path / "firmware/src/old.cc").touch()
    model = write(tmp_path / "firmware", small_net(seed=3))
    assert not (tmp_path / "firmware/src/old.cc").exists()
    assert str(len(model.content)) in (tmp_path / "firmware/README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["firmware"]


def test_an_empty_folder_is_filled(tmp_path):
    write(tmp_path)
    assert (tmp_path / "src/model_data.h").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ParameterError, match="exists and is no firmware folder"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_halfway_leaves_the_earlier_folder_as_it_was(tmp_path, monkeypatch):
    write(tmp_path / "firmware")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(c_array, "write", fail)
    with pytest.raises(ParameterError, match="cannot write this folder: No space left"):
        write(tmp_path / "firmware", small_net(seed=3))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_below_a_file_is_one_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ParameterError, match="cannot write this folder"):
        write(tmp_path / "file/firmware")


def test_the_bytes_are_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()


def test_build_files_name_files_that_exist(folder):
    for name in ("CMakeLists.txt", "zephyr/CMakeLists.txt"):
        sources = re.findall(r"(?:src|\$\{source\})/(\w+\.cc)", (folder / name).read_text())
        assert set(sources) == {path.name for path in (folder / "src").glob("*.cc")}
    assert (folder / "examples/self_test.cc").exists()
    module = (folder / "zephyr/module.yml").read_text()
    assert "cmake: zephyr\n" in module and "kconfig: zephyr/Kconfig\n" in module


def test_manifests_of_arduino_and_platformio_are_complete(folder):
    lines = (folder / "library.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category"}
    assert required | {"url", "architectures"} <= set(properties)
    assert (folder / "src" / properties["includes"]).exists()
    manifest = json.loads((folder / "library.json").read_text())
    assert (manifest["name"], manifest["version"]) == (properties["name"], properties["version"])


def test_every_template_is_installed_and_filled_in(folder):
    made = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    templates = Path(firmware.__file__).parent / "firmware_files"
    expected = {str(p.relative_to(templates)) for p in templates.rglob("*") if p.is_file()}
    assert made == {name.removesuffix(".jinja") for name in expected} | {
        "src/model_data.h",
        "src/model_data.cc",
    }
    for name in made:
        text = (folder / name).read_text()
        assert "{{" not in text and "{%" not in text and text.endswith("\n"), name


def run(command, cwd=None, **changes):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        **changes,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiler(*others):
    for name in ("g++", *others):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is missing")


@pytest.mark.parametrize("front_end", [SMALL, BY_FOLD])
@pytest.mark.parametrize("source", [BYTE, AFFINE, WIDE])
def test_the_c_code_quantizes_images_like_the_package(tmp_path, front_end, source):
    compiler()
    model = write(tmp_path / "firmware", small_net(source=source), front_end)
    door = '#include "qbee_input.h"\nextern "C" bool door(const float* image, void* codes) {\n'
    door += "  return qbee::QuantizeInput(image, static_cast<qbee::InputCode*>(codes));\n}\n"
    (tmp_path / "door.cc").write_text(door)
    sources = [tmp_path / "door.cc", tmp_path / "firmware/src/qbee_input.cc"]
    library = tmp_path / "door.so"
    run(
        [
            "g++",
            *FLAGS,
            "-O2",
            "-shared",
            "-fPIC",
            f"-I{sources[1].parent}",
            *sources,
            "-o",
            library,
        ]
    )
    quantize = ctypes.CDLL(str(library)).door
    quantize.restype = ctypes.c_bool
    rng = np.random.default_rng(2)
    spread = 10.0 ** rng.uniform(-2, 3, (300, 1, 1))
    images = (rng.normal(-60, 1, (300, SIDE, SIDE)) * spread).astype(np.float32)
    images[0] = -100  # silence
    for image, expected in zip(
        images, firmware.input_codes(images, front_end, model.input), strict=True
    ):
        codes = np.empty((SIDE, SIDE), model.input.dtype)
        assert quantize(
            image.ctypes.data_as(ctypes.c_void_p), codes.ctypes.data_as(ctypes.c_void_p)
        )
        np.testing.assert_array_equal(codes, expected)
    for wrong in (np.nan, np.inf, -np.inf):
        image = images[1].copy()
        image[3, 4] = wrong
        assert not quantize(
            image.ctypes.data_as(ctypes.c_void_p), codes.ctypes.data_as(ctypes.c_void_p)
        )


@pytest.fixture(scope="module")
def tflm():
    """Root of a source tree of TFLite Micro, and compiler options for its headers."""
    if not os.environ.get("QBEE_TFLM"):
        pytest.skip("QBEE_TFLM names no source tree of TFLite Micro")
    root = Path(os.environ["QBEE_TFLM"])
    others = root / (DOWNLOADS if (root / DOWNLOADS).exists() else "third_party")
    for place, header in THIRD_PARTY.items():
        if not (others / place / header).exists():
            pytest.skip(f"QBEE_TFLM lacks {others / place / header}")
    places = [root, *(others / place for place in THIRD_PARTY)]
    # TFLite Micro's own headers are not free of warnings.
    return root, ["-DTF_LITE_STATIC_MEMORY", *(f"-isystem{place}" for place in places)]


NETS = {
    "int8": (small_net("depthwise", "add", "sigmoid"), SMALL),
    "int16": (small_net("conv", source=WIDE, target=WIDE, map_bits=16), BY_FOLD),
    "16-bit kernels": (small_net("depthwise", kernel_bits=16, is_mean=True), SMALL),
}


@pytest.mark.parametrize("net", NETS)
def test_the_folder_compiles_without_a_warning(tmp_path, tflm, net):
    compiler()
    write(tmp_path / "firmware", *NETS[net])
    include = f"-I{tmp_path / 'firmware/src'}"
    sources = [
        *(tmp_path / "firmware/src").glob("*.cc"),
        tmp_path / "firmware/examples/self_test.cc",
    ]
    for source in sources:
        run(["g++", *FLAGS, *tflm[1], include, "-fsyntax-only", source])


def test_the_sketch_compiles(tmp_path, tflm, folder):
    compiler()
    (tmp_path / "TensorFlowLite.h").touch()
    (tmp_path / "Arduino.h").write_text(
        "#include <cstdint>\nusing std::uint8_t;\n"
        "struct { void begin(int) {} void print(const char*) {} void println(const char*) {}\n"
        "  explicit operator bool() { return true; } } Serial;\n"
    )
    sketch = folder / "examples/SelfTest/SelfTest.ino"
    places = [f"-I{tmp_path}", f"-I{folder / 'src'}", "-include", "Arduino.h"]
    run(["g++", *FLAGS, *tflm[1], *places, "-fsyntax-only", "-x", "c++", sketch])


def test_all_methods_of_the_table_exist(tflm):
    header = tflm[0] / "tensorflow/lite/micro/micro_mutable_op_resolver.h"
    methods = set(re.findall(r"TfLiteStatus (Add\w+)\(", header.read_text()))
    assert set(firmware._METHODS.values()) <= methods


@pytest.fixture(scope="module")
def library(tflm):
    """TFLite Micro for this machine, as its own Makefile names it."""
    found = sorted(tflm[0].glob(f"gen/linux_{platform.machine()}_*/lib/libtensorflow-microlite.a"))
    if not found:
        pytest.skip("QBEE_TFLM holds no libtensorflow-microlite.a for this machine")
    return found[0]


def built(folder, tflm, library):
    """Programs of the folder's CMakeLists.txt."""
    compiler("cmake")
    settings = {
        "QBEE_TFLM_DIR": tflm[0],
        "QBEE_TFLM_LIBRARY": library,
        "QBEE_SELF_TEST": "ON",
        "CMAKE_CXX_FLAGS": " ".join(FLAGS[1:]),
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    run(["cmake", "-S", folder, "-B", folder / "build", *options])
    run(["cmake", "--build", folder / "build"])
    return folder / "build/qbee_self_test"


@pytest.mark.slow
@pytest.mark.parametrize("kernel_bits", [4, 8, 16])
def test_a_beenet3_passes_its_self_test_on_this_machine(tmp_path, tflm, library, kernel_bits):
    write(tmp_path / "firmware", beenet3(kernel_bits=kernel_bits), FrontEnd())
    said = run([built(tmp_path / "firmware", tflm, library)])
    assert said.startswith("PASS: 0 of 2 windows differ"), said
    used, reserved = map(int, re.findall(r"(\d+) of (\d+) bytes", said)[0])
    measured = int(defines(tmp_path / "firmware")["QBEE_ARENA_MEASURED_BYTES"])
    assert measured - 1024 <= used <= measured < reserved


@pytest.mark.slow
def test_one_integer_that_differs_fails_the_self_test(tmp_path, tflm, library):
    write(tmp_path / "firmware")
    path = tmp_path / "firmware/src/qbee_self_test.cc"
    text = path.read_text()
    output = re.search(r"\{ (-?\d+), (-?\d+) \}", text)
    changed = f"{{ {int(output[1])}, {(int(output[2]) + 1) % 100} }}"
    path.write_text(text.replace(output[0], changed, 1))
    done = subprocess.run(
        [built(tmp_path / "firmware", tflm, library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL: 1 of 2 windows differ")


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_decisions_on_this_machine_are_those_of_the_package(tmp_path, tflm, library, net):
    folder, (integers, front_end) = tmp_path / "firmware", NETS[net]
    model = MicroModel(content_of(integers))
    images = np.stack(list(windows_of(front_end, names=map(str, range(50))).values()))
    outputs = model.run(firmware.input_codes(images, front_end, model.input)[..., None]).astype(int)
    difference = outputs[:, 1] - outputs[:, 0]
    margin = int(np.median(difference))
    write(folder, integers, front_end, margin_threshold=margin)
    (folder / "examples/self_test.cc").write_text(READER)
    program = built(folder, tflm, library)
    done = subprocess.run([program], input=images.tobytes(), capture_output=True, check=True)
    found = np.array([line.split() for line in done.stdout.decode().splitlines()], float)
    np.testing.assert_array_equal(found[:, :2], outputs)
    np.testing.assert_array_equal(found[:, 2], difference >= margin)
    assert len(np.unique(found[:, 2])) == 2
    logit = difference * model.output.step
    np.testing.assert_allclose(found[:, 3], logit, rtol=1e-6)
    np.testing.assert_allclose(found[:, 4], 1 / (1 + np.exp(-logit)), atol=1e-6)


@pytest.mark.slow
def test_begin_and_detect_tell_what_is_wrong(tmp_path, tflm, library):
    folder = tmp_path / "firmware"
    write(folder)
    (folder / "examples/self_test.cc").write_text(MISUSE)
    assert run([built(folder, tflm, library)]).splitlines() == [
        "Begin() missing",
        "no arena",
        "no arena",
        "arena too small or operator refused",
        "Begin() missing",
        "ok",
        "image not finite",
        "ok",
        "ok",
    ]


@pytest.mark.slow
def test_a_project_links_it_with_a_target_of_its_own(tmp_path, tflm, library):
    compiler("cmake")
    write(tmp_path / "firmware")
    places = ";".join(o.removeprefix("-isystem") for o in tflm[1] if o.startswith("-isystem"))
    project = PROJECT.replace("@file@", str(library)).replace("@places@", places)
    (tmp_path / "CMakeLists.txt").write_text(project)
    run(["cmake", "-S", tmp_path, "-B", tmp_path / "build"])
    run(["cmake", "--build", tmp_path / "build"])
    assert run([tmp_path / "build/app"]).startswith("PASS: 0 of 2 windows differ")


PROJECT = """\
cmake_minimum_required(VERSION 3.16)
project(app LANGUAGES CXX)
add_library(tflm STATIC IMPORTED)
set_target_properties(tflm PROPERTIES
  IMPORTED_LOCATION @file@
  INTERFACE_INCLUDE_DIRECTORIES "@places@"
  INTERFACE_COMPILE_DEFINITIONS TF_LITE_STATIC_MEMORY
)
set(QBEE_TFLM_LIBRARY tflm)
add_subdirectory(firmware)
add_executable(app firmware/examples/self_test.cc)
target_link_libraries(app PRIVATE qbee_detector)
"""
READER = """\
#include <cstdio>

#include "qbee_detector.h"

alignas(16) static std::uint8_t arena[QBEE_ARENA_BYTES];
static qbee::Detector detector;
static float image[qbee::kInputSize];

int main() {
  if (detector.Begin(arena, sizeof(arena)) != qbee::Status::kOk) return 1;
  while (std::fread(image, sizeof(image), 1, stdin) == 1) {
    qbee::Result result;
    if (detector.Detect(image, &result) != qbee::Status::kOk) return 1;
    std::printf("%d %d %d %.9g %.9g\\n", result.output[0], result.output[1], result.is_detected,
                double(result.margin), double(result.probability));
  }
  return 0;
}
"""
MISUSE = """\
#include <cmath>
#include <cstdio>

#include "qbee_detector.h"

alignas(16) static std::uint8_t arena[QBEE_ARENA_BYTES];
static qbee::Detector detector;
static float image[qbee::kInputSize];

static void Say(qbee::Status status) { std::printf("%s\\n", qbee::StatusName(status)); }

int main() {
  qbee::Result result;
  Say(detector.Detect(image, &result));
  Say(detector.Begin(nullptr, sizeof(arena)));
  Say(detector.Begin(arena, 100));
  Say(detector.Begin(arena, 2048));
  Say(detector.Detect(image, &result));
  Say(detector.Begin(arena, sizeof(arena)));
  image[5] = std::nanf("");
  Say(detector.Detect(image, &result));
  Say(detector.Begin(arena, sizeof(arena)));
  image[5] = 0;
  Say(detector.Detect(image, &result));
  return 0;
}
"""
