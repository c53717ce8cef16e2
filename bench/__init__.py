"""The fixed part of prunebench: protocols, training, scoring, claims, the grid, the command line."""

if not __name__.startswith("prunebench."):
    raise ImportError("This is prunebench.bench: install the checkout (make setup) and import prunebench.")
