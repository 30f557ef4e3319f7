"""The detector as a folder for firmware projects: model, C++ class, self test, build files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from qbee.audio import mel
from qbee.errors import FrontEndError, ModelFileError, ParameterError
from qbee.export import c_array
from qbee.files import replacing_folder, write_text
from qbee.records import FrontEnd
from qbee.runtime import checks
from qbee.runtime.flatbuffer import Op, Type, names
from qbee.runtime.interpreter import MicroModel, Quantization

# A folder without this file was not written by ``write``, which therefore leaves it alone.
_MARK = Path("src/qbee_detector.h")
_SUFFIX = ".jinja"
# Methods of tflite::MicroMutableOpResolver.
_METHODS = {
    Op.ADD: "AddAdd",
    Op.AVERAGE_POOL_2D: "AddAveragePool2D",
    Op.CONCATENATION: "AddConcatenation",
    Op.CONV_2D: "AddConv2D",
    Op.DEPTHWISE_CONV_2D: "AddDepthwiseConv2D",
    Op.DEQUANTIZE: "AddDequantize",
    Op.FULLY_CONNECTED: "AddFullyConnected",
    Op.LEAKY_RELU: "AddLeakyRelu",
    Op.LOGISTIC: "AddLogistic",
    Op.MAX_POOL_2D: "AddMaxPool2D",
    Op.MAXIMUM: "AddMaximum",
    Op.MEAN: "AddMean",
    Op.MINIMUM: "AddMinimum",
    Op.MUL: "AddMul",
    Op.PAD: "AddPad",
    Op.PADV2: "AddPadV2",
    Op.QUANTIZE: "AddQuantize",
    Op.RELU: "AddRelu",
    Op.RELU6: "AddRelu6",
    Op.RESHAPE: "AddReshape",
    Op.SLICE: "AddSlice",
    Op.SOFTMAX: "AddSoftmax",
    Op.SPLIT: "AddSplit",
    Op.STRIDED_SLICE: "AddStridedSlice",
    Op.SUB: "AddSub",
    Op.TANH: "AddTanh",
    Op.TRANSPOSE: "AddTranspose",
}


@dataclass(frozen=True)
class Vector:
    """A window's input codes and the output codes of TFLite Micro for them."""

    name: str
    input_codes: np.ndarray
    output_codes: np.ndarray


def operators(content: bytes, *, source: str = "model") -> list[str]:
    """Names of the operators that a .tflite uses, each once, in the order of first use.

    Raises
    ------
    ModelFileError
        if the file is damaged, or naming an operator that the firmware cannot register.
    """
    model, known = checks.parsed(content, source), names(Op)
    entries = [model.operatorCodes[o.opcodeIndex] for g in model.subgraphs for o in g.operators]
    # Readers take the larger of the two fields; the old one is an int8.
    codes = [max(entry.builtinCode, entry.deprecatedBuiltinCode) for entry in entries]
    for code, entry in zip(codes, entries, strict=True):
        if code not in _METHODS:
            custom = f" {entry.customCode.decode(errors='replace')!r}" if entry.customCode else ""
            name = known.get(code, f"number {code}")
            raise ModelFileError(f"{source}: the firmware has no operator {name}{custom}")
    return [known[code] for code in dict.fromkeys(codes)]


def input_codes(images: np.ndarray, front_end: FrontEnd, number: Quantization) -> np.ndarray:
    """Integers of the model's input for dB mel images [..., n_mels, n_frames], same shape.

    The specification of the firmware's ``QuantizeInput``.
    """
    return number.codes(mel.standardize(images, front_end))


def vectors(
    model: MicroModel, front_end: FrontEnd, windows: Mapping[str, np.ndarray]
) -> list[Vector]:
    """Input and output codes of dB mel images [n_mels, n_frames] by name."""
    found = []
    for name, image in windows.items():
        if not np.all(np.isfinite(image)):
            raise ParameterError(f"windows[{name!r}] must be finite")
        codes = input_codes(image, front_end, model.input)
        found.append(Vector(name, codes, model.run(codes[None, ..., None])[0]))
    return found


