"""What the referee measures itself, on a net whose every answer is known on paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunebench.bench.attacks.base import within
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.errors import Refused
from prunebench.bench.protocol import Threat
from prunebench.bench.score.arithmetic import exact_float32
from prunebench.bench.score.referee import Referee, batch_size
from tests.support.nets import STORE, TINY, Bright, changed

RULES = changed(threat=Threat(norm="Linf", eps="0.1"))
CPU = torch.device("cpu")


def referee(module=None, *, batch=4, rules=RULES):
    return Referee(module or Bright(), rules, batch, CPU)


def grey(*levels):
    """2x2 images of these grey levels."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def answers(proposals):
    """An attack that proposes these images whatever it is given."""
    return lambda model, images, labels, threat, *, generator: proposals.clone()


# Greys 0.45 and 0.35 are class 0; moved by 0.1 toward white the first becomes 0.55, class 1, and the second does not.
DARK, LABELS = grey(0.45, 0.35), torch.tensor([0, 0])


def test_the_premise():
    assert referee().logits(DARK).argmax(1).tolist() == [0, 0]
    assert referee().logits(DARK + 0.1).argmax(1).tolist() == [1, 0]


def test_a_proposal_from_outside_is_brought_into_the_ball():
    white = grey(1.0, 1.0)
    assert referee().logits(white).argmax(1).tolist() == [1, 1]  # taken at its word it would have fooled both
    found = referee().fooled(answers(white), DARK, LABELS, 0)
    assert found.fooled.tolist() == [True, False] and found.rejected == 1
    assert referee().fooled(answers(white * 1000), DARK, LABELS, 0).fooled.tolist() == [True, False]


def test_a_proposal_is_brought_into_the_range_of_pixels():
    """Half of the pixels at 0.95 and eps 0.1: the mean rises by 0.075, not by 0.1, for pixels end at 1."""
    image = torch.tensor([0.95, 0.95, 0.0, 0.02]).view(1, 1, 2, 2)  # mean 0.48; with +0.1 each 0.58, clipped 0.555
    seen = []

    class Watch(Bright):
        def forward(self, images):
            seen.append(images.clone())
            return super().forward(images)

    referee(Watch(), batch=1).fooled(answers(image + 5), image, torch.tensor([0]), 0)
    assert seen[-1].flatten().tolist() == pytest.approx([1.0, 1.0, 0.1, 0.12], abs=1e-6)


def test_an_l2_proposal_is_scaled_back():
    rules = changed(threat=Threat(norm="L2", eps="0.1"))
    images = grey(0.45)  # four pixels moved by 0.05 are 0.1 in L2: 0.5 and a hair, 0.06 each would be outside
    fooled = referee(rules=rules).fooled(answers(grey(0.9)), images, torch.tensor([0]), 0).fooled
    moved = within(grey(0.9), images, rules.threat)
    assert (moved - images).norm().item() == pytest.approx(0.1, rel=1e-5)
    assert fooled.tolist() == (referee().logits(moved).argmax(1) != 0).tolist()


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -float("inf")])
def test_a_proposal_that_is_no_number_counts_as_the_image(nonsense):
    proposals = grey(0.55, 0.36)
    proposals[0, 0, 1, 1] = nonsense
    found = referee().fooled(answers(proposals), DARK, LABELS, 0)
    assert found.fooled.tolist() == [False, False]
    assert found.rejected == 1  # the second was proposed and fools nobody
    assert referee().fooled(answers(grey(0.55, 0.36)), DARK, LABELS, 0).fooled.tolist() == [True, False]


def test_no_proposal_is_no_disagreement():
    found = referee().fooled(answers(DARK), DARK, LABELS, 0)
    assert found.fooled.tolist() == [False, False] and found.rejected == 0


def test_an_attack_cannot_touch_the_net_or_the_images():
    def vandal(model, images, labels, threat, *, generator):
        images.zero_()
        return torch.ones_like(images)

    images = DARK.clone()
    found = referee().fooled(vandal, images, LABELS, 0)
    assert torch.equal(images, DARK)
    assert found.fooled.tolist() == [True, False]


