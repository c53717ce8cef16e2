"""How often does a true claim hold, and a false one fail? Simulated claims against simulated measurements.

    python -m tools.claim_power --out docs/claims

Writes claim-power.csv and claim-power.md. The images are drawn with replacement from those of the nets in `claims/`, so
that robust shares, and how much two nets agree, are those of real nets. Each run of the attacks misses every robust
image with the measured rate of noise (docs/claims/attack-noise.csv), which is below the rate that `claims.verdict`
assumes. The verdicts are those of `bench.claims.verdict` itself.

A forger overstates a claim by some points and attaches outcomes that show the count:

- edited: the net's own outcomes, with just enough fooled images called robust;
- shuffled: those, with the survivors permuted among the images that are right when clean;
- swapped: those, with one image in 20 exchanged for one of the other kind;
- other net: the outcomes of another net, filled up or cut to the count;
- count only: none; and at least: none, and the share is claimed instead of the count.

In all of them the clean labels are made right, as any forger can. With 0 points the count is true; `edited` is then the
true claim, and the others are false evidence for a true number.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import ceil, floor
from pathlib import Path

import numpy as np

from prunebench.bench.attacks.standard import STANDARD
from prunebench.bench.claims.verdict import NOISE, counted, sampled, sampled_count, whole
from prunebench.bench.claims.verify import FEWEST, SHARE
from prunebench.bench.files import write_bytes
from prunebench.bench.outcomes import load_arrays, standing_of
from tools.attack_noise import noisiest, read, worst

ROOT = Path(__file__).parents[1]
LEVELS = ("full", "quick")
SIZES = (500, 1000, 10_000)
POINTS = (0, 1, 2, 5, 10)
KINDS = ("edited", "shuffled", "swapped", "other net", "count only", "at least")
SWAPPED = 20


@dataclass(frozen=True)
class Nets:
    """Outcomes of real nets, bool (nets, n) each, and the share of fooled images that level quick's attacks find."""

    clean: np.ndarray
    robust: np.ndarray
    found: float


def nets(claims: Path) -> Nets:
    """The nets of the claims below the folder `claims`, all on the same images."""
    from prunebench.bench.claims.claim import find, load_claim

    clean, robust, quick = [], [], []
    for path in find(claims):
        facts = load_claim(path).outcomes
        assert facts is not None  # all committed claims have them
        arrays = load_arrays(path.parent / facts.path, facts.sha256, f"the outcomes of {path}")
        clean.append(arrays["labels"] == arrays["predicted"])
        robust.append(standing_of(arrays))
        quick.append(clean[-1] & np.logical_and.reduce([arrays[f"survived/{name}"] for name in STANDARD.quick]))
    fooled = [int((a & ~b).sum()) for a, b in zip(clean, robust, strict=True)]
    early = [int((a & ~b).sum()) for a, b in zip(clean, quick, strict=True)]
    return Nets(np.array(clean), np.array(robust), sum(early) / sum(fooled))


