"""A pruner's training tools: batches, attacks, fits, and the meter that charges for them."""
