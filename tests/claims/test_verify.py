"""Claims against new measurements: what is refused, reproduced, refuted; with nets whose answers are known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import prunebench.bench.claims.verify
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.claims.claim import load_claim
from prunebench.bench.claims.verify import FEWEST, verify
from prunebench.bench.data import Store, as_float
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.executor import fast
from prunebench.bench.outcomes import proposals_path
from prunebench.bench.record import load_record
from prunebench.bench.score import referee
from tests.support.claims import N, claiming, copied, edited, make_claim, overstated, robust, weakened
from tests.support.nets import RANKED, STORE, misplaced, use_attacks
from tools import claim_power

# Stand-ins for AutoAttack's four, all as strong: what level quick finds then follows from counts alone.
STRONG = dict.fromkeys(RANKED, partial(pgd, steps=10, step_size=0.05))


@pytest.fixture(scope="module")
def honest(nets, tmp_path_factory):
    return make_claim(nets["dense"], tmp_path_factory.mktemp("claims"), STRONG)


@pytest.fixture
def claim(honest, tmp_path):
    return copied(honest, tmp_path / "claim")


@pytest.fixture(autouse=True)
def _strong(monkeypatch):
    use_attacks(monkeypatch, STRONG)


@pytest.fixture
def unmeasured(monkeypatch):
    """Let any measurement fail the test."""

    class Never:
        def __init__(self, *_):
            raise AssertionError("something was measured")

    monkeypatch.setattr(prunebench.bench.claims.verify, "Referee", Never)


def check(claim, level="replay", **options):
    return verify(claim, level, store=STORE, device="cpu", **options)


def test_the_claim_is_worth_testing(honest):
    standing = robust(honest)
    assert len(standing) == N and 0.2 * N < standing.sum() < 0.9 * N
    assert load_claim(honest).robust == standing.sum()


@pytest.mark.parametrize(("level", "word"), [("replay", "reproduced"), ("quick", "holds"), ("full", "holds")])
@pytest.mark.parametrize("kept", ["all", "count"])
def test_a_true_claim_stands_at_every_level(level, word, kept, claim):
    if kept == "count":
        edited(claim, drop=("outcomes", "data"))
    found = check(claim, level)
    if (kept, level) == ("count", "quick"):
        assert found.word == "undecided"  # 100 of 400 drawn images give 6 points more or less by themselves
    else:
        assert (found.word, found.good, found.images) == (word, True, ())


@pytest.mark.parametrize("level", ["replay", "quick", "full"])
@pytest.mark.parametrize("file", ["net", "outcomes", "proposals"])
def test_one_bit_and_the_claim_is_refused_before_anything_runs(file, level, claim, unmeasured):
    path = claim.parent / getattr(load_claim(claim), file).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refused, match="restore that file, or make a new claim") as refused:
        check(claim, level)
    assert refused.value.check == "hash"


def test_without_the_bit_it_would_have_run(claim, unmeasured):
    """The twin of the above."""
    with pytest.raises(AssertionError, match="something was measured"):
        check(claim)


def test_a_damaged_net_under_its_own_hash_is_refused_too(claim, unmeasured):
    path = claim.parent / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    edited(claim)
    with pytest.raises(Refused, match="not a whole safetensors file"):
        check(claim)


def test_a_weakened_net_under_the_old_claim_is_refuted(claim):
    """The forger changes the net and its hash, and keeps count and outcomes of the better one."""
    weakened(claim.parent / "net.safetensors", claim.parent / "net.safetensors", spread=0.8)
    edited(claim)
    for level in ("quick", "full"):
        found = check(claim, level)
        assert found.word == "refuted" and found.p < 0.001 and not found.good
        assert len(set(found.images) & set(np.flatnonzero(robust(claim)).tolist())) >= 4
        assert "Images " in found.sentence and "these outcomes are not this net's" in found.sentence
    edited(claim, drop=("outcomes", "data"))
    assert check(claim, "full").word == "refuted"
    replayed = check(claim)  # the stored images were made for another net
    assert replayed.word == "not reproduced" and not replayed.good


def test_a_disturbed_net_does_not_reproduce_its_clean_labels(claim):
    weakened(claim.parent / "net.safetensors", claim.parent / "net.safetensors", spread=0.3)
    edited(claim)
    found = check(claim)
    assert found.word == "not reproduced" and "get another clean label" in found.sentence


def test_an_overstated_claim_is_refuted_with_the_images_that_refute_it(claim):
    before = robust(claim)
    overstated(claim, 5)
    raised = np.flatnonzero(robust(claim) & ~before)
    assert len(raised) == N // 20
    found = check(claim, "full")
    assert (found.word, found.images) == ("refuted", tuple(raised.tolist()))
    assert found.p < 1e-4
    assert check(edited(claim, drop=("outcomes", "data")), "full").word == "refuted"


@pytest.fixture(scope="module")
def others(nets, tmp_path_factory):
    """Which images another net keeps, bool (n,)."""
    return robust(make_claim(nets["imp"], tmp_path_factory.mktemp("others"), STRONG))


@pytest.mark.parametrize("points", [0, 5])
@pytest.mark.parametrize("kind", ["shuffled", "swapped", "other net"])
def test_false_outcomes_are_refuted_and_do_not_let_a_false_count_hold(kind, points, claim, others):
    """A forger attaches outcomes that show the count, and exchanges enough images for a test of their balance."""
    true, draw = robust(claim), np.random.default_rng(0)
    with np.load(claim.parent / "outcomes.npz") as file:
        clean = file["clean"]
    bits = claim_power.forged(kind, true, others, clean, int(true.sum()) + N * points // 100, draw)
    claiming(claim, bits)
    found = check(claim, "full")
    assert found.word == "refuted" and "these outcomes are not this net's" in found.sentence
    assert set(found.images) == set(np.flatnonzero(bits & ~true).tolist())
    if points or kind != "swapped":  # 20 of 400 exchanged under a true count may be too few for a sample
        assert not check(claim, "quick").good
    assert check(claim).word == "not reproduced"
    assert not check(edited(claim, drop=("outcomes", "data")), "full").good or points == 0  # the count alone


def test_labels_of_another_net_are_refuted_by_the_clean_images_alone(claim):
    """The survivors are the net's own, and a forger took the clean labels from elsewhere."""
    facts = load_claim(claim)
    from prunebench.bench.outcomes import load_arrays, pack_outcomes

    arrays = load_arrays(claim.parent / "outcomes.npz", facts.outcomes.sha256, "outcomes")
    wrong = np.flatnonzero(~robust(claim))[:30]
    arrays["predicted"][wrong] = (arrays["labels"][wrong] + 5) % 10
    survived = {name.removeprefix("survived/"): bits for name, bits in arrays.items() if name.startswith("survived/")}
    packed = pack_outcomes(arrays["labels"], arrays["predicted"], survived, {}, {})
    (claim.parent / "outcomes.npz").write_bytes(packed)
    edited(claim)
    for level in ("quick", "full"):
        found = check(claim, level)
        assert found.word == "refuted" and "images get another clean label" in found.sentence, found
        assert set(found.images) <= set(wrong.tolist()) and len(found.images) > 20


