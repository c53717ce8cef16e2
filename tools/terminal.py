"""Record commands as the picture of a terminal: what they print, with its colours, as an SVG without outside fonts.

    python -m tools.terminal docs/terminal.svg "prunebench new mine" "prunebench check mine/mine.py:Mine"

The commands run one after the other in an empty folder, in a terminal of 100 columns that cannot move its cursor, so
that rich shows no progress. Fails, and writes nothing, if a command fails.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from prunebench.bench.files import write_bytes

COLUMNS, ROWS = 100, 40
_CONTROL = re.compile(r"\x1b\[(?![0-9;]*m)[0-9;?]*[A-Za-z]")  # moves of the cursor; colours stay
_OUTSIDE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # rich names fonts on a server


def printed(command: str, folder: Path) -> str:
    """What `command` prints in a terminal, run in `folder`, after its last carriage return in each line.

    Raises SystemExit if it fails.
    """
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "dumb"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        shlex.split(command), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        data = b""
        while part := _read(ours):
            data += part
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}:\n{data.decode(errors='replace')}")
    return shown(data.decode(errors="replace"))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # how Linux says that the other end has been closed
        return b""


def shown(text: str) -> str:
    """`text` as a terminal shows it in the end: of an overwritten line the last version, without empty ones."""
    lines = [_CONTROL.sub("", line.rstrip("\r")).rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join(line for line in lines if re.sub(r"\x1b\[[0-9;]*m", "", line).strip())


def picture(session: list[tuple[str, str]], title: str) -> str:
    """The SVG of a session: pairs of a command and what it printed."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    for command, output in session:
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(output))
    drawn = console.export_svg(title=title, unique_id="terminal")
    return _OUTSIDE.sub("", drawn)


def main(arguments: list[str] | None = None) -> None:
    """Run the commands and write their picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svg", type=Path)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--title", default="prunebench")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        session = [(command, printed(command, Path(folder))) for command in asked.commands]
    write_bytes(asked.svg, picture(session, asked.title).encode())


if __name__ == "__main__":
    main()
