"""Every flag goes up on a victim that was built for it, and stays down on honest nets, dense and sparse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from prunebench.bench.attacks.suites import suite_of
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.errors import Refused
from prunebench.bench.executor import Fast, fast
from prunebench.bench.facts import Point
from prunebench.bench.names import RECORD
from prunebench.bench.protocol import Threat
from prunebench.bench.record import load_record
from prunebench.bench.score import flags, probes
from prunebench.bench.score.cascade import attack_all
from prunebench.bench.score.curve import radii
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.referee import Referee
from prunebench.bench.score.scoring import score
from tests.support.nets import RANKED, STORE, TINY, WEAK, misplaced, use_attacks

TEST = STORE.testing("digits", 48)
IMAGES = as_float(TEST.images)
N = len(TEST)
CLAIMED = Path(__file__).parents[2] / "claims"
BOARD = Path(__file__).parents[2] / "leaderboard" / "records" / "digits-linf"
WHITE_AND_BLACK = {name: RANKED[name] for name in ("apgd-ce", "square")}


class Before(nn.Module):
    """The net behind a change of its input."""

    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, images):
        return self.net(self.change(images))


class After(Before):
    """The net before a change of its output."""

    def forward(self, images):
        return self.change(self.net(images))


class Winners(nn.Module):
    """k-winners-take-all (Xiao et al. 2020, arXiv 1905.10510): the largest share of a layer's activations stays."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        flat = x.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0.0).view_as(x)


def winners(net, share=0.1):
    layers = [Winners(share) if isinstance(layer, nn.ReLU) else layer for layer in net[1]]
    return nn.Sequential(net[0], nn.Sequential(*layers))


def quantised(images):
    return (images * 7).round() / 7


def shattered(images):
    """A ripple of .02 that is steeper than the image is: the gradient is that of the ripple."""
    return images + 0.02 * torch.sin(images / 5e-4)


def noisy(images):
    return images + 0.01 * torch.randn_like(images)


@pytest.fixture(params=["dense-s0-seed0", "imp-s0.95-seed0"])
def net(request):
    """Nets of the board, whose training was whole."""
    return open_net(CLAIMED / request.param / "net.safetensors").module


def referee(net):
    return Referee(net, TINY, 64, torch.device("cpu"))


def looked_at(net):
    """The flags that rest on probes of the net alone, by name."""
    net = referee(net)
    logits = net.logits(IMAGES)
    found = [
        flags.zero_gradients(*probes.vanishing(net, IMAGES, TEST.labels), N),
        flags.quantised_input(probes.unmoved(net, IMAGES, 0), N, probes.NUDGE),
        flags.softmax_output(probes.probabilities(logits), N),
    ]
    return {flag.name for flag in found if flag.up}


def attacked(net, monkeypatch):
    """The flags that rest on outcomes of attacks, by name."""
    use_attacks(monkeypatch, WHITE_AND_BLACK)
    judge = referee(net)
    all_of_it = attack_all(judge, TEST, judge.logits(IMAGES).argmax(1) == TEST.labels, Journal(None, []))
    counts = {name: int(bits.sum()) for name, bits in (all_of_it.standing | all_of_it.weak).items()}
    curve = [Point(eps=eps, robust=int(bits.sum())) for eps, bits in all_of_it.curve.items()]
    found = [
        flags.black_box_wins(counts["apgd-ce"], counts["square"], N),
        flags.weak_strong_gap(counts["pgd-20"], counts["square"], N),
        flags.eps_curve(curve, N, 0.15),
    ]
    return {flag.name for flag in found if flag.up}


def test_an_honest_net_raises_nothing(net):
    assert looked_at(net) == set()


