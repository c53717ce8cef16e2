"""Gradients in place of a net's own: on paper, and leaks on the kernels as on torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunebench.bench.executor import fast
from prunebench.bench.executor.surrogate import Replaced, Surrogate
from tests.executor.test_executor import SHAPES, generator, sparse_net


def slope(net: nn.Module, values: list[float], leak: float) -> list[float]:
    at = torch.tensor([values]).requires_grad_()
    with Replaced(Surrogate(leak)):
        net(at).sum().backward()
    assert at.grad is not None
    return at.grad.flatten().tolist()


def test_a_unit_that_is_off_passes_the_leak_and_one_that_is_on_passes_everything():
    assert slope(nn.ReLU(), [2.0, -3.0], leak=0.25) == [1.0, 0.25]
    assert slope(nn.ReLU(), [2.0, -3.0], leak=0.0) == [1.0, 0.0]


@pytest.mark.parametrize("relu", [F.relu, torch.relu, torch.Tensor.relu, lambda x: F.relu(x + 0, inplace=True)])
def test_every_way_to_call_a_relu_leaks(relu):
    assert slope(relu, [-1.0], leak=0.5) == [0.5]


def test_a_relu_in_place_changes_its_tensor_for_others_too():
    def forward(values):
        hidden = values + 0
        F.relu_(hidden)
        return hidden

    with Replaced(Surrogate(0.5)):
        assert forward(torch.tensor([[-1.0, 2.0]], requires_grad=True)).tolist() == [[0.0, 2.0]]


def test_two_units_in_a_row_pass_the_product():
    assert slope(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.ReLU()), [-1.0], leak=0.5) == [0.25]  # relu(0) is off, too


def test_values_below_the_maximum_pass_the_leak_in_max_pooling():
    at = torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]).unsqueeze(0).requires_grad_()
    with Replaced(Surrogate(0.5)):
        F.max_pool2d(at, 2).sum().backward()
    assert at.grad is not None and at.grad.flatten().tolist() == [0.5, 1.0, 0.5, 0.5]


def test_a_soft_unit_has_the_slope_of_a_softplus_as_wide_as_its_inputs_are_spread():
    """The inputs 1 and -3 of a unit have the standard deviation 2: slopes sigmoid(1 / (.5 * 2)) and sigmoid(-3)."""
    at = torch.tensor([[1.0], [-3.0]]).requires_grad_()
    with Replaced(Surrogate(soft=0.5)):
        value = torch.relu(at)
    value.sum().backward()
    assert value.tolist() == [[1.0], [0.0]] and at.grad is not None
    torch.testing.assert_close(at.grad, torch.tensor([[1.0], [-3.0]]).sigmoid())


def test_soft_max_pooling_passes_the_gradient_of_the_mean():
    at = torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]).unsqueeze(0).requires_grad_()
    with Replaced(Surrogate(soft=0.5)):
        value = F.max_pool2d(at, 2)
    value.sum().backward()
    assert value.item() == 4.0 and at.grad is not None and at.grad.flatten().tolist() == [0.25] * 4


def test_logits_are_not_changed():
    net, images = sparse_net("digits-cnn", 0.1), torch.rand(5, 1, 8, 8, generator=generator())
    assert torch.equal(fast(net, leak=0.1)(images), fast(net)(images))
    with Replaced(Surrogate(0.1)):
        assert torch.equal(net(images), sparse_net("digits-cnn", 0.1)(images))


@pytest.mark.parametrize("leak", [0.05, 1.0])
@pytest.mark.parametrize(
    ("arch", "always"),
    [
        ("digits-cnn", True),
        ("digits-cnn", False),
        ("mnist-cnn", True),
        ("mnist-cnn", False),
        pytest.param("vgg16-bn", True, marks=pytest.mark.slow),  # five seconds each
        pytest.param("vgg16-bn", False, marks=pytest.mark.slow),
    ],
)
def test_kernels_and_folded_norms_leak_as_torch_does(arch, always, leak):
    net = sparse_net(arch, 0.1)
    images = torch.rand(3, *SHAPES[arch], generator=generator(1))

    def gradient(model) -> torch.Tensor:
        at = images.clone().requires_grad_()
        logits = model(at)
        weights = torch.randn(logits.shape, generator=generator(2))
        return torch.autograd.grad((logits * weights).sum(), at)[0]

    found = gradient(fast(net, always=always, leak=leak))
    with Replaced(Surrogate(leak)):
        wanted = gradient(net)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert not torch.allclose(found, gradient(net), rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))
