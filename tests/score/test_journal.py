"""What was measured is kept under its whole key; a scoring that was cut off ends in the record of one that was not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from prunebench.bench.names import RECORD
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.score import journal
from prunebench.bench.score.journal import Entry, Finding, Journal
from prunebench.bench.score.scoring import score
from tests.support.nets import RANKED, STORE, changed, quick_attacks, use_attacks
from tools.kill_and_resume import timeless

RULES = changed(shard=16)
BEFORE = torch.tensor([True, True, False])
AFTER = torch.tensor([True, False, False])
FOOLING = torch.full((1, 1, 2, 2), 0.25)  # for the one image that fell
KEY = dict(attack="square", shard=slice(0, 3), seed=7, before=BEFORE)


class Counted:
    """A measurement that counts how often it is made."""

    def __init__(self):
        self.calls, self.images = 0, FOOLING

    def __call__(self):
        self.calls += 1
        return Finding(AFTER, 2, 1, 256, 1000, self.images)


def test_an_entry_is_measured_once_and_read_afterwards(tmp_path):
    measure = Counted()
    first, _ = Journal(tmp_path, ["net", 1]).entry(**KEY, measure=measure)
    second, images = Journal(tmp_path, ["net", 1]).entry(**KEY, measure=measure)
    assert images is None
    assert measure.calls == 1 and first == second
    assert torch.equal(second.bits, AFTER) and (second.batch, second.passes) == (256, 1000)
    assert (second.rejected, second.kernel_only) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000-00003-square.json"]


@pytest.mark.parametrize(
    ("facts", "change"),
    [
        (["another net", 1], {}),
        (["net", 2], {}),
        (["net", 1], {"seed": 8}),
        (["net", 1], {"before": torch.tensor([True, True, True])}),
    ],
)
def test_under_another_key_it_is_measured_anew(facts, change, tmp_path):
    measure = Counted()
    Journal(tmp_path, ["net", 1]).entry(**KEY, measure=measure)
    Journal(tmp_path, facts).entry(**KEY | change, measure=measure)
    assert measure.calls == 2
    assert len(list(tmp_path.iterdir())) == 1  # in the same file: the old entry is of no more use
    Journal(tmp_path, facts).entry(**KEY | change, measure=measure)
    assert measure.calls == 2


@pytest.mark.parametrize("change", [{"attack": "fab-t"}, {"shard": slice(3, 6)}, {"shard": slice(0, 4)}])
def test_attacks_and_shards_have_files_of_their_own(change, tmp_path):
    measure = Counted()
    Journal(tmp_path, []).entry(**KEY, measure=measure)
    Journal(tmp_path, []).entry(**KEY | change, measure=measure)
    Journal(tmp_path, []).entry(**KEY, measure=measure)
    assert measure.calls == 2 and len(list(tmp_path.iterdir())) == 2


def resealed(text, **changes):
    """An entry with other values and the hash that belongs to them."""
    values = {name: value for name, value in json.loads(text).items() if name in Entry.model_fields}
    del values["sha256"]
    return json.dumps(Entry.sealed(**values | changes).model_dump(mode="json", by_alias=True))


def test_a_resealed_entry_is_read_where_it_fits(tmp_path):
    """The premise of the two below that are resealed."""
    measure = Counted()
    Journal(tmp_path, []).entry(**KEY, measure=measure)
    (path,) = tmp_path.iterdir()
    path.write_text(resealed(path.read_text(), standing="000"))
    assert not Journal(tmp_path, []).entry(**KEY, measure=measure)[0].bits.any() and measure.calls == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: json.dumps(json.loads(text) | {"extra": 1}),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "passes"}),
        lambda text: json.dumps(json.loads(text) | {"standing": "10"}),
        lambda text: json.dumps(json.loads(text) | {"standing": "1x0"}),
        lambda text: json.dumps(json.loads(text) | {"standing": "111"}),
        lambda text: json.dumps(json.loads(text) | {"passes": 999}),
        lambda text: resealed(text, standing="10"),
        lambda text: resealed(text, standing="101"),
    ],
    ids=[
        "cut",
        "empty",
        "list",
        "extra",
        "missing",
        "too few images",
        "no digit",
        "the fallen stand again",
        "edited",
        "too few images, resealed",
        "an image not attacked stands, resealed",
    ],
)
def test_a_spoilt_entry_is_measured_anew(spoil, tmp_path):
    measure = Counted()
    entry, _ = Journal(tmp_path, []).entry(**KEY, measure=measure)
    (path,) = tmp_path.iterdir()
    path.write_text(spoil(path.read_text()))
    again, _ = Journal(tmp_path, []).entry(**KEY, measure=measure)
    assert measure.calls == 2 and torch.equal(again.bits, entry.bits)


def test_images_are_kept_when_they_are_asked_for(tmp_path):
    measure = Counted()
    Journal(tmp_path, []).entry(**KEY, measure=measure)
    for _ in range(2):  # the entry that was kept without them is measured anew, once
        entry, images = Journal(tmp_path, []).entry(**KEY, measure=measure, keep_images=True)
        assert torch.equal(images, FOOLING) and measure.calls == 2
    assert Journal(tmp_path, []).entry(**KEY, measure=measure) == (entry, None) and measure.calls == 2
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\0\1")
    assert torch.equal(Journal(tmp_path, []).entry(**KEY, measure=measure, keep_images=True)[1], FOOLING)
    assert measure.calls == 3  # a file that is not the one of the entry does not count


@pytest.mark.parametrize(("before", "calls"), [([True, True, False], 2), ([True, True, True], 1)])
def test_as_many_images_are_read_as_have_fallen(before, calls, tmp_path):
    """Two images are stored. They are believed where two of three fell, and not where one of two did."""
    measure = Counted()
    measure.images = FOOLING.expand(2, 1, 2, 2)
    for _ in range(2):
        key = KEY | {"before": torch.tensor(before)}
        images = Journal(tmp_path, []).entry(**key, measure=measure, keep_images=True)[1]
        assert torch.equal(images, measure.images)
    assert measure.calls == calls


def test_the_seconds_are_those_of_the_measurement(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(journal, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert Journal(None, []).entry(**KEY, measure=Counted())[0].seconds == 2.5


def test_a_file_has_the_name_of_its_attack_without_spaces(tmp_path):
    Journal(tmp_path, []).entry(**KEY | {"attack": "pgd 20 eps 1:2"}, measure=Counted(), keep_images=True)
    stem = "shard-00000-00003-pgd-20-eps-1:2"
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.json", f"{stem}.safetensors"}


def test_without_a_folder_nothing_is_kept():
    measure = Counted()
    for _ in range(2):
        Journal(None, []).entry(**KEY, measure=measure)
    assert measure.calls == 2


class Cut(BaseException):
    """The process ends here."""


def scoring(net, out, monkeypatch, *, fail_at=None, attacks=None):
    """Score with quick attacks of which call number `fail_at` never comes back; returns record and calls made."""
    calls = []

    def counted(name, attack):
        def run(*arguments, **options):
            if len(calls) == fail_at:
                raise Cut
            calls.append(name)
            return attack(*arguments, **options)

        return run

    use_attacks(monkeypatch, {n: counted(n, a) for n, a in (attacks or quick_attacks()).items()})
    return score(net, RULES, out=out, store=STORE, device="cpu"), calls


@pytest.mark.parametrize("fail_at", [1, 6, *(pytest.param(call, marks=pytest.mark.slow) for call in (0, 15))])
def test_a_scoring_that_was_cut_off_ends_in_the_same_record(fail_at, nets, tmp_path, monkeypatch):
    whole, calls = scoring(nets["imp"], tmp_path / "whole", monkeypatch)
    assert calls == list(RANKED) * 4  # four shards, images standing in each
    with pytest.raises(Cut):
        scoring(nets["imp"], tmp_path / "cut", monkeypatch, fail_at=fail_at)
    assert not (tmp_path / "cut" / RECORD).exists()
    kept = [path.stem for path in (tmp_path / "cut").glob("journal/*.json")]
    assert sum(name.endswith(tuple(f"-{attack}" for attack in RANKED)) for name in kept) == fail_at
    resumed, rest = scoring(nets["imp"], tmp_path / "cut", monkeypatch)
    assert rest == calls[fail_at:]  # what had been measured was not measured again
    assert timeless(resumed) == timeless(whole)
    raw = [outcomes_path(tmp_path / name / RECORD).read_bytes() for name in ("whole", "cut")]
    assert raw[0] == raw[1]


def test_the_journal_of_another_net_or_other_rules_is_no_help(nets, tmp_path, monkeypatch):
    scoring(nets["imp"], tmp_path, monkeypatch)
    assert scoring(nets["imp"], tmp_path, monkeypatch)[1] == []
    other, calls = scoring(nets["dense"], tmp_path, monkeypatch)
    assert calls == list(RANKED) * 4
    assert timeless(other) == timeless(scoring(nets["dense"], None, monkeypatch)[0])
    monkeypatch.setattr("tests.score.test_journal.RULES", changed(shard=16, attack_seed=4))
    assert len(scoring(nets["dense"], tmp_path, monkeypatch)[1]) == 16


@pytest.mark.usefixtures("dense_on_torch")
def test_the_journal_of_other_kernels_is_no_help_to_a_sparse_net(nets, tmp_path, monkeypatch):
    for name in ("imp", "dense"):
        scoring(nets[name], tmp_path / name, monkeypatch)
    monkeypatch.setattr("prunebench.bench.executor.identity", lambda: "4 floats wide, of another compiler")
    record, calls = scoring(nets["imp"], tmp_path / "imp", monkeypatch)
    assert calls == list(RANKED) * 4 and record.env["kernels"] == "4 floats wide, of another compiler"
    assert scoring(nets["dense"], tmp_path / "dense", monkeypatch)[1] == []  # its attacks never saw a kernel


def test_the_journal_of_other_attacks_is_no_help(nets, tmp_path, monkeypatch):
    scoring(nets["dense"], tmp_path, monkeypatch)
    assert scoring(nets["dense"], tmp_path, monkeypatch)[1] == []
    monkeypatch.setattr("prunebench.bench.machine.attack_code", lambda: "another Square")
    assert len(scoring(nets["dense"], tmp_path, monkeypatch)[1]) == 16
