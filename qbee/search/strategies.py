"""All strategies by name; importing this module registers them."""

from qbee.search import bayesian as _bayesian  # noqa: F401
from qbee.search import evolution as _evolution  # noqa: F401
from qbee.search import sensitivity as _sensitivity  # noqa: F401
from qbee.search.strategy import get, names

__all__ = ["get", "names"]
