"""Which files are pages of the documentation's web site: a hook of mkdocs, named in mkdocs.yml.

The site has the folders of the repository, so the links between its files hold as they are. It begins with README.md
and takes every file that a page links to: Markdown becomes a page, anything else is copied. The tables of
docs/index.md are its navigation. The notebook is converted with the outputs that it was committed with, and the Python
interface is described from its docstrings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

import prunebench

ROOT = Path(__file__).resolve().parents[1]
FIRST, INDEX, INTERFACE = "README.md", "docs/index.md", "docs/interface.md"
# What the public functions return, and what pruners are built from.
BEYOND = ("bench.checkpoint.Net", "bench.record.Record", "bench.claims.verdict.Verdict", "bench.mask")
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def links(page: str, text: str) -> Iterator[str]:
    """The files and folders of the repository that `text`, the Markdown of `page`, links to."""
    for _, target, _ in _LINK.findall(_FENCED.sub("", text)):
        if not re.match(r"[a-z]+:", target):
            yield os.path.normpath(PurePosixPath(page).parent / target)


def reached(first: str) -> dict[str, str | None]:
    """The files that lead on from the page `first`, each with its Markdown or, for a file to copy, None."""
    found: dict[str, str | None] = {}
    waiting = [first]
    while waiting:
        name = waiting.pop()
        path = ROOT / name
        if name in found or not path.is_file():
            continue
        found[name] = path.read_text(encoding="utf-8") if path.suffix in {".md", ".ipynb"} else None
        waiting += links(name, found[name] or "")
    return found


def navigation(index: str) -> list[dict[str, Any]]:
    """The sections of `index`, the text of docs/index.md: the title of each table, and the pages it links to."""
    sections: list[dict[str, Any]] = [{"prunebench": FIRST}, {"All pages": INDEX}]
    for line in index.splitlines():
        if heading := re.fullmatch(r"\| (\w[\w ]+) \| \|", line):
            sections.append({heading.group(1): []})
        elif line.startswith("| ["):
            pages = re.findall(r"\[([^\]]+)\]\(([^)]+(?:\.md|\.ipynb))\)", line.split(" | ")[0])
            (section,) = sections[-1].values()
            section += [{title: _page(os.path.normpath(PurePosixPath(INDEX).parent / name))} for title, name in pages]
    sections[-1][next(iter(sections[-1]))].append({"The Python interface": INTERFACE})
    return sections


def _page(name: str) -> str:
    """The Markdown file that a notebook becomes; other files are what they are."""
    return re.sub(r"\.ipynb$", ".md", name)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Derive the navigation."""
    config.nav = navigation((ROOT / INDEX).read_text(encoding="utf-8"))
    return config


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs by those reached from README.md."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for name in reached(FIRST):
        if name.endswith(".ipynb"):
            text, resources = MarkdownExporter().from_filename(str(ROOT / name))
            files.append(File.generated(config, _page(name), content=text))
            for output, data in resources["outputs"].items():
                files.append(File.generated(config, str(PurePosixPath(name).parent / output), content=data))
        else:
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    public = sorted(prunebench.__all__, key=str.swapcase)  # functions before classes
    described = "".join(f"::: prunebench.{name}\n\n" for name in [*public, *BEYOND])
    files.append(File.generated(config, INTERFACE, content=f"# The Python interface\n\n{described}"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """What GitHub reads otherwise: Markdown within `<details>`; links to the notebook; links to folders are text."""

    def linked(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        return f"{before}{_page(target)}{after}"

    for link, text, target in re.findall(r"(\[([^\]]+)\]\(([^)\s]+)\))", markdown):
        if (ROOT / PurePosixPath(page.file.src_uri).parent / target).is_dir():
            markdown = markdown.replace(link, text)
    return _LINK.sub(linked, markdown).replace("<details>", '<details markdown="1">')
