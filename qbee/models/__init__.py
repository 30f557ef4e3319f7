"""Float Keras models by name; importing this package registers them all."""

from qbee.models import beenet as _beenet  # noqa: F401 - registers its models
