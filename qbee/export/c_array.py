"""The model as C source: an aligned byte array and the constants firmware needs."""

from __future__ import annotations

import textwrap
from pathlib import Path

from qbee.audio.mel import MIN_STD_DB
from qbee.errors import ParameterError
from qbee.files import write_text
from qbee.quantize.fixed_point import MapType
from qbee.records import FrontEnd

_HEADER = """\
// Made by qbee. Include this file, compile model_data.cc, and give g_model to tflite::GetModel.
#ifndef QBEE_MODEL_DATA_H_
#define QBEE_MODEL_DATA_H_

extern const unsigned char g_model[];
extern const unsigned int g_model_len;

// Arena that TFLite Micro reported on the machine of export; 32-bit devices need a little less.
#define QBEE_ARENA_BYTES {arena_bytes}

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

// Input code = floor(x / QBEE_INPUT_STEP + 0.5) + QBEE_INPUT_ZERO_POINT, saturated to int8.
#define QBEE_INPUT_STEP {input_step!r}f
#define QBEE_INPUT_ZERO_POINT {input_zero_point}
// output[0] is the logit of no_buzz, output[1] that of buzz; a window is a buzz if
// output[1] - output[0] >= this.
#define QBEE_MARGIN_THRESHOLD {margin_threshold}

#endif  // QBEE_MODEL_DATA_H_
"""

_BY_WINDOW = """\
// Standardised by window: x = (dB - mean of the window) / max(std of the window, QBEE_MIN_STD_DB);
// the std is that of the population.
#define QBEE_STANDARDIZE_WINDOW 1
#define QBEE_MIN_STD_DB {min_std_db!r}f"""

_BY_FOLD = """\
// Standardised by the training windows: x = (dB - QBEE_MEAN_DB) / QBEE_STD_DB.
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


def write(
    folder: Path,
    model: bytes,
    front_end: FrontEnd,
    *,
    arena_bytes: int,
    input_map: MapType,
    margin_threshold: int,
) -> None:
    """Write model_data.h and model_data.cc into ``folder``.

    Parameters
    ----------
    margin_threshold : int
        smallest difference of the output codes (buzz minus no_buzz) that is a detection.

    Raises
    ------
    ParameterError
        if the front end standardizes by 'fold' but lacks ``mean_db`` and ``std_db``.
    """
    standardization = _standardization(front_end)
    numbers = ", ".join(f"0x{byte:02x}" for byte in model)
    rows = textwrap.fill(numbers, 98, initial_indent="  ", subsequent_indent="  ")
    write_text(folder / "model_data.cc", _SOURCE.format(rows=rows, length=len(model)))
    header = _HEADER.format(
        **front_end.model_dump(),
        standardization=standardization,
        arena_bytes=arena_bytes,
        input_step=input_map.step,
        input_zero_point=input_map.zero_point,
        margin_threshold=margin_threshold,
    )
    write_text(folder / "model_data.h", header)


def _standardization(front_end: FrontEnd) -> str:
    if front_end.standardize == "window":
        return _BY_WINDOW.format(min_std_db=MIN_STD_DB)
    if front_end.mean_db is None:
        raise ParameterError("mean_db=None and std_db=None must be given to standardize by fold")
    return _BY_FOLD.format(mean_db=front_end.mean_db, std_db=front_end.std_db)
