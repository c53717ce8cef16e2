"""Nets that cannot see their images are flagged when they are scored, and warned about by every verb that shows one."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from prunebench.bench.checkpoint import open_net
from prunebench.bench.cli import main
from prunebench.bench.collapse import collapse, connected, shortest_path, warnings
from prunebench.bench.datasets import Info
from prunebench.bench.models import build, prunable
from prunebench.bench.names import RECORD
from prunebench.bench.record import load_record
from prunebench.bench.score.scoring import score
from tests.support.nets import STORE, changed, seal_state

FEW = changed(name="tiny-24", test=24)
SHAPE = (1, 8, 8)


def fresh():
    """An untrained net of the digits."""
    return build("digits-cnn", info=STORE.info("digits")).eval()


def emptied(*names):
    """One whose weights of these layers are zero."""
    net = fresh()
    for name, weight in prunable(net).items():
        if name in names or not names:
            weight.data.zero_()
    return net


def cut():
    """One without a path: the first half of the hidden units is fed, and the other half is read."""
    net = fresh()
    net[1][7].weight.data[32:] = 0.0
    net[1][9].weight.data[:, :32] = 0.0
    return net


def silenced():
    """One whose hidden units never answer, though every weight is there."""
    net = fresh()
    net[1][7].bias.data.fill_(-1e3)
    return net


def opened(net, folder):
    return open_net(seal_state(folder / "net.safetensors", net, FEW))


VICTIMS = {
    "empty layer": (lambda: emptied("1.7.weight"), "No weight is left in 1.7.weight."),
    "empty net": (emptied, "No weight is left: 0 of 38160 are kept"),
    "cut": (cut, "No path of kept weights"),
    "silenced": (silenced, "The net gives the same logits to 8 different images."),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_collapsed_net_is_warned_about(victim, tmp_path):
    make, sentence = VICTIMS[victim]
    assert any(sentence in said for said in warnings(opened(make(), tmp_path)))


def test_an_honest_net_is_not(nets):
    for path in nets.values():
        assert warnings(open_net(path)) == []


# architecture -> its image and its shortest path: all layers of a chain; of a residual net the first layer, one
# projection where a stage changes the width (the identity costs nothing), and the last
PATHS = {
    "digits-cnn": ((1, 8, 8), 4),
    "mnist-cnn": ((1, 28, 28), 7),
    "resnet-small": ((3, 32, 32), 1 + 3 + 1),
    "resnet18": ((3, 32, 32), 1 + 3 + 1),
    "vgg16-bn": ((3, 32, 32), 13 + 1),
}


@pytest.mark.parametrize("name", PATHS)
def test_the_shortest_path_through_a_net(name):
    shape, weights = PATHS[name]
    info = Info(10, shape, (0.5,) * shape[0], (0.2,) * shape[0])
    assert shortest_path(build(name, info=info), shape) == weights


def test_the_shortest_path_follows_the_mask():
    """A net of 1 -> 1 -> 1 pixels with a way around its second layer: 2 weights, and 3 when the way around is cut."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(1, 1, 1, bias=False) for _ in range(4))

        def forward(self, images):
            first, second, third, around = self.layers
            between = first(images)
            return third(second(between)) + around(between)

    net = Around()
    assert shortest_path(net, (1, 1, 1)) == 2
    net.layers[3].weight.data.zero_()
    assert shortest_path(net, (1, 1, 1)) == 3
    net.layers[0].weight.data.zero_()
    with pytest.raises(ValueError, match="no path"):
        shortest_path(net, (1, 1, 1))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_collapsed_net_is_flagged(victim, tmp_path):
    make, sentence = VICTIMS[victim]
    net = opened(make(), tmp_path)
    score(tmp_path / "net.safetensors", store=STORE, device="cpu", out=tmp_path)
    (flag,) = [flag for flag in load_record(tmp_path / RECORD).score.flags if flag.name == "constant"]
    assert flag.up and "to all 24 images" in flag.sentence
    assert (sentence in flag.sentence) == bool(collapse(net))


def test_one_kept_weight_a_layer_is_a_path_where_they_meet():
    net = fresh()
    for weight in prunable(net).values():
        weight.data.zero_()
    body = net[1]
    body[0].weight.data[3, 0, 1, 1] = -1.0
    body[3].weight.data[5, 3, 1, 1] = 1e-30
    body[7].weight.data[9, 5 * 16] = -1e30
    body[9].weight.data[2, 9] = 1.0
    assert connected(net, SHAPE)
    body[9].weight.data[2, 9], body[9].weight.data[2, 8] = 0.0, 1.0
    assert not connected(net, SHAPE)


@pytest.mark.parametrize("arch", ["mnist-cnn", "resnet18"])
def test_paths_of_other_architectures(arch):
    net = build(arch).eval()
    shape = (1, 28, 28) if arch == "mnist-cnn" else (3, 32, 32)
    weights = prunable(net)
    assert connected(net, shape)
    if arch == "resnet18":  # a path leads around an empty convolution of a block
        weights["1.layer3.1.conv1.weight"].data.zero_()
        assert connected(net, shape)
    list(weights.values())[-1].data.zero_()
    assert not connected(net, shape)


def test_the_probe_leaves_the_net_as_it_is():
    net = fresh()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    connected(net, SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert isinstance(net[1][1], nn.BatchNorm2d) and net[1][1].weight.dtype == torch.float32


def test_inspect_import_and_score_warn_in_a_sentence(tmp_path, monkeypatch, capsys):
    net, path = emptied(), tmp_path / "net.safetensors"
    opened(net, tmp_path)
    torch.save(net.state_dict(), tmp_path / "theirs.pt")
    brought = ["--arch", "digits-cnn", "--protocol", "digits-linf", "--out", tmp_path / "brought"]
    for arguments in (
        ["inspect", path],
        ["inspect", path, "--json"],
        ["import", tmp_path / "theirs.pt", *brought],
        ["score", path, "--quiet"],
    ):
        monkeypatch.setattr(sys, "argv", ["prunebench", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.main()
        said = capsys.readouterr()
        assert not stop.value.code, said.err
        assert said.err.count("prunebench: warning: No weight is left: 0 of 38160 are kept") == 1
        if "--json" in arguments:
            assert "cannot see its images" in json.loads(said.out)["warnings"][0]
