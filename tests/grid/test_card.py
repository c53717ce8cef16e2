"""On a card that is not there: every pruner trains, every measurement is made, and no two devices are mixed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from prunebench.bench.collapse import connected
from prunebench.bench.executor import fast
from prunebench.bench.lab import train
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import draw, masked
from prunebench.bench.models import build, prunable
from prunebench.bench.protocol import Threat
from prunebench.bench.score.scoring import score
from prunebench.pruners import resolve
from tests.support.card import CARD, card
from tests.support.interpreted import interpreted
from tests.support.nets import STORE, changed, lab
from tools.gpu_smoke import smoke

RULES = changed(name="few", train=64, validation=16, test=12, shard=12, epochs=6)
QUICK = ("awt", "flying-bird", "hydra:layers=global")
OTHERS = (
    "awt:kernel=kept,layers=global",
    "awt:variant=mask",
    "awt:shuffle=true",
    "flying-bird:plus=true",
    "grasp",
    "harp",
    "hydra:shuffle=true",
    "imp",
    "iwi",
    "iwi:ticket=random",
    "iwi-dense",
    "magnitude",
    "magnitude:pattern=2:4",
    "r-admm",
    "random",
    "rst",
    "s2ap:layers=global",
    "snip",
    "synflow",
    "twin-rep",
)


@pytest.fixture
def stand_in(monkeypatch):
    """A machine with a card, on which nothing is compiled and no graph recorded."""
    monkeypatch.setattr(Trainer, "capture", lambda *_, **__: None)
    monkeypatch.setattr(train, "pays", lambda *_: False)
    with card():
        yield


def weights(pruner, folder):
    place = lab(
        folder,
        RULES,
        sparsity=0.0 if "dense" in pruner else 0.5,
        resolve=lambda name: resolve(name).pruner,
        device=CARD,
    )
    return resolve(pruner).pruner(place.job, place)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("pruner", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_pruner_trains(pruner, tmp_path):
    """It hands over finite weights on the processor."""
    found = weights(pruner, tmp_path)
    assert found and all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in found.values())


L2 = changed(name="few-l2", threat=Threat(norm="L2", eps="0.5"))
MEASURED = {
    "plain": {},
    "tf32": {"arithmetic": "tf32"},
    "L2": {"protocol": L2},
    "all": {"best": True, "also": ("planted", "distances", "other-norm"), "keep_proposals": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", MEASURED)
def test_a_net_is_scored_to_its_record(asked, nets, tmp_path, stand_in):
    """Clean verdicts are the processor's; attacks on padded batches draw other numbers, so robust ones may differ."""
    options = {"protocol": None, "examples": 12, "store": STORE}
    there = score(nets["dense"], device="cuda", out=tmp_path, **options | MEASURED[asked])
    here = score(nets["dense"], device="cpu", **options | {"protocol": MEASURED[asked].get("protocol")})
    assert (there.score.clean, there.env["device"]) == (here.score.clean, "a card that is not there")
    assert abs(there.score.robust - here.score.robust) <= 1


@pytest.mark.slow
def test_a_sparse_net_runs_on_the_kernels(stand_in):
    """Interpreted: logits and gradients are the net's own, before and after its weights are read again."""
    net, generator = build("digits-cnn", info=STORE.info("digits")).eval().requires_grad_(False), torch.Generator()
    counts = {name: weight.numel() // 20 for name, weight in prunable(net).items()}
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    net.load_state_dict(masked(net.state_dict(), draw(shapes, counts, generator.manual_seed(0))))
    images = torch.rand(5, 1, 8, 8, generator=generator)
    with interpreted():
        there = fast(net.to("cuda"))
        at = images.to("cuda").requires_grad_()
        for run in (there, there.leaking(0.01)):
            (gradient,) = torch.autograd.grad(run(at).square().sum(), at)
            assert gradient.device == CARD
        (plain,) = torch.autograd.grad(net(at).square().sum(), at)
        (ours,) = torch.autograd.grad(there(at).square().sum(), at)
        torch.testing.assert_close(ours.cpu(), plain.cpu())
        assert there.bits((1, 8, 8)).startswith("triton") and not there.said
        torch.testing.assert_close(there(at).cpu(), net(at).cpu())
        there.refresh()
        torch.testing.assert_close(there(at).cpu(), net(at).cpu())


@pytest.mark.slow
def test_the_first_look(stand_in, tmp_path):
    assert smoke("cuda", tmp_path).endswith("4 attacks, a record of 2 images")


# The stand-in


def test_it_refuses_what_a_card_refuses():
    with card():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        for mixed in (
            lambda: there + here,
            lambda: torch.where(here > 0, there, 0.0),
            lambda: here[there.long()],
            lambda: torch.rand(3, generator=torch.Generator("cuda")),
            lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
            lambda: torch.nn.Linear(3, 1).to("cuda")(here),
        ):
            with pytest.raises(RuntimeError, match="found"):
                mixed()
        with pytest.raises(TypeError, match="convert cuda:0"):
            there.numpy()
        assert here.device.type == there.cpu().device.type == "cpu"


def test_it_takes_what_a_card_takes():
    """Numbers without dimensions, indices from the processor, copies; and gradients find their way."""
    with card():
        there = torch.arange(3.0, device="cuda").requires_grad_()
        (gradient,) = torch.autograd.grad(
            (there * torch.tensor(2.0)).cpu().sum() + there[torch.tensor([1])].sum(), there
        )
        assert gradient.device == CARD and gradient.tolist() == [2.0, 3.0, 2.0]
        assert there.detach().copy_(torch.ones(3)).tolist() == [1.0] * 3
        net = torch.nn.Linear(3, 1)
        moved = copy.deepcopy(net).to("cuda")
        assert torch.equal(moved(there).cpu(), net(there.cpu())) and moved.weight.device == CARD
    assert isinstance(np.asarray(net.weight.detach()), np.ndarray)


def test_twins_what_failed_on_a_card():
    """A mask of the processor over weights of the card, as AWT's search had it, and a path that is looked for there."""
    with card():
        on_card = {"a": torch.ones(3, device="cuda")}
        with pytest.raises(RuntimeError, match="where: expected all tensors"):
            masked(on_card, {"a": torch.ones(3, dtype=torch.bool)})
        net = build("digits-cnn", info=STORE.info("digits")).to("cuda")
        assert connected(net, (1, 8, 8))
        with pytest.raises(RuntimeError, match="sub: expected all tensors"):
            net(torch.ones(1, 1, 8, 8))
