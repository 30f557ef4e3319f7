"""Field use of a finished detector: recordings in, tables of buzzes and pages for review out."""
