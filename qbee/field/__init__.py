"""Field use of a finished detector: recordings in, tables, pages or a better fit out."""
