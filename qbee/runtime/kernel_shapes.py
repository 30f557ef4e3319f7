"""Shapes of the results of operators that move a kernel or a window over a map."""

from __future__ import annotations

from typing import Any

from qbee.runtime.operations import Operation, Tensor

Shape = tuple[int, ...]
_SAME, _VALID = 0, 1


class ShapeError(Exception):
    """Inputs that do not fit each other or the options."""


def require(is_sound: bool, problem: str) -> None:
    """Refuse what does not fit."""
    if not is_sound:
        raise ShapeError(problem)


def given(op: Operation, position: int) -> Tensor:
    """Input that must be there."""
    tensor = op.input(position)
    require(tensor is not None, f"its input {position} is missing")
    assert tensor is not None
    return tensor


def ranked(tensor: Tensor, rank: int, name: str) -> Shape:
    """Shape of so many axes."""
    require(len(tensor.shape) == rank, f"its {name} {list(tensor.shape)} has not {rank} axes")
    return tensor.shape


def axis_of(value: int, rank: int) -> int:
    """Axis counted from the first."""
    require(-rank <= value < rank, f"axis {value} of {rank}")
    return value % rank


def _window(shape: Shape, window: Shape, options: Any, dilations: Shape = (1, 1)) -> Shape:
    """Height and width of the places of a window."""
    strides = (options.strideH, options.strideW)
    require(min((*strides, *window, *dilations)) >= 1, "a stride, window or dilation below 1")
    require(options.padding in (_SAME, _VALID), f"padding {options.padding}")
    if options.padding == _SAME:
        return tuple(-(-n // s) for n, s in zip(shape, strides, strict=True))
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    require(all(n >= k for n, k in zip(shape, spans, strict=True)), "a window beyond its map")
    return tuple((n - k) // s + 1 for n, k, s in zip(shape, spans, strides, strict=True))


def _fits(kernel: Tensor, source: Tensor) -> str:
    return f"its kernel {list(kernel.shape)} does not fit its map {list(source.shape)}"


def _has_bias(op: Operation, position: int, channels: int) -> None:
    bias = op.input(position)
    is_sound = bias is None or bias.elements == channels
    require(is_sound, f"its bias has not {channels} numbers")


def convolution(op: Operation) -> Shape:
    """Result of a convolution, which may have groups of channels."""
    source, kernel, options = given(op, 0), given(op, 1), op.options
    batch, height, width, channels = ranked(source, 4, "map")
    results, *window, depth = ranked(kernel, 4, "kernel")
    groups = channels // max(depth, 1)
    is_sound = groups > 0 and groups * depth == channels and results % groups == 0
    require(is_sound, _fits(kernel, source))
    _has_bias(op, 2, results)
    dilations = (options.dilationHFactor, options.dilationWFactor)
    places = _window((height, width), tuple(window), options, dilations)
    return (batch, *places, results)


def depthwise(op: Operation) -> Shape:
    """Result of a depthwise convolution."""
    source, kernel, options = given(op, 0), given(op, 1), op.options
    batch, height, width, channels = ranked(source, 4, "map")
    first, *window, results = ranked(kernel, 4, "kernel")
    is_sound = first == 1 and channels * options.depthMultiplier == results
    require(is_sound, _fits(kernel, source))
    _has_bias(op, 2, results)
    dilations = (options.dilationHFactor, options.dilationWFactor)
    places = _window((height, width), tuple(window), options, dilations)
    return (batch, *places, results)


def dense(op: Operation) -> Shape:
    """Result of a fully connected operator, which has the map's axes or two."""
    source, kernel, output = given(op, 0), given(op, 1), op.outputs[0]
    results, terms = ranked(kernel, 2, "kernel")
    is_sound = terms > 0 and source.elements % terms == 0
    require(is_sound, _fits(kernel, source))
    _has_bias(op, 2, results)
    is_sound = output.elements * terms == source.elements * results
    # The result may keep the map's axes or not.
    require(is_sound and output.shape[-1] == results, f"its result is {list(output.shape)}")
    return output.shape


def transposed(op: Operation) -> Shape:
    """Transposed convolution: a convolution of the result has the shape of the map."""
    kernel, source, output = given(op, 1), given(op, 2), op.outputs[0]
    batch, *size, channels = ranked(source, 4, "map")
    results, *window, depth = ranked(kernel, 4, "kernel")
    require(depth == channels, _fits(kernel, source))
    _has_bias(op, 3, results)
    after = ranked(output, 4, "result")
    is_sound = _window(after[1:3], tuple(window), op.options) == tuple(size)
    require(is_sound, f"its result is {list(after)}")
    return (batch, *after[1:3], results)


def pool(op: Operation) -> Shape:
    """Result of a pool."""
    batch, height, width, channels = ranked(given(op, 0), 4, "map")
    window = (op.options.filterHeight, op.options.filterWidth)
    return (batch, *_window((height, width), window, op.options), channels)
