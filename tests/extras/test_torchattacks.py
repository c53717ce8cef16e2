"""torchattacks in an environment of its own, on a linear model whose worst case is known in closed form."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.checkpoint import open_net
from prunebench.bench.data import as_float
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid.task import train
from prunebench.bench.names import RECORD
from prunebench.bench.outcomes import recount
from prunebench.bench.score.scoring import score
from tests.support.nets import STORE, TINY, WEAK, job, quick_attacks, use_attacks


def test_its_copy_of_robustbench_is_the_only_one():
    """The fault that keeps the two extras apart: the wheel brings `robustbench` without owning the name."""
    with pytest.raises(PackageNotFoundError):
        version("robustbench")
    carried = next(file for file in files("torchattacks") if file.as_posix() == "robustbench/__init__.py")
    assert Path(find_spec("robustbench").origin).samefile(carried.locate())


def test_pgd_reaches_the_corner_of_the_ball():
    """On logits (0, <w, x>) the worst image in the ball is x +- eps sign(w), clipped to [0, 1]."""
    import torchattacks

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 4, 4, generator=generator)
    weight = torch.randn(16, generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    eps = 0.125
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(16), weight]))
    away = torch.where(labels == 0, 1.0, -1.0).reshape(-1, 1, 1, 1)
    corner = (images + eps * away * weight.sign().reshape(1, 1, 4, 4)).clamp(0, 1)
    assert weight.abs().min() > 0, "premise: every pixel matters"
    assert (corner != images + eps * away * weight.sign().reshape(1, 1, 4, 4)).any(), "premise: the box cuts somewhere"

    found = torchattacks.PGD(model, eps=eps, alpha=eps / 2, steps=10, random_start=True)(images, labels)

    torch.testing.assert_close(found, corner, rtol=0, atol=1e-6)


def test_one_step_too_few_does_not():
    """The twin: from a corner's other side, steps that sum to less than the way cannot reach it."""
    import torchattacks

    images = torch.full((1, 1, 2, 2), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
    found = torchattacks.PGD(model, eps=0.2, alpha=0.05, steps=3, random_start=False)(images, torch.tensor([0]))
    torch.testing.assert_close(found, images + 0.15)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small net, its protocol and its test images."""
    folder = tmp_path_factory.mktemp("net")
    net = train("dense", job("dense"), TINY, folder, folder / "stages", STORE, device="cpu")
    return net, STORE.testing("digits", 32)


def test_our_fgsm_and_pgd_are_theirs(trained):
    """The same images: FGSM, and PGD from the image itself with the same steps."""
    import torchattacks

    net, test = trained
    module, images, labels = open_net(net).module, as_float(test.images), test.labels
    generator, eps = torch.Generator().manual_seed(0), TINY.threat.radius
    ours = WEAK["fgsm"](module, images, labels, TINY.threat, generator=generator)
    theirs = torchattacks.FGSM(module, eps=eps)(images, labels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (ours - images).abs().max() > 0.9 * eps, "premise: something moves"

    for steps in (20, 50):
        size = 2.5 * eps / steps
        ours = pgd(
            module, images, labels, TINY.threat, generator=generator, steps=steps, step_size=size, start=images.clone()
        )
        theirs = torchattacks.PGD(module, eps=eps, alpha=size, steps=steps, random_start=False)(images, labels)
        verdicts = [(module(x).argmax(1) == labels).tolist() for x in (ours, theirs)]
        assert verdicts[0] == verdicts[1] and 0 < sum(verdicts[0]) < len(labels)


def test_one_step_less_is_another_image(trained):
    """The twin."""
    import torchattacks

    net, test = trained
    module, images, labels = open_net(net).module, as_float(test.images), test.labels
    ours = pgd(
        module, images, labels, TINY.threat, generator=torch.Generator(), steps=1, step_size=0.01, start=images.clone()
    )
    theirs = torchattacks.PGD(module, eps=TINY.threat.radius, alpha=0.01, steps=2, random_start=False)(images, labels)
    assert (ours - theirs).abs().max() > 0.005


def test_their_attacks_stand_beside_ours_in_a_record(trained, tmp_path, monkeypatch):
    net, _ = trained
    use_attacks(monkeypatch, quick_attacks())
    names = ["torchattacks:CW", "torchattacks:MIFGSM"]
    record = score(net, out=tmp_path, store=STORE, device="cpu", also=names)
    recount(tmp_path / RECORD, record)
    assert list(record.score.weak) == [*WEAK, *names]
    assert 0 < record.score.weak["torchattacks:MIFGSM"] < record.score.clean
    with pytest.raises(PrunebenchError, match="Unknown attack of torchattacks 'CV'"):
        score(net, store=STORE, device="cpu", also=["torchattacks:CV"])
