"""On a CUDA card: mixed precision where it is safe, exact float32 where it counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import prunebench.bench.lab.train
import prunebench.bench.lab.trainer
from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.data import as_float
from prunebench.bench.datasets import Info
from prunebench.bench.grid.local import Pool
from prunebench.bench.grid.run import grid, run
from prunebench.bench.grid.task import train
from prunebench.bench.lab import compiled as compiling
from prunebench.bench.lab.augmentation import crop_flip
from prunebench.bench.lab.compiled import TRIES, captured
from prunebench.bench.lab.graphed import CardGraph, Graphed
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.lab.train import fit
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.machine import device_named
from prunebench.bench.models import build
from prunebench.bench.score.arithmetic import FLOAT32, TF32, exact_float32
from prunebench.bench.score.referee import Referee
from prunebench.bench.score.scoring import score
from tests.support.nets import STORE, TINY, changed, job, lab
from tests.support.waits import no_waiting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
INFO = {
    "mnist-cnn": Info(10, (1, 28, 28), (0.5,), (0.25,)),
    "resnet18": Info(10, (3, 32, 32), (0.5,) * 3, (0.25,) * 3),
}


@pytest.fixture(autouse=True)
def _afresh():
    torch.compiler.reset()
    compiling._MADE.clear()  # it would be compiled again in the midst of a training


def test_training_attacks_in_bf16_with_a_float32_perturbation(tmp_path, monkeypatch):
    seen = []

    def watched(model, images, *args, **options):
        seen.append((images.dtype, options["autocast"].fast_dtype, images.device.type))
        result = pgd(model, images, *args, **options)
        seen.append((result.dtype, torch.bfloat16, result.device.type))
        return result

    monkeypatch.setattr(prunebench.bench.lab.trainer, "pgd", watched)
    place = lab(tmp_path, device=device_named("cuda"))
    trained = place.fit("train", place.initial(), epochs=1)
    assert set(seen) == {(torch.float32, torch.bfloat16, "cuda")}
    assert all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in trained.weights.values())


@pytest.mark.parametrize("arch", ["mnist-cnn", "resnet18"])
def test_nets_are_compiled_and_agree(arch, caplog):
    """Fused kernels under CUDA graphs, held against the net itself: nothing was said, so it agrees."""
    info = INFO[arch]
    net = build(arch, info=info, seed=0).cuda().to(memory_format=torch.channels_last)
    images = torch.rand(64, *info.shape, device="cuda").contiguous(memory_format=torch.channels_last)
    assert captured(net, images, torch.autocast("cuda", torch.bfloat16)) is not None, caplog.text
    assert [record for record in caplog.records if record.name.startswith("prunebench")] == []


@pytest.mark.parametrize("objective", ["pgd", "trades", "fgsm-rs"])
def test_compiled_training_learns_as_plain_training_does(objective, caplog):
    """The loss of the last epoch agrees; weights cannot, bfloat16 rounds otherwise in fused kernels."""
    rules, splits = (
        changed(epochs=10),
        [split.to(device_named("cuda")) for split in STORE.training("digits", validation=64)],
    )
    rules = changed(rules, objective=objective)
    plan = TrainingPlan(rules.training, rules.threat, 10)
    losses = [
        fit(build("digits-cnn", info=STORE.info("digits"), seed=0), plan, *splits, seed=0, compiled=compiled).curve[-1][
            "loss"
        ]
        for compiled in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and "uncompiled" not in caplog.text


def test_a_graph_draws_and_reads_what_its_work_would():
    """After a warm-up and after new seeds, a replay finds the generator's next numbers and the rate of now."""
    device = torch.device("cuda", 0)
    noise, twin = torch.Generator(device), torch.Generator(device)
    graph, rate, total = CardGraph(device), torch.zeros((), device=device), torch.zeros(1000, device=device)

    def work():
        total.add_(torch.empty_like(total).uniform_(-1, 1, generator=noise) * rate)
        return total.sum()

    noise.manual_seed(0)
    with graph.beside():
        work()
    total.zero_()
    state = noise.get_state()
    held = graph.record(work, noise)
    assert torch.equal(noise.get_state(), state) and not total.any()  # nothing was done
    expected = torch.zeros_like(total)
    for seed in (1, 2):
        noise.manual_seed(seed)
        twin.manual_seed(seed)
        for step in range(3):
            rate.fill_(0.1 * step + seed)
            graph.replay()
            expected.add_(torch.empty_like(expected).uniform_(-1, 1, generator=twin) * rate)
            assert torch.equal(total, expected) and torch.equal(held, expected.sum())
    assert torch.equal(torch.rand(9, generator=noise, device=device), torch.rand(9, generator=twin, device=device))