def test_a_forger_who_keeps_no_images_of_what_he_hides_is_reproduced_by_a_replay_that_says_so(claim):
    """What a replay cannot see: the net's own outcomes, partly edited, without the images that disprove them."""
    from prunebench.bench import adversarials
    from prunebench.bench.data import as_float

    facts, before = load_claim(claim), robust(claim)
    originals = as_float(STORE.testing("digits", N).images).numpy()
    kept = adversarials.load(claim.parent / "proposals.npz", facts.proposals.sha256, originals, 0.15)
    overstated(claim, 10)
    hidden = np.flatnonzero(robust(claim) & ~before)
    left = ~np.isin(kept.index, hidden)
    less = adversarials.Proposals(kept.index[left], kept.images[left])
    (claim.parent / "proposals.npz").write_bytes(
        adversarials.pack(less, originals[less.index], 0.15, np.ones(len(less.index), bool))
    )
    edited(claim)
    found = check(claim)
    assert (found.word, "A replay cannot show that more images can be fooled" in found.sentence) == ("reproduced", True)
    assert check(claim, "full").word == "refuted" and not check(claim, "quick").good


def test_at_least_a_share(claim):
    count = int(robust(claim).sum())
    below, above = f"{100 * count // N - 5} %", f"{100 * count // N + 10}.5 %"
    for level, word in (("replay", "reproduced"), ("quick", "holds"), ("full", "holds")):
        found = check(edited(claim, drop=("robust",), schema=2, at_least=below), level)
        assert found.word == word
        assert found.sentence.endswith(f" At least {below} of {N} images are {-(-int(below[:-2]) * N // 100)}.")
    edited(claim, drop=("robust",), schema=2, at_least=above)
    with pytest.raises(Refused, match=r"claims at least .* show \d+ robust; correct the claim"):
        check(claim, "full")
    edited(claim, drop=("outcomes", "data", "robust"), schema=2, at_least=above)
    assert check(claim, "full").word == "refuted" and check(claim).word == "not reproduced"
    edited(claim, drop=("robust",), schema=2, at_least=below)
    assert check(claim, "full").word == "holds"
    assert check(claim, "quick").word == "undecided"  # of 200 drawn images 5 points are chance


