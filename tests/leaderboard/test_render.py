"""Tables are complete, deterministic, and take nothing from a record but text."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from prunebench.leaderboard.board import Rate
from prunebench.leaderboard.contrasts import Contrast, Power
from prunebench.leaderboard.render import columns
from prunebench.leaderboard.render.data import as_json, comma_separated
from prunebench.leaderboard.render.formats import FORMATS
from prunebench.leaderboard.render.latex import latex
from prunebench.leaderboard.render.markdown import markdown
from prunebench.leaderboard.render.terminal import terminal
from prunebench.leaderboard.render.text import LONGEST, clean, points, power_of, resampled, verdict, with_interval
from prunebench.leaderboard.table import rank
from tests.support.records import ATTACKS, make, refusal

HOSTILE = (
    "a|b",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "![x](http://evil.example)",
    "`x`",
    "*x*",
    "_x_",
    "http://evil.example",
    "www.evil.example",
    "me@evil.example",
    "a\\|b",
    "$x$",
    "&lt;",
    "~~x~~",
    "=cmd()",
    "+1",
    "-1",
    "@x",
    "\uff1d1+1",
    "\\input{x}",
    "50 % & # ^ { }",
    "line\nbreak",
    "line\r\n| a | b |",
    "tab\tnull\x00bell\x07",
    "right\u202eto left",
    "\x1b[31mred",
    "[red]x[/red]",
    "\ud800",
    "é",
    '"quoted", text',
    "x" * 5000,
    " ",
    "--",
    "66.4 [63.1, 69.5](javascript:alert(1))",
    "[1.0, 2.0]: http://evil.example",
    "=1+1",
    "+1.0 [+1.0, +2.0]|=1+1",
)


COLUMNS = {5, 6, 7, 8}  # of contrasts and refusals; survivors; rows apart and methods with a doubt; methods, costs
OTHERS = ("magnitude", "random", "dense")
OWN = re.compile(
    r"\| *([+-]?[\d.]+ )?\[[+-]?[\d.]+, [+-]?[\d.]+\]( \u26a0|: (better|worse|cannot tell)( \u2020)?)? *(?=\|)"
)
# Lines of our own: the first, those that fold, the picture, and the intervals of the leaders.
ABOVE = re.compile(
    r"^<!-- .* -->$|^<details><summary>[A-Za-z, ]+</summary>$|^</details>$|^!\[[^\[\]]*\]\(board\.svg\)$"
    r"|\[[+-]?[\d.]+, [+-]?[\d.]+\](?![(\[:])",
    re.MULTILINE,
)


def ranking(label="imp", shuffled=False, best=None, **changes):
    """A method of this name, magnitude, random and dense; by seed the method has 11, 12 and 13 more than magnitude.

    `shuffled`: with a shuffle of the method, whose name stands in contrasts as well. `best`: the best-known number of
    all nets.
    """

    def beyond(count):
        parts = {"suite": "best-1", "robust": best, "by": {"malt": count - (best or 0)}, "long": 0, "passes": 0}
        return {} if best is None else {"beyond": {"best": parts}}

    counts = {(label, 0.9): (50, 51, 52), ("magnitude", 0.9): (39, 39, 39), ("random", 0.9): (20, 30, 25)}
    counts |= {("dense", 0.0): (60, 61, 62)}
    records = [
        make(name, sparsity, seed, robust=count, **beyond(count), **changes)
        for (name, sparsity), robust in counts.items()
        for seed, count in enumerate(robust)
    ]
    job = {"options": {"shuffle": True}}
    records += [make(label, 0.9, seed, robust=10 + seed, job=job, **changes) for seed in range(3 * shuffled)]
    results = {Path(f"r/{i:02d}.json"): record for i, record in enumerate(records)}
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
        (Rate((664,), 0.664, 0.652, 0.676, "logit-t"), "66.4 [65.2, 67.6]"),
        (Rate((70,), 0.7, 0.604, 0.781, "wilson"), "70.0 [60.4, 78.1]"),
    ],
)
def test_rates_read_well(rate, text):
    assert with_interval(rate) == text


def compared_with(**changes):
    values = {
        "pruner": "a",
        "control": "b",
        "sparsity": Decimal("0.9"),
        "family": "primary",
        "seeds": (0, 1),
        "sd": 0.1,
        "gap": 0.05,
        "low": 0.012,
        "high": 0.088,
        "p": 0.01,
        "adjusted": 0.03,
        "bootstrap": (0.01, 0.07),
    }
    return Contrast(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "difference", "interval", "said"),
    [
        ({}, "+5.0 [+1.2, +8.8]", "[+1.0, +7.0]", "better"),
        ({"gap": -0.05, "low": -0.088, "high": -0.012}, "-5.0 [-8.8, -1.2]", "[+1.0, +7.0]", "worse"),
        ({"adjusted": 0.05}, "+5.0 [+1.2, +8.8]", "[+1.0, +7.0]", "cannot tell"),
        ({"bootstrap": (-0.001, 0.07)}, "+5.0 [+1.2, +8.8]", "[-0.1, +7.0]", "better \u2020"),
        ({"gap": -0.0004, "bootstrap": None, "adjusted": 1.0}, "+0.0 [+1.2, +8.8]", "not available", "cannot tell"),
        ({"bootstrap": None}, "+5.0 [+1.2, +8.8]", "not available", "better"),
        ({"low": None, "high": None, "bootstrap": None, "adjusted": 1.0}, "+5.0", "", "too few seeds"),
        ({"gap": None, "low": None, "bootstrap": None, "adjusted": 1.0}, "no common seed", "", "too few seeds"),
    ],
)
def test_contrasts_read_well(changes, difference, interval, said):
    contrast = compared_with(**changes)
    assert (points(contrast), resampled(contrast), verdict(contrast)) == (difference, interval, said)


def test_a_dagger_is_explained_where_it_stands():
    made = ranking()
    found = [c for c in made.boards[0].contrasts if c.family == "primary"]
    for gap, there in ((0.001, False), (-0.001, True)):
        changed = tuple(dataclasses.replace(c, bootstrap=(gap, 0.2)) for c in found)
        board = dataclasses.replace(made.boards[0], contrasts=changed)
        again = dataclasses.replace(made, boards=(board,))
        assert ("better \\textdagger{}" in latex(again)) == ("textdagger{} a bootstrap" in latex(again)) == there
        assert ("better \u2020" in shown(again)) == ("\u2020 a bootstrap over seeds" in shown(again)) == there


def test_power_reads_well():
    board = ranking().boards[0]
    for power, said in (
        (
            Power(Decimal("0.9"), 0.03, 6, 15, 15, 0.84, 0.36, 1.0, {20: 0.95}),
            (
                "15 seeds detect a true difference of 3 points to magnitude with probability .84 on average (.36 to "
                "1.00 by method); 20 would with .95."
            ),
        ),
        (
            Power(Decimal("0.9"), 0.03, 6, 4, 15, 0.84, 0.36, 1.0, {15: 0.95}),
            (
                "4 to 15 seeds detect a true difference of 3 points to magnitude with probability .84 on average (.36 "
                "to 1.00 by method); 15 or more would with .95."
            ),
        ),
        (
            Power(Decimal("0.9"), 0.03, 1, 20, 20, 0.36, 0.36, 0.36, {}),
            (
                "20 seeds detect a true difference of 3 points to magnitude with probability .36. Such a difference "
                "is more likely missed than detected here."
            ),
        ),
        (
            Power(Decimal("0.9"), 0.03, 1, 0, 0, None, None, None, {}),
            "No method shares 3 seeds with magnitude, so no difference to it can be detected.",
        ),
    ):
        assert power_of(dataclasses.replace(board, powers=(power,)), Decimal("0.9")) == said
    assert power_of(board, Decimal("0.5")) == ""


def test_markdown_shows_each_row_once_and_the_evidence_beside_it():
    text = markdown(ranking())
    rows = markdown_rows(text)
    # imp: m = 153.5 / 301, log-odds .0399 +- t(.975, 2) * .01 / sqrt(3) / (m (1 - m)) = .0399 +- .0994: .4851, .5348.
    # Differences 11, 12, 13: t(.975, 2) * .01 / sqrt(3) = 2.5
    best = ["51.0 [48.5, 53.5]", "+12.0 [+9.5, +14.5]"]
    assert (
        f"- At 0.9, imp is highest: {best[0]} %, {best[1]} points against magnitude. It is clearly above the other "
        "method." in text
    )
    assert "![imp beats magnitude pruning at 0.9](board.svg)" in text
    assert rows[0] == ["Place", "Pruner", "Robust %", "Minus magnitude", "Verdict", "Clean %", "Seeds"]
    assert rows[2] == ["1", "imp", *best, "better", "80.0 [79.2, 80.6]", "3"]
    assert rows[3] == ["2", "magnitude", "39.0 [38.3, 39.8]", "", "", "80.0 [79.2, 80.6]", "3"]
    assert rows[4][:2] + rows[4][3:] == ["control", "random", "", "", "80.0 [79.2, 80.6]", "3"]
    folded = text.partition("<summary>Unpruned nets and other controls</summary>")[2].partition("</details>")[0]
    assert markdown_rows(folded)[2] == ["ref", "dense", "0", "61.0 [58.5, 63.4]", "80.0 [79.2, 80.6]", "3"]
    assert ["imp", "0.9", "+26.0 [+14.6, +37.4]: better", "not available"] in rows
    assert ["imp", "0.9", *["51"] * 4] in rows
    assert ["imp", "0.9", "0.9000", "33.0", "12.5", "cpu", "as handed in", "official"] in rows
    assert "r/refused.json" in rows[-1]
    for evidence in (
        "Official: Linf 0.2",
        "sha256 dddddddddddd...",
        "12 nets, 3 seeds",
        "Holm",
        "3 seeds detect a true difference",
    ):
        assert evidence in text
    assert text.index("## digits-linf") < text.index("## Not scored")
    assert "pooled" not in text


FLAG = {"name": "black-box-wins", "value": 7.0, "threshold": 1.0, "sentence": "Square fools 7 | of them."}


@pytest.mark.parametrize(("value", "up"), [(7.0, True), (1.0, False), (None, False)])
def test_a_flag_that_is_up_stands_beside_the_number_with_its_sentence(value, up):
    made = ranking(score={"flags": [FLAG | {"value": value}]})
    text = markdown(made)
    assert ("51.0 [48.5, 53.5] \u26a0" in text) == up
    assert ("- \u26a0 imp at 0.9, seeds 0, 1, 2: Square fools 7 &#124; of them. (black-box-wins)" in text) == up
    assert ("\u26a0" in text) == ("\u26a0" in shown(made)) == up
    assert (r"51.0 [48.5, 53.5] \textbf{!}" in latex(made)) == up
    assert ("Square fools 7" in latex(made)) == ("Square fools 7" in shown(made, width=200)) == up
    (_, imp, *_) = csv.DictReader(io.StringIO(comma_separated(made)))
    assert imp["flags"] == ("black-box-wins" if up else "")
    flags = json.loads(as_json(made))["boards"][0]["rows"][1]["flags"]
    assert [(flag["name"], flag["seeds"]) for flag in flags] == [("black-box-wins", [0, 1, 2])] * up


def test_many_flags_are_counted_below_a_table_and_explained_in_the_readme_alone():
    """All four rows raise each flag: one flag makes four messages, which are shown, two flags make eight."""
    few, many = ({"flags": [FLAG | {"name": f"f{i}"} for i in range(count)]} for count in (1, 2))
    assert shown(ranking(score=few), width=200).count("Square fools 7") == 4
    made = ranking(score=many)
    counted = "4 of 4 rows carry a flag: f0 (4) and f1 (4). The board's site explains each (prunebench site)."
    assert counted in " ".join(shown(made).split())
    assert counted in latex(made).replace("{}", "")
    assert "Square fools 7" not in shown(made, width=200) + latex(made)
    assert markdown(made).count("Square fools 7") == 8


def test_a_doubt_says_how_much_lower_the_best_known_number_is():
    """Best known is 10 of 100 for all nets; imp has 51 robust on average, random 25."""
    flags = {"flags": [FLAG | {"value": 7.0}]}
    text = markdown(ranking(score=flags, best=10))
    assert "- \u26a0 imp at 0.9 (best known -41.0 points), seeds 0, 1, 2: Square" in text
    assert "- \u26a0 random at 0.9 (best known -15.0 points), seeds 0, 1, 2: Square" in text
    assert "points)" not in "".join(line for line in markdown(ranking(score=flags)).splitlines() if "Square" in line)


def test_csv_and_json_carry_counts_and_full_precision():
    made = ranking()
    (dense, imp, magnitude, random, refused) = csv.DictReader(io.StringIO(comma_separated(made)))
    assert (dense["pruner"], imp["pruner"]) == ("dense", "imp")
    assert [row["role"] for row in (dense, imp, magnitude, random)] == ["reference", "method", "method", "control"]
    assert [row["place"] for row in (dense, imp, magnitude, random)] == ["", "1", "2", ""]
    primary = made.boards[0].contrasts[0]
    assert [imp[f"less_magnitude_{what}"] for what in ("gap", "p", "holm", "boot_low", "common_seeds", "verdict")] == [
        "0.12",
        str(primary.p),
        str(primary.adjusted),
        "",
        "3",
        "more",
    ]
    assert magnitude["less_magnitude_gap"] == imp["less_shuffle_gap"] == ""
    assert float(imp["less_random_low"]) == pytest.approx(
        0.26 - 4.302653 * math.sqrt(21) / 100 / math.sqrt(3), rel=1e-6
    )
    assert imp["interval"] == "logit-t"
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
    held = {(each["pruner"], each["control"]): each for each in board["contrasts"]}
    assert held["imp", "magnitude"] | {"p": 0, "adjusted": 0, "low": 0, "high": 0, "sd": 0} == {
        "pruner": "imp",
        "control": "magnitude",
        "sparsity": 0.9,
        "family": "primary",
        "seeds": [0, 1, 2],
        "gap": 0.12,
        "sd": 0,
        "low": 0,
        "high": 0,
        "p": 0,
        "adjusted": 0,
        "bootstrap": None,
        "verdict": "+",
        "agrees": None,
    }
    assert [(power["fewest"], power["most"]) for power in board["powers"]] == [(3, 3)]


def test_latex_is_a_booktabs_table():
    text = latex(ranking())
    line = r"1 & imp & 0.9 & 51.0 [48.5, 53.5] & 80.0 [79.2, 80.6] & 3 & 33.0 & as handed in & +12.0 [+9.5, +14.5]"
    assert rf"{line} & better \\" in text
    assert r"control & random & 0.9 & " in text.partition(r"\addlinespace")[2]
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{table}", r"\end{table}"):
        assert word in text


def test_the_terminal_table_fits_80_columns():
    for made in (
        ranking(),
        rank({Path("a.json"): make("imp:rewind_epoch=1,rounds=5", n=1000, clean=1000, robust=1000)}),
    ):
        lines = shown(made).splitlines()
        assert max(map(len, lines)) <= 80
        assert any(re.search(r"1 +imp", line) for line in lines)
        assert any(line.strip() == "at sparsity 0.9" for line in lines)


@pytest.mark.parametrize("render", [form.render for form in FORMATS.values()])
def test_the_same_records_give_the_same_bytes(render):
    assert render(ranking()) == render(ranking())


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_every_file_begins_as_its_format_says(form):
    assert form.render(ranking()).startswith(form.begins)
    assert form.render(rank({Path("a.json"): refusal()})).startswith(form.begins)
    assert form.render(ranking()).endswith("\n")


def test_parts_have_a_table_of_their_own_and_no_column_of_the_csv():
    """AWT is 30 ahead of its shuffle, and 10, 11 and 12 ahead of itself with other first weights."""
    counts = {None: (60, 62, 65), "shuffle": (30, 32, 35), "start": (50, 51, 53)}
    replaced = {None: {}, "shuffle": {"shuffle": True}, "start": {"start": "initial"}}
    records = [
        make("awt", 0.9, seed, robust=count, job={"options": replaced[what]})
        for what, robust in counts.items()
        for seed, count in enumerate(robust)
    ]
    made = rank({Path(f"{i}.json"): record for i, record in enumerate(records)})
    text = markdown(made)
    folded = text.partition("with one part replaced:\n")[2].partition("</details>")[0]
    assert markdown_rows(folded)[2] == ["awt", "0.9", "awt:start=initial", "+11.0 [+8.5, +13.5]: better"]
    (line,) = [row for row in csv.DictReader(io.StringIO(comma_separated(made))) if row["pruner"] == "awt"]
    assert float(line["less_shuffle_gap"]) == 0.3
    assert "awt:start=initial" in text.partition("Unpruned nets and other controls")[2].partition("</details>")[0]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_record_cannot_break_out_of_a_table(hostile):
    flag = FLAG | {"name": hostile, "sentence": hostile}
    made = ranking(
        hostile,
        True,
        data={"name": hostile},
        protocol={"name": hostile},
        cost={"device": hostile},
        env={"device": hostile},
        score={"flags": [flag]},
    )
    flagged = ranking(shuffled=True, score={"flags": [FLAG]})
    text = markdown(made)
    assert {len(row) for row in markdown_rows(text)} == COLUMNS
    assert len(text.splitlines()) == len(markdown(flagged).splitlines())
    told = OWN.sub("|", ABOVE.sub("", text))
    assert not re.search(r"[<`*\[\]~$\\@]|://|www\.", told)
    rows = list(csv.reader(io.StringIO(comma_separated(made))))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+-@\uff1d")]
    assert {row["pruner"] for row in json.loads(as_json(made))["boards"][0]["rows"]} == {
        hostile,
        f"{hostile}:shuffle=true",
        *OTHERS,
    }
    assert f"{hostile}:shuffle=true" in {
        each["control"] for each in json.loads(as_json(made))["boards"][0]["contrasts"]
    }
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
    monkeypatch.setattr("prunebench.leaderboard.render.markdown.escaped", clean)
    assert {len(row) for row in markdown_rows(markdown(ranking("a|b")))} != COLUMNS
    monkeypatch.setattr("prunebench.leaderboard.render.markdown.escaped", str)
    assert len(markdown(ranking("a\nb")).splitlines()) != len(markdown(ranking()).splitlines())


def test_every_column_for_people_is_shown_somewhere():
    tables = (columns.MARKDOWN_METHODS, columns.MARKDOWN_OTHERS, columns.MARKDOWN_COSTS, columns.TERMINAL)
    shown = {title for table in (*tables, columns.LATEX, columns.SITE) for title in table}
    assert shown == {column.title for column in columns.COLUMNS if column.text is not None}


def test_patterns_have_a_column_where_a_net_has_one():
    nets = {"imp": [], "magnitude:pattern=channel": ["2:4", "channel"]}
    made = rank({Path(f"{i}.json"): make(label, patterns=nets[label]) for i, label in enumerate(nets)})
    for text in (markdown(made), latex(made), shown(made)):
        assert "Pattern" in text and "2:4, channel" in text
        assert "Pattern" not in markdown(ranking()) + latex(ranking()) + shown(ranking())
    assert max(map(len, shown(made).splitlines())) <= 80
    assert [row["patterns"] for row in csv.DictReader(io.StringIO(comma_separated(made)))] == ["", "2:4;channel"]
    assert json.loads(as_json(made))["boards"][0]["rows"][1]["patterns"] == ["2:4", "channel"]


def test_latex_specials_are_spelled():
    text = latex(ranking("\\a_b^c~d{e}&%$#<|>`--"))
    spelled = (
        r"\textbackslash{}a\_b\textasciicircum{}c\textasciitilde{}d\{e\}\&\%\$\#\textless{}\textbar{}\textgreater{}"
        r"\textasciigrave{}-{}-{}"
    )
    assert f"1 & {spelled} & 0.9" in text


@settings(deadline=None)  # a busy machine is slow, not wrong
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