def write(
    folder: Path,
    model: MicroModel,
    front_end: FrontEnd,
    *,
    labels: tuple[str, str],
    margin_threshold: int,
    windows: Mapping[str, np.ndarray],
) -> None:
    """Write the firmware folder, whole or not at all; an earlier one is replaced.

    Parameters
    ----------
    model : what the folder holds; its arena is measured here
    labels : (str, str)
        of the outputs, in their order; the second is what is detected
    margin_threshold : int
        smallest difference of the output codes (second minus first) that is a detection
    windows : dB mel images [n_mels, n_frames] by name
        for the self test, best one of each class

    Raises
    ------
    ModelFileError
        if the firmware has no such operator, or the model has not two outputs.
    FrontEndError
        if model and front end disagree about the image.
    ParameterError
        if there are no windows or one is not an image of the front end in finite numbers, a
        name is no plain text, or the folder cannot be replaced.
    """
    folder = Path(folder)
    _require_fit(model, front_end)
    if not windows:
        raise ParameterError("windows={} must hold at least one image")
    c_array.require_plain([*windows, *labels])
    arena_bytes = model.arena_bytes()
    values = {
        **_description(model, front_end, vectors(model, front_end, windows)),
        "labels": labels,
        "margin_threshold": margin_threshold,
        "arena_bytes": arena_bytes,
        "reserved_bytes": c_array.reserved_arena_bytes(arena_bytes),
    }
    with replacing_folder(folder, mark=_MARK, kind="firmware") as fresh:
        _render(fresh, values)
        c_array.write(
            fresh / "src",
            model.content,
            front_end,
            arena_bytes=arena_bytes,
            input_map=model.input,
            margin_threshold=margin_threshold,
            labels=labels,
        )


def _require_fit(model: MicroModel, front_end: FrontEnd) -> None:
    expected = (1, front_end.n_mels, front_end.n_frames, 1)
    if model.input_shape != expected:
        raise FrontEndError(
            f"{model.source}: its input is {model.input_shape}, its front end makes {expected}"
        )
    graph = checks.parsed(model.content, model.source).subgraphs[0]
    outputs = [tuple(int(n) for n in graph.tensors[i].shape) for i in graph.outputs]
    if outputs != [(1, 2)]:
        raise ModelFileError(f"{model.source}: its output is {outputs}, the firmware's is [(1, 2)]")
    for number in (model.input, model.output):
        if number.dtype not in (np.int8, np.int16):
            raise ModelFileError(f"{model.source}: {number.dtype} is neither int8 nor int16")


def _description(model: MicroModel, front_end: FrontEnd, known: list[Vector]) -> dict[str, Any]:
    """What the templates say about the model."""
    used = operators(model.content, source=model.source)
    tensors = checks.parsed(model.content, model.source).subgraphs[0].tensors
    image_size = front_end.n_mels * front_end.n_frames
    return {
        "front_end": front_end,
        "min_std_db": mel.MIN_STD_DB,
        "model_bytes": len(model.content),
        "sha256": hashlib.sha256(model.content).hexdigest(),
        "image_bytes": 4 * image_size,
        "vector_bytes": len(known) * image_size * model.input.dtype.itemsize,
        "ops": used,
        "methods": [_METHODS[getattr(Op, name)] for name in used],
        "has_int4": any(tensor.type == Type.INT4 for tensor in tensors),
        "input_type": f"{model.input.dtype}_t",
        "output_type": f"{model.output.dtype}_t",
        "input_step": model.input.step,
        "input_zero_point": model.input.zero_point,
        "vectors": [
            {
                "name": vector.name,
                "input": c_array.numbers(vector.input_codes.ravel()),
                "output": ", ".join(str(code) for code in vector.output_codes),
            }
            for vector in known
        ],
    }


def _render(folder: Path, values: dict[str, Any]) -> None:
    """All templates, each under its own name without the suffix."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qbee.export", "firmware_files"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in environment.list_templates(extensions=[_SUFFIX.removeprefix(".")]):
        path = folder / name.removesuffix(_SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, environment.get_template(name).render(values))
