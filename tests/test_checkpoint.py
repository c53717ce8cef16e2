"""A net file is the net, to the bit, or it is refused by name and with the numbers."""

from __future__ import annotations

import pickle
import random
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save

from prunebench.bench.checkpoint import Header, open_net, pack, seal, unpack
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.facts import StageCost
from prunebench.bench.job import Job
from prunebench.bench.mask import keep_count, keep_largest, masked
from prunebench.bench.models import build, prunable
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.record import LARGEST_NET

DIGITS = PROTOCOLS["digits-linf"]
SHAPE = (1, 2, 2)
GRANTED = 1000
# on 2x2 pixels, halved once: 32 inputs to the first linear layer
PRUNABLE = 1 * 16 * 9 + 16 * 32 * 9 + 32 * 64 + 64 * 3
KEEP = PRUNABLE - 6293  # ceil(.9 * 6992 = 6292.8)
FIRST = "1.0.weight"


def header(**changes):
    job = Job(pruner="imp", sparsity=0.9, seed=0)
    facts = dict(
        arch="digits-cnn",
        classes=3,
        shape=SHAPE,
        protocol=DIGITS,
        job=job,
        source=None,
        train_sha256=None,
        stages=(StageCost(name="fit", passes=GRANTED, seconds=None),),
    )
    return Header(**(facts | changes))


def pruned(keep=KEEP, seed=0):
    net = build("digits-cnn", 3, SHAPE, seed=seed)
    state = net.state_dict()
    names = list(prunable(net))
    return masked(state, keep_largest({name: state[name].abs() for name in names}, keep))


def write(path, state=None, about=None, granted=GRANTED):
    seal(path, pruned() if state is None else state, header() if about is None else about, passes_granted=granted)
    return path


@pytest.fixture
def net(tmp_path):
    return write(tmp_path / "net.safetensors")


def refused(path, check):
    """The sentence with which the file is refused under that check."""
    with pytest.raises(Refused) as error:
        open_net(path)
    assert error.value.check == check, str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_net_of_these_tests_on_paper():
    assert sum(weight.numel() for weight in prunable(build("digits-cnn", 3, SHAPE)).values()) == PRUNABLE == 6992
    assert keep_count(PRUNABLE, 0.9) == KEEP == 699


# Round trip


