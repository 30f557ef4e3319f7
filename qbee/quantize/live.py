"""Number formats and quantizers whose widths are variables, for layers of many widths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qbee.keras import tf
from qbee.quantize import fixed_net
from qbee.quantize.fixed_point import MapType, max_kernel_code
from qbee.quantize.graph import Activation
from qbee.quantize.quantizers import quantized_bias, quantized_kernel


class Choice:
    """Which entry of a menu is chosen, as a variable of a graph."""

    def __init__(self, menu: Sequence):
        self.menu = tuple(menu)
        self._index = tf.Variable(0, dtype=tf.int32, trainable=False)

    def assign(self, entry) -> None:
        """Choose an entry."""
        self._index.assign(self.menu.index(entry))

    @property
    def index(self):
        """Index of the chosen entry, int32 tensor."""
        return self._index.value()

    @property
    def entry(self):
        """The entry that is chosen now."""
        return self.menu[int(self._index)]

    def of(self, values: Sequence, dtype=tf.float64):
        """That one of some values, one for each entry, which belongs to the chosen entry."""
        return tf.gather(tf.constant(np.asarray(values), dtype), self.index)


class LiveMap:
    """Number format of a feature map: that of the chosen width; properties as of ``MapType``."""

    def __init__(self, formats: Sequence[MapType], choice: Choice):
        self.formats, self.choice = tuple(formats), choice
        self.is_signed = self.formats[0].is_signed

    @property
    def step(self):
        """Step, float64."""
        return self.choice.of([number.step for number in self.formats])

    @property
    def codes(self):
        """Lowest and highest code, float64."""
        return self._pair([number.codes for number in self.formats])

    @property
    def is_wide(self):
        """Whether the device needs int16 for it, bool."""
        return self.choice.of([number.is_wide for number in self.formats], tf.bool)

    @property
    def zero_point(self):
        """Zero point of its tensor on the device, int64."""
        return self.choice.of([number.zero_point for number in self.formats], tf.int64)

    def limits(self, activation: Activation):
        """Lowest and highest code after an activation, float64."""
        return self._pair([fixed_net.limits(activation, number) for number in self.formats])

    def _pair(self, pairs: Sequence[tuple[int, int]]):
        lowest, highest = zip(*pairs, strict=True)
        return self.choice.of(lowest), self.choice.of(highest)


class LiveKernel(quantized_kernel):
    """Kernel quantizer of the chosen width, with power-of-two steps."""

    def __init__(self, choice: Choice, *, scale_axis: int | None):
        super().__init__(max(choice.menu), "auto_po2", scale_axis)
        self.choice = choice

    @property
    def max_code(self):
        """Largest absolute code, float32."""
        return self.choice.of([max_kernel_code(bits) for bits in self.choice.menu], tf.float32)


class LiveDenseKernel(LiveKernel):
    """As ``LiveKernel``, but with one step in all at some of its widths."""

    def __init__(self, choice: Choice, *, scale_axis: int, has_one_step: Sequence[bool]):
        super().__init__(choice, scale_axis=scale_axis)
        self.single = LiveKernel(choice, scale_axis=None)
        self.has_one_step = tuple(has_one_step)

    def bounded_steps(self, x, lowest):
        """As of ``quantized_kernel``, with a step for each channel, if only a copy."""
        return tf.where(
            self.choice.of(self.has_one_step, tf.bool),
            self.single.bounded_steps(x, lowest),
            super().bounded_steps(x, lowest),
        )


class LiveBias(quantized_bias):
    """Bias quantizer of the chosen width."""

    def __init__(self, choice: Choice):
        super().__init__(max(choice.menu))
        self.choice = choice

    @property
    def max_code(self):
        """Largest absolute code, float64."""
        return self.choice.of([2 ** (bits - 1) - 1 for bits in self.choice.menu])
