"""A fast net whose weights change: read again it is the fast net made anew, bit for bit; and a dense one, folded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunebench.bench import executor
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor import Fast, fast
from prunebench.bench.executor.compiled import Compiled
from prunebench.bench.executor.folded import Folded
from prunebench.bench.mask import draw
from prunebench.bench.models import build, prunable
from tests.executor.test_executor import SHAPES, Residual, apart, both, generator, sparse_net, stir

pytestmark = pytest.mark.usefixtures("dense_on_torch")


def masks_of(net, density):
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    keeps = {name: round(density * weight.numel()) for name, weight in prunable(net).items()}
    return draw(shapes, keeps, generator(1))


@torch.no_grad()
def step(net, masks, seed):
    """What an optimiser's step does: every parameter and statistic moves, pruned weights stay zero."""
    noise = generator(seed)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_floating_point() and not name.endswith((".mean", ".std")):
            tensor += 0.05 * torch.rand(tensor.shape, generator=noise)
            if name in masks:
                tensor.mul_(masks[name])


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def kinds(quick: Fast) -> set[type]:
    return {type(piece) for pieces in quick.pieces.values() for piece in pieces or ()}


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("arch", "density", "kind"),
    [
        ("digits-cnn", 0.05, Compiled),
        ("mnist-cnn", 0.4, Compiled),
        ("resnet18", 0.02, Compiled),
        ("digits-cnn", 0.9, Folded),
        ("mnist-cnn", 1.0, Folded),
    ],
)
def test_read_again_it_is_the_fast_net_made_anew(arch, density, kind, given):
    net = sparse_net(arch, density)
    masks = {name: weight != 0 for name, weight in prunable(net).items()}
    lent, images = masks if given else None, torch.rand(5, *SHAPES[arch], generator=generator())
    quick = fast(net, masks=lent)
    stale = both(quick, images)
    (pieces,) = quick.pieces.values()
    for seed in (7, 8):
        step(net, masks, seed)
        assert same(both(quick, images), stale)  # the twin: until it is told, it knows the old weights
        quick.refresh()
        stale = both(quick, images)
        assert same(stale, both(fast(net, masks=lent), images))
        assert apart(stale[0], net(images)) < 1e-5
    assert list(quick.pieces.values()) == [pieces] and kinds(quick) == {kind}  # nothing was split anew


def grown(monkeypatch, watched):
    """Outputs of a refreshed fast net and of the net itself, after a weight outside the pattern grew."""
    net = sparse_net("digits-cnn", 0.05)
    quick, images = fast(net), torch.rand(5, *SHAPES["digits-cnn"], generator=generator())
    quick(images)
    with torch.no_grad():
        weight = net.get_submodule("1.3").weight
        weight[(weight == 0).nonzero(as_tuple=True)[0][0]] = 0.5
    if not watched:
        monkeypatch.setattr(Compiled, "refresh", lambda self: True)
    quick.refresh()
    return both(quick, images), both(net, images), both(fast(net), images)


def test_a_weight_outside_the_pattern_makes_the_net_split_anew(monkeypatch):
    ours, theirs, anew = grown(monkeypatch, watched=True)
    assert same(ours, anew) and apart(ours[0], theirs[0]) < 1e-5
    ours, theirs, _ = grown(monkeypatch, watched=False)  # the twin
    assert apart(ours[0], theirs[0]) > 1e-2


def test_a_masked_weight_that_is_zero_for_now_keeps_its_place():
    net = build("digits-cnn").eval().requires_grad_(False)
    masks, images = masks_of(net, 0.05), torch.rand(5, *SHAPES["digits-cnn"], generator=generator())
    for weight in prunable(net).values():
        weight.zero_()
    quick, bare = fast(net, masks=masks), fast(net)
    for each in (quick, bare):
        each(images)
    before = list(quick.pieces.values()), list(bare.pieces.values())
    step(net, masks, 7)
    for each in (quick, bare):
        each.refresh()
        assert apart(each(images), net(images)) < 1e-5
    assert list(quick.pieces.values()) == before[0]
    assert list(bare.pieces.values()) != before[1]  # the twin: what is zero now is all that it left out


@pytest.mark.parametrize(("density", "kind"), [(0.05, Compiled), (0.9, Folded)])
def test_the_masks_alone_decide_what_runs_sparse(density, kind):
    net, images = build("digits-cnn").eval().requires_grad_(False), torch.rand(5, *SHAPES["digits-cnn"])
    masks = masks_of(net, density)
    for fill in (0.0, 1.0):
        for name, weight in prunable(net).items():
            weight.copy_(masks[name] * fill)
        quick = fast(net, masks=masks)
        quick(images)
        assert kinds(quick) == {kind}
    for weight in prunable(net).values():  # the twin: without masks, a net without weights is as sparse as can be
        weight.zero_()
    bare = fast(net)
    bare(images)
    assert kinds(bare) == {Compiled}


def test_a_weight_that_the_masks_leave_out_is_kept_all_the_same():
    net = sparse_net("digits-cnn", 0.1)
    nothing = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in prunable(net).items()}
    images = torch.rand(5, *SHAPES["digits-cnn"], generator=generator())
    assert same(both(fast(net, masks=nothing), images), both(fast(net), images))


def test_a_gradient_through_weights_that_were_read_anew_is_refused():
    net, images = sparse_net("digits-cnn", 0.05), torch.rand(2, 1, 8, 8).requires_grad_()
    quick = fast(net)
    logits = quick(images)
    quick.refresh()
    with pytest.raises(RuntimeError, match="read again"):
        logits.sum().backward()
    quick(images).sum().backward()


def test_a_net_that_went_back_to_training_is_refused():
    net = sparse_net("digits-cnn", 0.05)
    quick = fast(net)
    net.train()
    with pytest.raises(PrunebenchError, match="eval mode"):
        quick(torch.rand(2, 1, 8, 8))


# Dense nets, norms folded


@pytest.mark.parametrize("arch", SHAPES)
def test_a_dense_net_gives_the_same(arch):
    net = build(arch).eval().requires_grad_(False)
    stir(net)
    quick, images = fast(net), torch.rand(3, *SHAPES[arch], generator=generator())
    ours, exact = both(quick, images), both(net.double(), images.double())
    assert kinds(quick) == {Folded}
    assert apart(ours[0], exact[0]) < 1e-5
    assert (ours[1] - exact[1]).norm() < 0.05 * exact[1].norm()  # a ReLU that hangs on the last bit turns it a little
    assert ours[0].shape == exact[0].shape and ours[1].shape == exact[1].shape
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_mean += 0.1  # the twin
    assert apart(ours[0], net(images.double())) > 1e-4


@pytest.mark.parametrize(
    "net",
    [
        Residual(),
        nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.BatchNorm2d(6)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 3, (6, 7)), nn.Flatten(), nn.Linear(3, 2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 3, 3, dilation=2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
    ids=["sums", "groups and norms", "linear", "averages"],
)
def test_layers_of_every_kind_on_torch(net, monkeypatch):
    monkeypatch.setattr(executor, "DENSE_ABOVE", -1.0)
    net, images = net.eval().requires_grad_(False), torch.randn(5, 4, 6, 7, generator=generator())
    stir(net)
    quick = fast(net)
    for ours, theirs in zip(both(quick, images), both(net, images), strict=True):
        assert apart(ours, theirs) < 1e-5
    assert Folded in kinds(quick) and Compiled not in kinds(quick)
    assert torch.equal(images, torch.randn(5, 4, 6, 7, generator=generator()))  # nothing was written into them