def test_what_comes_out_is_what_went_in_to_the_bit(net):
    state, opened = pruned(), open_net(net)
    result = opened.module.state_dict()
    assert result.keys() == state.keys()
    for name, tensor in state.items():
        assert result[name].dtype == tensor.dtype
        assert torch.equal(result[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name
    assert opened.header == header()


def test_an_opened_net_is_counted_frozen_and_in_eval_mode(net):
    opened = open_net(net)
    assert (opened.id.prunable, opened.id.nonzero) == (PRUNABLE, KEEP)
    assert opened.sparsity == (PRUNABLE - KEEP) / PRUNABLE >= 0.9
    state = pruned()
    assert [(layer.name, layer.shape, layer.nonzero) for layer in opened.layers] == [
        (name, tuple(state[name].shape), int((state[name] != 0).sum())) for name in prunable(opened.module)
    ]
    assert not opened.module.training
    assert not any(module.training for module in opened.module.modules())
    assert not any(parameter.requires_grad for parameter in opened.module.parameters())
    logits = opened.module(torch.rand(2, *SHAPE))
    assert logits.shape == (2, 3) and not logits.requires_grad


def test_zeros_of_either_sign_are_pruned_and_tiny_values_are_kept(tmp_path):
    state = pruned()
    flat = state[FIRST].view(-1)
    first, second, third = (state[FIRST].view(-1) != 0).nonzero().flatten()[:3]
    flat[first], flat[second], flat[third] = -0.0, 1e-45, -1e-45
    assert torch.signbit(flat[first]) and (flat[second] != 0) and flat[second] == torch.tensor(1e-45)
    bias = "1.7.bias"
    state[bias][0] = -0.0
    opened = open_net(write(tmp_path / "net.safetensors", state))
    assert opened.id.nonzero == KEEP - 1
    result = opened.module.state_dict()
    assert not torch.signbit(result[FIRST].view(-1)[first])  # the mask is `weight != 0`, so -0 is no weight
    assert result[FIRST].view(-1)[second] == flat[second] and result[FIRST].view(-1)[third] == flat[third]
    assert torch.signbit(result[bias][0])  # and outside prunable tensors every bit counts


@pytest.mark.parametrize("keep", [0, 1, KEEP])
def test_empty_and_nearly_empty_nets(tmp_path, keep):
    assert open_net(write(tmp_path / "net.safetensors", pruned(keep))).id.nonzero == keep


def test_dense_nets(tmp_path):
    about = header(job=Job(pruner="dense", sparsity=0.0, seed=0))
    assert open_net(write(tmp_path / "net.safetensors", pruned(PRUNABLE), about)).sparsity == 0


def test_the_file_is_as_small_as_its_weights(net, tmp_path):
    about = header(job=Job(pruner="dense", sparsity=0.0, seed=0))
    dense = write(tmp_path / "dense", pruned(PRUNABLE), about)
    assert dense.stat().st_size - net.stat().st_size == pytest.approx(4 * (PRUNABLE - KEEP), abs=64)


ELSEWHERE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_checkpoint
print(test_checkpoint.write(Path(sys.argv[2])))
"""


def test_two_processes_write_the_same_bytes(net, tmp_path, request):
    other = tmp_path / "other"
    command = [sys.executable, "-c", ELSEWHERE, str(request.path.parent), str(other)]
    subprocess.run(command, check=True, timeout=120, env={"PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1"})
    assert other.read_bytes() == net.read_bytes()
    assert write(tmp_path / "seed", pruned(seed=1)).read_bytes() != net.read_bytes()


def test_a_sound_file_may_begin_with_the_byte_of_a_pickle(tmp_path):
    """The first byte is the lowest of the header's length, a multiple of 8: one file in 32 begins with 0x80."""
    firsts = set()
    for extra in range(0, 256, 8):
        about = header(job=Job(pruner="x" * (1 + extra), sparsity=0.9, seed=0))
        path = write(tmp_path / "net.safetensors", about=about)
        firsts.add(path.read_bytes()[0])
        assert open_net(path).header == about
    assert 0x80 in firsts and len(firsts) == 32


# Refused when written


def state_with(change):
    state = pruned()
    change(state)
    return state


def put(name, value):
    return lambda state: state.__setitem__(name, value)


def one_more(state):
    """One weight more than the sparsity leaves."""
    state[FIRST].view(-1)[(state[FIRST].view(-1) == 0).nonzero()[0]] = 1.0


def nan(name, value=float("nan")):
    return lambda state: state[name].view(-1).__setitem__(0, value)


@pytest.mark.parametrize(
    ("change", "check", "numbers"),
    [
        (lambda state: state.pop("1.7.bias"), "keys", "lacks the key '1.7.bias' (1 in all)"),
        (lambda state: state.clear(), "keys", "lacks the key '0.mean' (18 in all)"),
        (put("1.7.mask", torch.ones(1)), "keys", "has the unknown key '1.7.mask' (1 in all)"),
        (put(FIRST, torch.zeros(16, 1, 3, 4)), "shapes", f"'{FIRST}' as (16, 1, 3, 4), not (16, 1, 3, 3)"),
        (put("1.7.bias", torch.zeros(())), "shapes", "'1.7.bias' as (), not (64,)"),
        (put(FIRST, torch.zeros(16, 1, 3, 3, dtype=torch.float64)), "shapes", "as torch.float64, not torch.float32"),
        (put(FIRST, torch.zeros(16, 1, 3, 3, dtype=torch.float16)), "shapes", "as torch.float16, not torch.float32"),
        (put("1.1.num_batches_tracked", torch.tensor(0.0)), "shapes", "as torch.float32, not torch.int64"),
        (nan(FIRST), "non-finite", f"NaN or infinite values in '{FIRST}'"),
        (nan("1.1.running_var", float("inf")), "non-finite", "values in '1.1.running_var'"),
        (nan("0.mean", float("-inf")), "non-finite", "values in '0.mean'"),
        (one_more, "sparsity", f"keeps {KEEP + 1} of {PRUNABLE} weights; sparsity 0.9 allows at most {KEEP}"),
    ],
)
def test_a_wrong_result_is_refused_by_name_and_with_the_numbers(tmp_path, change, check, numbers):
    path = tmp_path / "net.safetensors"
    with pytest.raises(Refused) as error:
        write(path, state_with(change))
    assert error.value.check == check
    assert numbers in str(error.value)
    assert "The pruner's result" in str(error.value)
    assert not list(tmp_path.iterdir())
    write(path, state_with(lambda state: None))  # the twin: without the change it is taken
    assert open_net(path).id.nonzero == KEEP


def test_the_budget_to_the_last_pass(tmp_path):
    write(tmp_path / "net.safetensors", granted=GRANTED)
    stages = (StageCost(name="a", passes=GRANTED, seconds=1.0), StageCost(name="b", passes=1, seconds=None))
    with pytest.raises(Refused, match=f"spent {GRANTED + 1} of {GRANTED} granted sample passes") as error:
        write(tmp_path / "more.safetensors", about=header(stages=stages))
    assert error.value.check == "budget"
    assert not (tmp_path / "more.safetensors").exists()


def test_a_header_for_no_net(tmp_path):
    with pytest.raises(Refused, match=r"The job names the architecture 'resnet19', not one of digits-cnn, "):
        write(tmp_path / "net.safetensors", about=header(arch="resnet19"))
    with pytest.raises(Refused, match=r"vgg16-bn cannot take .*32x32"):
        write(tmp_path / "net.safetensors", about=header(arch="vgg16-bn", shape=(3, 8, 8)))
    for change in ({"classes": 1}, {"shape": (1, 0, 8)}, {"shape": (1, 8, 2000)}, {"format": 2}, {"colour": "red"}):
        with pytest.raises(ValueError, match="validation error"):
            header(**change)


def test_the_pruners_own_tensors_are_left_alone(tmp_path):
    state = pruned()
    state[FIRST].requires_grad_()
    state["1.7.weight"] = state["1.7.weight"].T.contiguous().T  # not laid out row by row
    assert not state["1.7.weight"].is_contiguous()
    opened = open_net(write(tmp_path / "net.safetensors", state))
    assert torch.equal(opened.module.state_dict()["1.7.weight"], state["1.7.weight"])
    assert state[FIRST].requires_grad


@contextmanager
def full_disk(largest):
    """Files may grow to `largest` bytes, as if the disk were full then; Python ignores the signal that comes along."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_net_and_nothing_half_written(tmp_path, net):
    size, old = net.stat().st_size, net.read_bytes()
    with full_disk(size - 1), pytest.raises(PrunebenchError, match=r"Could not write .*make room"):
        write(net, pruned(seed=1))
    assert net.read_bytes() == old
    with full_disk(size - 1), pytest.raises(PrunebenchError, match="Could not write"):
        write(tmp_path / "new.safetensors")
    assert list(tmp_path.iterdir()) == [net]
    with full_disk(size + 64):
        write(net, pruned(seed=1))
    assert net.read_bytes() != old


# Refused when opened


def test_every_changed_byte_is_refused(net):
    """At each position of the file another byte; in the header also the other case, which JSON may not mind."""
    sound = net.read_bytes()
    assert unpack(sound, "net")
    chance, start = random.Random(0), 8 + int.from_bytes(sound[:8], "little")
    changes = [(at, chance.randrange(1, 256)) for at in range(len(sound))]
    changes += [(at, 0x20) for at in range(start)]
    for at, flip in changes:
        damaged = bytearray(sound)
        damaged[at] ^= flip
        with pytest.raises(Refused) as error:
            unpack(bytes(damaged), "net")
        assert error.value.check == "format", (at, flip)


def test_some_flipped_bits_are_refused_when_the_file_is_opened(net):
    sound, chance = net.read_bytes(), random.Random(1)
    for _ in range(200):
        damaged = bytearray(sound)
        damaged[chance.randrange(len(sound))] ^= 1 << chance.randrange(8)
        net.write_bytes(damaged)
        refused(net, "format")
    net.write_bytes(sound)
    assert open_net(net).id.nonzero == KEEP


def test_a_header_spelled_otherwise_is_refused(net):
    """1e-07 and 1E-07 are one number to JSON, and one bit apart."""
    about = header(protocol=DIGITS.model_copy(update={"units": 1e-7}))
    data = write(net, about=about).read_bytes()
    assert data.count(b"1e-07") == 1
    assert open_net(net).header == about
    net.write_bytes(data.replace(b"1e-07", b"1E-07"))
    assert "was altered" in refused(net, "format")


def test_every_truncation_is_refused(net):
    sound, chance = net.read_bytes(), random.Random(2)
    lengths = {0, 1, 7, 8, 9, len(sound) - 1, *(chance.randrange(len(sound)) for _ in range(100))}
    for length in lengths:
        net.write_bytes(sound[:length])
        refused(net, "format")
    net.write_bytes(sound + b"\0")
    assert "is not a whole safetensors file" in refused(net, "format")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_is_never_read(tmp_path):
    path, trace = tmp_path / "net.safetensors", tmp_path / "trace"
    assert pickle.loads(pickle.dumps(Bomb(trace))).close() is None and trace.exists()  # noqa: S301
    trace.unlink()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Bomb(trace), protocol=protocol))
        assert "is a pickle or a zip archive, which is never read" in refused(path, "format")
    for form in (True, False):
        torch.save({"a": Bomb(trace)}, path, _use_new_zipfile_serialization=form)
        assert "is a pickle or a zip archive" in refused(path, "format")
    for protocol in (0, 1):  # printable, and begins like any text
        path.write_bytes(pickle.dumps(Bomb(trace), protocol=protocol))
        refused(path, "format")
    assert not trace.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a net",
        b"\0" * 100,
        b"\xff" * 100,
        (2).to_bytes(8, "little") + b"{}",
        (9).to_bytes(8, "little") + b"[" * 9,
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        save({"weight": torch.zeros(3)}),
        save({"weight": torch.zeros(3)}, metadata={"format": "pt"}),
        save({}, metadata={"prunebench": "no JSON"}),
        save({}, metadata={"prunebench": "[]"}),
        save({}, metadata={"prunebench": "3"}),
        save({}, metadata={"prunebench": '{"about":{}}'}),
        save({}, metadata={"prunebench": '{"about":NaN,"content":""}'}),
        save({}, metadata={"prunebench": '{"about":' + "[" * 5000 + "]" * 5000 + ',"content":""}'}),
        save({}, metadata={"prunebench": '{"about":"\\ud800","content":""}'}),
        save({"a": torch.zeros(3, dtype=torch.float8_e4m3fn)}, metadata={"prunebench": '{"about":0,"content":""}'}),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, data):
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    assert str(path) in refused(path, "format")


@pytest.mark.parametrize("about", [None, 3, [], "text", {}, {"format": 1}])
def test_a_file_of_ours_that_holds_no_net(tmp_path, about):
    path = tmp_path / "stage.safetensors"
    path.write_bytes(pack({}, about))
    assert unpack(path.read_bytes(), "stage") == ({}, about)
    assert "breaks the rules" in refused(path, "header")


def test_files_that_cannot_be_read(tmp_path):
    assert "No such file" in refused(tmp_path / "none.safetensors", "file")
    assert "is a directory, not a regular file" in refused(tmp_path, "file")
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as file:
        file.truncate(LARGEST_NET + 1)  # a hole: it takes no disk
    assert f"larger than {LARGEST_NET} bytes" in refused(huge, "format")


def forged(path, about=lambda about: None, tensors=lambda tensors: None):
    """The file with another header or other tensors, and a hash that fits them: what only the checks can see."""
    kept, header = unpack(path.read_bytes(), "net")
    about(header)
    tensors(kept)
    path.write_bytes(pack(kept, header))
    return path


def test_a_forged_file_without_changes_is_taken(net):
    sound = net.read_bytes()
    assert open_net(forged(net)).id.nonzero == KEEP
    assert net.read_bytes() == sound


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        ({"arch": "resnet19"}, "arch", "'resnet19', not one of digits-cnn, mnist-cnn, resnet-small, resnet18"),
        ({"arch": "resnet18"}, "keys", "lacks the bit mask or the values for '1.conv1.weight'"),
        ({"arch": "mnist-cnn"}, "arch", "mnist-cnn cannot take"),
        ({"arch": "mnist-cnn", "shape": [1, 28, 28]}, "shapes", "'1.0.weight' with types or sizes that do not fit"),
        ({"arch": "vgg16-bn", "shape": [3, 8, 8]}, "arch", "vgg16-bn cannot take"),
        ({"classes": 4}, "shapes", "'1.9.weight' with types or sizes that do not fit the shape (4, 64)"),
        ({"classes": 1}, "header", "classes = 1"),
        ({"classes": 10**9}, "header", "classes = 1000000000"),
        ({"shape": [3, 2, 2]}, "shapes", "'1.0.weight' with types or sizes that do not fit the shape (16, 3, 3, 3)"),
        ({"shape": [1, 2, 2, 2]}, "header", "shape"),
        ({"shape": [1, 10**6, 2]}, "header", "shape.1 = 1000000"),
        ({"format": 2}, "header", "format = 2"),
        ({"colour": "red"}, "header", "unknown key 'colour'"),
        ({"job": {"pruner": "imp", "options": {}, "sparsity": 0.91, "seed": 0}}, "sparsity", "0.91 allows at most 629"),
        ({"job": {"pruner": "imp", "options": {}, "sparsity": 1.0, "seed": 0}}, "header", "job.sparsity = 1.0"),
    ],
)
def test_a_header_that_claims_something_else(net, change, check, said):
    assert said in refused(forged(net, about=lambda about: about.update(change)), check)


def drop(name):
    return lambda tensors: tensors.pop(name)


def hidden_nan(tensors):
    """NaN among the kept values, and beside them a plain tensor of that name for the checks to look at."""
    nan(f"{FIRST}.values")(tensors)
    put(FIRST, torch.zeros(16, 1, 3, 3))(tensors)


def other_bits(tensors):
    """The bit mask says one weight more than there are values."""
    bits = tensors["1.9.weight.bitmask"]
    at = int((bits != 255).nonzero()[0])
    bits[at] = int(bits[at]) | (int(bits[at]) + 1)


def longer_bits(tensors):
    """A byte more than the layer has weights for."""
    tensors[f"{FIRST}.bitmask"] = torch.cat([tensors[f"{FIRST}.bitmask"], torch.zeros(1, dtype=torch.uint8)])


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (nan(f"{FIRST}.values"), "non-finite", f"values in '{FIRST}'"),
        (nan("1.7.bias", float("inf")), "non-finite", "values in '1.7.bias'"),
        (drop("1.7.bias"), "keys", "lacks the key '1.7.bias'"),
        (drop(f"{FIRST}.bitmask"), "keys", f"lacks the bit mask or the values for '{FIRST}'"),
        (drop(f"{FIRST}.values"), "keys", f"lacks the bit mask or the values for '{FIRST}'"),
        (put("extra", torch.zeros(1)), "keys", "has the unknown key 'extra' (1 in all)"),
        (put(FIRST, torch.zeros(16, 1, 3, 3)), "keys", f"has the unknown key '{FIRST}' (1 in all)"),
        (put("1.7.bias", torch.zeros(65)), "shapes", "'1.7.bias' as (65,), not (64,)"),
        (put("1.7.bias", torch.zeros(64, dtype=torch.float64)), "shapes", "as torch.float64"),
        (put(f"{FIRST}.values", torch.zeros(3)), "shapes", "has 3 values for "),
        (put(f"{FIRST}.values", torch.zeros(3, dtype=torch.float64)), "shapes", "with types or sizes that do not fit"),
        (hidden_nan, "keys", f"has the unknown key '{FIRST}' (1 in all)"),
        (other_bits, "shapes", "values for"),
        (longer_bits, "shapes", "do not fit the shape"),
    ],
)
def test_tensors_that_are_no_such_net(net, change, check, said):
    assert said in refused(forged(net, tensors=change), check)