def test_a_graph_that_cannot_be_recorded_leaves_the_card_usable(caplog):
    """Work that waits for the card cannot be recorded; generators, streams and memory work on."""
    device = torch.device("cuda", 0)
    noise, graph = torch.Generator(device).manual_seed(3), CardGraph(device)
    before = torch.cuda.current_stream(device)

    def work():
        found = torch.empty(100, device=device).uniform_(generator=noise)
        found.sum().item()
        return found

    with graph.beside():
        work()
    state = noise.get_state()
    with pytest.raises(RuntimeError, match="captur"):
        graph.record(work, noise)
    assert torch.cuda.current_stream(device) == before and torch.equal(noise.get_state(), state)
    assert work().isfinite().all() and torch.rand(9, device=device).isfinite().all()


@pytest.mark.parametrize("arch", ["digits-cnn", "resnet-small"])
@pytest.mark.parametrize("objective", ["pgd", "trades", "fgsm-rs"])
def test_replayed_steps_are_the_steps(arch, objective, monkeypatch, caplog):
    """Uncompiled, with deterministic engines, from the same weights, images and noise: the same losses and weights.

    Kernels that add in an order of their own each time would differ in last bits, so those are allowed to.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    device, rules = torch.device("cuda", 0), changed(objective=objective, lr=0.01)
    shape = (1, 8, 8) if arch == "digits-cnn" else (3, 32, 32)
    info = Info(10, shape, (0.5,) * shape[0], (0.25,) * shape[0])
    plan, chance = TrainingPlan(rules.training, rules.threat, 2), torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 64, *shape, generator=chance), torch.randint(10, (8, 64), generator=chance)
    losses, states, replays = [], [], 0
    for graphed in (False, True):
        trainer, noise = Trainer(build(arch, info=info), plan, {}, device), torch.Generator(device).manual_seed(1)
        step = Graphed(trainer, CardGraph(device)) if graphed else trainer.step
        given = [(trainer.laid_out(images[i].to(device)), labels[i].to(device), i / 8, noise) for i in range(8)]
        losses.append(torch.stack([step(*each) for each in given]).cpu())
        states.append(trainer.result())
        replays = step.replays if graphed else 0
    assert replays == 5 and "without a graph" not in caplog.text
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=1e-2)
    for name, tensor in states[0].last.items():
        torch.testing.assert_close(states[1].last[name], tensor, rtol=5e-2, atol=5e-3)


def test_a_replayed_training_is_compiled_and_learns(caplog):
    """As in every training of a small net on a card: compiled functions inside one graph of the step."""
    splits = [split.to(device_named("cuda")) for split in STORE.training("digits", validation=64)]
    plan = TrainingPlan(changed(epochs=10).training, TINY.threat, 10)
    results = [
        fit(build("digits-cnn", info=STORE.info("digits")), plan, *splits, seed=0, graphed=graphed)
        for graphed in (True, False)
    ]
    assert "without a graph" not in caplog.text and "uncompiled" not in caplog.text
    assert results[0].curve[-1]["loss"] == pytest.approx(results[1].curve[-1]["loss"], rel=0.1)
    assert results[0].curve[-1]["clean"] > 0.5


def test_an_epoch_does_not_wait_for_the_card():
    """No step reads anything back: torch raises where one does."""
    rules = changed(objective="trades", augment="crop-flip")
    train = STORE.training("digits", validation=64)[0].to(device_named("cuda"))
    trainer = Trainer(
        build("digits-cnn", info=STORE.info("digits")),
        TrainingPlan(rules.training, rules.threat, 2),
        {},
        torch.device("cuda"),
    )
    noise = torch.Generator("cuda").manual_seed(0)
    order = torch.randperm(len(train)).cuda()
    trainer.capture(as_float(train.take(order[:64]).images))

    def step():
        part = train.take(order[:64])
        images = trainer.laid_out(crop_flip(as_float(part.images), noise))
        return trainer.step(images, part.labels, 0.1, noise)

    for _ in range(TRIES):  # CUDA graphs of the two forwards of TRADES are recorded, which waits
        step()
    with no_waiting():
        step()
        with pytest.raises(RuntimeError, match="synchroniz"):  # the twin
            step().item()


def test_a_training_that_was_cut_off_goes_on(tmp_path):
    """What is read back lies in memory as the fused optimiser wants it."""
    splits = [split.to(device_named("cuda")) for split in STORE.training("digits", validation=64)]
    partial, seen = tmp_path / "partial", []
    for stop in (2, 4):
        plan = TrainingPlan(changed().training, TINY.threat, 4, stop=stop)
        fit(
            build("digits-cnn", info=STORE.info("digits")),
            plan,
            *splits,
            seed=0,
            partial=partial,
            report=lambda what, done, of: seen.append(done),
        )
    assert seen == [1, 2, 3, 4]


def test_jobs_share_the_card(tmp_path):
    jobs = grid(["dense", "random"], [0.9], [0])
    ends = run(changed(epochs=2), jobs, tmp_path, STORE, engine=Pool(2), device="cuda", examples=16)
    assert [end.how for end in ends] == ["done", "done"]


def test_a_second_training_takes_over_the_compiled_net():
    """Its graphs are replayed, at the addresses of the first one's weights: both learn, from other weights."""
    splits = [split.to(device_named("cuda")) for split in STORE.training("digits", validation=64)]
    plan = TrainingPlan(changed(epochs=10).training, TINY.threat, 10)
    results = [
        fit(build("digits-cnn", info=STORE.info("digits"), seed=seed), plan, *splits, seed=seed) for seed in (0, 1)
    ]
    assert len(compiling._MADE) == 1 and all(result.curve[-1]["clean"] > 0.5 for result in results)
    assert any(not torch.equal(results[1].weights[name], tensor) for name, tensor in results[0].weights.items())


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
    from prunebench.bench.checkpoint import open_net

    images = as_float(STORE.testing("digits", 64).images)
    logits = {}
    for kind in ("cpu", "cuda"):
        with exact_float32():
            logits[kind] = Referee(open_net(nets["imp"]).module, TINY, 64, torch.device(kind)).logits(images)
    torch.testing.assert_close(logits["cpu"], logits["cuda"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("convolution", [False, True])
def test_tf32_rounds_the_operands_of_attacks_forward_and_backward(convolution):
    """One and half a unit of TF32's last bit, times one: rounded or cut it is another number; exactly it is itself."""
    tie = 1 + 2.0**-11
    shape = (64, 64, 1, 1) if convolution else (64, 64)
    weight = torch.eye(64, device="cuda").view(shape)
    found = {}
    for arithmetic in (FLOAT32, TF32):
        with arithmetic.active():
            images = torch.full((64, 64, 8, 8) if convolution else (64, 64), tie, device="cuda", requires_grad=True)
            logits = F.conv2d(images, weight) if convolution else images @ weight
            (gradient,) = torch.autograd.grad((logits * tie).sum(), images)
        found[arithmetic.name] = {float(value) for part in (logits, gradient) for value in part.detach().unique()}
    assert found["float32"] == {tie}
    assert found["tf32"] <= {1.0, 1 + 2.0**-10}  # cut off, or rounded to the nearest


def test_attacks_in_tf32_end_in_nearly_the_same_score(nets):
    exact, tf32 = (score(nets["dense"], store=STORE, device="cuda", arithmetic=name) for name in ("float32", "tf32"))
    assert abs(exact.score.robust - tf32.score.robust) <= 1  # of 64
    assert tf32.attack_arithmetic.name == "tf32" and exact.attack_arithmetic.exact
    assert exact.score.weak == tf32.score.weak


def test_scores_agree_with_the_cpu(nets):
    counts = [score(nets["dense"], store=STORE, device=kind).score.robust for kind in ("cpu", "cuda")]
    assert abs(counts[0] - counts[1]) <= 2  # of 64: other random draws and other roundings
