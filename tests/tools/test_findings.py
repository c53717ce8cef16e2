"""The tool that writes findings: its files, its check, and the repository's own files up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.leaderboard.findings import status
from prunebench.leaderboard.findings.page import BEGIN, END, HEADER
from tests.support.records import make, save
from tools import findings

ROOT = Path(__file__).resolve().parents[2]


def fill(folder, robust=60):
    for seed in range(3):
        save(folder, make("imp", 0.9, seed, robust=robust + seed))
        save(folder, make("magnitude", 0.9, seed, robust=50 + seed))
    return folder


def asked(folder):
    (folder / "README.md").write_text(f"# Mine\n\n{BEGIN}\n{END}\n\n{status.BEGIN}\n{status.END}\n\nMore.\n")
    return [str(folder / "records"), "--write", str(folder / "findings.md"), "--readme", str(folder / "README.md")]


def test_page_and_list_are_written_and_checked(tmp_path):
    fill(tmp_path / "records")
    command = asked(tmp_path)
    findings.main(command)
    page, readme = (tmp_path / "findings.md").read_text(), (tmp_path / "README.md").read_text()
    assert page.startswith(HEADER) and "Every method clearly beats magnitude at 0.9" in page
    assert readme.startswith("# Mine") and readme.endswith("More.\n")
    assert "Every method clearly beats magnitude" in " ".join(readme.split())
    findings.main([*command, "--check"])
    before = (tmp_path / "findings.md").stat().st_mtime_ns
    findings.main(command)
    assert (tmp_path / "findings.md").stat().st_mtime_ns == before  # what is up to date is not touched


@pytest.mark.parametrize("file", ["findings.md", "README.md"])
def test_the_check_sees_a_stale_file(file, tmp_path):
    fill(tmp_path / "records")
    command = asked(tmp_path)
    findings.main(command)
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text.replace("magnitude", "magnitudes"))
    with pytest.raises(PrunebenchError, match=rf"{file} is out of date; run python -m tools.findings"):
        findings.main([*command, "--check"])
    assert "magnitudes" in (tmp_path / file).read_text()  # nothing is written


def test_new_records_make_the_files_stale(tmp_path):
    fill(tmp_path / "records")
    command = asked(tmp_path)
    findings.main(command)
    fill(tmp_path / "records", robust=30)
    with pytest.raises(PrunebenchError, match=r"findings.md, .*README.md is out of date"):
        findings.main([*command, "--check"])


def test_one_question_is_printed(tmp_path, capsys):
    fill(tmp_path / "records")
    findings.main([str(tmp_path / "records"), "--only", "magnitude"])
    said = capsys.readouterr().out
    assert said.count("## <a id") == 1 and "Every method clearly beats magnitude" in said
    with pytest.raises(PrunebenchError, match="magnitude"):
        findings.main([str(tmp_path / "records"), "--only", "magnitud"])


def test_the_findings_of_this_repository_are_up_to_date():
    """After new records: python -m tools.findings leaderboard/records --write docs/findings.md --readme README.md"""
    old = findings.stale(ROOT / "leaderboard" / "records", ROOT / "docs" / "findings.md", ROOT / "README.md")
    assert not old, f"{sorted(map(str, old))}: run the command in this test's docstring"
