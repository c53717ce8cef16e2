"""The checks that every pruner must pass before its results count."""
