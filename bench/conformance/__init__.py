"""What every pruner is checked for before its numbers count."""
