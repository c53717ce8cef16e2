"""The documentation: every link leads somewhere, and every command that it shows exists with its options."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from prunebench.bench.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "README.md",
    "AGENTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "bench/PROTOCOL.md",
    "bench/BENCHMARKS.md",
    "bench/executor/BENCHMARKS.md",
]
BOOK = "docs/first-pruner.ipynb"
PAGES = [*TEXTS, BOOK, "pruners/README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def anchors(text):
    """The names that a page's headings and `<a id>` give to links, as GitHub makes them."""
    heads = re.findall(r"^#+ +(.*)$", FENCED.sub("", text), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", re.sub(r"<[^>]*>", "", head).strip().lower()).replace(" ", "-") for head in heads]
    return {*slugs, *re.findall(r'<a id="([^"]+)"', text)}


def text_of(page):
    """The Markdown in the file `page`; of a notebook the cells, those for a shell as blocks of commands."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = ["".join(cell["source"]) for cell in json.loads(page.read_text())["cells"]]
    commands = [cell.removeprefix("%%bash").replace("\\\n", " ") for cell in cells]
    return "\n".join(f"```sh{c}\n```" if cell != c else cell for cell, c in zip(cells, commands, strict=True))


def dead(page):
    """The links of the file `page` that lead nowhere; addresses of the web are not tried."""
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text_of(page))):
        file, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = page if not file else (page.parent / file).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            lost.append(link)
    return lost


def wrong(text):
    """What the command lines of `text` name that `prunebench` does not have."""
    verbs, lost = get_command(app).commands, []
    for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in re.findall(r"^(?:\$ )?(prunebench .*)$", block, re.MULTILINE):
            words = shlex.split(line, comments=True)[1:]
            verb = verbs.get(words[0])
            known = (
                {"--help", "--version"} if verb is None else {o for p in verb.params for o in p.opts + p.secondary_opts}
            )
            asked = {word.partition("=")[0] for word in words if word.startswith("--")}
            if (verb is None and not words[0].startswith("--")) or asked - known - {"--help"}:
                lost.append(line)
    return lost


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_commands_exist(page):
    assert dead(ROOT / page) == []
    assert wrong(text_of(ROOT / page)) == []


def test_a_dead_link_and_a_wrong_command_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A head: `x`!\n[a](#a-head-x) [b](#none) [c](page.md#a-head-x) [d](none.md) [e](https://x.org)\n")
    assert dead(page) == ["#none", "none.md"]
    text = "```sh\nprunebench rank x --write  # fine\nprunebench rank x --wrote\nprunebench runk\n```\n"
    assert wrong(text) == ["prunebench rank x --wrote", "prunebench runk"]


def unfinished(book):
    """The cells of a notebook's JSON that were not run, failed, or name a folder of the machine that ran them."""
    cells = [cell for cell in json.loads(book)["cells"] if cell["cell_type"] == "code"]
    return [
        number
        for number, cell in enumerate(cells, start=1)
        if cell["execution_count"] != number
        or any(output["output_type"] == "error" for output in cell["outputs"])
        or re.search(r"/(?:tmp|root|home|Users)/", json.dumps(cell["outputs"]))
    ]


def test_the_notebook_shows_a_whole_run():
    assert unfinished((ROOT / BOOK).read_text()) == []


def test_faults_of_a_notebook_are_found(tmp_path):
    said = {"output_type": "stream", "text": ["in /tmp/x"]}
    runs = [(1, []), (None, []), (3, [{"output_type": "error"}]), (4, [said])]
    code = [{"cell_type": "code", "execution_count": n, "outputs": o, "source": ["%%bash\n"]} for n, o in runs]
    code[0]["source"] += ["prunebench rank x \\\n", "  --wrote\n"]
    page = tmp_path / "book.ipynb"
    page.write_text(json.dumps({"cells": [*code, {"cell_type": "markdown", "source": ["# A\n", "[b](none.md)"]}]}))
    assert unfinished(page.read_text()) == [2, 3, 4]
    assert dead(page) == ["none.md"] and wrong(text_of(page)) == ["prunebench rank x    --wrote"]
