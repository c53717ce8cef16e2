"""The kernels for a card, interpreted: against the CPU's, against float64 and on paper. Nothing here ran on a card."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("triton")  # torch brings it on Linux
import torch
from torch import nn

from prunebench.bench.executor import Fast, card, fast
from prunebench.bench.executor.card import launches, run
from prunebench.bench.executor.card.lists import Lists
from prunebench.bench.executor.card.run import Launched, OnCard
from prunebench.bench.executor.card.tiles import Tiles, fit
from prunebench.bench.executor.folded import Folded
from prunebench.bench.executor.surrogate import Replaced, Surrogate
from tests.executor.test_executor import SHAPES, Residual, apart, both, generator, one_weight, sparse_net, stir
from tests.support.interpreted import interpreted

QUICK = (0, 1, 4, 6, 14, 17)  # seeds of layers that every run tries
CLOSE = 1e-5  # float32 against float64, relative to the largest value


@pytest.fixture(scope="module")
def wide() -> Iterator[None]:
    """Large tiles, in which the interpreter is quick."""
    with interpreted():
        yield


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets are not tried before they are used."""
    monkeypatch.setattr(Fast, "_disagreement", lambda self, pieces, shape: None)


def on_card(net: nn.Module) -> Fast:
    return fast(net.eval(), always=True)


def piece(net: Fast) -> OnCard:
    ((only,),) = net.pieces.values()
    assert isinstance(only, OnCard) and net.said == []
    return only


def small_net() -> nn.Sequential:
    """A convolution with its norm, a pool, a linear layer; half the weights are zero."""
    layers = nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    net = nn.Sequential(*layers).eval().requires_grad_(False)
    for seed, layer in enumerate((net[0], net[5])):
        layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator(seed)) < 0.5)
    stir(net)
    return net


# Any layer


def drawn(seed: int) -> tuple[nn.Sequential, torch.Tensor, dict[str, float]]:
    """A random convolution or linear layer with what follows it, images, and tiles."""
    draw = random.Random(seed)
    sizes = {"lines": draw.choice([2, 4, 16]), "parts": draw.choice([1, 4, 16]), "lanes": draw.choice([16, 64])}
    sizes |= {"unroll": draw.choice([1, 2, 4]), "shared_cost": draw.choice([0.0, 1.3, 1e9])}
    count = draw.choice([1, 2, 15, 16, 17, 33, 65])
    density = draw.choice([0.0, 0.05, 0.3, 0.7, 1.0])
    if seed % 5 == 0:
        layer: nn.Module = nn.Linear(draw.randint(1, 40), draw.randint(1, 12), bias=draw.random() < 0.5)
        images = torch.randn(count, layer.in_features, generator=generator(seed))
        net = nn.Sequential(layer, nn.ReLU())[: draw.randint(1, 2)]
    else:
        groups, kernel = draw.choice([1, 1, 2, 3]), (draw.randint(1, 4), draw.randint(1, 4))
        dilation, padding = draw.randint(1, 2), (draw.randint(0, 2), draw.randint(0, 2))
        size = [max(draw.randint(1, 6), dilation * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
        stride = draw.randint(1, 3), draw.randint(1, 3)
        ins, outs = groups * draw.randint(1, 3), groups * draw.randint(1, 4)
        layer = nn.Conv2d(ins, outs, kernel, stride, padding, dilation, groups, bias=draw.random() < 0.5)
        images = torch.randn(count, ins, *size, generator=generator(seed))
        net = nn.Sequential(layer, nn.BatchNorm2d(outs), nn.ReLU())[: draw.randint(1, 3)]
    net.eval().requires_grad_(False)
    layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator(seed)) < density)
    stir(net)
    return net, images, sizes


