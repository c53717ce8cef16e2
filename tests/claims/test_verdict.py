"""What measurements say of claims: the words on paper, and how often they are right on simulated claims."""

from __future__ import annotations

import csv
import math
import re
from itertools import product
from math import comb

import numpy as np
import pytest

from prunebench.bench.claims import verdict
from prunebench.bench.claims.verdict import DOUBTED, NOISE, REFUTED, counted, replayed, sampled, sampled_count, whole
from prunebench.bench.errors import some
from prunebench.bench.stats import noise, noise_gap
from tools import attack_noise, claim_power

SAME = np.zeros(1000, int), np.zeros(1000, int)


def bits(n, *ones):
    found = np.zeros(n, bool)
    found[list(ones)] = True
    return found


def first(n, k):
    return np.arange(n) < k


def tail(k, n, rate=NOISE):
    """The probability of k or more of n, each with probability `rate`."""
    return 1 - sum(comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k))


# On paper


def test_fallen_images_are_held_against_the_noise_on_paper():
    """As many fall as rise, so the count says nothing: two tests, of which the fallen images' is the harsher."""
    claimed = first(1000, 500)
    words = []
    for fallen in range(41):
        measured = claimed & ~first(1000, fallen) | bits(1000, *range(600, 600 + fallen))
        found = whole(claimed, measured)
        assert found.p == pytest.approx(min(1, 2 * tail(fallen, 500)), abs=1e-12)
        assert found.word == ("refuted" if found.p < 0.001 else "undecided" if found.p < 0.01 else "holds")
        words.append(found.word)
    assert sorted(words, key=("holds", "undecided", "refuted").index) == words and len(set(words)) == 3
    assert found.images == tuple(range(40)) and "Images 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 30 more." in found.sentence
    assert "40 claimed robust are now fooled, 40 the other way round" in found.sentence
    assert "too many to be chance: these outcomes are not this net's" in found.sentence
    assert not found.good and whole(claimed, claimed).good


def test_the_count_is_tested_too():
    """Where all changes go one way, the count is the harsher test: noise alone would let some rise."""
    claimed = first(1000, 500)
    for fallen in range(1, 40):
        found = whole(claimed, claimed & ~first(1000, fallen))
        expected = min(tail(fallen, 500), noise_gap(fallen, 500, NOISE))
        assert found.p == pytest.approx(min(1, 2 * expected), abs=1e-12)
        assert "not this net's" not in found.sentence  # an overstatement, and no more is said of it
    assert found.word == "refuted"
    assert noise_gap(9, 500, NOISE) < tail(9, 500)  # it can be the harsher of the two


def test_other_clean_labels_are_evidence_of_another_net():
    claimed = first(1000, 500)
    words = []
    for other in range(60):
        now = SAME[1] + first(1000, other)[::-1]  # images that are claimed to be fooled
        found = whole(claimed, claimed, (SAME[0], now))
        assert found.p == pytest.approx(min(1, 3 * tail(other, 1000)), abs=1e-12)
        words.append(found.word)
    assert words[0] == "holds" and words[-1] == "refuted" and found.images == tuple(range(941, 1000))
    assert "59 images get another clean label; too many to be chance" in found.sentence
    quick = sampled(claimed, np.arange(100), np.ones(100, bool), (SAME[0], now))
    assert quick.word == "refuted" and "not this net's" in quick.sentence
    assert whole(claimed, claimed, SAME).word == sampled(claimed, np.arange(200), first(200, 200), SAME).word == "holds"


def test_an_understated_claim_holds():
    claimed = first(1000, 500)
    assert whole(claimed, first(1000, 700), SAME).word == "holds"  # 200 the other way round are no overstatement
    assert counted(500, 700, 1000).word == "holds"
    assert whole(claimed, bits(1000, *range(1, 502)), SAME).images == ()  # image 0 fell, and two rose
    assert whole(claimed, first(1000, 400), SAME).word == "refuted"


