"""Integer specification, quantizers and quantized networks, from calibration to fine-tuning.

The quantizers are here as ``qbee.quantize.quantized_kernel`` and so on; ``custom_objects()`` is
what Keras needs to load models that use them. Nothing of TensorFlow is loaded before.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "quantized_kernel": "quantizers",
    "quantized_bias": "quantizers",
    "quantized_bits_featuremap": "featuremap",
    "quantized_vectors": "granularity",
    "quantized_micro_exponents": "granularity",
    "quantized_codebook": "codebook",
    "QuantizedLayer": "layers",
    "QuantizedOp": "layers",
}

__all__ = [*_HOME, "custom_objects"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


def custom_objects() -> dict[str, Any]:
    """Quantizers and layers by name, for ``keras.models.load_model`` and QKeras' parser."""
    return {name: __getattr__(name) for name in _HOME}
