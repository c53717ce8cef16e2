"""Tables are complete, deterministic, and take nothing from a record but text."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from leaderboard.render import FORMATS, LONGEST, as_json, clean, comma_separated, latex, markdown, percent, terminal
from leaderboard.table import Rate, rank
from tests.records import ATTACKS, make, refusal

HOSTILE = (
    "a|b", "<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](http://evil.example)", "`x`", "*x*", "_x_",
    "http://evil.example", "www.evil.example", "me@evil.example", "a\\|b", "$x$", "&lt;", "~~x~~", "=cmd()", "+1", "-1",
    "@x", "\uff1d1+1",
    "\\input{x}", "50 % & # ^ { }", "line\nbreak", "line\r\n| a | b |", "tab\tnull\x00bell\x07", "right\u202eto left",
    "\x1b[31mred", "[red]x[/red]", "\ud800", "é", '"quoted", text', "x" * 5000, " ", "--",
)  # fmt: skip


def ranking(label="imp", **changes):
    records = [make(label, seed=seed, robust=50 + seed, **changes) for seed in range(3)]
    records += [make("dense", 0.0, seed, robust=60 + seed, **changes) for seed in range(3)]
    results = {Path(f"r/{i}.json"): record for i, record in enumerate(records)}
    return rank(results | {Path("r/refused.json"): refusal(reason=label, refused=label)})


def shown(ranking, width=80):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    for table in terminal(ranking):
        console.print(table)
    return console.file.getvalue()


def markdown_rows(text):
    """The cells of all table lines; a pipe always parts cells, for none is ever escaped by a backslash."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (Rate((664,), 0.664, 0.652, 0.676, 0.012), "66.4 ± 1.2"),
        (Rate((1,), 0.0, 0.0, 0.0, 0.0), "0.0 ± 0.0"),
        (Rate((70,), 0.7, 0.604, 0.781, None), "70.0 [60.4, 78.1]"),
    ],
)
def test_rates_read_well(rate, text):
    assert percent(rate) == text


def test_markdown_shows_each_row_once_and_the_evidence_beside_it():
    text = markdown(ranking())
    rows = markdown_rows(text)
    assert rows[0] == ["Place", "Pruner", "Sparsity", "Counted", "Robust %", "Clean %", "Seeds", "Training, M passes",
                       "Training, s", "Device", "Origin", "Protocol"]  # fmt: skip
    assert rows[2][:4] == ["ref", "dense", "0", "0.0000"]
    # sd .01 with df 4: t(.975, 4) * .01 / sqrt(3) = 1.6 points
    assert rows[3] == ["1", "imp", "0.9", "0.9000", "51.0 ± 1.6", "80.0 ± 0.5", "3", "33.0", "12.5", "cpu",
                       "as handed in", "digits-linf v1, 100 images"]  # fmt: skip
    assert ["imp", "0.9", *["51"] * 4] in rows
    assert "r/refused.json" in rows[-1]
    for evidence in ("official", "sha256 dddddddddddd...", "Records: 6", "Holm", "4 degrees of freedom"):
        assert evidence in text
    assert text.index("## digits-linf") < text.index("## Not scored")


FLAG = {"name": "black-box-wins", "value": 7.0, "threshold": 1.0, "sentence": "Square fools 7 | of them."}


@pytest.mark.parametrize(("value", "up"), [(7.0, True), (1.0, False), (None, False)])
def test_a_flag_that_is_up_stands_beside_the_number_with_its_sentence(value, up):
    made = ranking(score={"flags": [FLAG | {"value": value}]})
    text = markdown(made)
    assert ("51.0 ± 1.6 \u26a0" in text) == up
    assert ("- \u26a0 imp at 0.9, seeds 0, 1, 2: Square fools 7 &#124; of them. (black-box-wins)" in text) == up
    assert ("\u26a0" in text) == ("\u26a0" in shown(made)) == up
    assert (r"51.0 \ensuremath{\pm} 1.6 \textbf{!}" in latex(made)) == up
    assert ("Square fools 7" in latex(made)) == ("Square fools 7" in shown(made, width=200)) == up
    (_, imp, _) = csv.DictReader(io.StringIO(comma_separated(made)))
    assert imp["flags"] == ("black-box-wins" if up else "")
    flags = json.loads(as_json(made))["boards"][0]["rows"][1]["flags"]
    assert [(flag["name"], flag["seeds"]) for flag in flags] == [("black-box-wins", [0, 1, 2])] * up


