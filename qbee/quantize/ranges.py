"""Ranges of feature maps from observed values: calibration methods by name (numpy, scipy).

Every method is ``f(batches, *, bits, is_signed) -> T``. ``batches`` holds the real values of one
map, one array of any shape per batch; their order matters to ``moving_average`` only. T > 0 is the
value of the top code, ``step = T / highest code``. Values beyond [0, T] (unsigned: negative ones
count as 0, as after a ReLU) or [-T, T] (signed) saturate. Zeros are exact in every format, so the
statistics are those of the non-zero magnitudes, and T is at most the largest one. An all-zero map
has T = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from itertools import product
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import lambertw, ndtr

from qbee.errors import ParameterError
from qbee.quantize.fixed_point import MapType
from qbee.quantize.power_of_two import best_exponent, covering_exponent

Batches = Sequence[np.ndarray]
Method = Callable[..., float]

_METHODS: dict[str, Method] = {}
# T of these is a range to keep; T of the others is an estimate of the best clipping.
COVERING = ("minmax", "moving_average", "percentile")
# TensorRT's histogram, and the share of the values below every threshold tried.
KL_BINS, KL_KEPT = 2048, 0.9
# Thresholds tried by ``mse``: over the whole range, then around the best.
MSE_COARSE, MSE_FINE = 256, 21
# Multiples of either end that an affine ``mse`` tries.
AFFINE_FACTORS = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25)
# Newton's recursion needs about ten; the bound is for safety.
OCTAV_ITERATIONS = 100


def _observed(batches: Batches, *, is_signed: bool) -> list[np.ndarray]:
    """Flat float64 values by batch, clipped at 0 if unsigned."""
    if isinstance(batches, np.ndarray) and batches.ndim < 2:
        raise ParameterError(f"batches.shape={batches.shape} must be (batches, ...) or a list")
    values = [np.asarray(batch, np.float64).ravel() for batch in batches]
    if not values:
        raise ParameterError("batches=[] must hold at least one batch")
    for i, batch in enumerate(values):
        if batch.size == 0 or not np.all(np.isfinite(batch)):
            raise ParameterError(f"batches[{i}] must be finite and not empty")
    return values if is_signed else [np.maximum(batch, 0) for batch in values]


def register(name: str) -> Callable[[Method], Method]:
    """Decorator that makes a method known as ``name`` and checks its input.

    The decorated function sees flat float64 batches that are finite and not all zero.
    """

    def remember(method: Method) -> Method:
        @wraps(method)
        def checked(batches: Batches, *, bits: int, is_signed: bool, **parameters) -> float:
            _codes(bits, is_signed)
            values = _observed(batches, is_signed=is_signed)
            if not any(np.any(batch) for batch in values):
                return 0.0
            return float(method(values, bits=bits, is_signed=is_signed, **parameters))

        _METHODS[name] = checked
        return checked

    return remember


def get(name: str) -> Method:
    """Method ``f(batches, *, bits, is_signed, **parameters) -> T`` called ``name``.

    It raises ParameterError if bits is not in [2, 16] or a batch is empty or not finite.

    Raises
    ------
    ParameterError
        if no method has this name; the message lists the known ones.
    """
    if name not in _METHODS:
        raise ParameterError(f"method={name!r} must be one of {', '.join(sorted(_METHODS))}")
    return _METHODS[name]


def _codes(bits: int, is_signed: bool) -> tuple[int, int]:
    """Lowest and highest code; an unsigned map of 16 bits ends at 2^15-1."""
    return MapType.of(bits, is_signed=is_signed, exponent=0).codes


def _magnitudes(batches: Batches) -> np.ndarray:
    """Non-zero magnitudes of all batches, sorted, so that the order of values has no effect."""
    magnitudes = np.abs(np.concatenate(batches))
    return np.sort(magnitudes[magnitudes > 0])


def _squared_error(batches: Batches) -> Callable[[float, tuple[int, int]], float]:
    """Function ``f(step, codes)``: exact sum of squared errors of quantizing the values.

    A cell of the grid adds S2 - 2 c S1 + c^2 n to it, with sums over the cell that are
    differences of prefix sums: one search per code instead of one rounding per value, if the
    codes are fewer.
    """
    values = np.sort(np.concatenate(batches))
    prefix, power = np.append(0, np.cumsum(values)), np.sum(values**2)

    def error(step: float, codes: tuple[int, int]) -> float:
        if len(values) < codes[1] - codes[0]:
            return np.sum((np.clip(np.floor(values / step + 0.5), *codes) * step - values) ** 2)
        grid = step * np.arange(codes[0], codes[1] + 1)
        edges = np.searchsorted(values, grid[1:] - step / 2)
        bounds = np.concatenate([[0], edges, [len(values)]])
        return power - grid @ (2 * np.diff(prefix[bounds]) - grid * np.diff(bounds))

    return error


@register("minmax")
def minmax(batches: Batches, *, bits: int, is_signed: bool) -> float:
    """Largest magnitude observed: nothing saturates."""
    return max(np.max(np.abs(batch)) for batch in batches)


@register("moving_average")
def moving_average(batches: Batches, *, bits: int, is_signed: bool, momentum: float = 0.9) -> float:
    """Exponential moving average of each batch's largest magnitude (Jacob et al. 2018).

    It starts at the first batch's. The paper's momentum is close to 1, for thousands of training
    steps; calibration has tens of batches, hence the default.
    """
    if not 0 <= momentum < 1:
        raise ParameterError(f"momentum={momentum} must be in [0, 1)")
    peaks = [np.max(np.abs(batch)) for batch in batches]
    average = peaks[0]
    for peak in peaks[1:]:
        average = momentum * average + (1 - momentum) * peak
    return average


@register("percentile")
def percentile(batches: Batches, *, bits: int, is_signed: bool, percentile: float = 99.99) -> float:
    """Percentile in (0, 100] of the non-zero magnitudes, linearly interpolated."""
    if not 0 < percentile <= 100:
        raise ParameterError(f"percentile={percentile} must be in (0, 100]")
    return np.percentile(_magnitudes(batches), percentile)


@register("mse")
def mse(batches: Batches, *, bits: int, is_signed: bool) -> float:
    """Threshold up to the largest magnitude with the least true quantization error.

    The error has many shallow minima: thresholds from a quarter of the mean magnitude on, which
    is below any optimum, are tried in equal ratios, then three times finer around the best.
    """
    codes, error, magnitudes = (
        _codes(bits, is_signed),
        _squared_error(batches),
        _magnitudes(batches),
    )
    peak = magnitudes[-1]
    tried = peak * np.geomspace(np.mean(magnitudes) / (4 * peak), 1, MSE_COARSE)
    best = (np.inf, 0.0)
    for _ in range(4):
        errors = [error(t / codes[1], codes) for t in tried]
        i = int(np.argmin(errors))
        best = min(best, (errors[i], tried[i]))
        tried = np.linspace(tried[max(i - 1, 0)], tried[min(i + 1, len(tried) - 1)], MSE_FINE)
    return best[1]


def _divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """KL divergence of the first ``kept`` bins, tail added to the last, from their merged form."""
    inside = counts[:kept]
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    starts = np.arange(levels) * kept // levels
    filled = np.add.reduceat((inside > 0).astype(float), starts)
    means = np.add.reduceat(inside, starts) / np.maximum(filled, 1)
    merged = np.repeat(means, np.diff(np.append(starts, kept))) * (inside > 0)
    some = clipped > 0
    if np.any(merged[some] == 0):
        return np.inf
    p, q = clipped[some] / clipped.sum(), merged[some] / merged.sum()
    return float(np.sum(p * np.log(p / q)))


@register("kl")
def kl(batches: Batches, *, bits: int, is_signed: bool) -> float:
    """Threshold of least Kullback-Leibler divergence (TensorRT; Migacz 2017).

    A histogram of 2048 bins, cut at every bin, is merged to 2^(bits-1) (signed) or 2^bits
    (unsigned) levels. With no fewer levels than bins it is the largest magnitude. A cut that
    saturates a tenth of the values or more is not tried: when all it keeps is in one bin, as for
    values in [2, 4], its divergence is 0.
    """
    levels = _codes(bits, is_signed)[1] + 1
    magnitudes = _magnitudes(batches)
    peak = magnitudes[-1]
    if levels >= KL_BINS:
        return peak
    counts = np.histogram(magnitudes, KL_BINS, (0, peak))[0].astype(float)
    first = int(np.searchsorted(np.cumsum(counts), KL_KEPT * len(magnitudes), side="right")) + 1
    cuts = range(max(levels, first), KL_BINS + 1)
    return peak * cuts[int(np.argmin([_divergence(counts, c, levels) for c in cuts]))] / KL_BINS


def gauss_clip(steps: int) -> float:
    """Optimal clip of N(0, 1) with ``steps`` steps from 0 to the clip (Banner et al. 2019).

    The root of the derivative of c^2 / (12 steps^2), for rounding, plus the integral of
    2 (x-c)^2 phi(x) from c on, for clipping.
    """

    def slope(c: float) -> float:
        density = np.exp(-(c**2) / 2) / np.sqrt(2 * np.pi)
        return c / (6 * steps**2) - 4 * (density - c * ndtr(-c))

    return brentq(slope, 1.0, 10.0, xtol=1e-12)


def laplace_clip(steps: int) -> float:
    """Optimal clip of Laplace(0, 1) with ``steps`` steps from 0 to the clip (Banner et al. 2019).

    c^2 / (12 steps^2) + 2 e^-c is least where c e^c = 12 steps^2: Lambert's W.
    """
    return float(lambertw(12 * steps**2).real)


@register("aciq_gauss")
def aciq_gauss(batches: Batches, *, bits: int, is_signed: bool) -> float:
    """ACIQ's analytic optimum for normal values (signed), or normal before the ReLU (unsigned).

    sigma is the root mean square of the non-zero values, as the range is centred on 0. The
    paper's 2^bits bins over [-T, T] are 2^(bits-1) steps up to T. Unsigned, the positive values
    are half-normal: same sigma, same clipping error given x > 0, and 2^bits steps up to T, so T
    is that of a signed map of one bit more.
    """
    magnitudes = _magnitudes(batches)
    sigma = np.sqrt(np.mean(magnitudes**2))
    return min(sigma * gauss_clip(_codes(bits, is_signed)[1] + 1), magnitudes[-1])


@register("aciq_laplace")
def aciq_laplace(batches: Batches, *, bits: int, is_signed: bool) -> float:
    """ACIQ's analytic optimum for Laplace (signed), or exponential values (unsigned).

    b is the mean of the non-zero magnitudes; the steps are as in ``aciq_gauss``.
    """
    magnitudes = _magnitudes(batches)
    scale = np.mean(magnitudes)
    return min(scale * laplace_clip(_codes(bits, is_signed)[1] + 1), magnitudes[-1])


@register("octav")
def octav(batches: Batches, *, bits: int, is_signed: bool) -> float:
    """Clip of least modelled error, by Newton-Raphson on the values (Sakr et al. 2022).

    T <- sum_{m>T} m / (k #{m<=T} + #{m>T}) over the non-zero magnitudes m. The paper's step is
    T / 2^(bits-1) (signed) or T / 2^bits, ours T / highest; so k is 1 / (12 highest^2), not
    4^-bits / 3 or 4^-bits / 12. On few values the recursion can end in a cycle: of the
    thresholds visited, the one of least modelled error counts.
    """
    magnitudes = _magnitudes(batches)
    noise = 1 / (12 * _codes(bits, is_signed)[1] ** 2)
    # Entry i is the sum from the i-th magnitude on.
    tail = np.append(np.cumsum(magnitudes[::-1])[::-1], 0)
    tail2 = np.append(np.cumsum(magnitudes[::-1] ** 2)[::-1], 0)
    errors: dict[float, float] = {}
    t = float(np.mean(magnitudes))
    while t not in errors and len(errors) < OCTAV_ITERATIONS:
        inside = int(np.searchsorted(magnitudes, t, side="right"))
        outside = len(magnitudes) - inside
        clipping = tail2[inside] - 2 * t * tail[inside] + t**2 * outside
        errors[t] = noise * t**2 * inside + clipping
        t = tail[inside] / (noise * inside + outside) if outside else t
    return min(errors, key=errors.__getitem__)


def _power_of_two(batches: Batches, bits: int, is_signed: bool, method: str, find: Method) -> int:
    """Exponent of the step (see ``map_type``)."""
    codes = _codes(bits, is_signed)
    if method == "mse":
        return best_exponent(np.concatenate(batches), lowest=codes[0], highest=codes[1])
    threshold = find(batches, bits=bits, is_signed=is_signed)
    covering = int(covering_exponent(np.asarray(threshold), codes[1]))
    if method in COVERING:
        return covering
    error = _squared_error(batches)
    return min((covering, covering - 1), key=lambda e: error(2.0**e, codes))


def _float32_step(step: float) -> float:
    """The step as a float32 number; 1 for an all-zero map."""
    return float(np.float32(step)) or 1.0


def _affine(batches: Batches, bits: int, method: str, find: Method) -> MapType:
    """Format of [-low, high] with 0 on the grid (see ``map_type``)."""
    formats, factors = [], AFFINE_FACTORS if method == "mse" else (1.0,)
    for side_bits in (bits, max(bits - 1, 2)):
        top = find(batches, bits=side_bits, is_signed=False)
        bottom = find([-batch for batch in batches], bits=side_bits, is_signed=False)
        for f, g in product(factors, factors):
            low, high = f * bottom, g * top
            # At most half of the codes are negative, however negative the map is.
            step = _float32_step(max((low + high) / (2**bits - 1), low / 2 ** (bits - 1)))
            formats.append(MapType(bits, -round(low / step), step))
    error = _squared_error(batches)
    return min(formats, key=lambda number: error(number.step, number.codes))


def map_type(
    batches: Batches,
    *,
    bits: int,
    is_signed: bool,
    method: str = "mse",
    alpha: Literal["auto", "auto_po2"] = "auto_po2",
    is_affine: bool = False,
    **parameters: float,
) -> MapType:
    """Number format of a map from its observed values; an all-zero map has step 1.

    Parameters
    ----------
    method : str
        with the method's own ``parameters`` (momentum, percentile).
    alpha : str
        'auto': step = T / highest code, as float32. 'auto_po2': a power of two. 'mse' takes that
        of least squared error (``best_exponent``); minmax, moving_average and percentile the
        smallest whose top code covers T, as they promise a range; the others, whose T balances
        saturation and rounding, the one of less squared error of the covering power and half it.
    is_affine : bool
        range [-low, high], 0 on the grid; only with alpha 'auto' and up to 8 bits. An end is the
        method's unsigned T of that side's values. As the sides share the codes, T is found for
        all codes a side and for half of them; the one of less squared error counts. 'mse' also
        tries multiples of each end, as the error of one side depends on the other's.

    Raises
    ------
    ParameterError
        if a setting is unknown, alpha or bits cannot be affine, or values are not finite.
    """
    if alpha not in ("auto", "auto_po2"):
        raise ParameterError(f"alpha={alpha!r} must be one of auto, auto_po2")
    if is_affine and (alpha != "auto" or bits > 8):
        raise ParameterError(
            f"is_affine=True must have alpha='auto' (is {alpha!r}) and bits={bits} <= 8"
        )
    find = partial(get(method), **parameters)
    lowest, highest = _codes(bits, is_signed)
    values = _observed(batches, is_signed=is_signed)
    if is_affine:
        return _affine(values, bits, method, find)
    if alpha == "auto":
        threshold = find(values, bits=bits, is_signed=is_signed)
        return MapType(bits, lowest, _float32_step(threshold / highest))
    exponent = _power_of_two(values, bits, is_signed, method, find)
    return MapType.of(bits, is_signed=is_signed, exponent=exponent)
