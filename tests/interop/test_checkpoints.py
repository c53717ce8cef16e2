"""Checkpoints from elsewhere: matched by name, masks applied, refused by name, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from prunebench.bench.checkpoint import open_net
from prunebench.bench.cli import main
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.interop import checkpoints, matching, reading
from prunebench.bench.models import build, prunable
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.score.scoring import score
from tests.support.nets import STORE, TINY, seal_state

DIGITS = PROTOCOLS["digits-linf"]
WHOLE = 144 + 4608 + 32768 + 640
IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net():
    """A net of ours with a seed of its own, as somebody else may have trained it: without the normalisation."""
    return build("digits-cnn", info=STORE.info("digits"), seed=7).eval()


def bring(tmp_path, checkpoint, arch="digits-cnn", *, file="theirs.pt", **options):
    """`checkpoint`, saved with torch.save, imported."""
    path = tmp_path / file
    if file.endswith(".safetensors"):
        save_file(checkpoint, path)
    else:
        torch.save(checkpoint, path)
    return checkpoints.ingest(path, arch, DIGITS, tmp_path / "out", STORE, **options)


def refused(tmp_path, checkpoint, check, **options):
    with pytest.raises(Refused) as error:
        bring(tmp_path, checkpoint, **options)
    assert error.value.check == check
    said = str(error.value)
    assert "\n" not in said and said.isprintable() and not (tmp_path / "out").exists()
    return said


def same(made, net):
    with torch.no_grad():
        return torch.equal(made.net.module(IMAGES), net(IMAGES))


# What is read


@pytest.mark.parametrize("file", ["theirs.pt", "theirs.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_a_plain_state_dict_gives_the_same_logits(prefix, file, net, tmp_path):
    body = {prefix + name: value for name, value in net[1].state_dict().items()}
    made = bring(tmp_path, body, file=file)
    assert same(made, net)
    matches = {theirs: (ours, how) for theirs, ours, how in made.matches if theirs}
    assert matches.keys() == body.keys() and matches[f"{prefix}0.weight"] == ("1.0.weight", "unchanged")
    assert {(ours, how) for theirs, ours, how in made.matches if not theirs} == {
        ("0.mean", "of the data set"),
        ("0.std", "of the data set"),
    }


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_a_state_dict_inside_is_found(key, net, tmp_path):
    assert same(bring(tmp_path, {"epoch": 3, key: net.state_dict(), "optimizer": {"lr": 0.1}}), net)


def test_the_old_format_of_torch_is_read(net, tmp_path):
    path = tmp_path / "old.pt"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    assert same(checkpoints.ingest(path, "digits-cnn", DIGITS, tmp_path / "out", STORE), net)


def test_masks_of_torch_prune(net, tmp_path):
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(module, "weight", amount=0.75)
    made = bring(tmp_path, net.state_dict())
    assert same(made, net)
    assert made.net.id.nonzero == WHOLE // 4 and made.net.header.job.sparsity == 0.75
    assert ("1.0.weight_mask", "1.0.weight", "weight x mask") in made.matches


def test_masks_beside_the_weights(net, tmp_path):
    state = net[1].state_dict()
    mask = torch.zeros(64, 512)
    mask[::2] = 1
    made = bring(tmp_path, state | {"7.mask": mask})
    assert torch.equal(made.net.module.state_dict()["1.7.weight"], state["7.weight"] * mask)


def test_popup_scores_are_masks_of_the_largest_in_each_layer(net, tmp_path):
    state = net[1].state_dict()
    scores = {name: torch.randn(state[f"{name}.weight"].shape) for name in "0379"}
    made = bring(tmp_path, state | {f"{name}.popup_scores": score for name, score in scores.items()}, sparsity=0.9)
    # n - ceil(.9 n) of each layer: 14.4, 460.8, 3276.8 and 64 rounded down
    assert [layer.nonzero for layer in made.net.layers] == [14, 460, 3276, 64]
    found = made.net.module.state_dict()
    for name, values in scores.items():
        kept = found[f"1.{name}.weight"] != 0
        assert values.abs()[kept].min() > values.abs()[~kept].max()
        assert torch.equal(found[f"1.{name}.weight"][kept], state[f"{name}.weight"][kept])


def test_binary_scores_are_the_mask(net, tmp_path):
    state = net[1].state_dict()
    made = bring(tmp_path, state | {"9.popup_scores": (torch.arange(640).view(10, 64) < 64).float()})
    assert made.net.layers[-1].nonzero == 64


def test_other_types_are_cast_and_counters_need_not_be_there(net, tmp_path):
    state = {name: value.double() for name, value in net.state_dict().items() if "num_batches" not in name}
    made = bring(tmp_path, state)
    assert same(made, net)
    assert ("1.0.weight", "1.0.weight", "torch.float64 as torch.float32") in made.matches
    assert sum(how == "0: not in the file" for _, _, how in made.matches) == 2


def test_resnet18_under_the_names_of_others(tmp_path):
    net = build("resnet18", seed=1)
    theirs = {
        "module." + name.removeprefix("1.").replace("downsample", "shortcut").replace("fc.", "linear."): value
        for name, value in net.state_dict().items()
        if name.startswith("1.")
    }
    torch.save(theirs, tmp_path / "theirs.pt")
    cifar = PROTOCOLS["cifar10-linf"]
    made = checkpoints.ingest(tmp_path / "theirs.pt", "resnet18", cifar, tmp_path / "out", STORE)
    found = made.net.module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in net.state_dict().items() if name.startswith("1."))
    torch.testing.assert_close(found["0.mean"].view(-1), torch.tensor([0.4914, 0.4822, 0.4465]))


@pytest.mark.parametrize("last", ["classifier.", "classifier.0.", "linear.", "fc."])
def test_vgg16_under_the_names_of_others(last):
    ours = {name for name in build("vgg16-bn").state_dict() if name.startswith("1.")}
    theirs = [name.replace("1.0.", "features.", 1).replace("1.3.", last, 1) for name in ours]
    renaming = max(matching._renamings("vgg16-bn"), key=lambda rename: sum(rename(name) in ours for name in theirs))
    assert {renaming(name) for name in theirs} == ours


# Normalisation


def test_their_own_normalisation_is_taken(net, tmp_path):
    body = net[1].state_dict() | {"normalize.mean": torch.full((1, 1, 1, 1), 0.4), "normalize.std": torch.tensor([0.2])}
    found = bring(tmp_path, body).net.module.state_dict()
    assert found["0.mean"].flatten().tolist() == [pytest.approx(0.4)]
    assert found["0.std"].flatten().tolist() == [pytest.approx(0.2)]


def test_raw_pixels(net, tmp_path):
    made = bring(tmp_path, net[1].state_dict(), normalisation="none")
    with torch.no_grad():
        torch.testing.assert_close(made.net.module(IMAGES), net[1](IMAGES))


@pytest.mark.parametrize("text", ["", "0.5", "a/b", "0/0", "0.5/-1", "0.5/nan", "0.1,0.2/1", "inf/1", "0.5/1/1"])
def test_a_normalisation_that_is_none(text, net, tmp_path):
    with pytest.raises(PrunebenchError, match="Cannot read the normalisation"):
        bring(tmp_path, net[1].state_dict(), normalisation=text)


def test_two_normalisations_contradict_each_other(net, tmp_path):
    assert "its own normalisation" in refused(tmp_path, net.state_dict(), "keys", normalisation="none")


# What the file and the record say


def test_the_header_says_that_nobody_trained_under_the_rules(net, tmp_path):
    made = bring(tmp_path, net.state_dict(), label="someones-net")
    header = open_net(made.path).header
    assert (header.job.pruner, header.job.options, header.stages) == ("import", {"label": "someones-net"}, ())
    assert header.train_sha256 is None and header.source == checkpoints.sha256_of((tmp_path / "theirs.pt").read_bytes())
    assert header.protocol.name == "digits-linf-import" and not header.protocol.official
    assert header.protocol.model_copy(update={"name": DIGITS.name}) == DIGITS


def test_no_record_of_it_is_official(net, quick, tmp_path):
    """The whole test set, by the built-in rules, asked for by name or not; the twin is the same net sealed as ours."""
    made = bring(tmp_path, net.state_dict())
    for protocol in (None, "digits-linf"):
        assert not score(made.path, protocol, store=STORE, device="cpu").official
    ours = seal_state(tmp_path / "ours", net, DIGITS)
    assert score(ours, store=STORE, device="cpu").official


@pytest.mark.parametrize("label", ["", "a b", "\x1b[2J", "<b>", "../x", "a" * 65])
def test_labels_are_plain(label, net, tmp_path):
    with pytest.raises(PrunebenchError, match="is not a plain name"):
        bring(tmp_path, net.state_dict(), label=label)


def test_a_claimed_sparsity_must_be_there(net, tmp_path):
    assert "38160 of 38160" in refused(tmp_path, net.state_dict(), "sparsity", sparsity=0.9)


def test_nothing_is_overwritten(net, tmp_path):
    made = bring(tmp_path, net.state_dict())
    before = made.path.read_bytes()
    with pytest.raises(PrunebenchError, match="already exists and is not overwritten"):
        bring(tmp_path, net.state_dict())
    assert made.path.read_bytes() == before


# What is refused


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


HOSTILE = "evil\x1b[31m\u202e<script>\n" + "x" * 500


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (lambda s: without(s, "0.weight"), "keys", "it lacks '1.0.weight'"),
        (lambda s: s | {"10.weight": torch.ones(1)}, "keys", "it adds '10.weight'"),
        (
            lambda s: without(s, "0.weight") | {"zero.weight": s["0.weight"]},
            "keys",
            "'1.0.weight'; it adds 'zero.weight'",
        ),
        (lambda s: s | {HOSTILE: torch.ones(1)}, "keys", r"evil\x1b[31m\u202e<script>\nxxx"),
        (lambda s: s | {"9.weight": torch.ones(10, 63)}, "shapes", "'9.weight' as (10, 63), not (10, 64)"),
        (lambda s: s | {"9.weight": torch.ones(1).expand(2**20, 2**20)}, "shapes", "(1048576, 1048576)"),
        (lambda s: s | {"9.weight": torch.ones(10, 64).long()}, "shapes", "torch.int64"),
        (lambda s: s | {"9.weight": torch.eye(64)[:10].to_sparse()}, "shapes", "in an unusual tensor format"),
        (lambda s: s | {"9.weight": torch.full((10, 64), float("nan"))}, "non-finite", "1.9.weight"),
        (lambda s: s | {"module.9.weight": s["9.weight"]}, "keys", "for the same tensor"),
        (lambda s: s | {"1.9.weight": s["9.weight"]}, "keys", "twice|it adds"),
        (lambda s: s | {"9.mask": torch.full((10, 64), 0.5)}, "masks", "values other than 0 and 1"),
        (lambda s: s | {"9.mask": torch.ones(64, 10)}, "shapes", "'9.mask' as (64, 10)"),
        (lambda s: s | {"9.popup_scores": torch.randn(10, 64)}, "masks", "--sparsity"),
        (lambda s: without(s, "9.weight") | {"9.mask": torch.ones(10, 64)}, "keys", "it lacks '1.9.weight'"),
        (lambda s: s | {"mean": torch.zeros(1)}, "keys", "both or neither"),
        (lambda s: {"state_dict": {"state_dict": s}}, "keys", "Dict, not a tensor"),
        (lambda s: s | {"epoch": 3}, "keys", "'epoch' of type int"),
        (lambda s: s | {3: torch.ones(1)}, "keys", "'3' of type Tensor"),
        (lambda s: {}, "format", "not a state dict"),
        (lambda s: list(s.values()), "format", "holds list"),
        (lambda s: torch.ones(3), "format", "holds Tensor"),
    ],
)
def test_what_does_not_match_is_refused_by_name(change, check, said, net, tmp_path):
    message = refused(tmp_path, change(net[1].state_dict()), check)
    assert any(part in message for part in said.split("|")), message


class Planted:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_code_in_a_pickle_is_not_run(form, net, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "theirs.pt"
    held = {"state_dict": net.state_dict(), "hook": Planted(mark)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(Refused, match="no code in it was run"):
        checkpoints.ingest(path, "digits-cnn", DIGITS, tmp_path / "out", STORE)
    assert not mark.exists()
    # The twin: a reader that does unpickle would have run it.
    reader = pickle.loads if form == "pickle" else lambda data: torch.load(io.BytesIO(data), weights_only=False)
    reader(path.read_bytes())
    assert mark.is_dir()


def test_foreign_objects_are_named(net, tmp_path):
    assert "it holds argparse.Namespace" in refused(
        tmp_path, {"state_dict": net.state_dict(), "args": Namespace()}, "format"
    )


def test_files_are_limited_before_they_are_read(net, tmp_path, monkeypatch):
    path = tmp_path / "large.pt"
    with path.open("wb") as file:
        file.truncate(checkpoints.LARGEST + 1)
    monkeypatch.setattr("prunebench.bench.files.os.fdopen", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(Refused, match="is larger than"):
        checkpoints.ingest(path, "digits-cnn", DIGITS, tmp_path / "out", STORE)


def test_a_zip_that_swells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * 20_000)
    with pytest.raises(Refused, match="it unpacks to 20000 bytes"):
        checkpoints.ingest(tmp_path / "bomb.pt", "digits-cnn", DIGITS, tmp_path / "out", STORE)


def test_a_net_file_of_ours_is_not_imported_again(net, tmp_path):
    path = seal_state(tmp_path / "net.safetensors", net, TINY)
    with pytest.raises(Refused, match="is already a net file"):
        checkpoints.ingest(path, "digits-cnn", DIGITS, tmp_path / "out", STORE)


@pytest.mark.parametrize("data", [b"", b"PK", b"\x80", b"\x80\x02.", b"\x80\x02}.", b"hello", b"\xff" * 64])
def test_foreign_bytes_are_one_sentence(data, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(data)
    with pytest.raises(Refused) as error:
        checkpoints.ingest(path, "digits-cnn", DIGITS, tmp_path / "out", STORE)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_mutated_files_are_refused_or_read_but_never_a_traceback(net, tmp_path):
    """A byte changed, a piece cut out: 150 each of both formats."""
    state = without(net[1].state_dict(), *[name for name in net[1].state_dict() if "7" in name])
    draw = torch.Generator().manual_seed(0)
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    for source in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        data = source.read_bytes()
        for _ in range(150):
            where, byte = (int(torch.randint(n, (1,), generator=draw)) for n in (min(len(data), 4000), 256))
            broken = data[:where] + bytes([byte]) + data[where + 1 + byte % 3 :]
            (tmp_path / "b").write_bytes(broken)
            with pytest.raises(Refused):  # a sound one lacks the tensors of layer 7
                checkpoints.ingest(tmp_path / "b", "digits-cnn", DIGITS, tmp_path / "out", STORE)


def test_things_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "is a pipe"), ("none", "No such file"), (".", "is a directory")):
        with pytest.raises(Refused, match=said):
            checkpoints.ingest(tmp_path / name, "digits-cnn", DIGITS, tmp_path / "out", STORE)


def test_an_unknown_architecture_lists_the_choices(net, tmp_path):
    with pytest.raises(PrunebenchError, match="did you mean 'resnet18'"):
        bring(tmp_path, net.state_dict(), "resnet-18")


# The command


def test_the_command(net, tmp_path, monkeypatch, capsys):
    torch.save(net[1].state_dict(), tmp_path / "theirs.pt")
    words = ["import", str(tmp_path / "theirs.pt"), "--arch", "digits-cnn", "--protocol", "digits-linf", "--out"]
    monkeypatch.setattr("sys.argv", ["prunebench", *words, str(tmp_path / "one")])
    with pytest.raises(SystemExit) as stop:
        main.app()
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "0.weight" in text and "1.0.weight" in text and "digits-linf-import" in text
    monkeypatch.setattr("sys.argv", ["prunebench", *words, str(tmp_path / "two"), "--json", "--label", "x"])
    with pytest.raises(SystemExit):
        main.app()
    values = json.loads(capsys.readouterr().out)
    assert (
        values["sparsity"] == 0.0
        and {"theirs": "0.weight", "ours": "1.0.weight", "how": "unchanged"} in values["matches"]
    )


def test_the_prunable_weights_of_these_tests(net):
    assert sum(weight.numel() for weight in prunable(net).values()) == WHOLE
