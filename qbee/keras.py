"""The one place that selects Keras 2 (tf_keras) and hands out the stack built on it."""

from __future__ import annotations

import os
import sys

from qbee.errors import StackError
from qbee.streams import captured_stderr


def _forbid_keras_3() -> None:
    """Stop with one clear line when TensorFlow was already imported with Keras 3."""
    if "tensorflow" in sys.modules and os.environ.get("TF_USE_LEGACY_KERAS") not in ("1", "true"):
        raise StackError(
            "TensorFlow was imported with Keras 3 before qbee: import qbee first, "
            "or set TF_USE_LEGACY_KERAS=1 before the program starts"
        )


_forbid_keras_3()
os.environ["TF_USE_LEGACY_KERAS"] = "1"
# At level 2 TensorFlow still reports the missing GPU of every CPU machine as an error.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# TensorFlow prints start-up notices before its log level takes effect.
with captured_stderr():
    import qkeras
    import tensorflow as tf
    import tf_keras as keras

    # It imports TensorFlow and Keras 3 itself, so it must come last.
    import keras_tuner  # isort: skip

# TensorFlow's model optimization toolkit sets the switch itself, so the check above is not enough.
if not issubclass(qkeras.QDense, keras.layers.Layer):
    raise StackError("QKeras was imported with Keras 3 before qbee: import qbee first")

# Each trial of a search compiles a step of its own, on purpose; TensorFlow warns of it.
tf.get_logger().setLevel("ERROR")

__all__ = ["keras", "keras_tuner", "known_to_qkeras", "make_repeatable", "qkeras", "tf"]


def known_to_qkeras(quantizer: type) -> type:
    """Class decorator: QKeras' and Keras' readers of strings and files find the quantizer."""
    setattr(qkeras.quantizers, quantizer.__name__, quantizer)
    keras.utils.get_custom_objects()[quantizer.__name__] = quantizer
    return quantizer


def make_repeatable(seed: int) -> None:
    """Seed Python, numpy and TensorFlow and make every TensorFlow op deterministic."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
