"""Scoring a net: the referee, the cascade of attacks, probes, flags and the record."""
