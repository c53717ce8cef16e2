"""Sparse nets run faster and give the same: against the dense net, on paper, and where something is missing."""

from __future__ import annotations

import ctypes
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.executor import Fast, fast, multiplications, native, packing
from prunebench.bench.executor.compiled import Compiled
from prunebench.bench.mask import draw, erk, rescaled
from prunebench.bench.models import build, prunable

SHAPES = {
    "digits-cnn": (1, 8, 8),
    "mnist-cnn": (1, 28, 28),
    "resnet-small": (3, 32, 32),
    "resnet18": (3, 32, 32),
    "vgg16-bn": (3, 32, 32),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sparse_net(arch: str, density: float) -> nn.Module:
    """A net at random ERK masks, its norms with statistics that matter, in eval mode and frozen."""
    net = build(arch).eval().requires_grad_(False)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    keep = round(density * sum(weight.numel() for weight in prunable(net).values()))
    net.load_state_dict(rescaled(net.state_dict(), draw(shapes, erk(shapes, keep), generator(1))))
    stir(net)
    return net


def stir(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator(2)))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator(3)))
            module.weight.data.copy_(0.5 + torch.rand(module.num_features, generator=generator(4)))
            module.bias.data.copy_(0.1 * torch.randn(module.num_features, generator=generator(5)))


def sparsely(net: nn.Module) -> Fast:
    """The net on our kernels throughout, whatever its density."""
    found = fast(net.eval(), always=True)
    assert not found.said
    return found


