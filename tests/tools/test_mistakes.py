"""Mistakes are answered by a message and an exit code, and leave no net or record; the list has many kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import mistakes
from tools.mistakes import Answer, page
from tools.mistakes_made import FILES, INTERRUPT, MISTAKES, PREPARE

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Every answer; takes minutes."""
    prepared = tmp_path_factory.mktemp("prepared")
    mistakes.prepare(prepared)
    return list(mistakes.answers(prepared))


@pytest.mark.slow
def test_every_mistake_is_answered_by_a_message_and_an_exit_code(answers):
    assert [answer for answer in answers if not answer.sound] == []
    assert {answer.code for answer in answers} == {1, 2, 130}


def test_an_answer_that_is_none_is_seen():
    """The twins: a command that succeeds, that says nothing, that shows a traceback, that leaves a net behind."""
    good = Answer("kind", "prunebench x", 1, "prunebench: No x.", ())
    assert good.sound
    for other in (
        Answer("kind", "prunebench x", 0, "Done.", ()),
        Answer("kind", "prunebench x", 1, "", ()),
        Answer("kind", "prunebench x", 1, "Traceback (most recent call last):", ()),
        Answer("kind", "prunebench x", 1, "prunebench: No x.", ("new/net.safetensors",)),
    ):
        assert not other.sound


def test_the_list_has_mistakes_of_all_kinds():
    commands = [command for of_kind in MISTAKES.values() for command in of_kind]
    assert len(commands) == len(set(commands)) >= 30
    verbs = {command.removeprefix(INTERRUPT).split()[1] for command in commands}
    assert {"train", "run", "score", "import", "inspect", "rank", "site", "compare", "claim", "verify", "new"} <= verbs


def test_the_page_shows_every_mistake_and_no_path_of_a_machine():
    """The committed page is of this list: run the tool again after a change of it."""
    text = PAGE.read_text()
    commands = [command for of_kind in MISTAKES.values() for command in of_kind]
    for kind in MISTAKES:
        assert f"## {kind}\n" in text
    for command in commands:
        assert f"```text\n$ {command.removeprefix(INTERRUPT)}\n" in text
    assert text.count("```text") == len(commands) and "/tmp" not in text and "/home" not in text


def test_a_page_has_a_section_per_kind_and_the_exit_codes():
    found = [
        Answer("Names", "prunebench x", 1, "prunebench: No x.", ()),
        Answer("Stops", f"{INTERRUPT}prunebench y", 130, "prunebench: stopped", ()),
    ]
    text = page(found)
    assert "2 mistakes of 2 kinds" in text
    assert text.endswith(
        "## Names\n\n```text\n$ prunebench x\nprunebench: No x.\n```\n\nExit code 1.\n"
        "\n## Stops\n\n```text\n$ prunebench y\n^C\nprunebench: stopped\n```\n\nExit code 130.\n"
    )


@pytest.mark.slow
def test_a_preparation_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(mistakes, "PREPARE", ("prunebench train none.toml --pruner imp --out net",))
    with pytest.raises(SystemExit, match=r"(?s)none.toml.* ended with 1.*Cannot read none.toml"):
        mistakes.prepare(tmp_path)
    assert set(FILES) and len(PREPARE) == 5