def test_attacks_draw_from_the_seed():
    def draws(model, images, labels, threat, *, generator):
        return images + 0.1 * torch.rand(images.shape, generator=generator).sub(0.5).sign()

    images = grey(*[0.48] * 64)
    one, again, other = (
        referee(batch=64).fooled(draws, images, torch.zeros(64, dtype=torch.long), s).fooled for s in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


class Early(Bright):
    """What wrong kernels may make of Bright: class 1 from a mean of 0.4 on."""

    def forward(self, images):
        """Logits (n, 2)."""
        return super().forward(images + 0.1)

    def differs(self, shape):
        """As if it were kernels."""
        return True


def asking(proposals):
    """An attack that looks at the logits, and proposes these images all the same."""

    def attack(model, images, labels, threat, *, generator):
        model(images)
        return proposals.clone()

    return attack


def test_what_wrong_kernels_call_fooled_is_counted_and_never_believed():
    judge = referee()
    assert judge.fooled(asking(DARK + 0.08), DARK, LABELS, 0).kernel_only == 0
    judge.fast = Early()
    found = judge.fooled(asking(DARK + 0.08), DARK, LABELS, 0)  # 0.53 and 0.43: both are class 1 to the kernels
    assert (found.fooled.tolist(), found.rejected, found.kernel_only) == ([True, False], 1, 1)
    found = judge.fooled(asking(DARK), DARK, LABELS, 0)  # an image that seems to be fooled when it comes: left alone
    assert (found.fooled.tolist(), found.rejected, found.kernel_only) == ([False, False], 0, 1)
    assert judge.fooled(answers(DARK), DARK, LABELS, 0).kernel_only == 0  # nobody looked at the kernels


@pytest.mark.usefixtures("dense_on_torch")
def test_attacks_see_a_sparse_net_on_kernels_and_a_dense_one_folded(nets):
    images = as_float(STORE.testing("digits", 16).images)
    for name, how in (("imp", "floats wide"), ("dense", "folded")):
        judge = referee(open_net(nets[name]).module, batch=16, rules=TINY)
        assert how in judge.fast.bits(images.shape[1:])
        assert not torch.equal(judge.attacked(images), judge.itself(images))  # other roundings
        assert torch.allclose(judge.attacked(images), judge.itself(images), atol=1e-4)
        assert torch.equal(judge.logits(images), judge.itself(images))


class Sized(nn.Module):
    """Logits that depend on how many images come at once, as they do in the last bits of a real net."""

    def forward(self, images):
        return torch.stack([images.mean((1, 2, 3)) * len(images), torch.zeros(len(images))], dim=1)


def test_batches_have_one_shape_however_the_work_is_cut():
    images = torch.rand(7, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    judge = referee(Sized(), batch=3)
    whole = judge.logits(images)
    assert whole.shape == (7, 2)
    assert judge.passes == 9  # three batches of three, the last one padded
    assert torch.equal(whole, torch.cat([judge.logits(part) for part in images.split(2)]))
    assert not torch.equal(Sized()(images), whole)  # the twin: without padding the cut would show


def test_a_real_net_answers_the_same_in_any_order(nets):
    judge = referee(open_net(nets["imp"]).module, batch=16, rules=TINY)
    images = as_float(STORE.testing("digits", 40).images)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(judge.logits(images)[order], judge.logits(images[order]))
    assert torch.equal(judge.logits(images)[:5], judge.logits(images[:5]))
    assert not torch.equal(judge.logits(images), judge.logits(images)[order])


def test_forwards_are_counted_by_price():
    judge, heard = referee(), []

    def asking(model, images, labels, threat, *, generator):
        with torch.no_grad():
            model(grey(0.1, 0.2))
        model(grey(0.1, 0.2, 0.3).requires_grad_())
        return images

    found = judge.fooled(asking, DARK, LABELS, 0, listen=heard.append)
    assert heard == [2, 9] and found.passes >= 11 and judge.passes == 0
    asking(judge.attacked, DARK, LABELS, None, generator=None)
    judge.itself(grey(0.1).requires_grad_())
    assert heard == [2, 9] and judge.passes == 14


def test_the_net_is_frozen_and_in_eval_mode():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    judge = referee(module)
    assert not judge.net.training and not any(p.requires_grad for p in judge.net.parameters())
    before = module.state_dict()["2.running_mean"].clone()
    judge.steady_logits(grey(0.1, 0.9))
    assert torch.equal(module.state_dict()["2.running_mean"], before)


class Noisy(nn.Module):
    """A net that draws at random."""

    def forward(self, images):
        return torch.rand(len(images), 2)


class Broken(Bright):
    """A net without an answer for images brighter than one half."""

    def forward(self, images):
        logits = super().forward(images)
        return torch.where(logits[:, 1:] > 0, torch.inf, logits)


def test_nets_without_a_steady_answer_are_refused():
    with pytest.raises(Refused, match="changed its logits on 2") as refused:
        referee(Noisy()).steady_logits(DARK)
    assert refused.value.check == "nondeterministic"
    with pytest.raises(Refused, match="NaN or infinite logits on 1 of 3 images") as refused:
        referee(Broken()).steady_logits(grey(0.1, 0.9, 0.2))
    assert refused.value.check == "non-finite"
    assert referee(Broken()).steady_logits(DARK).isfinite().all()


def test_the_batch_size_is_a_function_of_rules_architecture_and_device():
    assert batch_size(TINY, "digits-cnn", "cpu") == 64  # the shard is smaller than a batch
    assert batch_size(changed(shard=1000), "digits-cnn", "cpu") == 256
    assert batch_size(changed(shard=1000), "resnet18", "cpu") == 64
    assert batch_size(changed(shard=1000), "resnet18", "cuda") == 256


@pytest.mark.parametrize("before", [(True, True, False, True), (False, True, True, False), (True, False, False, False)])
def test_measurements_are_exact_and_the_same_each_time_and_the_settings_come_back(before):
    """TF32 off, cuDNN's engines deterministic and not chosen by their speed; a twin is what holds outside."""

    def settings():
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    def set_to(values):
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = values

    found = settings()
    try:
        set_to(before)
        assert settings() == before != (False, False, True, False)
        with exact_float32():
            assert settings() == (False, False, True, False)
        assert settings() == before
        with pytest.raises(ZeroDivisionError), exact_float32():
            1 / 0  # noqa: B018
        assert settings() == before
    finally:
        set_to(found)
