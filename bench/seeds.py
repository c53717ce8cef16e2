"""One root seed, many named streams: no random number depends on what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def derive(root: int, *names: str | int) -> int:
    """The seed of the stream `names` under `root`, an int in [0, 2**63).

    Streams with different names are independent: the seed comes from the SHA-256 of the root and the names.
    """
    text = "/".join(str(part) for part in (root, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def order(count: int, *names: str | int) -> Sequence[int]:
    """The indices 0..count-1 in an order fixed for ever by `names`: sorted by the SHA-256 of name and index.

    Uses no library's generator, so a data split is the same on every machine and in every version.
    """
    prefix = "/".join(str(part) for part in names)
    return sorted(range(count), key=lambda index: hashlib.sha256(f"{prefix}/{index}".encode()).digest())
