"""What a pruner trains with: batches, attacks, fits, and the meter that charges for them."""