def both(net, images: torch.Tensor, seed: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and the input gradient for a random direction."""
    images = images.clone().requires_grad_()
    outputs = net(images)
    direction = torch.randn(outputs.shape, generator=generator(seed)).to(outputs.dtype)
    (gradient,) = torch.autograd.grad(outputs, images, direction)
    return outputs.detach(), gradient


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest error relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-9))


# The architectures


@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("arch", ["digits-cnn", "mnist-cnn", "resnet-small"])
def test_small_nets_give_the_same(arch, density):
    net = sparse_net(arch, density)
    images = torch.rand(17, *SHAPES[arch], generator=generator())
    check_net(net, images)


@pytest.mark.parametrize(
    ("arch", "density"), [("resnet18", 0.1), pytest.param("resnet18", 0.01, marks=pytest.mark.slow), ("vgg16-bn", 0.05)]
)
def test_large_nets_give_the_same(arch, density):
    check_net(sparse_net(arch, density), torch.rand(3, *SHAPES[arch], generator=generator()))


def check_net(net: nn.Module, images: torch.Tensor) -> None:
    """Against the dense net in float64: an image whose ReLU hangs on the last bit may have another gradient."""
    ours = both(sparsely(net), images)
    exact = both(net.double(), images.double())
    assert apart(ours[0], exact[0]) < 1e-5
    worst = (ours[1] - exact[1]).abs().flatten(1).amax(1) / exact[1].abs().max().clamp(min=1e-9)
    assert (worst < 1e-5).sum() >= len(images) - 1
    assert ours[0].shape == exact[0].shape
    assert ours[1].shape == exact[1].shape


@pytest.mark.parametrize("images", [1, 2, 15, 16, 17, 33])
def test_any_batch_gives_each_image_what_it_gets_alone(images):
    net = sparsely(sparse_net("digits-cnn", 0.1))
    batch = torch.rand(images, 1, 8, 8, generator=generator())
    alone = torch.cat([net(image) for image in batch.split(1)])
    assert torch.equal(net(batch), alone)


@pytest.mark.parametrize("arch", ["digits-cnn", "mnist-cnn"])
def test_no_image_depends_on_its_neighbours(arch):
    """Logits and gradients are the same bits in any order, in any batch, and beside an image that is no number."""
    net, images = sparsely(sparse_net(arch, 0.05)), torch.rand(37, *SHAPES[arch], generator=generator())
    directions = torch.randn(37, 10, generator=generator(7))

    def answers(index: list[int], beside: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        part = images[index] if beside is None else torch.cat([images[index], beside])
        part = part.clone().requires_grad_()
        logits = net(part)[: len(index)]
        (gradient,) = torch.autograd.grad(logits, part, directions[index])
        return logits.detach(), gradient[: len(index)]

    whole, order = answers(list(range(37))), torch.randperm(37, generator=generator(8)).tolist()
    assert not torch.equal(whole[0][order], whole[0])
    nothing = torch.full((1, *SHAPES[arch]), torch.nan)
    for index, beside in ((order, None), (order[:20], None), (order[:1], None), ([5, 36, 0], nothing)):
        for ours, theirs in zip(answers(index, beside), whole, strict=True):
            assert torch.equal(ours, theirs[index])


def test_no_images_give_no_logits():
    assert sparsely(sparse_net("digits-cnn", 0.1))(torch.zeros(0, 1, 8, 8)).shape == (0, 10)


# Layers whose answer is known on paper


def one_weight(row: int, col: int, **options) -> nn.Sequential:
    """A net of a 3x3 convolution that hands on one neighbour of each pixel."""
    conv = nn.Conv2d(1, 1, 3, bias=False, **options).requires_grad_(False)
    conv.weight.zero_()
    conv.weight[0, 0, row, col] = 1.0
    return nn.Sequential(conv)


def test_a_convolution_with_one_weight_moves_the_image():
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    up_left = sparsely(one_weight(0, 0, padding=1))
    assert up_left(image)[0, 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    assert not up_left.said  # it ran on the kernels
    assert both(up_left, image)[1][0, 0, 2].tolist() == [0, 0, 0]  # nobody reads the last row
    down_right = sparsely(one_weight(2, 2, padding=1))
    assert down_right(image)[0, 0].tolist() == [[5, 6, 0], [8, 9, 0], [0, 0, 0]]


def test_a_stride_reads_every_second_pixel():
    image = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    net = sparsely(one_weight(1, 1, padding=1, stride=2))
    assert net(image)[0, 0].tolist() == [[1, 3], [9, 11]]
    image.requires_grad_()
    net(image).sum().backward()
    assert image.grad[0, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_a_wrong_offset_is_seen():
    """The twin of all comparisons: one weight a place further, and the answer differs."""
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    assert apart(sparsely(one_weight(0, 1, padding=1))(image), one_weight(0, 0, padding=1)(image)) > 0.1


def test_a_layer_without_weights_gives_its_bias():
    conv = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    conv.weight.zero_()
    conv.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    outputs, gradient = both(sparsely(nn.Sequential(conv, nn.ReLU())), torch.rand(1, 2, 5, 5))
    assert outputs.amax((0, 2, 3)).tolist() == outputs.amin((0, 2, 3)).tolist() == [1.0, 0.0, 3.0]
    assert not gradient.any()


def test_a_pool_hands_the_gradient_to_the_first_of_equals():
    image = torch.tensor([[1.0, 5.0], [5.0, 2.0]]).view(1, 1, 2, 2).requires_grad_()
    sparsely(nn.Sequential(one_weight(1, 1, padding=1), nn.MaxPool2d(2)))(image).sum().backward()
    assert image.grad[0, 0].tolist() == [[0, 1], [0, 0]]


class Residual(nn.Module):
    """Sums of every kind: of what a convolution made, of what was read already, of a thing and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, images):
        once = self.first(images).relu()
        twice = torch.relu(self.second(once) + once)
        thrice = twice + images
        return (thrice + thrice) + once


