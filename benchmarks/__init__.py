"""Measurements of qbee against what a user would do without it."""
