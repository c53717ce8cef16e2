"""Records in, tables out: what is compared with what, and how it is shown."""

if not __name__.startswith("prunebench."):
    raise ImportError("This is prunebench.leaderboard: install the checkout (make setup) and import prunebench.")
