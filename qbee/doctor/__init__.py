"""The doctor: what is wrong with the quantizers of a Keras model, and the cure."""

from qbee.doctor.cure import fix
from qbee.doctor.examination import examine, update_ratios

__all__ = ["examine", "fix", "update_ratios"]