def raised(bits: np.ndarray, clean: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """`bits` with images added from `clean`, or removed, until `count` are set."""
    bits, gap = bits.copy(), count - int(bits.sum())
    chosen = draw.choice(np.flatnonzero(clean & ~bits if gap > 0 else bits), abs(gap), replace=False)
    bits[chosen] = gap > 0
    return bits


def forged(
    kind: str, true: np.ndarray, other: np.ndarray, clean: np.ndarray, count: int, draw: np.random.Generator
) -> np.ndarray:
    """Outcomes with `count` robust images; `true`: the net's own; `other`: another net's; all bool (n,)."""
    if kind == "other net":
        return raised(other & clean, clean, count, draw)
    bits = raised(true, clean, count, draw)
    if kind == "shuffled":
        bits[clean] = draw.permutation(bits[clean])
    if kind == "swapped":
        pairs = len(bits) // SWAPPED
        down, up = (draw.choice(np.flatnonzero(side), pairs, replace=False) for side in (bits, clean & ~bits))
        bits[down], bits[up] = False, True
    return bits


def words(
    level: str, n: int, points: int, kind: str, repetitions: int, rate: float, real: Nets, seed: int = 0
) -> Counter[str]:
    """The verdicts on `repetitions` simulated claims that overstate by `points` percent of `n` images."""
    draw = np.random.default_rng([seed, n, points, KINDS.index(kind), LEVELS.index(level)])
    pairs, found = list(permutations(range(len(real.robust)), 2)), Counter[str]()
    for _ in range(repetitions):
        a, b = pairs[draw.integers(len(pairs))]
        images = draw.integers(real.robust.shape[1], size=n)
        clean, truth, other = real.clean[a, images], real.robust[a, images], real.robust[b, images]
        true, measured = (truth & (draw.random(n) >= rate) for _ in range(2))
        count = int(true.sum()) + n * points // 100
        found[_word(level, n, kind, count, clean, true, other, truth, measured, draw, real.found)] += 1
    return found


def _word(
    level: str,
    n: int,
    kind: str,
    count: int,
    clean: np.ndarray,
    true: np.ndarray,
    other: np.ndarray,
    truth: np.ndarray,
    measured: np.ndarray,
    draw: np.random.Generator,
    share: float,
) -> str:
    if kind == "at least":
        count = ceil(floor(1000 * count / n) / 1000 * n - 1e-9)  # as a percentage with one decimal
    size = max(FEWEST, -(-n // SHARE))
    weak = measured | (~truth & clean & (draw.random(n) >= share))  # robust under level quick's attacks
    labels = np.zeros(n, int), np.zeros(n, int)
    if kind in ("count only", "at least"):
        if level == "full":
            return counted(count, int(measured.sum()), n).word
        return sampled_count(count, n, size, int(weak[draw.permutation(n)[:size]].sum())).word
    claimed = forged(kind, true, other, clean, count, draw)
    if level == "full":
        return whole(claimed, measured, labels).word
    index = draw.permutation(np.flatnonzero(claimed))[:size]
    return sampled(claimed, index, weak[index], labels).word


def cells(repetitions: int, rate: float, real: Nets) -> Iterator[tuple[str, int, int, str, Counter[str]]]:
    """Level, images, points, kind and verdicts for every cell of the table."""
    for level, n, kind, points in product(LEVELS, SIZES, KINDS, POINTS):
        yield level, n, points, kind, words(level, n, points, kind, repetitions, rate, real)


def table(rows: Sequence[tuple[str, int, int, str, Counter[str]]], rate: float, real: Nets) -> str:
    """The Markdown table of the verdicts in each cell."""
    noise = f"Noise: {rate:.5f} per robust image are simulated, {NOISE:g} are assumed by the tests."
    lines = [f"{noise} Level quick's attacks find {real.found:.1%} of what AutoAttack fools."]
    found = {(level, n, kind, points): word for level, n, points, kind, word in rows}
    for level in LEVELS:
        lines += [
            "",
            f"## Level {level}",
            "",
            "| images | outcomes | " + " | ".join(f"+{points} points" for points in POINTS) + " |",
            "|--:|---|" + "---|" * len(POINTS),
        ]
        for n, kind in product(SIZES, KINDS):
            said = [_cell(found[level, n, kind, points]) for points in POINTS]
            lines.append(f"| {n:,} | {kind} | {' | '.join(said)} |")
    return "\n".join(lines) + "\n"


def noisy(name: str, rate: float, repetitions: int, real: Nets) -> str:
    """The verdicts on true claims of the net `name`, which has the highest noise rate."""
    lines = [
        "",
        "## True claims of the noisiest net",
        "",
        f"{name}: {rate:.5f} per robust image.",
        "",
        "| images | level full | level quick |",
        "|--:|---|---|",
    ]
    for n in SIZES:
        said = [_cell(words(level, n, 0, "edited", repetitions, rate, real, seed=1)) for level in LEVELS]
        lines.append(f"| {n:,} | {' | '.join(said)} |")
    return "\n".join(lines) + "\n"


def _cell(word: Counter[str]) -> str:
    total = word.total()
    parts = [(name, 100 * word[name] / total) for name in ("holds", "undecided", "refuted") if word[name]]
    return ", ".join(f"{name} {share:.4g} %" for name, share in parts)


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--noise", type=Path, default=ROOT / "docs/claims/attack-noise.csv")
    parser.add_argument("--repetitions", type=int, default=1000)
    args = parser.parse_args()
    noise = read(args.noise)
    rate, real = worst(noise)[2], nets(ROOT / "claims")
    rows = list(cells(args.repetitions, rate, real))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("level", "images", "points", "outcomes", "holds", "undecided", "refuted"))
    writer.writerows((*row[:4], *(row[4][name] for name in ("holds", "undecided", "refuted"))) for row in rows)
    write_bytes(args.out / "claim-power.csv", buffer.getvalue().encode())
    text = table(rows, rate, real) + noisy(*noisiest(noise), args.repetitions, real)
    write_bytes(args.out / "claim-power.md", text.encode())


if __name__ == "__main__":
    main()