def test_csv_and_json_carry_counts_and_full_precision():
    made = ranking()
    (dense, imp, refused) = csv.DictReader(io.StringIO(comma_separated(made)))
    assert (dense["pruner"], imp["pruner"]) == ("dense", "imp")
    assert float(imp["robust"]) == 51 / 100
    assert float(imp["robust_high"]) == made.boards[0].rows[1].robust.high
    assert (imp["robust_counts"], imp["seeds"], imp["n"], imp["survived_square"]) == (
        "50;51;52",
        "0;1;2",
        "100",
        "51.0",
    )
    assert refused["refused"] == "imp: imp"
    (board,) = json.loads(as_json(made))["boards"]
    assert board["rows"][1]["robust"]["counts"] == [50, 51, 52]
    assert board["rows"][1]["sparsity"] == 0.9
    assert list(board["rows"][1]["survived"]) == list(ATTACKS)


def test_latex_is_a_booktabs_table():
    text = latex(ranking())
    assert (
        r"1 & imp & 0.9 & 51.0 \ensuremath{\pm} 1.6 & 80.0 \ensuremath{\pm} 0.5 & 3 & 33.0 & 12.5 & as handed in \\"
        in text
    )
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{table}", r"\end{table}"):
        assert word in text


def test_the_terminal_table_fits_80_columns():
    for made in (
        ranking(),
        rank({Path("a.json"): make("imp:rewind_epoch=1,rounds=5", n=1000, clean=1000, robust=1000)}),
    ):
        lines = shown(made).splitlines()
        assert max(map(len, lines)) <= 80
        assert any(re.search(r"1 +imp.* 0.9 ", line) for line in lines)


@pytest.mark.parametrize("render", [form.render for form in FORMATS.values()])
def test_the_same_records_give_the_same_bytes(render):
    assert render(ranking()) == render(ranking())


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_every_file_begins_as_its_format_says(form):
    assert form.render(ranking()).startswith(form.begins)
    assert form.render(rank({Path("a.json"): refusal()})).startswith(form.begins)
    assert form.render(ranking()).endswith("\n")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_record_cannot_break_out_of_a_table(hostile):
    flag = FLAG | {"name": hostile, "sentence": hostile}
    made = ranking(
        hostile, data={"name": hostile}, protocol={"name": hostile}, cost={"device": hostile}, score={"flags": [flag]}
    )
    flagged = ranking(score={"flags": [FLAG]})
    text = markdown(made)
    assert {len(row) for row in markdown_rows(text)} == {12, 6, 5}  # columns of the board, the survivors, the refusals
    assert len(text.splitlines()) == len(markdown(flagged).splitlines())
    assert not re.search(r"[<`*\[\]~$\\@]|://|www\.", text.replace(text.splitlines()[0], ""))
    rows = list(csv.reader(io.StringIO(comma_separated(made))))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+-@\uff1d")]
    assert {row["pruner"] for row in json.loads(as_json(made))["boards"][0]["rows"]} == {hostile, "dense"}
    tex = latex(made)
    assert tex.count("\n") == latex(flagged).count("\n")
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")
    assert "\\input{x}" not in tex
    assert tex.isascii()
    assert "\x1b" not in shown(made)
    assert hostile != "[red]x[/red]" or hostile in shown(made)
    for form in FORMATS.values():
        form.render(made).encode()


def test_the_check_above_sees_what_is_not_escaped(monkeypatch):
    monkeypatch.setattr("leaderboard.render._markdown_text", clean)
    assert {len(row) for row in markdown_rows(markdown(ranking("a|b")))} != {12, 6, 5}
    monkeypatch.setattr("leaderboard.render._markdown_text", str)
    assert len(markdown(ranking("a\nb")).splitlines()) != len(markdown(ranking()).splitlines())


def test_latex_specials_are_spelled():
    text = latex(ranking("\\a_b^c~d{e}&%$#<|>`--"))
    spelled = (
        r"\textbackslash{}a\_b\textasciicircum{}c\textasciitilde{}d\{e\}\&\%\$\#\textless{}\textbar{}\textgreater{}"
        r"\textasciigrave{}-{}-{}"
    )
    assert f"1 & {spelled} & 0.9" in text


@given(st.text(st.characters(codec=None), max_size=400))
def test_clean_text_is_one_short_printable_line(text):
    flat = clean(text)
    assert len(flat) <= LONGEST
    assert len(flat.splitlines()) <= 1
    assert flat.isprintable()
    flat.encode()


def test_plain_names_stay_as_they_are():
    for label in ("imp", "imp:rounds=5,rewind_epoch=1", "my.package:Class", "some/file.py:Class"):
        assert clean(label) == label
        assert label in markdown(ranking(label))
        assert label in comma_separated(ranking(label))
        assert label in shown(ranking(label), width=120)
