"""Plots and the self-contained HTML report; nothing here needs TensorFlow."""
