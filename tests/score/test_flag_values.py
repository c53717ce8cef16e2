"""Flags on paper: values, thresholds and sentences, from counts."""

from __future__ import annotations

import sys

import pytest

from prunebench.bench.facts import Point
from prunebench.bench.score import flags


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        (flags.black_box_wins(60, 57, 100), 0.03),
        (flags.zero_gradients(3, 6, 100), 0.06),
        (flags.eps_curve([Point(eps="0.1", robust=50), Point(eps="0.5", robust=13)], 100, 0.1), 0.03),
        (flags.eps_curve([Point(eps="0.1", robust=5), Point(eps="0.5", robust=8)], 100, 0.1), 0.03),
        (flags.weak_beats_strong(1, 100), 0.01),
        (flags.weak_strong_gap(63, 50, 100), 0.13),
        (flags.quantised_input(26, 100, 1e-5), 0.26),
        (flags.softmax_output(51, 100), 0.51),
        (flags.transfer(1, 100), 0.01),
        (flags.kernel_disagrees(3, 1000, 0, 100), 0.002),
        (flags.kernel_disagrees(0, 1000, 3, 100), 0.02),
        (flags.out_of_range(1.01), 1.01),
        (flags.out_of_range(float("inf")), sys.float_info.max),
        (flags.rounding(1, 100), 0.01),
        (flags.constant([], [4, 4, 4], [4, 4, 3]), 1),
        (flags.constant(["No weight is left in 1.0.weight."], [4, 4, 3], [4, 4, 3]), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_value_on_paper_is_above_the_threshold(flag, value):
    assert flag.value == pytest.approx(value) and flag.up


@pytest.mark.parametrize(
    "flag",
    [
        flags.black_box_wins(60, 58, 100),
        flags.zero_gradients(5, 5, 100),
        flags.eps_curve([Point(eps="0.1", robust=50), Point(eps="0.5", robust=12)], 100, 0.1),
        flags.weak_beats_strong(1, 200),
        flags.weak_strong_gap(62, 50, 100),
        flags.quantised_input(25, 100, 1e-5),
        flags.softmax_output(50, 100),
        flags.transfer(1, 200),
        flags.transfer(None, 100),
        flags.kernel_disagrees(2, 1000, 0, 100),
        flags.kernel_disagrees(1, 100, 0, 100),
        flags.kernel_disagrees(0, 1000, 1, 100),
        flags.kernel_disagrees(0, 0, 0, 100),
        flags.out_of_range(1.0),
        flags.rounding(0, 100),
        flags.constant([], [4, 4, 3], [4, 4, 4]),
        flags.constant([], [4, 4, 4], [4, 4, 4]),
    ],
    ids=lambda flag: flag.name,
)
def test_at_the_threshold_it_is_down(flag):
    assert not flag.up


COPY = "of the proposals fool only the fast copy that attacks see, and its gradient differs on"
SENTENCES = [
    (
        flags.black_box_wins(60, 57, 100),
        "Square, which needs no gradient, succeeds on 3.0% of the images where gradients fail, so they may mislead.",
    ),
    (
        flags.zero_gradients(3, 6, 100),
        "The input gradient vanishes on 3.0% (cross-entropy) and 6.0% (DLR) of the images; attacks cannot follow it.",
    ),
    (
        flags.eps_curve([Point(eps="0.1", robust=5), Point(eps="0.5", robust=8)], 100, 0.12),
        "As eps grows, accuracy rises by up to 3.0%; at eps 0.5 (all images can be grey) it is 8.0%, by chance 12.0%.",
    ),
    (
        flags.weak_beats_strong(1, 100),
        "On 1.0% of the images a weak attack succeeded after AutoAttack had failed; robust accuracy is too high.",
    ),
    (
        flags.weak_strong_gap(63, 50, 100),
        "13.0% more of the images survive PGD-20 than AutoAttack; a wide gap means that PGD's gradients mislead.",
    ),
    (
        flags.quantised_input(26, 100, 1e-5),
        "On 26.0% of the images no logit changed when all pixels moved by up to 1e-05, as with rounded inputs.",
    ),
    (
        flags.softmax_output(51, 100),
        "On 51.0% of the images the outputs are probabilities, not logits, so losses saturate.",
    ),
    (
        flags.transfer(1, 100),
        "On 1.0% of the images the dense net's adversarial images succeeded after all gradient attacks had failed.",
    ),
    (flags.transfer(None, 100), "No dense net was given, so no adversarial images of a dense net were tried."),
    (
        flags.kernel_disagrees(2, 1000, 1, 100),
        f"0.20% {COPY} 1.0% of the images.",
    ),
    (
        flags.kernel_disagrees(3, 1000, 2, 100),
        f"0.30% {COPY} 2.0% of the images. Measure the net itself, with CXX=none.",
    ),
    (flags.budget_overrun(None, 20.0), "The processor time of the training was not measured."),
    (
        flags.budget_overrun(19.0, 20.0),
        "The training took no more processor time than its sample passes allow.",
    ),
    (
        flags.budget_overrun(30.0, 20.0),
        "The training took 30 s of processor time, but its sample passes allow 20 s; not all work was charged.",
    ),
    (flags.planted(None), "No adversarial images were planted for the attacks to find."),
    (
        flags.out_of_range(9),
        "The net's largest number is 9 times float32's safe limit (1e+12, logits 1e+06); above 1, attacks use float64.",
    ),
    (
        flags.rounding(1, 100),
        "1.0% of the images count as wrong: two logits are equal, or float32 rounds over 0.001 of their difference.",
    ),
    (flags.constant([], [4, 3], [4, 3]), "The net gives different answers to different images."),
    (flags.constant([], [4, 4], [4, 3]), "The net gives class 4 to all 2 images."),
]


@pytest.mark.parametrize(("flag", "sentence"), SENTENCES, ids=lambda value: getattr(value, "name", None))
def test_a_sentence_says_the_value_on_one_line(flag, sentence):
    assert flag.sentence == sentence
    assert len(sentence) <= 115 or flag.name == "kernel-disagrees"  # whose remedy is a second sentence
