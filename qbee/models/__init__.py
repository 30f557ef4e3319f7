"""Float Keras models by name; importing this package registers them all."""

# Importing them registers their models.
from qbee.models import beenet as _beenet  # noqa: F401
from qbee.models import mobilenet_v2 as _mobilenet_v2  # noqa: F401
from qbee.models import resnet9 as _resnet9  # noqa: F401
