"""``python -m qbee`` is the command line."""

from qbee.cli import main

main()
