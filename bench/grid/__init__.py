"""Many jobs: their order, the processes that do them, and what they will take."""
