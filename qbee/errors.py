"""Errors a caller can handle; every one carries a message of one line."""


class QbeeError(Exception):
    """Base of all errors that qbee raises on purpose."""


class ParameterError(QbeeError, ValueError):
    """An argument or a setting has a value that cannot work."""


class AudioError(QbeeError):
    """A recording cannot be read: missing, empty, truncated, not audio, or not finite."""


class LabelError(QbeeError):
    """A label table is wrong; the message names file, row and value."""


class DataError(QbeeError):
    """The labelled windows cannot support what was asked (one class, too few, one location)."""


class FrontEndError(QbeeError):
    """A model and the audio settings or files given with it belong to different front ends."""


class ModelFileError(QbeeError):
    """A model, scheme or result file is missing, damaged or of another kind."""


class ExportError(QbeeError):
    """A network cannot be exported as asked; the message names the layer or the limit."""


class StackError(QbeeError):
    """The installed TensorFlow, Keras or TFLite Micro cannot be used."""


class StoreError(QbeeError):
    """The store of a search cannot be reached, or is locked, full or read-only."""
