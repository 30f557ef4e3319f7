"""All methods of pruning by name; importing this module registers them."""

from qbee.prune import magnitude as _magnitude  # noqa: F401
from qbee.prune.method import get, names

__all__ = ["get", "names"]
