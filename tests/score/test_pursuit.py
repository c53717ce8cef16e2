"""The best-known number: who is attacked again, by what, and how it is counted; each answer is known on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from prunebench.bench.attacks.suite import Listed, Pursuit
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.beyond import Best
from prunebench.bench.data import Split
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.names import RECORD
from prunebench.bench.outcomes import recount
from prunebench.bench.protocol import Threat
from prunebench.bench.record import load_record
from prunebench.bench.score.cascade import Found
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.pursuit import pursue_all, pursue_shard
from prunebench.bench.score.referee import Referee
from prunebench.bench.score.scoring import score
from tests.support.nets import STORE, Bright, changed, outcomes, quick_attacks, suite_with

RULES = changed(threat=Threat(norm="Linf", eps="0.1"), shard=10)
CPU = torch.device("cpu")
RANKED = tuple(SUITES["standard"].ranked)

# Ten images of grey 102 / 255 = 0.4 are at the edge of what 0.1 more makes class 1; grey .45 falls to it.
TEST = Split(torch.full((20, 1, 4, 4), 115, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))


def upwards(first: int, *, called: list[int] | None = None, passes: int = 0):
    """An attack that fools the first `first` of the images it is given, by making them brighter."""

    def attack(model, images, labels, threat, *, generator):
        if called is not None:
            called.append(len(images))
        for _ in range(passes):
            model(images)
        found = images.clone()
        found[:first] += threat.radius
        return found

    return attack


def use(monkeypatch, short, long, trigger=0.25):
    """Let the suite pursue survivors with these attacks."""
    best = Pursuit("test-1", short, long, trigger)
    monkeypatch.setitem(SUITES, "standard", replace(SUITES["standard"], best=best))


def referee() -> Referee:
    return Referee(Bright(), RULES, 4, CPU)


def cascade(robust: int, by_gradient: int | None = None) -> dict[str, torch.Tensor]:
    """The bits after each ranked attack on one shard: the last `robust` images survive; Square came last."""
    after = {name: torch.arange(10) >= 10 - (robust if by_gradient is None else by_gradient) for name in RANKED}
    return after | {"square": torch.arange(10) >= 10 - robust}


def pursued(standing, journal=None, number=0):
    return pursue_shard(referee(), TEST, number, standing, journal or Journal(None, []))


def test_only_survivors_are_attacked_and_each_attack_gets_those_of_the_one_before(monkeypatch):
    called = []
    short = {"a": Listed(upwards(1, called=called), 1), "b": Listed(upwards(2, called=called), 1)}
    use(monkeypatch, short, {}, trigger=0.5)
    found = pursued(cascade(8))
    assert called == [8, 7]
    assert {name: int(bits.sum()) for name, bits in found.standing.items()} == {"a": 7, "b": 5}
    assert not found.standing["b"][:2].any()  # those that AutoAttack fooled do not return
    best = found.counted("test-1", cascade(8)["square"])
    assert (best.robust, best.by, best.long) == (5, {"a": 1, "b": 2}, 0)


@pytest.mark.parametrize(
    ("square", "short", "runs"),
    [(0, 2, False), (0, 3, True), (3, 0, True), (2, 0, False), (1, 2, True)],  # more than a quarter of ten
)
def test_long_attacks_run_where_square_and_the_short_ones_fooled_many(square, short, runs, monkeypatch):
    called = []
    use(monkeypatch, {"a": Listed(upwards(short), 1)}, {"long": Listed(upwards(1, called=called), 1)})
    found = pursued(cascade(6, by_gradient=6 + square))
    assert called == ([6 - short] if runs else [])
    assert found.long == (10 if runs else 0)
    assert int(found.standing["long"].sum()) == 6 - short - runs  # where it did not run, its bits are those before


def test_long_attacks_run_where_gradients_vanish(monkeypatch):
    class Still(Bright):
        def forward(self, images):
            return super().forward(images).detach() + 0 * images.sum()

    use(monkeypatch, {"a": Listed(upwards(0), 1)}, {"long": Listed(upwards(1), 1)})
    assert pursued(cascade(6)).long == 0
    still = Referee(Still(), RULES, 4, CPU)
    assert pursue_shard(still, TEST, 0, cascade(6), Journal(None, [])).long == 10


def test_a_journal_spares_the_attacks_and_changes_nothing(monkeypatch, tmp_path):
    called = []
    use(monkeypatch, {"a": Listed(upwards(3, called=called, passes=2), 1)}, {"long": Listed(upwards(1), 1)})
    first = pursued(cascade(8), Journal(tmp_path, ["net"]))
    again = pursued(cascade(8), Journal(tmp_path, ["net"]))
    assert called == [8] and first.passes == again.passes > 2 * 8
    assert all(torch.equal(first.standing[name], again.standing[name]) for name in ("a", "long"))
    pursued(cascade(7), Journal(tmp_path, ["net"]))  # other survivors: measured anew
    assert called == [8, 7]


def test_all_shards_are_the_shards_in_order(monkeypatch):
    use(monkeypatch, {"a": Listed(upwards(3), 1)}, {"long": Listed(upwards(1), 1)})

    standing = {name: torch.cat([cascade(8)[name], cascade(2)[name]]) for name in RANKED}
    whole = Found(standing, {}, {}, rejected=0, kernel_only=0, repaired=0, passes=0, seconds=0.0, images=None)
    found, judge = pursue_all(referee(), TEST, whole, Journal(None, [])), referee()
    parts = [
        pursue_shard(judge, TEST, 1, cascade(2), Journal(None, [])),
        pursue_shard(judge, TEST, 0, cascade(8), Journal(None, [])),
    ]
    for name in ("a", "long"):
        assert torch.equal(found.standing[name], torch.cat([part.standing[name] for part in reversed(parts)]))
    assert found.long == 10 and found.passes == sum(part.passes for part in parts)


def test_adversarials_of_another_net_are_tried_last_and_paid_for(monkeypatch):
    """The other net is the same one, so its adversarials fool every survivor within reach."""
    use(monkeypatch, {"a": Listed(upwards(0), 1)}, {})
    judge, source = referee(), referee()
    found = pursue_shard(judge, TEST, 0, cascade(6), Journal(None, []), parent=("0" * 64, source))
    assert int(found.standing["transfer"].sum()) == 0 and int(found.standing["a"].sum()) == 6
    assert found.passes >= source.passes > 0


def test_a_record_holds_the_best_known_number_and_its_bits(monkeypatch, nets, tmp_path):
    short = {"pgd-again": Listed(quick_attacks()["square"], 31)}
    suite = replace(suite_with(quick_attacks()), best=Pursuit("test-1", short, {}, 1.0))
    monkeypatch.setitem(SUITES, "standard", suite)
    record = score(nets["dense"], out=tmp_path, store=STORE, device="cpu", best=True)
    best, raw = record.beyond.best, outcomes(tmp_path)
    assert best is not None and best.suite == "test-1" and best.robust <= record.score.robust
    assert not (raw["best/pgd-again"] & ~raw["survived/square"]).any()
    assert int(raw["best/pgd-again"].sum()) == best.robust
    recount(tmp_path / RECORD, load_record(tmp_path / RECORD))
    plain = score(nets["dense"], store=STORE, device="cpu")
    assert plain.beyond.best is None and plain.score == record.score


def test_a_changed_best_known_number_is_found():
    """The twin of recounting: a stated count that the bits do not give."""
    arrays = {"best/a": np.array([True, False, False])}
    best = Best(suite="test-1", robust=1, by={"a": 1}, long=0, passes=0)
    standing = np.array([True, True, False])
    assert all(found == stated for found, stated in best.recounted(arrays, standing).values())
    wrong = best.model_copy(update={"robust": 2})
    assert any(found != stated for found, stated in wrong.recounted(arrays, standing).values())


def test_an_unknown_measurement_is_refused_before_any_work(tmp_path):
    with pytest.raises(
        PrunebenchError, match="'planed' is no measurement; write planted, distances, corruptions, other-norm, or"
    ):
        score(tmp_path / "none.safetensors", also=["planed"])
