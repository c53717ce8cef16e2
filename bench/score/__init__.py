"""A net under the referee: cascade of attacks, probes, flags, record."""
