"""The eps values of the security curve."""

from __future__ import annotations

from fractions import Fraction

from prunebench.bench.protocol import Threat
from prunebench.bench.schema import exact

_FACTORS = ("1/4", "1/2", "3/4", "1", "3/2", "2", "3")  # of the threat's eps


def radii(threat: Threat, pixels: int) -> tuple[str, ...]:
    """The exact eps values of the security curve, ascending; the last can turn any image of `pixels` values grey."""
    if threat.norm == "Linf":
        grey = Fraction(1, 2)
    else:  # half the square root of `pixels`, rounded up to a multiple of 0.01
        grey = Fraction(next(k for k in range(int(50 * pixels**0.5), 2**62) if k * k >= 2500 * pixels), 100)
    return (*(str(r) for f in _FACTORS if (r := exact(threat.eps) * Fraction(f)) < grey), str(grey))
