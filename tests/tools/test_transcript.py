"""A page's console sessions: what is compared exactly, what may differ by how much, and what is written."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from tools.transcript import IMAGES, SPREAD, faults, main, rewritten, session, shortened, steps

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# A page

```console
$ cd there
$ measure it
76 of 200 robust, 135 clean
...
Written: x
```

<!-- session:
make ready
twice
-->

```sh
$ not run
```

```console
$ last
```
"""
HASHES = "2bb5974efeb9", "a19907ca0cad0000000000000000000000000000000000000000000000000000"


def page(text):
    return f"```console\n$ command\n{text}\n```\n"


def agrees(written, came):
    return not faults(page(written), [came.splitlines()])


def test_the_commands_of_a_page_and_where_their_output_stands():
    found = steps(PAGE)
    assert [(step.command, step.start, step.end, step.hidden) for step in found] == [
        ("cd there", 4, 4, False),
        ("measure it", 5, 8, False),
        ("make ready\ntwice", 11, 13, True),
        ("last", 21, 21, False),
    ]
    assert PAGE.splitlines()[5:8] == ["76 of 200 robust, 135 clean", "...", "Written: x"]


def test_what_is_written_then_agrees_and_keeps_the_rest_of_the_page():
    came = [[], ["80 of 200 robust, 130 clean", "a", "b", "Written: x"], ["unseen"], ["new"]]
    text = rewritten(PAGE, came)
    assert faults(text, came) == [] and rewritten(text, came) == text
    assert text == PAGE.replace("76 of", "80 of").replace("135", "130").replace("$ last\n", "$ last\nnew\n")
    (fault,) = faults(PAGE, came)  # of the last command, which prints something now
    assert "line 22, 'last'" in fault and "--- came\nnew" in fault


@pytest.mark.parametrize(
    ("written", "came"),
    [
        ("Next: check it", "Next:   check\nit"),  # wrapped elsewhere
        ("done in 3 min 20 s", "done in 58 s"),
        (f"names {HASHES[0]}, but", f"names {HASHES[1]}, but"),
        ("(p = 2.5e-12).", "(p = 0.03)."),
        ("(p = 0).", "(p = 0.03)."),
        ("Images 0, 8, 12 and 49 more.", "Images 1, 2 and 3 more."),
        (
            "are not: 1,\n2; 48 were wrong here: 3; 9 get another label: 4",
            "are not: 9; 44 were wrong here: 8, 7; 8 get another label: 6",
        ),
        ("clean  349 of 500  69.8 [65.6, 73.7]\nnext", "clean  330 of 500  66.0 [61.7, 70.0]\nnext"),
        ("imp 69.3 [62.1, 75.7] 97.8 3", "imp 60.0 [54.0, 62.1] 97.0 3"),  # 62.1 is in both
        ("imp 69.3 [62.1, 75.7] 97.8 3", "imp 69.3 [62.1, 75.7] ⚠ 97.0 3"),
        ("15 of 200 are robust, 76 were claimed", "23 of 200 are robust, 66 were claimed"),
    ],
)
def test_what_depends_on_the_machine_may_differ(written, came):
    assert agrees(written, came)


@pytest.mark.parametrize(
    ("written", "came"),
    [
        ("10 of 10 checks hold", "9 of 10 checks hold"),
        ("keeps 2404 of 38160 weights", "keeps 2405 of 38160 weights"),
        ("a.md, b.md", "a.md, b.md, c.md"),
        ("reproduced", "refuted"),
        ("imp 69.3 [62.1, 75.7] 97.8 3", "imp 60.0 [54.0, 62.0] 97.8 3"),  # no overlap
        ("imp 69.3 [62.1, 75.7] 97.8 3", "imp 69.3 [62.1, 75.7] 97.8 4"),  # seeds
        ("imp 69.3 [62.1, 75.7] 97.8 3", "imp 69.3 [62.1, 75.7] 80.0 3"),  # 195.6 and 160 of 200 are clean
        ("imp 69.3 [62.1, 75.7] 97.8", "imp 69.3 [62.1, 75.7]"),
        ("76 of 200 robust", "76 of 500 robust"),
        ("for 3 min", "for 3 months"),
        ("said", ""),
        ("", "said"),
    ],
)
def test_everything_else_has_to_match(written, came):
    assert not agrees(written, came)


def test_counts_may_differ_as_two_draws_do():
    """100 and 100 - d of 200: the variance of the difference is 50 + (100 - d)(100 + d) / 200."""
    spread = {d: SPREAD * math.sqrt(50 + (100 - d) * (100 + d) / 200) for d in (32, 33)}
    assert spread[32] > 32 and spread[33] < 33
    assert agrees("100 of 200 robust, 100 clean", "68 of 200 robust, 68 clean")
    assert not agrees("100 of 200 robust", "67 of 200 robust") and not agrees("100 clean", "67 clean")
    assert not agrees("200 of 200 robust", "0 of 200 robust")


