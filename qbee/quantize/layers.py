"""The Keras layers whose inference is the integer specification, code for code."""

from __future__ import annotations

from dataclasses import asdict

from qbee.keras import keras
from qbee.quantize.arithmetic import OpArithmetic, WeightedArithmetic
from qbee.quantize.fixed_net import limits
from qbee.quantize.fixed_point import MapType, arithmetic_of
from qbee.quantize.graph import CHANNEL_AXIS, Node, Op
from qbee.quantize.power_of_two import is_power_of_two
from qbee.quantize.quantizers import Alpha, quantized_bias, quantized_kernel


def kernel_quantizer(
    op: Op, bits: int, alpha: Alpha = "auto_po2", *, is_per_tensor: bool = False
) -> quantized_kernel:
    """Quantizer with one step per channel; 4-bit dense kernels have one step in all.

    TFLite Micro has no per-channel int4 FULLY_CONNECTED.
    """
    is_single = is_per_tensor or (op == "dense" and bits <= 4)
    return quantized_kernel(bits, alpha, scale_axis=None if is_single else CHANNEL_AXIS[op])


def _number(value: MapType | dict) -> MapType:
    return value if isinstance(value, MapType) else MapType(**value)


def _node(value: Node | dict) -> Node:
    if isinstance(value, Node):
        return value
    lists = ("inputs", "shape", "window", "strides")
    padding = tuple(tuple(pair) for pair in value["padding"])
    return Node(**{**value, **{k: tuple(value[k]) for k in lists}, "padding": padding})


class QuantizedOp(keras.layers.Layer):
    """A node without weights, its activation, its max-pool and its quantized output.

    In training the operation is floating-point and gradients pass straight through rounding, but
    not through saturation. At inference it is integer arithmetic, so outputs are the device's
    codes times the step.

    Parameters
    ----------
    node : Node or its dict
    sources, target : MapType or its dict
        number formats of inputs and output.
    """

    def __init__(self, *, node, sources, target, **kwargs):
        super().__init__(**kwargs)
        self.node, self.target = _node(node), _number(target)
        self.sources = tuple(_number(source) for source in sources)

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest code of the output."""
        return limits(self.node.activation, self.target)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "node": asdict(self.node),
            "sources": [asdict(source) for source in self.sources],
            "target": asdict(self.target),
        }

    @property
    def arithmetic_of_node(self) -> OpArithmetic:
        """What it computes."""
        return OpArithmetic(self.node, self.sources, self.target)

    def call(self, inputs, training=None):
        """Quantized output; inputs must lie on the grids of ``sources``."""
        inputs = inputs if isinstance(inputs, list | tuple) else [inputs]
        found = self.arithmetic_of_node
        return found.trained(*inputs) if training else found.inferred(*inputs)


class QuantizedLayer(QuantizedOp):
    """Convolution, depthwise convolution or dense layer with activation and max-pool.

    Parameters
    ----------
    kernel_shape : tuple
    kernel_bits, bias_bits : int
    alpha, is_per_tensor
        of the kernel's quantizer.
    """

    def __init__(
        self,
        *,
        kernel_shape,
        kernel_bits,
        bias_bits,
        alpha="auto_po2",
        is_per_tensor=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_shape, self.is_per_tensor = tuple(kernel_shape), is_per_tensor
        self.kernel_quantizer = kernel_quantizer(
            self.node.op, kernel_bits, alpha, is_per_tensor=is_per_tensor
        )
        self.bias_quantizer = quantized_bias(bias_bits)

    @property
    def source(self) -> MapType:
        """Number format of the input."""
        return self.sources[0]

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels in the kernel."""
        return CHANNEL_AXIS[self.node.op]

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.kernel_shape[self.channel_axis]

    @property
    def arithmetic(self) -> str:
        """Which of the device's ways computes this layer."""
        return arithmetic_of(self.source, self.kernel_quantizer.bits, self.target)

    def build(self, input_shape):
        """Create kernel and bias."""
        self.kernel = self.add_weight("kernel", self.kernel_shape)
        self.bias = self.add_weight("bias", (self.channels,), initializer="zeros")
        super().build(input_shape)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "kernel_shape": self.kernel_shape,
            "kernel_bits": self.kernel_quantizer.bits,
            "bias_bits": self.bias_quantizer.bits,
            "alpha": self.kernel_quantizer.alpha,
            "is_per_tensor": self.is_per_tensor,
        }

    @property
    def arithmetic_of_node(self) -> WeightedArithmetic:
        """What it computes from its input, kernel and bias."""
        steps = (self.source.step, self.target.step)
        is_po2 = self.kernel_quantizer.alpha == "auto_po2" and all(map(is_power_of_two, steps))
        return WeightedArithmetic(
            self.node,
            self.sources,
            self.target,
            kernel_quantizer=self.kernel_quantizer,
            bias_quantizer=self.bias_quantizer,
            arithmetic=self.arithmetic,
            is_shift=is_po2,
        )

    def quantized(self):
        """Quantized kernel, the steps [out] of its codes, and quantized bias."""
        return self.arithmetic_of_node.quantized(self.kernel, self.bias)

    def integers(self):
        """Kernel codes (float32), their steps [out], and accumulator codes of the bias (int64)."""
        return self.arithmetic_of_node.integers(self.kernel, self.bias)

    def call(self, inputs, training=None):
        """Quantized output; inputs must lie on the grid of ``source``."""
        found = self.arithmetic_of_node
        compute = found.trained if training else found.inferred
        return compute(inputs, self.kernel, self.bias)
