"""Signs that a robustness number cannot be trusted: pure functions of the measurements, each with its threshold.

A flag never changes a number; it is shown beside it. Sources: Athalye et al. 2018 (arXiv 1802.00420), Carlini et al.
2019 (arXiv 1902.06705), Pintor et al. 2022 (arXiv 2106.09947). The thresholds are ours. They lie between the tests'
victims and what dense nets show. `python -m tools.flag_levels` shows how honest nets are spread about them, and how
often a flag is right. The kernel threshold is one proposal in a thousand, below what an image on the decision boundary
does by chance. Sparse nets of the digits had no such proposal, and none of their 50,000 gradients pointed elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise

from prunebench.bench.beyond import Planted
from prunebench.bench.facts import Flag, Point
from prunebench.bench.wide import LARGEST, LARGEST_LOGIT, ROUNDED

THRESHOLDS = {
    "black-box-wins": 0.02,
    "zero-gradients": 0.05,
    "eps-curve": 0.02,
    "weak-beats-strong": 0.005,
    "weak-strong-gap": 0.12,
    "quantised-input": 0.25,
    "softmax-output": 0.5,
    "transfer": 0.005,
    "kernel-disagrees": 0.001,
    "budget-overrun": 0.0,
    "planted": 0.05,
    "out-of-range": 1.0,
    "rounding": 0.0,
    "constant": 0.0,
}
KINKS = 0.01  # share of images whose gradient depends on a ReLU that the last bit decides


def black_box_wins(white_box: int, square: int, n: int) -> Flag:
    """`white_box` images survive all white-box attacks; `square` of them also survive Square."""
    value = (white_box - square) / n
    return _flag(
        "black-box-wins",
        value,
        f"Square, which needs no gradient, succeeds on {value:.1%} of the images where gradients fail, so they may "
        "mislead.",
    )


def zero_gradients(cross_entropy: int, dlr: int, n: int) -> Flag:
    """The number of images on which the input gradient of each loss is zero or vanishes."""
    return _flag(
        "zero-gradients",
        max(cross_entropy, dlr) / n,
        f"The input gradient vanishes on {cross_entropy / n:.1%} (cross-entropy) and {dlr / n:.1%} (DLR) of the "
        "images; attacks cannot follow it.",
    )


def eps_curve(curve: Sequence[Point], n: int, chance: float) -> Flag:
    """The security curve rises somewhere, or its last point, where every image can be made grey, exceeds `chance`.

    `chance`: the accuracy of the best constant answer, in [0, 1]. The value is the larger of the two excesses.
    """
    rises = [after.robust - before.robust for before, after in pairwise(curve)]
    rise, end = max([0, *rises]) / n, curve[-1].robust / n
    return _flag(
        "eps-curve",
        max(rise, end - chance, 0.0),
        f"As eps grows, accuracy rises by up to {rise:.1%}; at eps {curve[-1].eps} (all images can be grey) it "
        f"is {end:.1%}, by chance {chance:.1%}.",
    )


def weak_beats_strong(beaten: int, n: int) -> Flag:
    """FGSM or PGD fooled the net on `beaten` images that survived AutoAttack."""
    return _flag(
        "weak-beats-strong",
        beaten / n,
        f"On {beaten / n:.1%} of the images a weak attack succeeded after AutoAttack had failed; robust accuracy is "
        "too high.",
    )


def weak_strong_gap(pgd: int, robust: int, n: int) -> Flag:
    """`pgd` images survive PGD-20, `robust` survive AutoAttack."""
    value = (pgd - robust) / n
    return _flag(
        "weak-strong-gap",
        value,
        f"{value:.1%} more of the images survive PGD-20 than AutoAttack; a wide gap means that PGD's gradients "
        "mislead.",
    )


def quantised_input(unmoved: int, n: int, nudge: float) -> Flag:
    """On `unmoved` images no logit changed when all pixels moved by up to `nudge`."""
    return _flag(
        "quantised-input",
        unmoved / n,
        f"On {unmoved / n:.1%} of the images no logit changed when all pixels moved by up to {nudge:g}, as with "
        "rounded inputs.",
    )


def softmax_output(probabilities: int, n: int) -> Flag:
    """On `probabilities` images the outputs are probabilities: none is below 0, and they sum to 1."""
    return _flag(
        "softmax-output",
        probabilities / n,
        f"On {probabilities / n:.1%} of the images the outputs are probabilities, not logits, so losses saturate.",
    )


def transfer(fooled: int | None, n: int) -> Flag:
    """Adversarials of the dense net fooled this net on `fooled` images that survived the white-box attacks.

    None: no dense net was available.
    """
    if fooled is None:
        return _flag("transfer", None, "No dense net was given, so no adversarial images of a dense net were tried.")
    return _flag(
        "transfer",
        fooled / n,
        f"On {fooled / n:.1%} of the images the dense net's adversarial images succeeded after all gradient attacks "
        "had failed.",
    )


def kernel_disagrees(kernel_only: int, proposals: int, turned: int, n: int) -> Flag:
    """The fast net that attacks see, with sparse kernels or folded norms, differs from the net.

    Of the attacks' `proposals`, `kernel_only` fool it but not the net itself. On `turned` of `n` images its input
    gradient points elsewhere than the net's. The value is the larger of the two shares, each minus what the last bits
    explain: one proposal, which lies where two logits are equal, and some kinks.
    """
    value = max(max(kernel_only - 1, 0) / max(proposals, 1), turned / n - KINKS, 0.0)
    remedy = " Measure the net itself, with CXX=none." if value > THRESHOLDS["kernel-disagrees"] else ""
    return _flag(
        "kernel-disagrees",
        value,
        f"{kernel_only / max(proposals, 1):.2%} of the proposals fool only the fast copy that attacks see, and its "
        f"gradient differs on {turned / n:.1%} of the images.{remedy}",
    )


def budget_overrun(processor: float | None, allowed: float | None) -> Flag:
    """Training took `processor` processor seconds; its passes may take `allowed`.

    The value is the excess as a share of `allowed`; 0 within the limit, so that it does not depend on the clock.
    None: not trained here, or trained on a GPU, where processor time is meaningless.
    """
    if processor is None or allowed is None:
        return _flag("budget-overrun", None, "The processor time of the training was not measured.")
    value = max(0.0, processor / allowed - 1)
    if value == 0:
        return _flag("budget-overrun", 0.0, "The training took no more processor time than its sample passes allow.")
    return _flag(
        "budget-overrun",
        value,
        f"The training took {processor:.0f} s of processor time, but its sample passes allow {allowed:.0f} s; not all "
        "work was charged.",
    )


def planted(measured: Planted | None) -> Flag:
    """Some attack misses plants where random search finds less than half; the value is the share it misses.

    None: not measured, or random search finds half of them, so that nothing can be learnt.
    """
    if measured is None or not measured.images or not measured.found:
        return _flag("planted", None, "No adversarial images were planted for the attacks to find.")
    worst, found = min(measured.found.items(), key=lambda item: item[1])
    counts = f"planted = {found}/{measured.images}, random search {measured.control}/{measured.images}"
    if 2 * measured.control >= measured.images:
        return _flag("planted", None, f"{counts}: what random search finds proves nothing about attacks.")
    return _flag(
        "planted",
        1 - found / measured.images,
        f"{counts}: of these adversarial images, known to exist, {worst} finds the fewest.",
    )


def out_of_range(excess: float) -> Flag:
    """`excess`: the net's largest number relative to float32's sensible range, see `bench.wide.Sizes`."""
    return _flag(
        "out-of-range",
        min(excess, sys.float_info.max),
        f"The net's largest number is {excess:.3g} times float32's safe limit ({LARGEST:g}, logits {LARGEST_LOGIT:g}); "
        "above 1, attacks use float64.",
    )


def rounding(lost: int, n: int) -> Flag:
    """On `lost` images float32 rounding leaves the net without an answer; these images count as wrong."""
    return _flag(
        "rounding",
        lost / n,
        f"{lost / n:.1%} of the images count as wrong: two logits are equal, or float32 rounds over {ROUNDED:g} of "
        "their difference.",
    )


def constant(collapsed: Sequence[str], predicted: Sequence[int], labels: Sequence[int]) -> Flag:
    """The net cannot see its images (reasons: `collapsed`) or gives all the same answer; the value counts reasons."""
    reasons = list(collapsed)
    if len(set(predicted)) == 1 and len(set(labels)) > 1:
        answer = "no class" if predicted[0] < 0 else f"class {predicted[0]}"
        reasons.append(f"The net gives {answer} to all {len(predicted)} images.")
    return _flag(
        "constant",
        float(len(reasons)),
        " ".join(reasons) or "The net gives different answers to different images.",
    )


def _flag(name: str, value: float | None, sentence: str) -> Flag:
    return Flag(name=name, value=value, threshold=THRESHOLDS[name], sentence=sentence)
