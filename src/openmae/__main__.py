"""`python -m openmae` is the command `openmae`."""

from openmae.cli import main

main()
