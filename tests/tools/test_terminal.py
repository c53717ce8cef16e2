"""The picture of a terminal: what commands print in the end, and nothing from outside."""

from __future__ import annotations

import sys
from xml.etree import ElementTree as ET

import pytest

from tools.terminal import main, picture, shown


def test_what_is_overwritten_is_not_shown():
    text = "10 %\r50 %\r\x1b[2Kdone\r\n\x1b[1mbold\x1b[0m\r\n\r\nlast\r\n"
    assert shown(text) == "done\n\x1b[1mbold\x1b[0m\nlast"


def test_a_session_is_drawn_without_anything_from_outside(tmp_path):
    speak = f"{sys.executable} -c \"import sys; print('robust <60>', sys.stdout.isatty())\""
    main([str(tmp_path / "x.svg"), speak, "true"])
    text = (tmp_path / "x.svg").read_text()
    said = " ".join("".join(node.itertext()) for node in ET.fromstring(text).iter() if node.tag.endswith("text"))
    assert "robust\N{NO-BREAK SPACE}<60>\N{NO-BREAK SPACE}True" in said and "$\N{NO-BREAK SPACE}true" in said
    assert "url(" not in text.replace("url(#", "") and "href" not in text and "@import" not in text
    assert picture([("a", "b")], "t") == picture([("a", "b")], "t")


def test_a_command_that_fails_leaves_no_picture(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)ended with 3.*what is wrong"):
        main([str(tmp_path / "x.svg"), f"{sys.executable} -c \"print('what is wrong'); raise SystemExit(3)\""])
    assert not (tmp_path / "x.svg").exists()