SCORED = "85 of 200  42.5 [35.9, 49.4]\n...\nWritten: x"
CLAUSE = "Of 200 images {}48 were claimed robust but are wrong here: 0, 8 and 46 more."


@pytest.mark.parametrize(
    ("written", "came"),
    [
        (SCORED, SCORED.replace("...", "a flag\nanother")),
        (SCORED, SCORED.replace("...\n", "")),  # without a flag
        ("...\nhead\n...\n...\ntail\n...", "head\ntail"),
        ("head\n...\nlike\n...\ntail", "head\nlike\nand\nlike\ntail"),
        (CLAUSE.format("10 were claimed to be\nfooled but are not: 3, 4 and 8 more; "), CLAUSE.format("")),
        (CLAUSE.format(""), CLAUSE.format("10 were claimed to be fooled but are not: 3; ")),
    ],
)
def test_what_varies_may_vanish(written, came):
    """Lines that are left out may be none; and 0 is within the spread of 10 of 200: 3.3 sqrt(10 x 190 / 200) > 10."""
    assert agrees(written, came)


@pytest.mark.parametrize(
    ("written", "came"),
    [
        (SCORED, "85 of 200  42.5 [35.9, 49.4]\na flag"),
        (SCORED, "a flag\nWritten: x"),
        (SCORED, SCORED.replace("...\n", "").replace("\n", " and\n")),  # not a line, but the rest of one
        (SCORED.replace("...\n", ""), SCORED.replace("...", "a flag")),
        ("head\n...\nlike\n...\ntail", "head\ntail"),
        ("head\n...\ntail", "head"),
        ("one\n...\none", "one"),
        (CLAUSE.format("11 were claimed to be fooled but are not: 3; "), CLAUSE.format("")),
        (CLAUSE.format(""), CLAUSE.format("11 were claimed to be fooled but are not: 3; ")),
        (CLAUSE.format("9 were claimed to be fooled but are not: 3; "), CLAUSE.format("9 get another label: 3; ")[8:]),
        (CLAUSE.format(""), CLAUSE.format("").replace("48", "148")),
    ],
)
def test_what_has_to_be_there_may_not_vanish(written, came):
    """The twins: 3.3 sqrt(11 x 189 / 200) < 11."""
    assert not agrees(written, came)


def test_the_page_attacks_as_many_images_as_its_counts_are_compared_by():
    assert f"--examples {IMAGES} " in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_what_the_page_leaves_out_stays_left_out():
    new = ["head", "x", "kept 10 s", "y", "z", "tail"]
    assert shortened(new, ["all"]) == new
    assert shortened(new, ["..."]) == ["..."]
    assert shortened(new, ["old", "...", "end"]) == ["head", "...", "tail"]
    assert shortened(new, ["old", "...", "kept 20 s", "more", "...", "end"]) == [
        *("head", "...", "kept 10 s", "y", "...", "tail"),
    ]
    assert shortened(new, ["old", "...", "gone", "..."]) == new
    assert shortened(["one"], ["old", "..."]) == ["one"]  # nothing is left out


def test_one_shell_runs_all_commands_and_a_difference_is_told(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(
        "```console\n$ mkdir a && cd a\n$ basename $PWD\n$ false\n$ echo one\n```\n"
        "<!-- session:\necho \"print('two')\" > two.py\n-->\n```console\n$ python two.py\nthree\n```\n"
    )
    with pytest.raises(SystemExit, match=r"(?s)page.md is not what .*line 4, 'basename.*--- came\na\n") as told:
        main([str(file), "--check"])
    assert "--- written\nthree\n--- came\ntwo" in str(told.value)
    main([str(file), "--write"])
    assert "$ basename $PWD\na\n$ false\n$ echo one\none\n```" in file.read_text()
    assert "$ python two.py\ntwo\n" in file.read_text()
    main([str(file), "--check"])


def test_a_hidden_command_that_fails_and_a_session_that_ends_are_told(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)hidden command ended with 1:\nfalse"):
        session(steps("<!-- session:\nfalse\n-->\n"), tmp_path)
    with pytest.raises(SystemExit, match=r"ended before 'exit'"):
        session(steps("```console\n$ true\n$ exit\n$ true\n```\n"), tmp_path)


def test_long_lines_are_wrapped_as_in_a_terminal(tmp_path):
    (lines,) = session(steps(f"```console\n$ {sys.executable} -c \"print('word ' * 30)\"\n```\n"), tmp_path)
    assert [len(line.split()) for line in lines] == [20, 10]
