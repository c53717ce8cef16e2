"""The process that runs a pruner, and how the referee starts, queries and measures it."""