def test_a_replay_names_the_images_that_are_claimed_robust_and_are_fooled(claim):
    overstated(claim, 1)
    found = check(claim)
    assert found.word == "not reproduced" and "were claimed robust but are wrong here" in found.sentence


def test_an_understated_claim_holds(claim):
    assert check(edited(claim, drop=("outcomes", "data"), robust=load_claim(claim).robust - 40), "full").good


def test_a_replay_without_images_says_what_to_do(claim):
    edited(claim, drop=("proposals",))
    with pytest.raises(PrunebenchError, match="stores no adversarial images to replay; verify it at level quick"):
        check(claim)
    assert check(claim, "quick").good


def test_quick_runs_two_attacks_on_the_images_that_are_drawn_and_claimed_robust(claim, monkeypatch):
    seen = {name: [] for name in RANKED}

    def watch(name):
        def attack(model, images, labels, threat, *, generator):
            seen[name].extend(image.numpy().tobytes() for image in images)
            return images

        return attack

    use_attacks(monkeypatch, {name: watch(name) for name in RANKED})
    assert check(claim, "quick").word == "holds"
    for images in seen.values():
        images.clear()
    check(claim, "quick", seed=0)
    first = {name: sorted(images) for name, images in seen.items()}
    assert {name for name, images in first.items() if images} == {"apgd-ce", "apgd-t"}
    assert first["apgd-ce"] == first["apgd-t"]
    assert len(first["apgd-ce"]) == FEWEST == len(set(first["apgd-ce"])) < robust(claim).sum()
    named = as_float(STORE.testing("digits", N).images[torch.from_numpy(robust(claim))])
    assert set(first["apgd-ce"]) <= {image.numpy().tobytes() for image in named}  # those that are claimed robust
    for seed, same in ((0, True), (1, False)):
        for images in seen.values():
            images.clear()
        check(claim, "quick", seed=seed)
        assert (sorted(seen["apgd-ce"]) == first["apgd-ce"]) is same
    drawn = [check(claim, "quick").sentence.split("seed ")[1] for _ in range(2)]
    assert drawn[0] != drawn[1]  # a forger cannot know which images are looked at