def compare(seed: int) -> None:
    net, images, sizes = drawn(seed)
    cpu = both(fast(net, always=True), images)
    with interpreted(**sizes):
        ours = both(on_card(net), images)
    exact = both(net.double(), images.double())
    for got, theirs, true in zip(ours, cpu, exact, strict=True):
        assert got.dtype == torch.float32 and got.shape == true.shape
        assert (got - theirs).abs().max() <= CLOSE * true.abs().max().clamp(min=1)
        assert (got - true).abs().max() <= CLOSE * true.abs().max().clamp(min=1)


@pytest.mark.parametrize("seed", QUICK)
def test_any_layer_gives_the_same(seed, unchecked):
    compare(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [seed for seed in range(56) if seed not in QUICK])
def test_fifty_more_layers_give_the_same(seed, unchecked):
    compare(seed)


# The architectures


def check_net(arch: str, density: float, images: int) -> None:
    net, batch = sparse_net(arch, density), torch.rand(images, *SHAPES[arch], generator=generator())
    quick = on_card(net)
    ours = both(quick, batch)
    assert isinstance(piece(quick), OnCard)  # the whole net is one piece
    exact = both(net.double(), batch.double())
    assert apart(ours[0], exact[0]) < CLOSE
    worst = (ours[1] - exact[1]).abs().flatten(1).amax(1) / exact[1].abs().max().clamp(min=1e-9)
    assert (worst < CLOSE).sum() >= images - 1  # a ReLU may hang on the last bit


def test_digits_cnn_gives_the_same(wide, unchecked):
    check_net("digits-cnn", 0.05, 17)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "density", "images"),
    [
        ("digits-cnn", 0.0, 3),
        ("digits-cnn", 1.0, 33),
        ("mnist-cnn", 0.05, 2),
        ("mnist-cnn", 0.5, 17),
        ("resnet-small", 0.1, 17),
        ("resnet-small", 0.9, 2),
        ("resnet18", 0.01, 2),
        ("vgg16-bn", 0.01, 2),
    ],
)
def test_every_architecture_gives_the_same(arch, density, images, wide, unchecked):
    check_net(arch, density, images)


# On paper


def test_a_convolution_with_one_weight_moves_the_image(wide, unchecked):
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    up_left = on_card(one_weight(0, 0, padding=1))
    assert up_left(image)[0, 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    assert both(up_left, image)[1][0, 0, 2].tolist() == [0, 0, 0]  # nobody reads the last row
    strided = on_card(one_weight(1, 1, padding=1, stride=2))
    wide_image = torch.arange(1.0, 17.0).view(1, 1, 4, 4).requires_grad_()
    made = strided(wide_image)
    assert made[0, 0].tolist() == [[1, 3], [9, 11]]
    made.sum().backward()
    assert wide_image.grad[0, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_a_pool_hands_the_gradient_to_the_first_of_equals(wide, unchecked):
    image = torch.tensor([[1.0, 5.0], [5.0, 2.0]]).view(1, 1, 2, 2).requires_grad_()
    on_card(nn.Sequential(one_weight(1, 1, padding=1), nn.MaxPool2d(2)))(image).sum().backward()
    assert image.grad[0, 0].tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("leak", [0.0, 0.3])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2), nn.MaxPool2d(2), nn.MaxPool2d(2, 3), nn.AvgPool2d(3, 2)])
def test_pools(pool, leak, wide, unchecked):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), pool, nn.Flatten()).requires_grad_(False)
    images = torch.randn(3, 2, 9, 9, generator=generator())
    ours = both(fast(net.eval(), always=True, leak=leak), images)
    with Replaced(Surrogate(leak)):
        theirs = both(net, images)
    assert apart(ours[0], theirs[0]) < CLOSE and apart(ours[1], theirs[1]) < CLOSE


def test_sums_of_every_kind(wide, unchecked):
    net, images = Residual().requires_grad_(False), torch.randn(5, 4, 6, 7, generator=generator())
    for ours, theirs in zip(both(on_card(net), images), both(net, images), strict=True):
        assert apart(ours, theirs) < CLOSE


