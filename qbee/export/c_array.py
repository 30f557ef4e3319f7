"""The model as C source: an aligned byte array and the constants firmware needs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from qbee.audio.mel import MIN_STD_DB
from qbee.errors import ParameterError
from qbee.files import write_text
from qbee.records import FrontEnd

# Room in the arena for scratch buffers of optimised kernels and for other versions of TFLite
# Micro. BeeNet3 with CMSIS-NN on Cortex-M4 needs less than the reference kernels on x86-64.
ARENA_MARGIN_BYTES = 2048
HEADER, SOURCE = "model_data.h", "model_data.cc"
FILES = (HEADER, SOURCE)
_ALIGNMENT = 16

_HEADER = """\
// Made by qbee. Include this file, compile model_data.cc, and give g_model to tflite::GetModel.
#ifndef QBEE_MODEL_DATA_H_
#define QBEE_MODEL_DATA_H_

extern const unsigned char g_model[];
extern const unsigned int g_model_len;

// TFLite Micro, with its reference kernels, reported the measured bytes on the 64-bit machine of
// export; 32-bit devices need less. The margin of {margin_bytes} bytes is for scratch buffers of
// optimised kernels and for other versions; the sum is padded to a multiple of {alignment}. Once
// you know what your device needs, define QBEE_ARENA_BYTES for all sources.
#define QBEE_ARENA_MEASURED_BYTES {arena_bytes}
#ifndef QBEE_ARENA_BYTES
#define QBEE_ARENA_BYTES {reserved_bytes}
#endif

// Front end: mel image of {n_mels} bands x {n_frames} frames (periodic Hann, Slaney's filters),
// dB = 10 log10(max(power, QBEE_POWER_FLOOR)), then standardised.
#define QBEE_SAMPLE_RATE_HZ {sample_rate_hz}
#define QBEE_N_FFT {n_fft}
#define QBEE_HOP_SAMPLES {hop_samples}
#define QBEE_N_MELS {n_mels}
#define QBEE_N_FRAMES {n_frames}
#define QBEE_FMIN_HZ {fmin_hz!r}f
#define QBEE_FMAX_HZ {fmax_hz!r}f
#define QBEE_POWER_FLOOR {power_floor!r}f

{standardization}

// Input code = floor(x / QBEE_INPUT_STEP + 0.5) + QBEE_INPUT_ZERO_POINT, saturated to the
// integers of the input tensor.
#define QBEE_INPUT_STEP {input_step!r}f
#define QBEE_INPUT_ZERO_POINT {input_zero_point}
// output[0] is the logit of {labels[0]}, output[1] that of {labels[1]}; a window is {labels[1]} if
// output[1] - output[0] >= QBEE_MARGIN_THRESHOLD.
#define QBEE_LABEL_0 "{labels[0]}"
#define QBEE_LABEL_1 "{labels[1]}"
#define QBEE_MARGIN_THRESHOLD {margin_threshold}

#endif  // QBEE_MODEL_DATA_H_
"""

_BY_WINDOW = """\
// Standardised by window: x = (dB - mean of the window) / max(std of the window, QBEE_MIN_STD_DB);
// the std is that of the population.
#define QBEE_STANDARDIZE_WINDOW 1
#define QBEE_MIN_STD_DB {min_std_db!r}f"""

_BY_FOLD = """\
// Standardised by the same numbers for all windows: x = (dB - QBEE_MEAN_DB) / QBEE_STD_DB.
#define QBEE_STANDARDIZE_WINDOW 0
#define QBEE_MEAN_DB {mean_db!r}f
#define QBEE_STD_DB {std_db!r}f"""

_SOURCE = """\
#include "model_data.h"

alignas(16) const unsigned char g_model[] = {{
{rows}
}};
const unsigned int g_model_len = {length};
"""


class Quantized(Protocol):
    """What is needed of a number format: ``value = step * (integer - zero_point)``."""

    @property
    def step(self) -> float:
        """Value of one integer."""

    @property
    def zero_point(self) -> int:
        """Integer of value 0."""


def numbers(values: Iterable[object]) -> str:
    """Elements of a C array in lines that begin with two spaces."""
    text = ", ".join(str(value) for value in values)
    return textwrap.fill(text, 98, initial_indent="  ", subsequent_indent="  ")


def require_plain(texts: Iterable[str]) -> None:
    """Refuse texts that would mean something else in a C string or comment.

    Raises
    ------
    ParameterError
        naming the text.
    """
    for text in texts:
        if not re.fullmatch(r"[\w .-]+", text, re.ASCII):
            raise ParameterError(f"{text!r} must be of letters, digits, ' ', '_', '.' and '-'")


def reserved_arena_bytes(measured_bytes: int) -> int:
    """Arena that firmware sets aside: what was measured and a margin, aligned."""
    return -(-(measured_bytes + ARENA_MARGIN_BYTES) // _ALIGNMENT) * _ALIGNMENT


def write(
    folder: Path,
    model: bytes,
    front_end: FrontEnd,
    *,
    arena_bytes: int,
    input_map: Quantized,
    margin_threshold: int,
    labels: tuple[str, str],
) -> None:
    """Write model_data.h and model_data.cc into ``folder``.

    Parameters
    ----------
    arena_bytes : int
        as TFLite Micro reports it on this machine
    margin_threshold : int
        smallest difference of the output codes (buzz minus no_buzz) that is a detection.
    labels : (str, str)
        of the outputs, in their order

    Raises
    ------
    ParameterError
        if the front end standardizes by 'fold' but lacks ``mean_db`` and ``std_db``, or if a
        label is more than letters, digits, blanks and signs that mean nothing in C.
    """
    require_plain(labels)
    standardization = _standardization(front_end)
    rows = numbers(f"0x{byte:02x}" for byte in model)
    write_text(folder / SOURCE, _SOURCE.format(rows=rows, length=len(model)))
    header = _HEADER.format(
        **front_end.model_dump(),
        standardization=standardization,
        arena_bytes=arena_bytes,
        margin_bytes=ARENA_MARGIN_BYTES,
        alignment=_ALIGNMENT,
        reserved_bytes=reserved_arena_bytes(arena_bytes),
        labels=labels,
        input_step=input_map.step,
        input_zero_point=input_map.zero_point,
        margin_threshold=margin_threshold,
    )
    write_text(folder / HEADER, header)


def _standardization(front_end: FrontEnd) -> str:
    if front_end.standardize == "window":
        return _BY_WINDOW.format(min_std_db=MIN_STD_DB)
    if front_end.mean_db is None or front_end.std_db is None:
        raise ParameterError("mean_db=None and std_db=None must be given to standardize by fold")
    return _BY_FOLD.format(mean_db=_float32(front_end.mean_db), std_db=_float32(front_end.std_db))


def _float32(value: float) -> float:
    """The number that training computed with, so that a compiler need not round it again."""
    return float(np.float32(value))
