"""`python -m prunebench` runs the command `prunebench`."""

from prunebench.bench.cli.main import main

main()
