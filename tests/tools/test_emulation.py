"""Roundings of tensor cores on paper values, and that no product of a net escapes them, forward or backward."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from prunebench.bench.datasets import Info
from prunebench.bench.models import build
from tools.emulation import (
    BF16X3,
    NEAREST,
    TRUNCATED,
    Rounded,
    emulated,
    high_bf16,
    low_bf16,
    nearest_tf32,
    truncated_tf32,
)

ULP = 2.0**-10  # of TF32, at 1
LAST = 2.0**-23  # of float32, at 1
INFINITE, LARGEST = math.inf, torch.finfo(torch.float32).max


def rounded(rounding, *values):
    return rounding(torch.tensor(values)).tolist()


@pytest.mark.parametrize(
    ("value", "nearest", "cut"),
    [
        (1.0, 1.0, 1.0),
        (1 + ULP, 1 + ULP, 1 + ULP),  # TF32 holds it
        (1 + ULP / 2 - LAST, 1.0, 1.0),
        (1 + ULP / 2, 1 + ULP, 1.0),  # a tie: away from zero
        (1 + 3 * ULP / 2, 1 + 2 * ULP, 1 + ULP),
        (-1 - ULP / 2, -1 - ULP, -1.0),
        (2 - LAST, 2.0, 2 - ULP),  # carries into the exponent
        (2.0**-137, 2.0**-136, 0.0),  # below the normal numbers, steps are of 2**-136
        (0.0, 0.0, 0.0),
        (LARGEST, INFINITE, LARGEST - (2**13 - 1) * 2.0**104),
        (-INFINITE, -INFINITE, -INFINITE),
    ],
)
def test_tf32_on_paper(value, nearest, cut):
    assert rounded(nearest_tf32, value) == [nearest]
    assert rounded(truncated_tf32, value) == [cut]


def test_ties_to_even_would_be_another_rounding():
    """The twin: bfloat16's ties go to even, so the first tie above 1 stays at 1."""
    assert rounded(high_bf16, 1 + 2.0**-8, 1 + 3 * 2.0**-8) == [1.0, 1 + 2 * 2.0**-7]
    assert rounded(nearest_tf32, 1 + ULP / 2, 1 + 3 * ULP / 2) == [1 + ULP, 1 + 2 * ULP]


def test_nan_stays():
    quiet = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)  # its last bit alone says NaN
    assert all(bool(rounding(quiet).isnan()) for rounding in (nearest_tf32, truncated_tf32))
    assert bool((quiet.view(torch.int32) & ~0x1FFF).view(torch.float32).isinf())  # the twin: cut off, it is infinity


def test_two_bfloat16_hold_fifteen_bits():
    value = 1 + 2.0**-3 + 2.0**-9
    assert rounded(high_bf16, value) == [1.125] and rounded(low_bf16, value) == [2.0**-9]


TIE = 1 + ULP / 2
WIDE = 1 + 2.0**-8  # two bfloat16: 1 and 2**-8


@pytest.mark.parametrize(
    ("terms", "operand", "product"),
    [
        (NEAREST, TIE, (1 + ULP) ** 2),
        (TRUNCATED, TIE, 1.0),
        (BF16X3, WIDE, 1 + 2 * 2.0**-8),  # the product of the two low parts is left out
    ],
)
def test_one_product_in_every_operation(terms, operand, product):
    """Each operation multiplies the operand by itself once, forward and backward, and adds 1 once."""
    one, row = torch.full((1, 1), operand), torch.full((1, 1, 1), operand)
    image, plus = torch.full((1, 1, 1, 1), operand), torch.ones(1)
    assert operand**2 != product  # the twin: float32 holds the exact product
    with Rounded(terms):
        lent = image.clone().requires_grad_()
        (through_conv,) = torch.autograd.grad((F.conv2d(lent, image) * operand).sum(), lent)
        flat = one.clone().requires_grad_()
        (through_linear,) = torch.autograd.grad((F.linear(flat, one) * operand).sum(), flat)
        found = [one @ one, row @ row, F.conv2d(image, image), through_conv, through_linear]
        added = [F.linear(one, one, plus), F.conv2d(image, image, plus), torch.baddbmm(plus.view(1, 1, 1), row, row)]
        exact = one.double() @ one.double()
    assert [value.item() for value in found] == [product] * 5
    assert [value.item() for value in added] == [product + 1] * 3
    assert exact.item() == operand**2 and (one @ one).item() == operand**2


NETS = {
    "digits-cnn": Info(10, (1, 8, 8), (0.5,), (0.25,)),
    "mnist-cnn": Info(10, (1, 28, 28), (0.5,), (0.25,)),
    "resnet-small": Info(10, (3, 32, 32), (0.5,) * 3, (0.25,) * 3),
}


@pytest.mark.parametrize("arch", NETS)
def test_no_product_of_a_net_escapes(arch):
    """With all operands rounded to zero the images decide nothing, and their gradient vanishes."""
    info = NETS[arch]
    net = build(arch, info=info).eval().requires_grad_(False)
    images = torch.rand(2, *info.shape, generator=torch.Generator().manual_seed(0))

    def looked():
        lent = images.clone().requires_grad_()
        logits = net(lent)
        return logits.detach(), torch.autograd.grad(logits[:, 0].sum(), lent)[0]

    with Rounded([(torch.zeros_like, torch.zeros_like)]):
        logits, gradient = looked()
    assert torch.equal(logits[0], logits[1]) and not gradient.any()
    logits, gradient = looked()  # the twin
    assert not torch.equal(logits[0], logits[1]) and gradient.any()


def test_gradients_of_weights_are_refused():
    image = torch.ones(1, 1, 1, 1)
    weight = image.clone().requires_grad_()
    with Rounded(NEAREST), pytest.raises(ValueError, match="freeze the parameters"):
        F.conv2d(image, weight).sum().backward()


def test_an_emulated_arithmetic_ends_with_its_attack():
    one, arithmetic = torch.full((1, 1), TIE), emulated(NEAREST, repairs=True)
    with arithmetic.active():
        assert (one @ one).item() == (1 + ULP) ** 2
    assert (one @ one).item() == TIE**2 and not arithmetic.exact
