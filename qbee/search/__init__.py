"""Search of per-layer bit widths."""
