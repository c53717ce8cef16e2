"""The fixed part of prunebench: protocols, training, scoring."""
