"""A training that was cut off anywhere ends in the same bytes, and believes no file but its own."""

from __future__ import annotations

import time

import pytest

from prunebench.bench.lab import resume, stages
from prunebench.bench.lab.trainer import Trainer
from tests.lab.test_train import CPU, content, net, plan, some_masks, trained


class Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    ("how", "masked"),
    [
        (plan(), False),
        (plan(), True),
        (plan(6, start=2), False),
        (plan(objective="trades"), True),
        (plan(objective="fgsm-rs", lr=0.001), False),
        (plan(augment="crop-flip"), False),
    ],
    ids=["whole", "masked", "a later part", "trades", "fgsm-rs", "crops"],
)
@pytest.mark.parametrize("after", [1, 3, 4])
def test_cut_off_after_any_epoch_it_ends_in_the_same_bytes(how, masked, after, tmp_path):
    masks = some_masks() if masked else None
    partial = tmp_path / "partial.safetensors"

    def report(what, done, of):
        assert of == 4
        if done == after:
            raise Cut

    with pytest.raises(Cut):
        trained(how, masks=masks, partial=partial, report=report)
    seen = []
    resumed = trained(how, masks=masks, partial=partial, report=lambda what, done, of: seen.append(done))
    assert seen == list(range(after + 1, 5))  # it did go on, not begin anew
    assert content(resumed) == content(trained(how, masks=masks))
    assert [row["epoch"] for row in resumed.curve] == list(range(how.start + 1, how.start + 5))


@pytest.fixture
def saved(monkeypatch):
    """The epochs that were saved while each takes ten seconds, on a device that is saved every half minute."""
    now, epochs, real = [0.0], [], resume.save

    def save(partial, it):
        epochs.append(it.epoch)
        real(partial, it)

    def tick():
        now[0] += 10.0

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(resume, "save", save)
    monkeypatch.setattr(Trainer, "close_epoch", lambda it, *told, real=Trainer.close_epoch: (real(it, *told), tick()))
    monkeypatch.setitem(stages.PAUSE, "cpu", stages.PAUSE["cuda"])
    return epochs


def test_on_a_card_few_epochs_are_saved_and_the_last(saved, tmp_path, monkeypatch):
    """Of eight epochs the third, the sixth and the last; cut off after the fifth, it goes on with the fourth."""
    partial, seen = tmp_path / "partial", []

    def report(what, done, of):
        seen.append(done)
        if seen == [1, 2, 3, 4, 5]:
            raise Cut

    with pytest.raises(Cut):
        trained(plan(8), partial=partial, report=report)
    assert saved == [3]
    resumed = trained(plan(8), partial=partial, report=report)
    assert seen == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8] and saved == [3, 6, 8]
    monkeypatch.setitem(stages.PAUSE, "cpu", 0.0)  # the twin: every epoch is saved
    assert content(resumed) == content(trained(plan(8), partial=tmp_path / "other"))
    assert saved[3:] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("part", ["momentum", "average", "steps"])
def test_a_resume_that_forgets_a_part_is_found(part, tmp_path, monkeypatch):
    """The twin of the test above."""
    partial, real = tmp_path / "partial.safetensors", resume.load_stage

    def forgetful(path):
        if (kept := real(path)) is None:
            return None
        tensors, about = kept
        if part == "momentum":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("momentum/")}
        elif part == "average":
            tensors |= {n.replace("net/", "average/"): t for n, t in tensors.items() if n.startswith("net/")}
        else:
            about = about | {"steps": 0}
        return tensors, about

    trained(plan(stop=2), partial=partial)
    monkeypatch.setattr(resume, "load_stage", forgetful)
    assert content(trained(partial=partial)) != content(trained())


def test_a_momentum_comes_back_in_the_layout_of_its_weight(tmp_path):
    """Files know no strides, and SGD's fused kernel for cards refuses a momentum that lies otherwise."""
    partial, how = tmp_path / "partial", plan(stop=2)
    trained(how, partial=partial)
    it = Trainer(net(), plan(), {}, CPU)
    resume.restore(partial, it)
    moments, weights = it.momentum, dict(it.model.named_parameters())
    assert moments.keys() == weights.keys()
    assert all(moments[name].stride() == weight.stride() for name, weight in weights.items())
    plain = {name: moment.contiguous().stride() for name, moment in moments.items()}  # the twin: as they were read
    assert any(plain[name] != weight.stride() for name, weight in weights.items())


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-4] + b"abcd"])
def test_a_spoilt_partial_file_starts_anew(spoil, tmp_path):
    partial, seen = tmp_path / "partial.safetensors", []
    trained(plan(stop=2), partial=partial)
    partial.write_bytes(spoil(partial.read_bytes()))
    result = trained(partial=partial, report=lambda what, done, of: seen.append(done))
    assert seen == [1, 2, 3, 4] and content(result) == content(trained())


@pytest.mark.parametrize("change", ["other facts", "no facts", "other shapes", "a part is gone", "one more"])
def test_a_whole_file_of_another_training_starts_anew(change, tmp_path):
    """Under a hash of its own it would be believed, and end in a traceback or in another net."""
    partial, seen = tmp_path / "partial.safetensors", []
    trained(plan(stop=2), partial=partial)
    tensors, about = resume.load_stage(partial)
    name = min(name for name in tensors if name.startswith("average/"))
    match change:
        case "other facts":
            about = {"done": 2}
        case "no facts":
            about = 3
        case "other shapes":
            tensors[name] = tensors[name][None]
        case "a part is gone":
            del tensors[name]
        case "one more":
            tensors["more/1"] = tensors[name].clone()
    resume.save_stage(partial, tensors, about)
    result = trained(partial=partial, report=lambda what, done, of: seen.append(done))
    assert seen == [1, 2, 3, 4] and content(result) == content(trained())
