"""All methods of pruning by name; importing this module registers them."""

from qbee.prune import apoz as _apoz  # noqa: F401
from qbee.prune import cyclical as _cyclical  # noqa: F401
from qbee.prune import magnitude as _magnitude  # noqa: F401
from qbee.prune import netadapt as _netadapt  # noqa: F401
from qbee.prune import regression as _regression  # noqa: F401
from qbee.prune import slimming as _slimming  # noqa: F401
from qbee.prune.method import get, names

__all__ = ["get", "names"]
