"""Float Keras models by name."""
