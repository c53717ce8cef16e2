"""Turns records into tables: which rows are compared, and how they are shown."""

if not __name__.startswith("prunebench."):
    raise ImportError("This is prunebench.leaderboard: install the checkout (make setup) and import prunebench.")