def test_sums_of_every_kind():
    net = Residual().requires_grad_(False)
    images = torch.randn(5, 4, 6, 7, generator=generator())
    for ours, theirs in zip(both(sparsely(net), images), both(net, images), strict=True):
        assert apart(ours, theirs) < 1e-5


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_convolution_gives_the_same(data):
    """Kernel, stride, padding, dilation, groups, odd sizes, batches and densities; forward and input gradient."""
    draw_int = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kernel, groups = (draw_int(1, 4), draw_int(1, 4)), data.draw(st.sampled_from([1, 1, 2, 3]))
    dilation, padding = draw_int(1, 2), (draw_int(0, 3), draw_int(0, 3))
    size = [max(draw_int(1, 19), dilation * (kernel[axis] - 1) + 1 - 2 * padding[axis]) for axis in (0, 1)]
    conv = nn.Conv2d(
        groups * draw_int(1, 3),
        groups * draw_int(1, 5),
        kernel,
        (draw_int(1, 3), draw_int(1, 3)),
        padding,
        dilation,
        groups,
        bias=data.draw(st.booleans()),
    ).requires_grad_(False)
    density = data.draw(st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0]))
    conv.weight.mul_(torch.rand(conv.weight.shape, generator=generator(draw_int(0, 99))) < density)
    images = torch.randn(draw_int(1, 18), conv.in_channels, *size, generator=generator())
    layers = [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()][: draw_int(1, 3)]
    net = nn.Sequential(*layers).eval().requires_grad_(False)
    stir(net)
    ours, theirs = both(sparsely(net), images), both(net.double(), images.double())
    scale = theirs[0].abs().max().clamp(min=1)
    assert (ours[0] - theirs[0]).abs().max() / scale < 1e-5
    if len(layers) < 3:
        assert (ours[1] - theirs[1]).abs().max() / theirs[1].abs().max().clamp(min=1) < 1e-5


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2), nn.MaxPool2d(2), nn.AvgPool2d(3, 2), nn.AdaptiveAvgPool2d(3)])
def test_pools(pool):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), pool, nn.Flatten()).requires_grad_(False)
    images = torch.randn(3, 2, 9, 9, generator=generator())
    for ours, theirs in zip(both(sparsely(net), images), both(net, images), strict=True):
        assert apart(ours, theirs) < 1e-5


def test_images_in_another_order_of_memory():
    net = sparsely(sparse_net("resnet18", 0.01))
    images = torch.rand(2, 3, 32, 32, generator=generator())
    assert torch.equal(net(images.to(memory_format=torch.channels_last)), net(images))


# Images and gradients of another kind

DIGITS = torch.rand(20, 1, 8, 8, generator=generator())


@pytest.fixture(scope="module")
def digits() -> Fast:
    return sparsely(sparse_net("digits-cnn", 0.1))


@pytest.mark.parametrize(
    "images",
    [
        DIGITS[:17],
        DIGITS.flip(0)[3:],
        DIGITS.transpose(2, 3).contiguous().transpose(2, 3),
        DIGITS.to(memory_format=torch.channels_last)[::2],
        DIGITS[:1].expand(19, -1, -1, -1),
        torch.rand(20, 3, 9, 16, generator=generator())[:, 1:2, 1:, ::2],
        torch.rand(20, 1, 8, 8, generator=generator()).requires_grad_()[2:],
    ],
)
def test_a_view_of_images_gives_what_its_copy_gives(digits, images):
    ours, copy = images, images.detach().clone(memory_format=torch.contiguous_format)
    for got, wanted in zip(both(digits, ours.detach()), both(digits, copy), strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(digits(ours), digits(copy))


def test_a_gradient_reaches_the_leaf_behind_a_view(digits):
    leaf = DIGITS.clone().requires_grad_()
    digits(leaf[2:].transpose(2, 3)).sum().backward()
    copy = DIGITS[2:].transpose(2, 3).clone().requires_grad_()
    digits(copy).sum().backward()
    assert not leaf.grad[:2].any()
    assert torch.equal(leaf.grad[2:].transpose(2, 3), copy.grad)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 1, 9, 9), (3, 1, 1, 1), (3, 0, 8, 8), (3, 64)])
def test_images_of_another_shape_are_refused(digits, shape):
    with pytest.raises(PrunebenchError, match=f"does not take images of the shape .{', '.join(map(str, shape[1:]))}"):
        digits(torch.rand(shape))
    assert torch.isfinite(digits(DIGITS)).all()


