"""Writes a site's folder under another name, then renames it, and never replaces anything but a site."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path, PurePosixPath

from prunebench.bench.bounded import json_of
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import read_outside, replace_folder
from prunebench.bench.record import LARGEST
from prunebench.leaderboard.board import Ranking
from prunebench.leaderboard.check import look
from prunebench.leaderboard.render.text import clean
from prunebench.leaderboard.site.pages import Made, pages
from prunebench.leaderboard.table import read

_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~%/-]*)?")
MANIFEST = "site.json"  # lists every file of a site, so that a new site replaces nothing else


def write(records: str | Path, out: str | Path, address: str | None = None) -> tuple[Ranking, Path]:
    """Write the site of the records below `records` to the folder `out`; returns the ranking and the first page.

    `address`: where the site will be found, for the picture that others show beside a link to it. The folder is written
    under another name, then renamed. Raises PrunebenchError for records that cannot be read or compared, for an
    `address` that is none, for an `out` inside `records`, and for an `out` that holds anything but a site made by
    Prunebench.
    """
    source, target = Path(records), Path(out)
    if address is not None and not _ADDRESS.fullmatch(address):
        raise PrunebenchError(f"--address {address} is no address of a site; write one like https://example.org/board.")
    if target.resolve().is_relative_to(source.resolve()):
        raise PrunebenchError(
            f"The site cannot go to {target}, inside the records {source}; choose another folder with --out."
        )
    _refuse_foreign(target)
    results = read(source)
    ranking = look(source, results)
    made = pages(ranking, results, source, f"{address.rstrip('/')}/" if address else "")
    replace_folder(target, lambda aside: _fill(aside, made))
    return ranking, target / "index.html"


def _refuse_foreign(target: Path) -> None:
    """Raise PrunebenchError unless `target` is absent, empty, or holds only a site made by Prunebench."""
    if not target.exists():
        return
    if not target.is_dir():
        raise PrunebenchError(f"{target} is a file and is not overwritten; name a folder for the site with --out.")
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_symlink() or path.is_file()}
    if not there and any(target.iterdir()):
        there = {"folders"}
    foreign = sorted(there - _listed(target / MANIFEST) - {MANIFEST})
    if foreign or (there and MANIFEST not in there):
        example = PurePosixPath(foreign[0]) if foreign else MANIFEST
        raise PrunebenchError(
            f"{target} holds more than a site of prunebench: {clean(str(example))}; move that away or choose "
            "another folder with --out."
        )


def _listed(manifest: Path) -> frozenset[str]:
    """The files that a site's manifest lists, none if it lists none."""
    try:
        values = json_of(read_outside(manifest, "the list of a site's files", LARGEST))
        return frozenset(values["files"]) if values["prunebench_site"] == 1 else frozenset()
    except (PrunebenchError, ValueError, KeyError, TypeError):
        return frozenset()


def _fill(folder: Path, made: Made) -> None:
    listed = {"prunebench_site": 1, "files": sorted(made)}
    for name, data in (made | {MANIFEST: json.dumps(listed, indent=1).encode() + b"\n"}).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(data, Path):
            shutil.copyfile(data, path)
        else:
            path.write_bytes(data)