def test_all_flags_are_in_a_record(scored):
    for folder in scored.values():
        found = {flag.name: flag for flag in load_record(folder / RECORD).score.flags}
        assert {name: flag.threshold for name, flag in found.items()} == {
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
        assert found["transfer"].value is None  # no dense net was given
        assert found["kernel-disagrees"].value == 0.0


def test_saturated_logits(net):
    assert looked_at(After(net, lambda logits: 1e6 * logits)) == {"zero-gradients"}


def test_a_detached_gradient(net):
    assert looked_at(Before(net, torch.Tensor.detach)) == {"zero-gradients"}


def test_eight_levels(net):
    assert looked_at(Before(net, quantised)) == {"zero-gradients", "quantised-input"}


def test_probabilities(net):
    assert "softmax-output" in looked_at(After(net, lambda logits: logits.softmax(1)))
    assert "softmax-output" not in looked_at(After(net, lambda logits: logits.log_softmax(1)))


def test_random_noise_is_refused(net):
    with pytest.raises(Refused) as refused:
        referee(Before(net, noisy)).steady_logits(IMAGES)
    assert refused.value.check == "nondeterministic"


@pytest.mark.parametrize("victim", ["shattered", "winners"])
def test_gradients_that_mislead(victim, nets, monkeypatch):
    sound = open_net(nets["dense"]).module
    found = attacked(Before(sound, shattered) if victim == "shattered" else winners(sound), monkeypatch)
    assert {"black-box-wins", "weak-strong-gap"} <= found
    if victim == "shattered":
        assert "eps-curve" in found
    honest = attacked(open_net(nets["dense"]).module, monkeypatch)
    assert "eps-curve" not in honest and len(honest) < len(found)


def test_images_of_the_dense_net_are_tried(nets, tmp_path, quick):
    """A victim for transfer: the dense net itself behind a ripple, against which its own gradients are of no use."""
    sound = open_net(nets["dense"]).module
    victim, parent = referee(Before(sound, shattered)), referee(open_net(nets["dense"]).module)
    clean = victim.logits(IMAGES).argmax(1) == TEST.labels
    standing = attack_all(victim, TEST, clean, Journal(None, [])).weak["pgd-50"]
    assert flags.transfer(probes.transferred(victim, parent, TEST, standing, 0), N).up
    assert probes.transferred(victim, parent, TEST, torch.zeros_like(standing), 0) == 0

    record = score(nets["imp"], parent=nets["dense"], out=tmp_path, store=STORE, device="cpu")
    assert record.notes["parent"] == open_net(nets["dense"]).id.sha256
    found = {flag.name: flag.value for flag in record.score.flags}
    assert found["transfer"] is not None and found["transfer"] < 0.2


def test_a_referee_whose_attacks_give_up_is_found_out(nets, monkeypatch):
    """A victim for weak-beats-strong: AutoAttack's four propose nothing, and FGSM and PGD do."""

    def gives_up(model, images, labels, threat, *, generator):
        return images

    use_attacks(monkeypatch, dict.fromkeys(RANKED, gives_up))
    record = score(nets["dense"], store=STORE, device="cpu").score
    found = {flag.name: flag for flag in record.flags}
    assert record.robust == record.clean
    beaten = found["weak-beats-strong"]
    assert beaten.up and beaten.value >= (record.clean - record.weak["pgd-20"]) / record.n


def kernels_disagree(nets, kernels=None):
    """The flag of a sparse net whose attacks saw `kernels` (by default the real ones), and what was robust."""
    judge = referee(open_net(nets["imp"]).module)
    assert judge.fast.differs(IMAGES.shape[1:])
    judge.fast = kernels or judge.fast
    clean = judge.logits(IMAGES).argmax(1) == TEST.labels
    found = attack_all(judge, TEST, clean, Journal(None, []), only=tuple(suite_of(judge.rules).ranked))
    survived = [clean, *found.standing.values()]
    proposed = sum(int(bits.sum()) for bits in survived[:-1])
    turned = probes.turned(judge, IMAGES, TEST.labels)
    return flags.kernel_disagrees(found.kernel_only, proposed, turned, N), int(survived[-1].sum())


def test_kernels_with_a_wrong_offset_are_found_out(nets, quick):
    honest, robust = kernels_disagree(nets)
    assert not honest.up
    flag, weaker = kernels_disagree(nets, fast(misplaced(open_net(nets["imp"]).module)))
    assert flag.up and weaker >= robust and "CXX=none" in flag.sentence


class Backwards(torch.autograd.Function):
    """The image itself, whose gradient runs the wrong way."""

    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def test_kernels_whose_gradient_is_wrong_are_found_out(nets, monkeypatch):
    """Their logits are right, so no proposal is kernel_only: gradients alone tell, and attacks find less."""
    use_attacks(monkeypatch, {"apgd-ce": WEAK["pgd-20"]})
    honest, robust = kernels_disagree(nets)
    judge = referee(open_net(nets["imp"]).module)
    right = judge.fast

    class Wrong(Fast):
        def __call__(self, images):
            return right(Backwards.apply(images))

    flag, weaker = kernels_disagree(nets, Wrong(judge.net))
    assert flag.up and flag.value > 0.9 and weaker > robust
    assert not honest.up


def test_the_radii_grow_to_where_every_image_can_be_grey():
    assert radii(Threat(norm="Linf", eps="8/255"), 3072) == (
        "2/255",
        "4/255",
        "2/85",
        "8/255",
        "4/85",
        "16/255",
        "8/85",
        "1/2",
    )
    assert radii(Threat(norm="Linf", eps="0.3"), 784) == ("3/40", "3/20", "9/40", "3/10", "9/20", "1/2")
    assert radii(Threat(norm="L2", eps="1"), 784)[-1] == "14"  # sqrt(784) / 2
    assert radii(Threat(norm="L2", eps="1"), 3)[-1] == "87/100"  # sqrt(3) / 2 = .8660


def test_a_constant_loss_on_images_that_the_net_gets_wrong_is_no_sign(net):
    """With z_y the third largest logit, DLR is (z_1 - z_3) / (z_1 - z_3) = 1, whatever the image."""
    judge = referee(net)
    third = judge.logits(IMAGES).argsort(1, descending=True)[:, 2]
    assert probes._vanishing(judge, IMAGES, third, probes._dlr) > 0.9 * N  # the twin
    assert probes.vanishing(judge, IMAGES, third) == (0, 0)


def test_dlr_on_paper():
    logits = torch.tensor([[3.0, 1.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]])
    assert probes._dlr(logits, torch.tensor([0, 1])).tolist() == pytest.approx([-2 / 3, 2 / 3])
    assert probes._dlr(torch.tensor([[2.0, 5.0]]), torch.tensor([0])).tolist() == [3.0]


def test_pairs_are_what_they_say(nets):
    sound = open_net(nets["dense"]).module
    clean = referee(sound).logits(IMAGES).argmax(1) == TEST.labels
    pairs = probes.pairs(referee(sound), TEST, clean, 0)
    assert 0 < len(pairs.index) <= probes.SHOWN and clean[torch.from_numpy(pairs.index)].all()
    assert (pairs.labels == TEST.labels.numpy()[pairs.index]).all() and (pairs.predicted != pairs.labels).all()
    assert (abs(pairs.originals.astype(int) - pairs.adversarial) <= round(255 * TINY.threat.radius) + 1).all()
    none = probes.pairs(referee(sound), TEST, torch.zeros_like(clean), 0)
    assert len(none.index) == 0 and none.originals.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("name", ["dense-s0", "imp-s0.9", "iwi-s0.9", "awt-s0.9", "random-s0.9", "random-s0.95"])
def test_honest_nets_of_the_board_raise_nothing(name):
    """Scored in full, trained in full: dense and sparse, under fifteen seeds."""
    paths = sorted(BOARD.glob(f"{name}-seed*.json"))
    assert len(paths) == 15
    for path in paths:
        assert [flag.name for flag in load_record(path).score.flags if flag.up] == []