def test_an_image_that_is_no_number_stays_alone(wide, unchecked):
    """The next images are its neighbours in memory; the next batch is smaller and finds other buffers."""
    quick, images = on_card(small_net()), torch.rand(17, 1, 5, 5, generator=generator())
    before, broken = both(quick, images), images.clone()
    broken[5, 0, 3, 4] = torch.nan
    others, ours = torch.arange(17) != 5, both(quick, broken)
    assert ours[0][5].isnan().any()
    for got, clean in zip(ours, before, strict=True):
        assert torch.equal(got[others], clean[others])
    few = both(quick, images[:3])
    assert torch.equal(few[0], before[0][:3])
    for got, clean in zip(both(quick, images), before, strict=True):
        assert torch.equal(got, clean)


# Weights that change


def test_weights_are_read_again(wide, unchecked):
    net = small_net()
    quick, images = on_card(net), torch.rand(5, 1, 5, 5, generator=generator())
    stale, known = both(quick, images), piece(quick)
    for parameter in net.parameters():
        parameter.mul_(0.9)
    assert torch.equal(quick(images), stale[0])  # the twin: until it is told, it knows the old weights
    quick.refresh()
    for ours, anew in zip(both(quick, images), both(on_card(net), images), strict=True):
        assert torch.equal(ours, anew)
    assert piece(quick) is known and apart(quick(images), net(images)) < CLOSE
    weight = net[0].weight
    weight[(weight == 0).nonzero(as_tuple=True)[0][0]] = 0.5  # outside the pattern
    quick.refresh()
    assert apart(quick(images), net(images)) < CLOSE and piece(quick) is not known


def test_a_gradient_of_weights_that_are_gone_is_refused(wide, unchecked):
    quick, images = on_card(one_weight(1, 1, padding=1)), torch.rand(2, 1, 3, 3).requires_grad_()
    made = quick(images)
    quick.refresh()
    with pytest.raises(RuntimeError, match="read again"):
        made.sum().backward()


# What is chosen, and what is said


def test_a_sparse_net_takes_the_kernels_and_a_dense_one_runs_unchanged(wide, unchecked):
    sparse, dense = fast(sparse_net("digits-cnn", 0.02)), fast(sparse_net("digits-cnn", 1.0))
    assert sparse.differs((1, 8, 8)) and sparse.bits((1, 8, 8)) == card.identity() != "none"
    assert not dense.differs((1, 8, 8)) and dense.bits((1, 8, 8)) == "plain"
    assert not any(isinstance(each, Folded) for pieces in (sparse, dense) for each in pieces.pieces[1, 8, 8] or ())


class Sine(nn.Module):
    def forward(self, images):
        return images.sin()


def test_what_the_kernels_do_not_know_runs_on_torch_and_is_named(wide):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Sine(), nn.Conv2d(4, 2, 3)).requires_grad_(False)
    quick, images = on_card(net), torch.rand(4, 1, 7, 7)
    for ours, theirs in zip(both(quick, images), both(net, images), strict=True):
        assert apart(ours, theirs) < CLOSE
    assert quick.said == ["A part of the net runs dense: sin."]


def test_more_images_than_offsets_can_count_run_in_parts(wide, unchecked, monkeypatch):
    """Offsets are 32 bits wide. With room for 32 images of the largest value, 70 run as 32, 32 and 6, to the same bits.

    The twin is a run that drops what is saved for a part.
    """
    net = small_net()
    quick, images = on_card(net), torch.rand(70, 1, 5, 5, generator=generator())
    whole, parts = both(quick, images), []
    assert piece(quick)._largest == max(program.largest for program in piece(quick).programs)
    real = Launched.run

    def counted(program, values, shapes, saved):
        parts.append((len(values[0]), None if saved is None else len(saved)))
        return real(program, values, shapes, saved)

    monkeypatch.setattr(Launched, "run", counted)
    monkeypatch.setattr(run, "_LARGEST", 47 * piece(quick)._largest)  # two whole groups of 16
    for got, expected in zip(both(quick, images), whole, strict=True):
        assert torch.equal(got, expected)
    size = piece(quick)._pixels
    assert parts == [(32, 32 * size), (32, 32 * size), (6, 16 * size)] * 2
    assert torch.equal(quick(images[:32]), whole[0][:32]) and parts[6:] == [(32, None)]
    monkeypatch.setattr(Launched, "run", lambda it, values, shapes, saved: real(it, values, shapes, saved.zero_()))
    assert not torch.equal(both(quick, images)[1], whole[1])


