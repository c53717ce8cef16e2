"""A pruner's own process, and how the referee starts, asks and measures it."""
