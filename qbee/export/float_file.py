"""The float network as a .tflite, by TensorFlow's converter."""

from __future__ import annotations

from qbee.keras import tf
from qbee.streams import captured_stderr


def converted(model) -> bytes:
    """The .tflite of a float Keras model."""
    with captured_stderr():
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()
