"""From a net file to a record: what enters a number, what is refused, and what runs on few classes."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import prunebench.bench.score.scoring
from prunebench.bench.attacks.base import within
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.checkpoint import Net, open_net
from prunebench.bench.data import Store, as_float
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.facts import AttackArithmetic
from prunebench.bench.grid.task import train
from prunebench.bench.lab.backend import Computed
from prunebench.bench.lab.lab import Lab
from prunebench.bench.models import build
from prunebench.bench.names import JOURNAL, RECORD, REFUSAL
from prunebench.bench.outcomes import outcomes_path, pack_outcomes, recount
from prunebench.bench.protocol import PROTOCOLS, Threat
from prunebench.bench.record import Refusal, load_record
from prunebench.bench.score.arithmetic import Arithmetic
from prunebench.bench.score.effort import TIMES
from prunebench.bench.score.scoring import score
from tests.support.nets import (
    RANKED,
    SPECS,
    STORE,
    TINY,
    WEAK,
    changed,
    forged,
    job,
    outcomes,
    quick_attacks,
    seal_state,
    use_attacks,
)
from tools.kill_and_resume import timeless

DIGITS = PROTOCOLS["digits-linf"]


def scoring(net, out=None, *arguments, **options):
    return score(net, *arguments, out=out, store=STORE, device="cpu", **options)


def refusal(net, out, *arguments, **options):
    """The refusal that scoring `net` ends in, raised and written down alike."""
    with pytest.raises(Refused) as refused:
        scoring(net, out, *arguments, **options)
    left = load_record(out / REFUSAL)
    assert isinstance(left, Refusal) and not (out / RECORD).exists()
    assert (left.refused, left.reason) == (refused.value.check, str(refused.value))
    return left


def test_the_counts_are_those_of_the_outcomes(nets, scored):
    for name, folder in scored.items():
        record, raw = load_record(folder / RECORD), outcomes(folder)
        recount(folder / RECORD, record)
        test = STORE.testing("digits", TINY.test)
        predicted = open_net(nets[name]).module(as_float(test.images)).argmax(1)
        assert np.array_equal(raw["predicted"], predicted) and np.array_equal(raw["labels"], test.labels)
        assert record.score.clean == int((predicted == test.labels).sum())
        assert record.score.survived == {attack: int(raw[f"survived/{attack}"].sum()) for attack in RANKED}
        assert record.data.sha256 == test.sha256 and record.net.sha256 == open_net(nets[name]).id.sha256
        assert record.job == job(*SPECS[name]) and record.protocol.sha256 == TINY.sha256
        assert not record.official


def test_a_record_names_the_arithmetic_of_its_attacks(nets, tmp_path, monkeypatch):
    """The attacks report successes that are none, so each image that stands is attacked again, with the same end."""

    def lying(model, images, labels, threat, *, generator):
        model(images)
        return images + 1e-3

    use_attacks(monkeypatch, dict.fromkeys(RANKED, lying))
    exact = scoring(nets["dense"], tmp_path, examples=16)
    entry = tmp_path / JOURNAL / "shard-00000-00016-square.json"
    before = entry.read_bytes()
    assert b"repaired" not in before and b"attack_arithmetic" not in (tmp_path / RECORD).read_bytes()
    tf32 = Arithmetic("tf32", nullcontext, repairs=True)
    monkeypatch.setattr(prunebench.bench.score.scoring, "arithmetic_named", lambda name, device: tf32)
    other = scoring(nets["dense"], tmp_path, examples=16, arithmetic="tf32")
    assert load_record(tmp_path / RECORD) == other and entry.read_bytes() != before
    recount(tmp_path / RECORD, other)
    assert (exact.schema_, exact.attack_arithmetic) == (7, AttackArithmetic())
    assert (other.schema_, other.attack_arithmetic) == (8, AttackArithmetic(name="tf32", repaired=exact.score.rejected))
    assert exact.score.rejected >= 4 and exact.score == other.score and exact.outcomes == other.outcomes


@pytest.mark.parametrize("count", ["clean", "robust"])
def test_a_changed_count_is_found(count, scored):
    """The twin: a record with a hash of its own, but one image more or less than its outcomes."""
    path = scored["dense"] / RECORD
    record = load_record(path)
    values = {key: getattr(record.score, key) for key in type(record.score).model_fields}
    values[count] += 1 if count == "clean" else -1
    if count == "robust":
        values["survived"] = values["survived"] | {"square": values["robust"]}
    facts = {key: getattr(record, key) for key in type(record).model_fields if key not in ("sha256", "schema_")}
    edited = type(record).sealed(**facts | {"score": type(record.score)(**values)})
    with pytest.raises(PrunebenchError, match=f"says {'clean' if count == 'clean' else 'square'} = "):
        recount(path, edited)


def test_training_costs_come_from_the_net_and_seconds_from_beside_it(nets, scored, quick, tmp_path):
    record = load_record(scored["imp"] / RECORD)
    stages = record.cost.stages
    assert [stage.name for stage in stages] == ["to the rewind point", "search 1", "train the ticket"]
    assert record.cost.train_passes == sum(s.passes for s in stages) == 6 * 512 * (3 * TINY.training.steps + 3)
    assert record.cost.train_seconds == pytest.approx(sum(s.seconds for s in stages)) and record.cost.train_seconds > 0
    alone = tmp_path / "net.safetensors"
    alone.write_bytes(nets["imp"].read_bytes())
    assert scoring(alone).cost.train_seconds is None
    (tmp_path / TIMES).write_bytes((nets["dense"].parent / TIMES).read_bytes())  # another net's
    assert scoring(alone).cost.train_seconds is None


def test_a_score_is_the_same_again_without_a_journal(nets, quick, tmp_path):
    first = scoring(nets["dense"], tmp_path)
    assert timeless(scoring(nets["dense"])) == timeless(first)
    assert timeless(scoring(nets["imp"])) != timeless(first)


def liars():
    """Attacks that propose images far outside the ball, or the image with a pixel moved by nothing that matters."""

    def far(model, images, labels, threat, *, generator):
        return 1 - images

    def harmless(model, images, labels, threat, *, generator):
        return images + 1e-4

    return {"far": far, "harmless": harmless}


def test_a_lying_attack_changes_what_is_rejected_alone(nets, quick, monkeypatch):
    honest = scoring(nets["dense"]).score
    assert 0 < honest.robust < honest.clean
    liar = {"apgd-ce": liars()["harmless"], **{n: a for n, a in quick_attacks().items() if n != "apgd-ce"}}
    use_attacks(monkeypatch, liar)
    lied = scoring(nets["dense"]).score
    assert lied.survived["apgd-ce"] == lied.clean == honest.clean
    assert (lied.robust, lied.survived["square"]) == (honest.robust, honest.survived["square"])
    assert lied.rejected >= lied.clean  # all that it was shown, for it proposed all and fooled none

    use_attacks(monkeypatch, dict.fromkeys(RANKED, liars()["far"]))
    lied = scoring(nets["dense"]).score
    test = STORE.testing("digits", TINY.test)
    images, net = as_float(test.images), open_net(nets["dense"]).module
    inside = net(within(1 - images, images, TINY.threat)).argmax(1) == test.labels
    right = net(images).argmax(1) == test.labels
    assert lied.robust == int((inside & right).sum()) > int((net(1 - images).argmax(1) == test.labels).sum())
    assert lied.rejected == 4 * lied.robust


def test_the_first_examples_are_scored_as_they_are_in_the_whole(nets, quick, tmp_path):
    rules = changed(shard=32)
    whole = scoring(nets["imp"], tmp_path / "whole", rules)
    part = scoring(nets["imp"], tmp_path / "part", rules, 40)
    assert (whole.score.n, part.score.n) == (64, 40)
    first, second = outcomes(tmp_path / "whole"), outcomes(tmp_path / "part")
    for name in ("labels", "predicted", "clean"):
        assert np.array_equal(first[name][:40], second[name])
    for attack in RANKED:  # the first shard is the same; the second holds other images, so draws other noise
        assert np.array_equal(first[f"survived/{attack}"][:32], second[f"survived/{attack}"][:32])
    with pytest.raises(PrunebenchError, match=r"has 64 test images, fewer than --examples 65"):
        scoring(nets["imp"], None, rules, 65)


def test_official_are_whole_scores_by_the_letter_of_the_rules(quick, tmp_path):
    net = seal_state(tmp_path / "net", build("digits-cnn", info=STORE.info("digits")), DIGITS)
    assert scoring(net).official and scoring(net).score.n == 500
    assert not scoring(net, None, None, 100).official
    other = seal_state(tmp_path / "other", build("digits-cnn", info=STORE.info("digits")), changed(DIGITS, epochs=1))
    by_name = scoring(other, None, "digits-linf", 100)
    assert by_name.protocol.sha256 == DIGITS.sha256 and not by_name.official
    assert not scoring(other, None, "digits-linf").official  # trained by other rules


def test_other_rules_under_a_known_name_are_asked_for_by_name_or_refused(quick, tmp_path):
    net = seal_state(tmp_path / "net", build("digits-cnn", info=STORE.info("digits")), changed(DIGITS, epochs=1))
    left = refusal(net, tmp_path, None, 8)
    assert left.refused == "protocol" and "made for rules of digits-linf" in left.reason
    assert scoring(net, tmp_path, "digits-linf", 8).score.n == 8
    assert not (tmp_path / REFUSAL).exists()  # the refusal goes when there is a score


def test_rules_for_other_images_are_refused_without_a_word_against_the_net(nets, tmp_path):
    said = r"takes \(1, 8, 8\) images of 10 classes, but mnist-linf has .*; name a protocol that fits"
    with pytest.raises(Refused, match=said) as refused:
        scoring(nets["dense"], tmp_path, "mnist-linf", 8)
    assert refused.value.check == "protocol" and not (tmp_path / REFUSAL).exists()


def test_infinite_logits_are_refused(tmp_path):
    net = build("digits-cnn", info=STORE.info("digits"))
    with torch.no_grad():
        net[1][-1].weight.fill_(3e38)
    left = refusal(seal_state(tmp_path / "net", net), tmp_path)
    assert left.refused == "non-finite"


def test_a_net_that_draws_at_random_is_refused(nets, tmp_path, monkeypatch):
    class Noisy(nn.Module):
        def forward(self, images):
            return torch.rand(len(images), 10)

    sound = open_net(nets["dense"])
    monkeypatch.setattr(prunebench.bench.score.scoring, "open_net", lambda path: Net(Noisy(), sound.header, sound.id))
    left = refusal(nets["dense"], tmp_path)
    assert left.refused == "nondeterministic" and "remove the randomness" in left.reason


def test_missing_keys_and_unkept_promises_are_refused(nets, tmp_path, quick):
    whole = forged(nets["imp"], tmp_path / "whole")
    assert scoring(whole, None, None, 8).score.n == 8  # so it is not the forging that is refused below
    left = refusal(forged(nets["imp"], tmp_path / "a", drop="1.9.bias"), tmp_path / "lacking")
    assert left.refused == "keys" and "'1.9.bias'" in left.reason
    promised = job("imp:rounds=2", 0.99).model_dump(mode="json")
    left = refusal(forged(nets["imp"], tmp_path / "b", job=promised), tmp_path / "dense")
    assert left.refused == "sparsity" and "keeps 3816 of 38160 weights; sparsity 0.99 allows at most 381" in left.reason
    left = refusal(forged(nets["imp"], tmp_path / "c", arch="resnet18"), tmp_path / "arch")
    assert left.refused == "keys"
    assert left.net is not None and left.job is None  # unreadable as a net, known as a file


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "net").write_bytes(b"\x80\x04K\x01.")
    assert refusal(tmp_path / "net", tmp_path).refused == "format"
    left = refusal(tmp_path / "nothing", tmp_path)
    assert left.refused == "file" and left.net is None


def test_an_unknown_protocol_is_the_users_mistake_and_no_refusal(nets, tmp_path):
    with pytest.raises(PrunebenchError, match="did you mean 'digits-linf'"):
        scoring(nets["dense"], tmp_path, "digits-lin")
    assert not (tmp_path / REFUSAL).exists()


def test_only_what_is_classified_rightly_is_attacked(tmp_path, monkeypatch):
    net = build("digits-cnn", info=STORE.info("digits"))
    with torch.no_grad():
        net[1][-1].weight.zero_()
        net[1][-1].bias.copy_(torch.arange(10.0))  # always 9
    test = STORE.testing("digits", 60)
    nines = int((test.labels == 9).sum())
    assert 0 < nines < 60
    calls = []

    def attack(model, images, labels, threat, *, generator):
        calls.append(len(images))
        return images

    use_attacks(monkeypatch, dict.fromkeys(RANKED, attack))
    result = scoring(seal_state(tmp_path / "net", net), None, None, 60).score
    assert result.clean == result.robust == nines
    assert calls == [nines] * 4


def test_progress_tells_how_much_is_left(nets, quick):
    told = []
    scoring(nets["dense"], None, changed(shard=32), report=lambda *progress: told.append(progress))
    beside = [*WEAK, *(f"pgd-20 eps {eps}" for eps in ("3:80", "3:40", "9:80", "9:40", "3:10", "9:20", "1:2"))]
    assert {what for what, _, _ in told} == {f"shard {k}, {name}" for k in (1, 2) for name in [*RANKED, *beside]}
    done = [value for _, value, _ in told]
    assert done == sorted(done) and all(value <= total for _, value, total in told)


def pictures(root, classes, count, side=8):
    """A folder of small grey pictures: class k has level k on the left half, so that it can be learnt."""
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(classes):
            folder = root / "pictures" / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count if part == "train" else 4):
                pixels = draw.integers(0, 60, (side, side), dtype=np.uint8)
                pixels[:, : side // 2] += np.uint8(190 * label // (classes - 1))
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return Store(root, root / "cache")


@pytest.mark.parametrize(
    ("classes", "norm", "ran"),
    [
        (2, "Linf", ("apgd-t: cross-entropy from a second start, for 2 classes have no DLR loss", "fab-t: 1 targets")),
        (3, "L2", ("apgd-t: untargeted DLR, for the targeted one needs 4 classes", "fab-t: 2 targets")),
        (5, "Linf", ("apgd-t: 4 targets", "fab-t: 4 targets")),
    ],
)
def test_few_classes_work_from_pictures_to_a_record(classes, norm, ran, tmp_path):
    store = pictures(tmp_path, classes, 16)
    rules = changed(
        name=f"pictures{classes}",
        data="folder:pictures",
        validation=classes,
        train=None,
        test=None,
        threat=Threat(norm=norm, eps="0.12" if norm == "Linf" else "0.5"),
        batch=15,
        epochs=4,
        augment="crop-flip",
    )
    net = train("magnitude", job("magnitude"), rules, tmp_path, tmp_path / "stages", store, device="cpu")
    record = score(net, out=tmp_path, store=store, device="cpu")
    assert record.score.n == 4 * classes and record.score.ran == ("apgd-ce", *ran, "square")
    assert record.score.clean > record.score.n / classes  # it has learnt something, so there is something to attack
    assert list(record.score.survived) == list(RANKED)
    recount(tmp_path / RECORD, load_record(tmp_path / RECORD))
    assert record.data.train_sha256 == Lab(job("magnitude"), rules, store, Computed(tmp_path)).train_sha256


def test_ten_classes_run_the_standard(scored):
    ran = load_record(scored["dense"] / RECORD).score.ran
    assert ran == ("apgd-ce", "apgd-t: 9 targets", "fab-t: 9 targets", "square")


def test_outcomes_lie_beside_the_record(nets, quick, tmp_path):
    record = scoring(nets["dense"], tmp_path)
    raw = outcomes(tmp_path)
    kinds = [
        {name.removeprefix(f"{kind}/"): bits for name, bits in raw.items() if name.startswith(f"{kind}/")}
        for kind in ("survived", "weak", "curve")
    ]
    assert [list(kind) for kind in kinds[:2]] == [list(RANKED), list(WEAK)]
    assert outcomes_path(tmp_path / RECORD).read_bytes() == pack_outcomes(raw["labels"], raw["predicted"], *kinds)
    assert load_record(tmp_path / RECORD) == record
    assert isinstance(quick_attacks()["square"], partial) and quick_attacks()["square"].func is pgd


def test_attacks_of_torchattacks_are_asked_for_by_name(nets, tmp_path):
    with pytest.raises(PrunebenchError, match="needs the extra torchattacks"):
        scoring(nets["dense"], tmp_path, also=["torchattacks:CW"])
    with pytest.raises(PrunebenchError, match="'CW' is no measurement"):
        scoring(nets["dense"], tmp_path, also=["CW"])
    assert list(tmp_path.iterdir()) == []