@pytest.mark.parametrize("shape", [(), (8,), (1, 8, 8), (1, 1, 1, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(digits, shape):
    with pytest.raises(PrunebenchError, match=r"takes images \(n, c, h, w\)"):
        digits(torch.rand(shape))


def test_another_size_that_the_net_takes_is_split_on_its_own():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).requires_grad_(False)
    quick = sparsely(net)
    for size in ((9, 9), (5, 11), (9, 9), (30, 2)):
        images = torch.rand(3, 2, *size, generator=generator())
        assert apart(quick(images), net(images)) < 1e-5
    assert sorted(quick.pieces) == [(2, 5, 11), (2, 9, 9), (2, 30, 2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_another_type_are_the_nets_own_affair(dtype):
    net = sparse_net("digits-cnn", 0.1)
    quick, images = sparsely(net), DIGITS.to(dtype)
    if dtype == torch.float64:
        with pytest.raises(RuntimeError, match="type"):
            quick(images)
        net.double()
    assert torch.equal(quick(images), net(images))
    assert not quick.pieces


def test_no_images_have_no_gradient(digits):
    images = torch.zeros(0, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(digits(images).sum(), images)
    assert gradient.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("arch", ["digits-cnn", "mnist-cnn"])
def test_an_image_that_is_no_number_stays_alone(arch, value):
    """Its logits are numbers where the dense net's are; nobody's beside it or after it changes."""
    net = sparse_net(arch, 1.0)
    quick, images = sparsely(net), torch.rand(20, *SHAPES[arch], generator=generator())
    before, broken = both(quick, images), images.clone()
    broken[5, 0, 3, 4] = value
    ours, theirs = both(quick, broken), both(net, broken)
    others = torch.arange(20) != 5
    for got, wanted, clean in zip(ours, theirs, before, strict=True):
        assert torch.equal(got[others], clean[others])
        assert torch.equal(got.isfinite(), wanted.isfinite())
    if value != value:
        assert ours[0][5].isnan().all()
    for got, clean in zip(both(quick, images), before, strict=True):
        assert torch.equal(got, clean)


def test_a_gradient_of_the_outputs_may_lie_anyhow_in_memory(digits):
    images = DIGITS.clone().requires_grad_()
    wide = torch.randn(40, 20, generator=generator())
    for direction in (wide[::2, ::2], wide[:10].t(), wide[:1, :1].expand(20, 10), wide[0, :10].expand(20, 10)):
        (got,) = torch.autograd.grad(digits(images), images, direction)
        (wanted,) = torch.autograd.grad(digits(images), images, direction.clone(memory_format=torch.contiguous_format))
        assert torch.equal(got, wanted)
    (got,) = torch.autograd.grad(digits(images).double(), images, wide[:20, :10].double())
    (wanted,) = torch.autograd.grad(digits(images), images, wide[:20, :10])
    assert torch.equal(got, wanted)


def test_gradients_of_another_shape_are_refused():
    digits, images = sparsely(sparse_net("digits-cnn", 0.1)), DIGITS.clone().requires_grad_()
    for shape in ((20, 11), (19, 10), (33, 10), (10,)):
        with pytest.raises(RuntimeError, match="shape"):
            torch.autograd.grad(digits(images), images, torch.ones(shape))
    piece = compiled(digits)
    outputs, saved = piece.forward((DIGITS,), save=True)
    assert saved is not None
    for shape in ((20, 11), (20, 10, 1), (20, 9)):
        with pytest.raises(PrunebenchError, match="A value has the shape"):
            piece.backward((torch.ones(shape),), saved)
    with pytest.raises(PrunebenchError, match="gradients are for 33 images"):
        piece.backward((torch.ones(33, 10),), saved)
    assert outputs[0].shape == (20, 10)


class Learned(nn.Module):
    """Adds the same picture to every image: a tensor of one row that is not a row an image."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.conv, self.picture = nn.Conv2d(1, 2, 3, padding=1), nn.Parameter(torch.rand(rows, 2, 8, 8))

    def forward(self, images):
        return self.conv(images).relu() + self.picture


class Mixed(nn.Module):
    """All images become one row, and then a row each again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, images):
        made = self.conv(images).relu()
        mixed = made.view(1, -1, 8, 8).relu()
        return mixed.view(-1, 2, 8, 8) + made.mean(0, keepdim=True)


def test_what_is_not_a_row_an_image_runs_dense():
    for net in (Learned(1), Mixed()):
        net, quick = net.eval().requires_grad_(False), fast(net, always=True)
        for images in (DIGITS, DIGITS[:1], DIGITS[:2]):
            for ours, theirs in zip(both(quick, images), both(net, images), strict=True):
                assert apart(ours, theirs) < 1e-5
        assert any("runs dense" in sentence for sentence in quick.said)


def test_rows_that_only_seem_to_be_images_are_refused_and_never_read_past():
    """Two rows, as many as the images that showed the shapes."""
    net = Learned(2).eval().requires_grad_(False)
    quick = fast(net, always=True)
    assert apart(quick(DIGITS[:2]), net(DIGITS[:2])) < 1e-5
    with pytest.raises(PrunebenchError, match=r"has the shape \(2, 2, 8, 8\) where the plan has \(20, 2, 8, 8\)"):
        quick(DIGITS)


def test_images_that_the_kernels_cannot_count_through_are_refused():
    taps = np.array([[0, 0, 0, 0], [0, 1, 0, 0]])
    phase = packing.Phase((0, 0), (1, 1), (1, 1), (1, 1), taps, np.arange(2))
    for pitch, fits in ((2**31 - 2, True), (2**31 - 1, False)):
        if fits:
            assert packing.pack(phase, np.array([pitch, 16, 16]), 1).entries["offset"].max() == pitch
        else:
            with pytest.raises(PrunebenchError, match="too large for the sparse kernels"):
                packing.pack(phase, np.array([pitch, 16, 16]), 1)


# Threads


@pytest.mark.parametrize("team", ["torch's", "none", "of one"])
@pytest.mark.parametrize("arch", ["mnist-cnn", "resnet-small"])
def test_the_number_of_threads_changes_no_bit(arch, team, monkeypatch, one_alone):
    """On torch's threads, on our own and where fewer come than were called; in groups they share and in others."""
    monkeypatch.setattr(native, "ENOUGH", 1)
    if team != "torch's":
        monkeypatch.setattr(native, "team", lambda: None if team == "none" else one_alone.address)
    elif sys.platform == "linux":
        assert native.team() is not None, "premise"
    net, batch = sparsely(sparse_net(arch, 0.05)), torch.rand(70, *SHAPES[arch], generator=generator())
    for images in (1, 5, 16, 17, 33, 70):
        results = [on_threads(threads, net, batch[:images]) for threads in (1, 2, 3, 5)]
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)), images


def on_threads(threads: int, net: Fast, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and a gradient by that number of threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        return both(net, images)
    finally:
        torch.set_num_threads(before)


class OneAlone:
    """A team in which nobody comes but the one who calls; `calls` counts how often it was called."""

    def __init__(self) -> None:
        self.calls = 0
        work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._called = ctypes.CFUNCTYPE(None, work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(self._call)
        self.address = ctypes.cast(self._called, ctypes.c_void_p).value

    def _call(self, work, data, threads, flags) -> None:
        self.calls += 1
        work(data)


@pytest.fixture
def one_alone() -> OneAlone:
    return OneAlone()


# A group of 16 images is shared where half of the threads or more would have no group of their own, and where there is
# enough to do.
@pytest.mark.parametrize(
    ("images", "threads", "enough", "together"),
    [
        (1, 1, 1, False),
        (1, 2, 1, True),
        (16, 2, 1, True),
        (16, 2, 1 << 60, False),
        (17, 2, 1 << 60, True),  # two groups
        (48, 2, 1, True),
    ],
)
def test_threads_share_a_group_where_there_is_enough_to_do(images, threads, enough, together, monkeypatch, one_alone):
    monkeypatch.setattr(native, "ENOUGH", enough)
    monkeypatch.setattr(native, "team", lambda: one_alone.address)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    net = sparsely(sparse_net("digits-cnn", 0.1))
    net(torch.rand(images, 1, 8, 8, generator=generator()))
    assert one_alone.calls == together


def compiled(net: Fast) -> Compiled:
    """The piece that runs on the kernels."""
    (pieces,) = net.pieces.values()
    (piece,) = (piece for piece in pieces or () if isinstance(piece, Compiled))
    return piece


def blocks(net: Fast) -> set[int]:
    """Into how many blocks the net's convolutions take their input channels."""
    return {instruction.blocks for program in compiled(net).programs for instruction in program.instructions} - {0}


@pytest.mark.parametrize("size", [8, 10, 13])
def test_blocks_of_input_channels_change_no_bit(monkeypatch, size):
    """Sums are put down and taken up again, in flat tiles and square ones, whole and cut off."""
    net = nn.Sequential(nn.Conv2d(7, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 5, 3, stride=2, padding=1))
    images, found = torch.rand(5, 7, size, size, generator=generator()), []
    for window in (1, 1 << 30):
        monkeypatch.setattr(packing, "WINDOW", window)
        monkeypatch.setattr(packing, "PAUSE", 0.0)
        monkeypatch.setattr(packing, "FOUR", 1e9)
        quick = sparsely(net.requires_grad_(False))
        found.append((*both(quick, images), blocks(quick)))
    assert found[0][2] == {5, 7, 9}
    assert found[1][2] == {1}
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_several_python_threads_at_once():
    net = sparsely(sparse_net("digits-cnn", 0.1))
    batches = [torch.rand(40, 1, 8, 8, generator=generator(seed)) for seed in range(16)]
    alone = [both(net, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: both(net, batch), batches))
    assert all(torch.equal(a, b) for x, y in zip(alone, together, strict=True) for a, b in zip(x, y, strict=True))


# What the kernels do not know


class Odd(nn.Module):
    def forward(self, images):
        return images.sin()


class Winding(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_an_unknown_layer_runs_dense_and_is_named_once():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Odd(), nn.Conv2d(4, 2, 3), Odd(), nn.Flatten()).requires_grad_(False)
    images, quick = torch.rand(4, 1, 9, 9), fast(net.eval(), always=True)
    assert not fast(Odd().eval(), always=True).differs((1, 9, 9))  # no kernel at all: the net as it is
    for ours, theirs in zip(both(quick, images), both(net, images), strict=True):
        assert apart(ours, theirs) < 1e-5
    quick(images)
    assert quick.said == ["A part of the net runs dense: sin."]


def test_a_net_that_cannot_be_read_runs_dense():
    quick = fast(Winding().eval())
    assert quick(-torch.ones(1, 1)).tolist() == [[1.0]]
    assert len(quick.said) == 1
    assert "cannot be read" in quick.said[0]


@pytest.mark.parametrize(
    "over", [nn.ReLU(inplace=True), partial(F.relu, inplace=True), lambda x: F.relu(x, True), torch.relu_]
)
def test_a_layer_that_writes_over_what_others_read_runs_dense(over):
    class Over(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 1, 1), over

        def forward(self, images):
            first = self.conv(images)
            return self.relu(first) + first

    net, images = Over().eval().requires_grad_(False), torch.randn(3, 1, 2, 2)
    quick = fast(net, always=True)
    assert torch.equal(quick(images), net(images))
    assert "overwritten" in quick.said[0]


def test_training_mode_is_refused():
    half = build("digits-cnn").eval()
    next(module for module in half.modules() if isinstance(module, nn.BatchNorm2d)).train()
    for net in (build("digits-cnn").train(), half):
        with pytest.raises(PrunebenchError, match="eval mode"):
            fast(net)


def test_batches_of_any_size_share_one_arena_a_program(monkeypatch):
    """An attack's batch shrinks through every size; on three threads 1, 2 and 3 of them have work."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    net = sparsely(sparse_net("digits-cnn", 0.1))
    for images in (48, 32, 16, 1):
        both(net, torch.rand(images, 1, 8, 8, generator=generator()))
    ((compiled,),) = net.pieces.values()
    assert [len(idle) for idle in compiled._idle.values()] == [1, 1]  # forward and backward


@pytest.mark.parametrize(
    ("arch", "density", "sparse"),
    [
        ("mnist-cnn", 1.0, False),
        ("mnist-cnn", 0.02, True),
        ("digits-cnn", 1.0, True),
        ("resnet-small", 1.0, True),
        ("resnet-small", 0.05, True),
    ],
)
def test_a_dense_net_runs_dense_and_a_sparse_or_small_one_on_the_kernels(arch, density, sparse):
    images = torch.rand(2, *SHAPES[arch])
    quick = fast(sparse_net(arch, density))
    quick(images)
    assert any(isinstance(piece, Compiled) for pieces in quick.pieces.values() for piece in pieces or ()) == sparse
    assert quick.differs(images.shape[1:])  # kernels, or norms folded


@pytest.mark.parametrize("density", [0.05, 1.0])
def test_resnet_small_is_one_piece_on_the_kernels(density):
    """Its blocks add their input again, and its last pooling averages what is left of the image."""
    quick = fast(sparse_net("resnet-small", density))
    quick(torch.rand(2, *SHAPES["resnet-small"]))
    ((piece,),) = quick.pieces.values()
    assert isinstance(piece, Compiled)
    assert quick.said == []


def test_multiplications_on_paper():
    """digits-cnn on 8x8: 9 x 16 at 64 pixels, 16 x 9 x 32 at 16, 512 x 64, 64 x 10; 2, 3, 5 and 7 are left."""
    net = build("digits-cnn").eval().requires_grad_(False)
    for weight, count in zip(prunable(net).values(), (2, 3, 5, 7), strict=True):
        weight.view(-1)[count:] = 0
    quick = fast(net)
    quick(torch.rand(1, *SHAPES["digits-cnn"]))
    left, whole = multiplications(quick._graph, quick._pattern)
    assert whole == 9 * 16 * 64 + 16 * 9 * 32 * 16 + 512 * 64 + 64 * 10
    assert left == 2 * 64 + 3 * 16 + 5 + 7


# The compiler and its cache


@pytest.fixture
def small_source(monkeypatch, tmp_path):
    """Kernels that do nothing and compile in no time."""
    source = tmp_path / "small.cpp"
    source.write_text(
        f'extern "C" {{ long long instruction_bytes() {{ return {ctypes.sizeof(native.Instruction)}; }}'
        " long long lanes() { return 4; } void execute() {} }"
    )
    monkeypatch.setattr(native, "SOURCE", source)
    return source


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_without_a_compiler_the_net_runs_dense_and_says_so(monkeypatch, empty_cache):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    net = sparse_net("digits-cnn", 0.1)
    quick, images = fast(net), torch.rand(3, 1, 8, 8)
    assert torch.equal(quick(images), net(images))
    assert "no C++ compiler" in quick.said[0]
    assert "no C++ compiler" in native.explain()
    assert native.identity() == "none"


def test_a_compiler_that_fails_is_told(monkeypatch, empty_cache, tmp_path):
    monkeypatch.setattr(native, "SOURCE", tmp_path / "broken.cpp")
    native.SOURCE.write_text("int x = ;")
    assert "refuses the kernels" in native.explain()
    assert native.identity() == "none"


def test_with_a_compiler_it_says_how_wide_and_what_decides_the_bits(monkeypatch, tmp_path):
    before = native.explain()
    assert "floats wide" in before
    assert fast(sparse_net("digits-cnn", 0.02)).bits(SHAPES["digits-cnn"]) == before
    assert fast(sparse_net("mnist-cnn", 1.0)).bits(SHAPES["mnist-cnn"]) == f"folded, {native.lowering()}"
    assert fast(Odd().eval()).bits((1, 9, 9)) == "plain"
    monkeypatch.setattr(native, "SOURCE", tmp_path / "kernels.cpp")  # another lowering: there is none
    assert native.explain() != before


def test_other_flags_are_other_kernels(monkeypatch, small_source, empty_cache):
    first = native.identity()
    assert first == native.identity() != "none"
    monkeypatch.setattr(native, "load", partial(native.load, flags=(*native.FLAGS, "-ffp-contract=off")))
    native.library.cache_clear()
    assert native.identity() != first


def test_a_broken_cache_file_is_made_again(tmp_path, small_source):
    assert native.load(tmp_path).lanes() == 4
    (built,) = tmp_path.glob("*.so")
    whole = built.read_bytes()
    built.unlink()  # another file under the name: the one that is loaded stays as it is
    built.write_bytes(whole[: len(whole) // 2])
    native.load(tmp_path)
    (again,) = tmp_path.glob("*.so")
    assert len(again.read_bytes()) == len(whole)


def test_a_whole_cache_file_is_not_made_again(tmp_path, monkeypatch, small_source):
    native.load(tmp_path)
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    native.load(tmp_path)
    small_source.write_text(small_source.read_text() + "\n")  # the twin: another source is another library
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        native.load(tmp_path)


def test_two_at_once_share_a_cache(tmp_path, small_source):
    kept, gate = tmp_path / "kernels", Barrier(2)

    def load(_: int) -> int:
        gate.wait()
        return native.load(kept).lanes()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(load, range(2))) == [4, 4]
    assert not list(kept.glob(".*"))
