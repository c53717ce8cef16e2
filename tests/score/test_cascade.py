"""The cascade on grey images and a net whose answers are known on paper: who is shown to whom, and what is added up."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from prunebench.bench import machine
from prunebench.bench.attacks.suite import Listed, Pursuit, Suite
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.data import Split, as_float
from prunebench.bench.protocol import Threat
from prunebench.bench.score.cascade import attack_all, attack_shard, facts_of, joined
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive
from tests.support.nets import Bright, changed

# Greys so many 255ths above and below the 127.5 between the classes: by `push`, an image within its radius is fooled.
AWAY = (10.5, -30.5, 60.5, -10.5, 60.5)
LEVELS = torch.tensor([round(127.5 + away) for away in AWAY], dtype=torch.uint8)
LABELS = torch.tensor([away > 0 for away in AWAY]).long()
TEST = Split(LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), LABELS)
CLEAN = torch.ones(5, dtype=torch.bool)
FIRST, SECOND, EPS = 20, 40, 50
RULES = changed(threat=Threat(norm="Linf", eps=f"{EPS}/255"), shard=3)


class Push:
    """An attack that moves all pixels by up to `most` 255ths toward the other class, and notes whom it was shown."""

    def __init__(self, most):
        self.most, self.calls = most, []

    def __call__(self, model, images, labels, threat, *, generator):
        self.calls.append(SimpleNamespace(n=len(images), eps=threat.eps, seed=generator.initial_seed()))
        model(images)
        away = torch.where(labels == 1, -1.0, 1.0).view(-1, 1, 1, 1)
        return images + away * min(self.most / 255, threat.radius)


@pytest.fixture
def attacks(monkeypatch):
    """Ranked: `first`, then `second`; weak: `weak`, which draws the curve too."""
    made = {"first": Push(FIRST), "second": Push(SECOND), "weak": Push(255)}
    listed = {name: Listed(attack, 1) for name, attack in made.items()}
    ranked = {name: listed[name] for name in ("first", "second")}
    weak, never = {"weak": listed["weak"]}, Pursuit("none", {}, {}, 1.0)
    suite = Suite("standard", ranked, weak, "weak", "second", ("first",), lambda classes: (), never)
    monkeypatch.setitem(SUITES, "standard", suite)
    return made


def referee():
    return Referee(Bright(), RULES, 4, torch.device("cpu"))


def shard(number, journal=None, clean=None, **options):
    clean = CLEAN[referee().shards(5)[number]] if clean is None else torch.tensor(clean)
    return attack_shard(referee(), TEST, number, clean, journal or Journal(None, []), **options)


def bits(found):
    return {name: alive.tolist() for name, alive in found.items()}


def test_the_premise():
    assert referee().logits(as_float(TEST.images)).argmax(1).tolist() == LABELS.tolist() == [1, 0, 1, 0, 1]
    assert referee().shards(5) == [slice(0, 3), slice(3, 5)]


def test_a_ranked_attack_is_shown_the_survivors_of_those_before_it(attacks):
    """Of 10.5, 30.5 and 60.5 the first fools what is within 20, the second within 40, and the weak one within 50."""
    found = shard(0)
    assert bits(found.standing) == {"first": [False, True, True], "second": [False, False, True]}
    assert [call.n for call in attacks["first"].calls] == [3]
    assert [call.n for call in attacks["second"].calls] == [2]
    assert bits(found.weak) == {"weak": [False, False, True]}  # alone, on all three
    assert {call.n for call in attacks["weak"].calls} == {3}


def test_an_image_that_is_wrong_when_clean_is_shown_to_nobody_and_never_stands(attacks, tmp_path):
    found = shard(0, clean=[False, True, True])
    assert bits(found.standing) == {"first": [False, True, True], "second": [False, False, True]}
    assert {call.n for attack in (attacks["first"], attacks["weak"]) for call in attack.calls} == {2}
    nobody, again = (shard(0, Journal(tmp_path, []), [False, False, False], keep_images=True) for _ in range(2))
    assert not nobody.standing["second"].any() and not nobody.weak["weak"].any() and not nobody.images.any()
    assert nobody.passes == nobody.rejected == nobody.kernel_only == 0
    assert len(attacks["first"].calls) == 1  # from before
    assert again.seconds == nobody.seconds  # not measured again: entry and images were found
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_curve_is_the_weak_attack_at_each_eps_and_its_own_at_the_eps_of_the_rules(attacks):
    """A quarter, half, ..., thrice 50/255 while below 1/2: 12.5, 25, 37.5, 50, 75, 100 and 127.5 of 255."""
    found = shard(0)
    reached = {"5/102": 12.5, "5/51": 25, "5/34": 37.5, "10/51": 50, "5/17": 75, "20/51": 100, "1/2": 127.5}
    assert bits(found.curve) == {eps: [abs(away) > r for away in AWAY[:3]] for eps, r in reached.items()}
    assert [call.eps for call in attacks["weak"].calls] == ["50/255", *(eps for eps in reached if eps != "10/51")]


def test_the_curve_ends_where_every_pixel_of_every_channel_can_be_grey(attacks):
    """In L2: at half the square root of 3 x 2 x 2 pixels, 1.7320, rounded up."""
    rules = changed(RULES, threat=Threat(norm="L2", eps="1"))
    coloured = Split(TEST.images.expand(-1, 3, 2, 2), LABELS)
    found = attack_shard(Referee(Bright(), rules, 4, torch.device("cpu")), coloured, 0, CLEAN[:3], Journal(None, []))
    assert list(found.curve) == ["1/4", "1/2", "3/4", "1", "3/2", "87/50"]


def test_seeds_follow_from_the_rules_the_shard_and_the_kind_of_attack(attacks):
    shard(0)
    shard(1)
    shard(1, seed=9)
    for name, kind in (("first", "attack"), ("second", "attack"), ("weak", "weak")):
        roots = ((RULES.attack_seed, 0), (RULES.attack_seed, 1), (9, 1))
        wanted = [derive(root, kind, f"shard-{number}") for root, number in roots]
        assert list(dict.fromkeys(call.seed for call in attacks[name].calls)) == wanted


def test_what_was_measured_with_one_seed_is_not_taken_for_another(attacks, tmp_path):
    for seed in (8, 9, 8):
        shard(0, Journal(tmp_path, []), seed=seed, only=["first"])
    assert len(attacks["first"].calls) == 3  # one file per attack, which holds the last seed's


def test_some_ranked_attacks_alone(attacks):
    found = shard(0, only=["second"])
    assert bits(found.standing) == {"second": [False, False, True]} and found.weak == found.curve == {}
    assert attacks["first"].calls == attacks["weak"].calls == []


def test_further_weak_attacks_are_asked_for_by_name(attacks, tmp_path):
    found = shard(0, Journal(tmp_path, []), also={"other:far": Listed(Push(35), 1)})
    assert bits(found.weak) == {"weak": [False, False, True], "other:far": [False, False, True]}
    kept = {path.name for path in tmp_path.iterdir()}
    assert {f"shard-00000-00003-{name}.json" for name in ("first", "weak", "other-far", "weak-eps-5:17")} <= kept
    assert len(kept) == 2 + 2 + 6  # ranked, weak, and the other eps of the curve


def test_costs_are_those_of_all_entries_and_rejected_proposals_those_of_ranked_attacks(attacks, tmp_path):
    """Rejected: two by the first, one by the second. The weak ones reject some too, which counts for nothing."""
    found = shard(0, Journal(tmp_path, []))
    entries = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert found.rejected == 2 + 1 < sum(entry["rejected"] for entry in entries)
    assert found.passes == sum(entry["passes"] for entry in entries) > 0
    assert found.seconds == pytest.approx(sum(entry["seconds"] for entry in entries)) and found.seconds > 0
    assert all(entry["batch"] == 4 for entry in entries)


class Wrong:
    """Kernels that take every image for class 1, and say so."""

    def __call__(self, images):
        return torch.tensor([0.0, 1.0]).repeat(len(images), 1)

    def differs(self, shape):
        return True


def test_proposals_that_fool_the_fast_net_alone_are_counted_for_ranked_attacks(attacks):
    """Image 1 is class 0: the first attack does not fool the net with it, and the second does."""
    judge = referee()
    judge.fast = Wrong()
    assert attack_shard(judge, TEST, 0, CLEAN[:3], Journal(None, [])).kernel_only == 1


def test_images_are_the_adversarials_of_ranked_attacks_in_their_places(attacks, tmp_path):
    """Moved by 20 and by 40 of 255; nobody fooled the last image."""
    for _ in range(2):  # measured, then read from the journal
        found = shard(0, Journal(tmp_path, []), keep_images=True)
        level = 255 * found.images[:, 0, 0, 0]
        assert level.tolist() == pytest.approx([138 - FIRST, 97 + SECOND, 0], abs=1e-3)
        assert found.images.shape == (3, 1, 2, 2) and found.images.dtype == torch.float32
    assert len(attacks["first"].calls) == 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 2  # none of weak attacks
    assert shard(0).images is None


def test_all_shards_are_those_shards_side_by_side(attacks):
    options = dict(seed=9, also={"other": Listed(Push(35), 1)}, keep_images=True)
    found = attack_all(referee(), TEST, CLEAN, Journal(None, []), **options)
    seeds = [derive(9, "attack", f"shard-{number}") for number in (0, 1)]
    assert [call.seed for call in attacks["first"].calls] == seeds
    parts = [shard(number, **options) for number in (0, 1)]
    for kind in ("standing", "weak", "curve"):
        sides = [getattr(part, kind) for part in parts]
        assert bits(getattr(found, kind)) == {name: [*sides[0][name], *sides[1][name]] for name in sides[0]}
    for count in ("rejected", "kernel_only", "passes"):
        assert getattr(found, count) == sum(getattr(part, count) for part in parts)
    assert torch.equal(found.images, torch.cat([part.images for part in parts]))
    assert bits(found.standing)["second"] == [False, False, True, False, True] and list(found.weak) == ["weak", "other"]
    first = attack_all(referee(), TEST, CLEAN, Journal(None, []), only=["first"])
    assert first.weak == {} and first.images is None  # unasked, none are kept


def test_joined_adds_up_and_needs_no_images(attacks):
    halves = [SimpleNamespace(**vars(shard(number)) | {"kernel_only": 5, "seconds": 2.0}) for number in (0, 1)]
    found = joined(halves)
    assert (found.kernel_only, found.seconds, found.images) == (10, 4.0, None)
    assert found.rejected == 3 + 2  # of the second shard, the one image that stands, by both
    assert bits(joined(halves[:1]).standing) == bits(halves[0].standing)


class Heard:
    """What a scoring is told while it runs."""

    def __init__(self):
        self.labels, self.ends, self.passes = [], [], 0

    def listener(self, attack, label, shard):
        self.labels.append((attack, label, shard))

        def listen(passes):
            self.passes += passes

        return listen

    def finished(self, attack, reached, survived):
        self.ends.append((attack, reached, survived))


def test_progress_hears_every_attack_and_every_forward(attacks):
    heard = Heard()
    shard(1, progress=heard, also={"other:far": Listed(Push(35), 1)})
    assert heard.labels[:4] == [
        ("first", "first", 1),
        ("second", "second", 1),
        ("weak", "weak", 1),
        ("other:far", "other far", 1),
    ]
    assert heard.labels[4] == ("weak", "weak eps 5:102", 1) and len(heard.labels) == len(heard.ends) == 10
    assert all(isinstance(number, int) for _, _, number in heard.labels)  # it is shown
    assert heard.ends[:3] == [("first", 2, 1), ("second", 2, 1), ("weak", 2, 1)]
    assert heard.passes == 2 + 1 + 2 * 8  # images shown, one forward each: first, second, and all the weak ones
    heard = Heard()
    attack_all(referee(), TEST, CLEAN, Journal(None, []), progress=heard, only=["first"])
    assert heard.ends == [("first", 3, 2), ("first", 2, 1)]


def test_all_that_decides_an_outcome_is_in_the_facts(monkeypatch):
    monkeypatch.setattr(machine, "env_key", lambda device: f"machine with {device}")
    monkeypatch.setattr(machine, "attack_code", lambda: "code")
    judge = referee()
    judge.fast = SimpleNamespace(bits=lambda shape: f"kernels for {shape}")
    net = SimpleNamespace(id=SimpleNamespace(sha256="net"), header=SimpleNamespace(shape=(1, 2, 2)))
    kernels = ["machine with cpu", "kernels for (1, 2, 2)", "code"]
    assert facts_of(judge, net, TEST) == ["net", TEST.sha256, RULES.sha256, 4, *kernels]