def test_few_images_do_not_let_a_claim_hold_unless_all_of_them_are_robust_again():
    """5 points of n images must be refutable: they are, as soon as noise gives them with less than .0005."""
    words = {}
    for n in range(20, 401, 20):
        claimed = first(n, n // 2)
        words[n] = whole(claimed, claimed & ~bits(n, 0)).word
        able = 2 * noise_gap(n // 20, n // 2, NOISE) < 0.001
        assert words[n] == ("holds" if able else "undecided")
        assert whole(claimed, claimed).word == "holds"
    assert words[20] == "undecided" and words[400] == "holds"
    found = whole(first(20, 10), first(20, 10) & ~bits(20, 0))
    assert found.images == (0,) and found.p == pytest.approx(2 * noise_gap(1, 10, NOISE))
    assert re.search(r"\(p = [^)]+\); .*\b5 points\.$", found.sentence)


def test_a_mere_count_is_held_against_the_noise():
    words = [counted(500, 500 - gap, 1000).word for gap in range(-10, 40)]
    p = [noise_gap(gap, 500, NOISE) for gap in range(-10, 40)]
    assert words == ["refuted" if x < 0.001 else "undecided" if x < 0.01 else "holds" for x in p]
    assert words[0] == "holds" and words[-1] == "refuted" and "undecided" in words
    assert re.search(r"\(p = [^)]+\)\.$", counted(500, 400, 1000).sentence)  # and no images, for none are known


def test_a_sample_counts_what_is_newly_fooled():
    claimed, index = first(1000, 500), np.arange(200)
    words = []
    for fallen in range(30):
        found = sampled(claimed, index, ~first(200, fallen))
        assert found.p == pytest.approx(min(1, tail(fallen, 200)), abs=1e-12)
        assert found.images == (() if found.word == "holds" else tuple(range(fallen)))
        words.append(found.word)
    assert (words[0], words[-1]) == ("holds", "refuted")
    # What a weaker attack leaves standing is no evidence, in either direction: 20 images cannot refute 5 points.
    assert sampled(claimed, index[:20], first(20, 20)).word == "undecided"
    assert sampled(first(1000, 0), index[:0], first(0, 0), SAME).word == "holds"  # nothing can be less than none


def test_a_sample_and_a_mere_count():
    assert sampled_count(500, 1000, 100, 50).word == "undecided"  # drawing 100 gives 50 +- 5: no use against 5 points
    assert sampled_count(500, 1000, 100, 20).word == "refuted"
    assert sampled_count(5000, 10_000, 2000, 1000).word == "holds"  # 1,000 +- 20
    assert sampled_count(5000, 10_000, 2000, 850).word == "refuted"
    assert sampled_count(10, 1000, 100, 0).good is False


def numbers(found):
    return [int(number) for number in re.findall(r"\b\d+\b", found.sentence)]


def test_a_sample_holds_where_it_could_have_refuted_5_points():
    """Of 500 claimed robust in 1,000, 5 points are 50: in a sample of k at least k // 10, whole images only."""
    claimed, words = first(1000, 500), []
    for k in range(10, 200):
        found = sampled(claimed, np.arange(k), first(k, k))
        assert found.word == ("holds" if tail(k // 10, k) < 0.001 else "undecided")
        words.append(found.word)
    assert words[0] == "undecided" and words[-1] == "holds"


def test_a_sample_names_the_fallen_and_the_relabelled():
    """40 of 200 are fooled and 40 of 1,000 have another label: both are beyond the noise."""
    now = SAME[1] + first(1000, 40)[::-1]
    found = sampled(first(1000, 500), np.arange(200), ~first(200, 40), (SAME[0], now))
    assert found.images == (*range(40), *range(960, 1000))
    assert {40, 200, 500} <= set(numbers(sampled(first(1000, 500), np.arange(200), ~first(200, 40))))


def test_a_sample_of_two_and_a_mere_count_on_paper():
    """Two of four are robust, two are drawn: 0, 1 or 2 robust ones with 1/6, 4/6, 1/6, and noise fooled them all."""
    found = sampled_count(2, 4, 2, 0)
    assert found.p == pytest.approx(1 / 6 + 4 / 6 * NOISE + 1 / 6 * NOISE**2)
    assert {0, 1, 2, 4} <= set(numbers(found))  # survive, are expected to, sample and claim, images


# Replay


def test_a_replay_reproduces_or_names_the_images():
    claimed, labels = bits(6, 0, 1), np.zeros(6, int)
    index = np.array([2, 3, 4])  # image 5 is wrong when clean
    same = (labels, labels)
    assert replayed(claimed, index, bits(6, 0, 1), same).word == "reproduced"
    assert replayed(2, index, bits(6, 0, 1), None).word == "reproduced"
    for standing, odd in ((bits(6, 0, 1, 3), (3,)), (bits(6, 0), (1,)), (bits(6, 0, 3), (1, 3))):
        found = replayed(claimed, index, standing, same)
        assert (found.word, found.images) == ("not reproduced", odd)
    assert replayed(claimed, index, bits(6, 0, 1), (labels, labels + bits(6, 5))).images == (5,)
    found = replayed(2, index, bits(6, 0, 3), None)  # the count is right and an image is not
    assert (found.word, found.images) == ("not reproduced", (3,))
    assert replayed(2, index, bits(6, 0), None).word == "not reproduced"


def test_some_images_are_named_and_the_rest_counted():
    assert some(range(3)) == "0, 1, 2"
    assert some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


# Simulated claims, as in docs/claims/claim-power.md


@pytest.fixture(scope="module")
def real():
    return claim_power.nets(claim_power.ROOT / "claims")


RATE = attack_noise.worst(attack_noise.read(claim_power.ROOT / "docs/claims/attack-noise.csv"))[2]


@pytest.mark.parametrize("kind", claim_power.KINDS)
def test_overstated_claims_are_refuted_whatever_outcomes_they_attach(kind, real):
    """5 points on 1,000 images; 2 points and 0 for shuffled outcomes, which are false by themselves."""
    assert claim_power.words("full", 1000, 5, kind, 100, RATE, real)["refuted"] >= 99
    if kind in ("edited", "count only", "at least"):
        assert claim_power.words("full", 1000, 0, kind, 100, RATE, real)["holds"] >= 97
    elif kind != "swapped":
        assert claim_power.words("full", 1000, 0, kind, 100, RATE, real)["refuted"] >= 99


def test_quick_refutes_what_is_shuffled_and_lets_true_claims_hold(real):
    assert claim_power.words("quick", 1000, 5, "shuffled", 50, RATE, real)["refuted"] == 50
    true = claim_power.words("quick", 1000, 0, "edited", 100, RATE, real)
    assert true["holds"] >= 95 and true["refuted"] == 0


def test_the_simulation_can_fail(monkeypatch, real):
    """The twin: one point more is missed, a count alone lets forgers through, a test at 30 % refutes true claims."""
    assert claim_power.words("full", 1000, 1, "edited", 50, RATE, real)["refuted"] < 45
    monkeypatch.setattr(verdict, "noise", lambda count, n, rate: 1.0)
    assert claim_power.words("full", 500, 0, "shuffled", 20, RATE, real)["refuted"] == 0
    monkeypatch.undo()
    monkeypatch.setattr(verdict, "REFUTED", 0.3)
    monkeypatch.setattr(verdict, "DOUBTED", 0.3)
    assert claim_power.words("full", 1000, 0, "edited", 50, 0.02, real)["refuted"] > 1


def test_forged_outcomes_show_the_count_and_leave_the_images_that_are_wrong_when_clean(real):
    draw = np.random.default_rng(0)
    clean, true, other = real.clean[0], real.robust[0], real.robust[1]
    for kind in claim_power.KINDS[:4]:
        made = claim_power.forged(kind, true, other, clean, int(true.sum()) + 25, draw)
        assert made.sum() == true.sum() + 25 and not (made & ~clean).any()
        fallen = int((made & ~true).sum())
        assert fallen == 25 if kind == "edited" else fallen >= 40
    assert int((claim_power.forged("swapped", true, other, clean, int(true.sum()), draw) & ~true).sum()) == 25


def test_a_cell_on_paper(real):
    """Without noise a forger's 5 points of 500 are 25 fallen images and no risen ones: the same p each time."""
    claimed = first(500, 325)
    p = 3 * min(noise(25, 325, NOISE), noise_gap(25, 325, NOISE))
    assert whole(claimed, first(500, 300), (SAME[0][:500],) * 2).p == pytest.approx(p) and p < 0.001
    assert claim_power.words("full", 500, 5, "edited", 20, 0.0, real)["refuted"] == 20
    assert claim_power.words("full", 500, 0, "edited", 20, 0.0, real)["holds"] == 20
    assert claim_power.words("full", 500, 0, "count only", 20, 0.0, real)["holds"] == 20


def test_the_rate_is_the_measured_bound():
    """The constant follows from the committed measurements, of at least six nets of three kinds."""
    rows = attack_noise.read(claim_power.ROOT / "docs/claims/attack-noise.csv")
    assert attack_noise.assumed(rows) == NOISE >= attack_noise.worst(rows)[3]
    assert {row.kind for row in rows} == set(attack_noise.KINDS)
    assert all(row.again == row.standing - row.fallen + row.risen <= row.images for row in rows)
    assert len({(row.net, row.sparsity) for row in rows}) >= 6 and len({row.arch for row in rows}) == 3


def test_the_committed_table_says_what_the_readme_does():
    """True claims hold, and 5 points on 1,000 images are refuted whatever is attached, 99 times of 100 at least."""
    with (claim_power.ROOT / "docs/claims/claim-power.csv").open(newline="") as file:
        rows = {(r["level"], int(r["images"]), int(r["points"]), r["outcomes"]): r for r in csv.DictReader(file)}
    wanted = product(claim_power.LEVELS, claim_power.SIZES, claim_power.POINTS, claim_power.KINDS)
    assert rows.keys() == set(wanted)
    assert all(sum(int(row[word]) for word in ("holds", "undecided", "refuted")) == 1000 for row in rows.values())
    for n in claim_power.SIZES:
        for kind in ("edited", "count only", "at least"):
            assert int(rows["full", n, 0, kind]["holds"]) >= 990
        assert int(rows["quick", n, 0, "edited"]["holds"]) >= 990
    for kind in claim_power.KINDS:
        assert int(rows["full", 1000, 5, kind]["refuted"]) >= 990


def test_the_pooled_rate_on_paper():
    def row(kind, fallen, risen, net="a", robust=500):
        return attack_noise.Row(net, "x", 0.0, kind, 1000, robust, robust - fallen + risen, fallen, risen, 0, 1.0)

    still, seeds = row("threads", 0, 0), row("seed", 6, 4)
    assert attack_noise.pooled([seeds])[:3] == (10, 998, 10 / 998)
    assert attack_noise.worst([still, seeds]) == attack_noise.pooled([seeds])  # what draws the same does not dilute it
    # No change among n chances: the upper bound u has (1 - u)^n = 1 %.
    assert attack_noise.pooled([still])[3] == pytest.approx(1 - 0.01 ** (1 / 1000))
    few = row("seed", 5, 5, "b", robust=50)  # 10 of 100: too few chances to be called the noisiest
    assert attack_noise.noisiest([seeds, seeds, few]) == ("a 0.00", 10 / 998)
    assert attack_noise.assumed([seeds, seeds]) == math.ceil(1000 * attack_noise.worst([seeds, seeds])[3]) / 1000
    assert (REFUTED, DOUBTED) == (0.001, 0.01)


def replay(claimed, standing, *, kept=(), labels=None, at_least=False):
    """The verdict on four images, of which those in `kept` have a stored adversarial image."""
    index = np.array(kept, int)
    return replayed(claimed, index, np.array(standing, bool), labels, at_least=at_least)


def test_a_replayed_count_is_that_count_or_at_least_that():
    three = [1, 1, 1, 0]
    assert replay(3, three).word == replay(3, three, at_least=True).word == "reproduced"
    assert replay(2, three).word == "not reproduced" and replay(2, three, at_least=True).word == "reproduced"
    assert replay(4, three).word == replay(4, three, at_least=True).word == "not reproduced"
    found = replay(3, three, kept=(2, 3))  # the count is right, and a stored image does not fool the net any more
    assert found.word == "not reproduced" and found.images == (2,) and "; 1 no longer fool the net: 2" in found.sentence
    assert "no longer" not in replay(4, three).sentence
    assert replayed(2, np.array([], int), np.array(three, bool), None).word == "not reproduced"  # no "at least" unasked


@pytest.mark.parametrize("other", [0, 2])
def test_a_replay_sees_a_clean_label_that_is_smaller_or_larger(other):
    labels = np.array([1, 1, 1, 1]), np.array([1, other, 1, 1])
    found = replay(np.array([1, 1, 1, 0], bool), [1, 1, 1, 0], labels=labels)
    assert found.images == (1,) and "1 get another clean label: 1" in found.sentence


def test_a_replay_counts_each_kind_of_difference_and_needs_no_labels():
    """Image 2 was claimed fooled and stands, image 0 the other way round, and image 3 has another label."""
    claimed, one = np.array([1, 1, 0, 0], bool), np.ones(4, int)
    found = replay(claimed, [0, 1, 1, 0], labels=(one, one - bits(4, 3)))
    assert re.fullmatch(r"Of 4 images 1 [^;]*: 2; 1 [^;]*: 0; 1 [^;]*: 3\.", found.sentence)
    assert found.images == (0, 2, 3)
    found = replay(claimed, [0, 1, 1, 0])
    assert re.fullmatch(r"Of 4 images 1 [^;]*: 2; 1 [^;]*: 0\.", found.sentence) and found.images == (0, 2)
    for claim in (claimed, 2):
        found = replay(claim, [1, 1, 0, 0])
        assert found.word == "reproduced" and "2 of 4 " in found.sentence


def test_images_that_speak_against_a_claim_are_the_fallen_ones_the_relabelled_ones_or_both():
    """400 images: 40 fallen are beyond the noise of 1.8 %, 1 is not; 40 other labels are, too."""
    n, claimed = 400, np.ones(400, bool)

    def images(fallen, relabelled):
        measured, after = claimed.copy(), np.zeros(n, int)
        measured[:fallen] = False
        after[n - relabelled :: 2], after[n - relabelled + 1 :: 2] = 2, -1  # larger and smaller ones
        return whole(claimed, measured, (np.zeros(n, int), after)).images

    assert images(40, 0) == tuple(range(40))
    assert images(40, 1) == tuple(range(40))
    assert images(1, 40) == tuple(range(360, 400))
    assert images(40, 40) == (*range(40), *range(360, 400))


def test_a_claim_that_understates_holds_without_a_test():
    """More survive than are claimed, which no p-value is needed for."""
    found = counted(100, 140, 400)
    assert (found.word, found.p) == ("holds", 1.0) and found.sentence == "140 of 400 are robust, 100 were claimed."


def test_a_sample_that_falls_does_not_say_whose_outcomes_they_are():
    """Images that newly survive are not looked for in a sample, and labels are as claimed."""
    found = sampled(np.ones(400, bool), np.arange(200), np.arange(200) >= 40)
    assert found.word == "refuted" and "not this net's" not in found.sentence


def test_a_p_value_at_a_threshold_is_not_below_it(monkeypatch):
    def at(refuted, doubted):
        monkeypatch.setattr(verdict, "REFUTED", refuted)
        monkeypatch.setattr(verdict, "DOUBTED", doubted)

    p = noise_gap(12, 500, NOISE)
    for refuted, doubted, word in ((2 * p, 1, "refuted"), (p, 1, "undecided"), (p / 2, 2 * p, "undecided")):
        at(refuted, doubted)
        assert counted(500, 488, 1000).word == word
    at(p / 2, p)
    assert counted(500, 488, 1000).word == "holds"
    at(noise_gap(50, 500, NOISE), p)  # 5 points, in a measurement that gives p for 12 images
    assert counted(500, 488, 1000).word == "undecided"


def test_evidence_of_another_net_at_a_threshold_is_none(monkeypatch):
    claimed = first(1000, 500)
    relabelled = SAME[0], SAME[1] + first(1000, 40)[::-1]
    p = 3 * noise(40, 1000, NOISE)
    monkeypatch.setattr(verdict, "REFUTED", p)
    found = whole(claimed, claimed, relabelled)
    assert found.word == "undecided" and len(found.images) == 40 and "not this net's" not in found.sentence
    monkeypatch.setattr(verdict, "REFUTED", p / 2)
    monkeypatch.setattr(verdict, "DOUBTED", p)
    found = whole(claimed, claimed & ~bits(1000, 7), relabelled)
    assert (found.word, 40 in numbers(found)) == ("holds", False)
    monkeypatch.setattr(verdict, "REFUTED", 0.0)
    assert whole(claimed, claimed & ~first(1000, 30), relabelled).images == tuple(range(30))
    monkeypatch.setattr(verdict, "DOUBTED", 3 * noise_gap(12, 500, NOISE))
    assert whole(claimed, claimed & ~first(1000, 12), relabelled).images == tuple(range(960, 1000))
    monkeypatch.undo()
    monkeypatch.setattr(verdict, "REFUTED", 2 * noise(30, 500, NOISE))
    found = whole(claimed, claimed & ~first(1000, 30) | bits(1000, *range(600, 630)))
    assert found.p == verdict.REFUTED and "not this net's" not in found.sentence


def test_five_points_of_images_on_paper():
    assert [verdict._points(n) for n in (1, 20, 21, 400, 2100)] == [1, 1, 2, 20, 105]