def test_a_net_with_a_value_too_large_for_one_group_of_images_runs_dense(wide, monkeypatch):
    """A frame of one pixel around 8 x 8: 100 pixels, of which 16 images are 1,600."""
    for largest, said in ((1600, []), (1599, ["A value of 100 pixels per image is too large"])):
        monkeypatch.setattr(run, "_LARGEST", largest)
        quick = on_card(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)).requires_grad_(False))
        quick(torch.rand(1, 1, 8, 8))
        assert len(quick.said) == len(said) and all(part in quick.said[0] for part in said)


# Twins: faults that the look before the first use has to find


def moved(lists: Lists) -> None:
    lists.offsets[0] += 1


def dropped(lists: Lists) -> None:
    lists.taps[lists.taps >= 0] = -1


def swapped(lists: Lists) -> None:
    lists.taps[:] = np.roll(lists.taps, 1)


@pytest.mark.parametrize(
    ("fault", "programs", "said"),
    [
        (moved, (0, 1), "their logits are off"),
        (dropped, (0,), "their logits are off"),
        (moved, (1,), "their gradients are off"),
        (dropped, (1,), "their gradients are off"),
        (swapped, (1,), "their gradients are off"),
        (None, (), None),
    ],
)
def test_a_fault_in_the_kernels_is_found_before_they_are_used(fault, programs, said, wide, monkeypatch):
    real, made = launches.pack, []

    def pack(*given):
        lists = real(*given)
        made.append(None)
        if fault and (len(made) > 1) in programs:  # a convolution each way: first the outputs', then the gradient's
            fault(lists)
        return lists

    monkeypatch.setattr(launches, "pack", pack)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1)).requires_grad_(False)
    quick, images = on_card(net), torch.rand(3, 1, 5, 5)
    ours, theirs = both(quick, images), both(net, images)
    if said is None:
        assert piece(quick) and apart(ours[0], theirs[0]) < CLOSE
        return
    assert said in quick.said[0] and not quick.differs((1, 5, 5))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_kernels_that_do_not_run_are_not_used(wide, monkeypatch):
    def refuses(*given, **options):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(launches.Convolution, "run", refuses)
    net, images = one_weight(1, 1, padding=1), torch.rand(2, 1, 3, 3)
    quick = on_card(net)
    assert torch.equal(quick(images), net(images))
    assert "cannot be run (RuntimeError: no kernel image is available)" in quick.said[0]


# Tiles


@pytest.mark.parametrize(
    ("extent", "images", "tile"),
    [
        ((32, 32), 256, (32, 4, 4, 4, 128)),  # 512 sums: 32 images of 16 pixels
        ((4, 4), 48, (16, 4, 4, 2, 128)),  # 16 is the largest power of two that divides 48
        ((1, 1), 256, (256, 1, 1, 2, 128)),  # a linear layer: all images
        ((1, 1), 16, (16, 1, 1, 1, 16)),
        ((1, 9), 16, (16, 1, 16, 2, 128)),
    ],
)
def test_the_tile_that_fits(extent, images, tile):
    found = fit(Tiles(), extent, images)
    assert (found.images, found.rows, found.cols, found.parts, found.lanes) == tile
    count, across = found.grid(extent, images)
    assert across * found.cols >= extent[1] and count == -(-extent[0] // tile[1]) * across * images // tile[0]
