"""What float32 could buy: NaN where attacks look, rounding that hides the margin, sizes that hide the gradient."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import prunebench.bench.score.referee
from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.checkpoint import open_net
from prunebench.bench.claims.make import make
from prunebench.bench.claims.verify import verify
from prunebench.bench.data import as_float
from prunebench.bench.errors import Refused
from prunebench.bench.names import RECORD, REFUSAL
from prunebench.bench.protocol import Threat
from prunebench.bench.record import load_record
from prunebench.bench.score import referee
from prunebench.bench.score.cascade import attack_all
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.referee import NO_ANSWER, Referee
from prunebench.bench.score.scoring import score
from prunebench.bench.wide import Wide, gaps, undecided, unheld
from tests.support.hostile import nan_where_perturbed, rescaled
from tests.support.nets import RANKED, STORE, TINY, Bright, changed, outcomes, quick_attacks, seal_state, use_attacks

RULES = changed(threat=Threat(norm="Linf", eps="0.1"))
FEW = changed(name="tiny-24", test=24)
TEST = STORE.testing("digits", 24)
IMAGES = as_float(TEST.images)
CPU = torch.device("cpu")


def grey(*levels):
    """2x2 images of these grey levels."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


DARK, LABELS = grey(0.45, 0.35), torch.tensor([0, 0])  # class 0; the first becomes class 1 above 0.5


class Gap(Bright):
    """No logits for images whose mean lies between 0.5 and 0.6."""

    def forward(self, images):
        """Logits (n, 2)."""
        mean = images.flatten(1).mean(1, keepdim=True)
        return torch.where((mean > 0.5) & (mean < 0.6), torch.nan, super().forward(images))


class GapOnKernels(Gap):
    """What kernels may make of `Bright` that overflow."""

    def differs(self, shape):
        """As if it were kernels."""
        return True


def asking(*levels, answer=DARK):
    """An attack that looks at the logits of grey images and then proposes `answer`."""

    def attack(model, images, labels, threat, *, generator):
        seen = model(grey(*levels))
        attack.seen.append(seen)
        return answer.clone()

    attack.seen = []
    return attack


# NaN where attacks look


def test_a_proposal_without_finite_logits_refuses_the_net():
    judge = Referee(Gap(), RULES, 4, CPU)
    with pytest.raises(Refused, match=r"NaN or infinite logits on 1 of 2 proposals within 0\.1") as refused:
        judge.fooled(lambda *_, generator: DARK + 0.1, DARK, LABELS, 0)  # 0.55 and 0.45
    assert refused.value.check == "non-finite"
    assert judge.fooled(lambda *_, generator: DARK, DARK, LABELS, 0).fooled.tolist() == [False, False]


def test_an_attack_that_meets_no_finite_logits_refuses_the_net_whatever_it_proposes():
    """Also beyond the ball: FAB comes from there, and the curve goes there."""
    judge = Referee(Gap(), RULES, 4, CPU)
    with pytest.raises(Refused, match="on 1 of 1 images that an attack queried") as refused:
        judge.fooled(asking(0.55, 0.7, 0.2), DARK, LABELS, 0)
    assert refused.value.check == "non-finite"
    with pytest.raises(Refused, match="that an attack queried"):
        judge.fooled(asking(0.59), DARK, LABELS, 0, Threat(norm="Linf", eps="0.01"))
    assert judge.fooled(asking(0.61, 0.49), DARK, LABELS, 0).kernel_only == 0


def test_what_is_no_image_needs_no_logits():
    judge = Referee(Gap(), RULES, 4, CPU)
    assert judge.fooled(asking(float("nan"), float("inf"), -0.5, 1.5), DARK, LABELS, 0).kernel_only == 0


