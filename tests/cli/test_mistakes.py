"""Mistakes of new users that once ended in a message without a way out; each is one sentence with it now."""

from __future__ import annotations

import pytest

CLASSES = """from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    def __call__(self, job, lab):
        return lab.initial()


class Plain:
    def __call__(self, job, lab):
        return lab.initial()
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.delenv("PRUNEBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CLASSES)
    (tmp_path / "flat.toml").write_text('base = "digits-linf"\nname = "flat"\nepochs = 3\n')
    (tmp_path / "bare.toml").write_text('name = "bare"\n[training]\nepochs = 3\n')
    (tmp_path / "runs" / "jobs" / "imp-s0.9-seed0-abc").mkdir(parents=True)
    (tmp_path / "runs" / "jobs" / "imp-s0.9-seed0-abc" / "net.safetensors").touch()
    (tmp_path / "record.json").write_text("{}")
    (tmp_path / "lone.safetensors").touch()
    for folder, file in (("new", "new.py"), ("trained", "net.safetensors")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("class New: ...")


def train(protocol="digits-linf", pruner="imp", sparsity="0.9"):
    return ("train", protocol, "--pruner", pruner, "--sparsity", sparsity, "--out", "o")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (train(pruner="mine.py"), "'mine.py' is a file, but a pruner is a class in it; write mine.py:Class, such as m"),
        (train(pruner="mine.py:Plain"), "'mine.py:Plain' is a class, but a pruner is a frozen dataclass; put @data"),
        (train(sparsity="0,9"), "--sparsity 0,9 is written with a comma; write 0.9."),
        (train(protocol="flat.toml"), "unknown key 'epochs'; remove it or correct its spelling. (epochs goes below ["),
        (train(protocol="bare.toml"), "the key 'data' is missing; add it. (Or begin with base = NAME, and list"),
        (("score", "runs"), "one of the nets below it, such as runs/jobs/imp-s0.9-seed0-abc/net.safetensors, or a"),
        (("inspect", "record.json"), "record.json is a JSON file, not a net; name the net.safetensors beside it."),
        (("rank", "record.json"), "record.json is a single file, but a folder of records is needed, such as the fol"),
        (("site", ".", "--out", "o"), ". is the folder of one net, but a folder of records is needed"),
        (("verify", "record.json"), "no claim; make one from a record: prunebench claim record.json --out FOLDER"),
        (("sign", "runs", "--key", "k"), "The folder runs holds no record.json; name a record, or score the net"),
        (("claim", "lone.safetensors", "--out", "o"), "is a net, but a record is needed; give its record, record.json"),
        (("check", "imp,random"), "imp,random names 2 values"),
        (("check", "mine"), "Unknown pruner 'mine'; did you mean"),
        (("check", "new"), "path/to/file.py:Class, such as new/new.py:New."),
        (("check", "mine:Mine"), "No module named 'mine'; name its file, such as mine.py:Mine, mine.py:Plain."),
        (("check", "new/new:New"), "path/to/file.py:Class, such as new/new.py:New."),
        (("train", "flat", "--pruner", "imp", "--out", "o"), "Or name the file flat.toml."),
        (("rank", "trained"), "trained holds a net but no record; score it first: prunebench score trained/net.safe"),
        (("rank", "runs", "--check", "--write"), "--check compares with the tables that --write replaces; give one"),
        (
            ("score", "robustbench:A"),
            "robustbench:A is downloaded and names no rules; give both --out FOLDER an",
        ),
        (("score", "robustbench:A", "--out", "o"), "give both --out FOLDER and --protocol NAME."),
        (("score", "none.safetensors"), "There is no file none.safetensors; check the path."),
    ],
)
def test_a_mistake_is_one_sentence_with_a_way_out(prunebench, tmp_path, words, said):
    code, out, err = prunebench(*words)
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith("prunebench: ") and said in err
    assert not (tmp_path / "o").exists() or not any((tmp_path / "o").glob("[!.]*"))
