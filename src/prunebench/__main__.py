"""`python -m prunebench` is the command `prunebench`."""

from prunebench.bench.cli.main import main

main()
