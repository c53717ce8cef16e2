"""The tests marked gpu, in several processes; a test that passed once is not run again while the source is the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 4
NOTHING_LEFT = "exit 5"  # pytest's, when every test was left out
_HOW = "(PASSED|SKIPPED|FAILED|ERROR)"
_TOLD = re.compile(rf"\[gw\d+\] \[ *\d+%\] {_HOW} (tests/\S+)|(tests/\S+) {_HOW}\b")  # with processes, or without
# Another Python and other packages than those of the lock warn of other things.
_OPTIONS = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--color=no", "-o", "filterwarnings=default"]

Run = Callable[[list[str]], str]  # pytest with these arguments; why it failed, or ""


def files() -> list[str]:
    """The test files with tests for a card."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in paths if "pytest.mark.gpu" in path.read_text()]


def kept_and_run(run: Run, log: Path, kept: Path) -> tuple[str, bool]:
    """Run the tests that are not in `kept`, and add those that passed; returns a line, and whether none failed."""
    done = set(kept.read_text().splitlines()) if kept.exists() else set()
    spread = ["-n", str(PROCESSES)] if find_spec("xdist") else []
    failed = run(["-m", "pytest", *_OPTIONS, *spread, *files(), *(f"--deselect={name}" for name in sorted(done))])
    told = outcomes(log.read_text(errors="replace") if log.exists() else "")
    passed = {name for name, how in told.items() if how == "PASSED"}
    skipped = sum(how == "SKIPPED" for how in told.values())
    bad = sorted(name for name, how in told.items() if how in ("FAILED", "ERROR"))
    done |= passed
    if done:
        kept.write_text("\n".join(sorted(done)) + "\n")
    line = f"{len(done)} passed" + (f", {skipped} skipped" if skipped else "")
    if bad:
        return f"{line}, {len(bad)} failed: {', '.join(name.partition('::')[2] for name in bad)}; see {log}", False
    if failed and not failed.startswith(NOTHING_LEFT):
        return f"{line}, {failed}", "no time was left" in failed or "cut off" in failed
    return line, True


def outcomes(text: str) -> dict[str, str]:
    """How each test of pytest's verbose output ended; a test that fails in its teardown has failed."""
    found: dict[str, str] = {}
    for match in filter(None, map(_TOLD.match, text.splitlines())):
        how, name = match[1] or match[4], match[2] or match[3]
        if found.get(name) not in ("FAILED", "ERROR"):
            found[name] = how
    return found