def test_kernels_that_overflow_alone_are_counted_and_the_attack_sees_the_net():
    judge, attack = Referee(Bright(), RULES, 4, CPU), asking(0.55, 0.7, answer=DARK + 0.1)
    judge.fast = kernels = GapOnKernels()
    found = judge.fooled(attack, DARK, LABELS, 0)
    assert (found.fooled.tolist(), found.kernel_only) == ([True, False], 1)
    assert [bool(seen.isfinite().all()) for seen in attack.seen] == [False, True]
    assert judge.fast is kernels
    honest = Referee(Bright(), RULES, 4, CPU)
    assert honest.fooled(asking(0.55, 0.7, answer=DARK + 0.1), DARK, LABELS, 0).kernel_only == 0


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A net file whose weights make NaN of the right class where an image is perturbed."""
    return seal_state(tmp_path_factory.mktemp("hostile") / "net.safetensors", nan_where_perturbed(), FEW)


def ignored(monkeypatch):
    """Let the referee be one that does not look whether logits are finite."""
    monkeypatch.setattr(referee, "_finite", lambda logits, what: None)
    monkeypatch.setattr(Referee, "_answerless", lambda self, images, logits: images[:0])
    monkeypatch.setattr(referee, "unheld", lambda narrow, wide: torch.zeros(len(narrow), dtype=torch.bool))


def test_a_net_with_nan_only_where_perturbed_is_refused(hostile, tmp_path):
    net = open_net(hostile).module
    assert net(IMAGES).isfinite().all() and (net(IMAGES).argmax(1) == TEST.labels).sum() > 18
    with pytest.raises(Refused, match="images moved inside the ball"):
        score(hostile, store=STORE, device="cpu", out=tmp_path)
    assert json.loads((tmp_path / REFUSAL).read_bytes())["refused"] == "non-finite"


def test_square_itself_meets_the_nan(hostile, monkeypatch):
    """Without the look at two points beforehand it ends there; the twin: a referee that ignores NaN counts images."""
    judge = Referee(open_net(hostile).module, FEW, 64, CPU)
    with pytest.raises(Refused, match="that an attack queried"):
        judge.fooled(RANKED["square"], IMAGES, TEST.labels, 0)
    ignored(monkeypatch)
    assert (~judge.fooled(RANKED["square"], IMAGES, TEST.labels, 0).fooled).sum() >= 6


@pytest.mark.parametrize("level", ["replay", "quick", "full"])
def test_a_claim_of_such_a_net_is_refused_at_every_level(level, hostile, tmp_path, monkeypatch):
    with monkeypatch.context() as careless:
        use_attacks(careless, quick_attacks())
        ignored(careless)
        record = score(hostile, store=STORE, device="cpu", out=tmp_path, keep_proposals=True)
    assert record.score.robust >= 6
    claim = make(tmp_path / RECORD, hostile, tmp_path / "claim")
    with pytest.raises(Refused) as refused:
        verify(claim, level, store=STORE, device="cpu")
    assert refused.value.check == "non-finite"


def test_a_stored_image_without_finite_logits_refuses_a_replay(tmp_path, monkeypatch):
    """As the one above, but by what is stored: the two points beforehand are left out."""
    monkeypatch.setattr(prunebench.bench.score.referee, "corners", lambda rules, shape: [])
    net = nan_where_perturbed()
    path = seal_state(tmp_path / "net.safetensors", net, FEW)
    corner = Referee(net, FEW, 64, CPU)

    def moved(model, images, labels, threat, *, generator):
        return (images + threat.radius).clamp(0, 1)

    with monkeypatch.context() as careless:
        use_attacks(careless, dict.fromkeys(RANKED, moved))
        ignored(careless)
        score(path, store=STORE, device="cpu", out=tmp_path, keep_proposals=True)
        fooled = corner.fooled(moved, IMAGES, TEST.labels, 0)
        assert (~corner.logits(fooled.images[fooled.fooled]).isfinite()).any()
    claim = make(tmp_path / RECORD, path, tmp_path / "claim")
    with pytest.raises(Refused, match="proposals within"):
        verify(claim, "replay", store=STORE, device="cpu")


# Rounding and sizes


def standing_of(net):
    """Which of the images stand after all of AutoAttack, and the referee."""
    judge = Referee(net, FEW, 64, CPU)
    clean = judge.answers(IMAGES) == TEST.labels
    ranked = tuple(suite_of(FEW).ranked)
    return attack_all(judge, TEST, clean, Journal(None, []), only=ranked).standing[ranked[-1]], judge


@pytest.fixture(scope="module")
def plain(nets):
    """A trained net, and which images stand."""
    net = open_net(nets["dense"]).module
    return net, standing_of(net)[0]


@pytest.mark.parametrize(
    ("kind", "size"), [("offset", 1e6), ("offset", 1e7), ("offset", 1e8), ("cancelled", 1e7), ("cancelled", 1e8)]
)
def test_an_offset_buys_no_image(kind, size, plain, monkeypatch):
    net, honest = plain
    assert 4 <= honest.sum() <= 20
    found, _ = standing_of(rescaled(net, kind, size))
    assert not (found & ~honest).any()


@pytest.mark.usefixtures("quick")
def test_an_offset_is_flagged(plain, tmp_path):
    path = seal_state(tmp_path / "net.safetensors", rescaled(plain[0], "offset", 1e8), FEW)
    record = score(path, store=STORE, device="cpu", out=tmp_path).score
    assert (record.clean, record.robust) == (0, 0)
    up = {flag.name: flag.value for flag in record.flags if flag.up}
    assert up["rounding"] == 1.0 and up["out-of-range"] == 100.0 and "kernel-disagrees" not in up
    assert (outcomes(tmp_path)["predicted"] == NO_ANSWER).all()


@pytest.mark.parametrize(("kind", "size"), [("offset", 1e8), ("cancelled", 1e8)])
def test_a_referee_that_trusts_float32_sells_images(kind, size, plain, monkeypatch):
    monkeypatch.setattr(referee, "unheld", lambda narrow, wide: torch.zeros(len(narrow), dtype=torch.bool))
    monkeypatch.setattr(referee, "undecided", lambda logits: torch.zeros(len(logits), dtype=torch.bool))
    monkeypatch.setattr(Referee, "_looked", lambda self, shape: self.sizes)
    found, _ = standing_of(rescaled(plain[0], kind, size))
    assert (found & ~plain[1]).any()


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("hidden", 1e15),
        pytest.param("logits", 1e30, marks=pytest.mark.slow),
        pytest.param("features", 1e30, marks=pytest.mark.slow),
    ],
)
def test_sizes_beyond_float32_are_attacked_in_float64(kind, size, plain, monkeypatch):
    use_attacks(monkeypatch, {"apgd-t": RANKED["apgd-t"]})
    net, honest = plain
    found, judge = standing_of(rescaled(net, kind, size))
    assert judge.fast is judge.wide and judge.sizes.excess > 1
    assert judge.fast.bits(IMAGES.shape[1:]) == "float64"
    assert not (found & ~honest).any()
    assert standing_of(net)[1].sizes.excess < 1e-3


def test_only_in_the_ball(plain):
    """Logits that are held at the image and not beside it: the two points tell."""

    class Beside(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, images):
            moved = (images[:, :, 0, 0] != 0).to(images.dtype)  # this pixel is black on every digit
            return (self.net(images) + 1e8 * moved) - 1e8 * moved

    judge = Referee(Beside(plain[0]), FEW, 64, CPU)
    assert not unheld(judge.logits(IMAGES), judge.wide.logits(IMAGES)).any()
    assert (judge.answers(IMAGES) == NO_ANSWER).all()


def test_held_on_paper():
    wide = torch.tensor([[10.0, 4.0, 0.0, -50.0]], dtype=torch.float64)  # the gap from first to third is 10
    for error, lost in ((0.009, False), (0.011, True)):
        narrow = wide.float().clone()
        narrow[0, 0] += error
        assert unheld(narrow, wide).tolist() == [lost]
    assert not unheld(wide.float() + 1.0, wide).any()  # an offset that all share
    assert gaps(torch.tensor([[3.0, 1.0], [2.0, 2.0]])).tolist() == [2.0, 0.0]
    assert undecided(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])).tolist() == [True, False]
    assert unheld(torch.tensor([[torch.inf, 0.0, 0.0]]), wide[:, :3]).all()


def test_two_equal_logits_are_no_answer():
    judge = Referee(Bright(), changed(threat=Threat(norm="Linf", eps="0.001")), 4, CPU)
    assert judge.answers(grey(0.5, 0.4)).tolist() == [NO_ANSWER, 0]
    found = judge.fooled(lambda *_, generator: grey(0.5), grey(0.5), torch.tensor([0]), 0)
    assert found.fooled.tolist() == [True]


def test_answers_do_not_depend_on_the_cut(plain):
    judge = Referee(plain[0], FEW, 64, CPU)
    assert torch.equal(judge.answers(IMAGES), torch.cat([judge.answers(part) for part in IMAGES.split(7)]))


def test_attacks_see_the_same_order_and_the_gradient_in_float64(plain):
    net = plain[0]
    wide = Wide(rescaled(net, "logits", 1e30))
    wide.look(IMAGES)
    seen = wide(IMAGES)
    assert torch.equal(seen.argmax(1), net(IMAGES).argmax(1)) and seen.abs().max() < 100
    at = IMAGES.clone().requires_grad_()
    assert torch.autograd.grad(wide(at).square().sum(), at)[0].abs().amax((1, 2, 3)).min() > 1e-6


def test_an_honest_net_is_not_refused_and_loses_no_image(nets, scored):
    for name, net in nets.items():
        judge = Referee(open_net(net).module, TINY, 64, CPU)
        test = STORE.testing("digits", 64)
        assert torch.equal(judge.answers(as_float(test.images)), judge.logits(as_float(test.images)).argmax(1))
        flags = {flag.name: flag for flag in load_record(scored[name] / RECORD).score.flags}
        assert (flags["rounding"].value, flags["constant"].value) == (0.0, 0.0)
        assert 0 < flags["out-of-range"].value < 1e-3
