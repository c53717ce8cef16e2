"""Killed and started again, `train` and `score` end in the bytes of a run that nobody disturbed."""

from __future__ import annotations

import sys

import pytest

from tests.support.nets import UNATTACKED, changed, toml
from tests.support.records import make as record
from tools import kill_and_resume
from tools.kill_and_resume import NET, Tally, main, result, timeless, torment, work


@pytest.mark.slow
def test_train_and_score_survive_being_killed(tmp_path, capsys):
    """A short version of what the tool does; a net trained on noise withstands nothing, so scoring takes seconds."""
    rules = changed(UNATTACKED, train=512, shard=4)
    (tmp_path / "tiny.toml").write_text(toml(rules))
    what = ["--pruner", "imp:rounds=2", "--sparsity", "0.9", "--examples", "32", "--kills", "2"]
    code = main([str(tmp_path / "tiny.toml"), *what])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["verb", "train", "score"]
    for line in lines[1:]:
        _, seconds, kills, _, finished, different = line.split()
        assert float(seconds) > 0 and int(kills) == 2 and int(finished) >= 1 and different == "0"
    assert code == 0


# Commands that work for half a second. The first writes digit after digit and goes on where it was; the second writes
# something else when it is started again.
HONEST, FORGETFUL = (
    """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[2])
folder.mkdir(exist_ok=True, parents=True)
(folder / ".lock").touch()
"""
    + rest
    for rest in (
        """
partial = folder / "partial"
done = partial.read_text() if partial.exists() else ""
while len(done) < 40:
    time.sleep(0.01)
    done += str(len(done) % 10)
    (folder / "aside").write_text(done)
    (folder / "aside").rename(partial)
(folder / "net.safetensors").write_text(done)
""",
        """
begun = (folder / "begun").exists()
(folder / "begun").touch()
time.sleep(0.4)
(folder / "net.safetensors").write_text("again" if begun else "first")
""",
    )
)


class Always:
    """Kills at this share of the work."""

    def __init__(self, share):
        self.share = share

    def uniform(self, low, high):
        return low + self.share * (high - low)


def test_the_tool_counts_kills_and_finds_no_fault_where_none_is(tmp_path):
    tally = torment("train", [sys.executable, "-c", HONEST], tmp_path, 3, Always(0.6))
    assert (tally.kills, tally.differ) == (3, 0) and tally.finished >= 1 and tally.resumed == 3


def test_the_tool_finds_a_run_that_goes_on_otherwise_than_it_began(tmp_path, monkeypatch):
    """The twin: what is written after a resume differs from what would have been written without."""
    tally = torment("train", [sys.executable, "-c", FORGETFUL], tmp_path, 1, Always(0.7))
    assert tally.kills == 1 and tally.differ == tally.finished == 1
    monkeypatch.setattr(kill_and_resume, "torment", lambda verb, *_: Tally(verb, 1.0, differ=verb == "score"))
    assert main(["digits-linf"]) == 1


def test_a_command_that_fails_is_shown(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)ended with 3.*what is wrong"):
        work([sys.executable, "-c", "print('what is wrong'); raise SystemExit(3)"], tmp_path, None)


def test_a_slow_machine_is_no_difference_and_another_doubt_is():
    flags = {
        name: {"name": name, "value": 0.0, "threshold": 0.1, "sentence": "."} for name in ("late", "budget-overrun")
    }
    quick = record(score={"flags": list(flags.values())})
    slow = record(
        score={"flags": [flags["late"], flags["budget-overrun"] | {"value": 2.0}]},
        cost={"train_seconds": 99.0, "score_seconds": 99.0, "processor_seconds": 99.0},
    )
    assert timeless(quick) == timeless(slow)
    assert timeless(quick) != timeless(
        record(score={"flags": [flags["late"] | {"value": 2.0}, flags["budget-overrun"]]})
    )


def test_results_are_compared_by_their_bytes(tmp_path, scored):
    assert result(tmp_path) == {}
    (tmp_path / NET).write_bytes(b"net")
    assert result(tmp_path) == {NET: b"net"}
    dense, imp = (result(scored[name]) for name in ("dense", "imp"))
    assert dense.keys() == {NET, "record.json", "record.outcomes.npz"} and all(dense[key] != imp[key] for key in dense)
    board = tmp_path / "run" / "records" / "tiny"
    board.mkdir(parents=True)
    for suffix in (".json", ".outcomes.npz"):
        (board / f"dense{suffix}").write_bytes((scored["dense"] / f"record{suffix}").read_bytes())
    published = result(tmp_path / "run")
    assert published == {f"records/tiny/dense{key[6:]}": dense[key] for key in ("record.json", "record.outcomes.npz")}
