"""Quantization: the integer specification, quantizers, calibration and conversion."""
