"""The documentation's web site: it begins with the README, holds every page, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import pages

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "docs"
LOADS = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")


def built(root, tmp_path):
    """What `mkdocs build --strict` says for the repository `root`, into a folder of `tmp_path`."""
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(mkdocs, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path):
    """A repository of two pages, a folder, a file and a notebook, beside the modules that the hook needs."""
    place = tmp_path / "root"
    (place / "docs").mkdir(parents=True)
    (place / "tools").mkdir()
    (place / "tools" / "pages.py").write_bytes((ROOT / "tools" / "pages.py").read_bytes())
    (place / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    (place / "src").symlink_to(ROOT / "src")
    (place / "README.md").write_text(
        "# Head\n\n[index](docs/index.md#two-words) [data](docs/x.csv) [book](docs/book.ipynb) [folder](docs)\n\n"
        "<details><summary>more</summary>\n\n**strong**\n\n</details>\n"
    )
    (place / "docs" / "index.md").write_text(
        "# Index\n\n## Two words\n\n| Use | |\n|---|---|\n| [Book](book.ipynb) | |\n"
    )
    (place / "docs" / "x.csv").write_text("a\n1\n")
    (place / "docs" / "book.ipynb").write_text(
        '{"cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Book\\n\\n[a](../README.md)"}],'
        ' "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    return place


def test_a_site_has_the_links_of_the_repository(root, tmp_path):
    done = built(root, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first = (tmp_path / "site" / "index.html").read_text()
    assert all(f'href="{link}"' in first for link in ("docs/index.html#two-words", "docs/x.csv", "docs/book.html"))
    assert "<strong>strong</strong>" in first and " folder</p>" in first
    assert (tmp_path / "site" / "docs" / "x.csv").read_text() == "a\n1\n"
    assert 'href="../index.html"' in (tmp_path / "site" / "docs" / "book.html").read_text()
    assert 'id="prunebench.train"' in (tmp_path / "site" / "docs" / "interface.html").read_text()


def test_a_dead_link_fails_the_build(root, tmp_path):
    with (root / "README.md").open("a") as page:
        page.write("\n[a](docs/none.csv) [b](docs/index.md#three-words) [c](/docs/index.md) [d](none)\n")
    done = built(root, tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "Aborted with 4 warnings" in said
    assert all(link in said for link in ("'docs/none.csv'", "#three-words'", "'/docs/index.md'", "'none'"))


def test_every_page_of_the_documentation_is_reached():
    """The twin: from the glossary, which links to nothing, they are not."""
    all_of_them = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert len(all_of_them) > 20 and not all_of_them - pages.reached("README.md").keys()
    assert all_of_them - pages.reached("docs/glossary.md").keys()


def test_the_navigation_names_the_pages_of_the_index():
    text = "| Using it | |\n|---|---|\n| [Run](running.md), [FAQ](faq.md) | see [x](x.md) |\n| [R](../a/R.md) | |\n"
    assert pages.navigation(text)[2:] == [
        {
            "Using it": [
                {"Run": "docs/running.md"},
                {"FAQ": "docs/faq.md"},
                {"R": "a/R.md"},
                {"The Python interface": pages.INTERFACE},
            ]
        }
    ]


def outside(folder):
    """What the pages below `folder` load from other servers."""
    found = [address for page in folder.rglob("*.html") for address in LOADS.findall(page.read_text())]
    styles = [css.read_text() for css in folder.rglob("*.css")]
    return found + [load for text in styles for load in re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", text)]


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    """Of the site that `make docs` has built just now."""
    assert (SITE / "index.html").is_file() and outside(SITE) == []
    (tmp_path / "a.html").write_text('<a href="https://x.org">x</a><script defer src="https://cdn.org/a.js"></script>')
    (tmp_path / "a.css").write_text("@font-face { src: url(//fonts.org/a.woff) }")
    assert outside(tmp_path) == ["https://cdn.org/a.js", "url(//"]
