"""What training asks of the compiler on a card can be generated, and assembled for sm_90, without one."""

from __future__ import annotations

import pytest
import torch

from prunebench.bench.datasets import Info
from prunebench.bench.lab.still import Still
from prunebench.bench.models import ARCHITECTURES, build
from tests.support.hopper import assembled, kernels, lowered

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a card is here, and tests/grid/test_gpu.py uses it"),
]
BATCH = 16


def function(use, arch):
    """The gradient of the images of the attacked net, or of the weights in training; and its inputs."""
    shape = ARCHITECTURES[arch].shape
    net = build(arch, info=Info(10, shape, (0.5,) * shape[0], (0.25,) * shape[0]), seed=0)
    net.to(memory_format=torch.channels_last)
    model = net.train() if use == "training" else Still(net.eval(), torch.bfloat16)
    images = torch.rand(BATCH, *shape).contiguous(memory_format=torch.channels_last)
    state = dict(model.named_parameters()) | dict(model.named_buffers())

    def gradients(*inputs):
        at, given = inputs[-1], dict(zip(state, inputs[:-1], strict=True))
        wanted = [given[name] for name, _ in net.named_parameters()] if use == "training" else [at]
        for tensor in wanted:
            tensor.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            logits = torch.func.functional_call(model, given, (at,))
        return torch.autograd.grad(logits.float().square().sum(), wanted)

    return gradients, [tensor.detach() for tensor in state.values()] + [images]


@pytest.mark.parametrize(
    ("use", "arch"),
    [("attack", "digits-cnn"), ("attack", "mnist-cnn"), ("attack", "resnet18"), ("training", "digits-cnn")],
)
def test_every_kernel_is_assembled_for_the_card(use, arch, tmp_path):
    gradients, inputs = function(use, arch)
    found = kernels(lowered(gradients, *inputs))
    assert found
    for name, source in found.items():
        made = assembled(name, source, tmp_path)
        assert ".target sm_90" in made.asm["ptx"] and made.asm["cubin"].startswith(b"\x7fELF")


def test_a_kernel_that_cannot_be_compiled_is_found(tmp_path):
    """The twin."""
    gradients, inputs = function("attack", "digits-cnn")
    name, source = next(iter(kernels(lowered(gradients, *inputs)).items()))
    with pytest.raises(Exception, match="laod"):
        assembled(name, source.replace("tl.load", "tl.laod"), tmp_path)


def test_the_attack_takes_no_gradient_of_a_weight_and_has_no_norm_left():
    """Convolutions forward and backward for the images alone; in training also those of the weights."""
    gradients, inputs = function("attack", "digits-cnn")
    attack = lowered(gradients, *inputs)
    gradients, inputs = function("training", "digits-cnn")
    training = lowered(gradients, *inputs)
    assert "rsqrt" not in attack and "rsqrt" in training
    assert "[False, True, False]" not in attack and "[True, False, False]" in attack
