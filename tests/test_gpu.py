"""On a CUDA card: mixed precision where it is safe, exact float32 where it counts."""

from __future__ import annotations

import pytest
import torch

import bench.train
from bench.attacks import pgd
from bench.data import as_float
from bench.machine import device_named
from bench.referee import Referee, exact_float32
from bench.score import score
from bench.task import train
from tests.nets import STORE, TINY, changed, job, lab

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_training_attacks_in_bf16_with_a_float32_perturbation(tmp_path, monkeypatch):
    seen = []

    def watched(model, images, *args, **options):
        seen.append((images.dtype, options["autocast"].fast_dtype, images.device.type))
        result = pgd(model, images, *args, **options)
        seen.append((result.dtype, torch.bfloat16, result.device.type))
        return result

    monkeypatch.setattr(bench.train, "pgd", watched)
    place = lab(tmp_path, device=device_named("cuda"))
    trained = place.fit("train", place.initial(), epochs=1)
    assert set(seen) == {(torch.float32, torch.bfloat16, "cuda")}
    assert all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in trained.weights.values())


@pytest.mark.parametrize("objective", ["pgd", "trades", "fgsm-rs"])
def test_every_objective_learns(tmp_path, objective):
    place = lab(tmp_path, changed(epochs=10), device=device_named("cuda"))
    curve = place.fit("train", place.initial(), epochs=10, objective=objective).curve
    assert curve[-1]["clean"] > 0.5  # chance is 0.1


@pytest.mark.parametrize("spec", ["magnitude", "imp:rounds=2", "hydra", "awt", "iwi"])
def test_every_pruner_reaches_its_sparsity(tmp_path, spec):
    rules = changed(epochs=6)
    net = train(spec, job(spec), rules, tmp_path / "net", tmp_path / "stages", STORE, device="cuda")
    assert score(net, examples=32, store=STORE, device="cuda").net.sparsity >= 0.9


def test_the_referee_measures_in_exact_float32(nets):
    """Logits agree with the CPU's to float32; with TF32 they would differ by some 1e-3."""
    from bench.checkpoint import open_net

    images = as_float(STORE.testing("digits", 64).images)
    logits = {}
    for kind in ("cpu", "cuda"):
        with exact_float32():
            logits[kind] = Referee(open_net(nets["imp"]).module, TINY, 64, torch.device(kind)).logits(images)
    torch.testing.assert_close(logits["cpu"], logits["cuda"], rtol=1e-4, atol=1e-4)


def test_scores_agree_with_the_cpu(nets):
    counts = [score(nets["dense"], store=STORE, device=kind).score.robust for kind in ("cpu", "cuda")]
    assert abs(counts[0] - counts[1]) <= 2  # of 64: other random draws and other roundings