def test_the_real_attacks_run_at_level_quick(claim, monkeypatch):
    use_attacks(monkeypatch, RANKED)
    overstated(claim, 20)
    found = check(claim, "quick")  # PGD-10 was the claim's strongest, so APGD finds these again
    assert found.word == "refuted"


def test_a_full_check_goes_on_where_it_was_killed(claim, tmp_path, monkeypatch):
    out, runs = tmp_path / "out", []
    attacks = STRONG

    def dies(*_, **__):
        raise KeyboardInterrupt

    use_attacks(monkeypatch, attacks | {"square": dies})
    with pytest.raises(KeyboardInterrupt):
        check(claim, "full", out=out)

    def counting(name):
        return lambda *a, **k: (runs.append(name), attacks[name](*a, **k))[1]

    use_attacks(monkeypatch, {name: counting(name) for name in attacks})
    assert check(claim, "full", out=out).good
    assert runs.count("square") == 4 and runs.count("apgd-ce") == 3  # the first shard of four was attacked before


def test_images_of_another_folder_are_refused(claim):
    with pytest.raises(Refused, match="was measured on other images"):
        check(edited(claim, data="0" * 64))
    with pytest.raises(Refused, match="claims 401 images, but tiny-400 has only 400"):
        check(edited(claim, drop=("outcomes", "proposals", "data"), n=N + 1))


def test_a_net_for_other_images_is_refused(claim):
    edited(claim, drop=("outcomes", "proposals", "data"))
    values = load_claim(claim).model_dump(by_alias=True)
    from prunebench.bench.protocol import PROTOCOLS

    rules = PROTOCOLS["mnist-linf"]
    edited(claim, drop=("outcomes", "proposals", "data"), protocol={"name": rules.name, "sha256": rules.sha256})
    assert values["protocol"]["name"] == "protocol.toml"
    with pytest.raises(Refused, match="claim it under a protocol that fits"):
        verify(claim, "quick", store=Store(claim.parent / "none"), device="cpu")


def test_stored_images_outside_the_ball_are_brought_into_it(claim, nets):
    """A forger who stores an image of another digit fools nobody: what is measured lies inside the ball."""
    from prunebench.bench import adversarials

    facts = load_claim(claim)
    test = STORE.testing("digits", N)
    from prunebench.bench.data import as_float

    originals = as_float(test.images).numpy()
    kept = adversarials.load(claim.parent / "proposals.npz", facts.proposals.sha256, originals, 0.15)
    standing = np.flatnonzero(robust(claim))[:1]
    far = np.concatenate([kept.images, 1 - originals[standing]])
    index = np.concatenate([kept.index, standing])
    whole = np.ones(len(index), bool)
    for images in (far, np.where(np.arange(len(far))[:, None, None, None] == len(far) - 1, np.nan, far)):
        data = adversarials.pack(
            adversarials.Proposals(index, images.astype(np.float32)), originals[index], 0.15, whole
        )
        (claim.parent / "proposals.npz").write_bytes(data)
        edited(claim)
        found = check(claim)
        assert found.word == "reproduced", found.sentence


def test_no_claim_holds_on_wrong_kernels(nets, tmp_path, monkeypatch):
    claim = make_claim(nets["imp"], tmp_path)
    for level in ("quick", "full"):
        assert check(claim, level).word == "holds"
    monkeypatch.setattr(referee, "fast", lambda net: fast(misplaced(net)))
    for level in ("quick", "full"):
        with pytest.raises(PrunebenchError, match=r"fool only the fast copy that attacks see, .* with CXX=none"):
            check(claim, level)
    assert check(claim).word == "reproduced"  # stored images are measured on the net itself
    overstated(claim, 50)
    assert check(claim, "full").word == "refuted"  # and so is what refutes a claim


def test_the_record_of_the_claim_names_its_proposals(honest):
    record = honest.parent.parent / "scored" / "record.json"
    assert load_record(record).proposals is not None and proposals_path(record).exists()
