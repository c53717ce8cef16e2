"""Make mistakes on purpose, as new users do, and write down what each one is answered with.

    python -m tools.mistakes --write docs/mistakes.md

The commands run one after the other in a temporary folder that holds what they need: a small net with its record and
claim, pruners with errors, and damaged files. Each has to end with an exit code other than 0 and without a traceback.
Takes some minutes on two cores; `--only WORD` makes the mistakes that contain WORD.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prunebench.bench.files import write_bytes
from prunebench.bench.names import NET, RECORD
from prunebench.bench.outcomes import outcomes_path
from tools.mistakes_made import FILES, INTERRUPT, MISTAKES, PREPARE

WIDTH = 100  # columns of the terminal that commands are told of
LONGEST = 600  # seconds for a command
NOWHERE = "http://127.0.0.1:9"  # a port on which nothing listens
HEAD = """<!-- Made by `python -m tools.mistakes --write docs/mistakes.md`; do not edit. -->
# Mistakes and their answers

What `prunebench` says to {count} mistakes of {kinds} kinds. Each was made in a fresh copy of a folder with two small
nets of the digits, a record, a claim, pruners with errors, and damaged files. `tests/tools/test_mistakes.py` makes all
of them again.
"""


@dataclass(frozen=True)
class Answer:
    """What a `command` of the given `kind` was answered with: its exit code, and all that it printed.

    `nets`: the net files and records that it wrote, which a failed command should not have.
    """

    kind: str
    command: str
    code: int
    said: str
    nets: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether the command failed with a message instead of a traceback, and left no net or record behind."""
        return self.code != 0 and bool(self.said) and "Traceback" not in self.said and not self.nets


def prepare(folder: Path) -> None:
    """Fill `folder` with what the mistakes are made with. Raises SystemExit if a command of the preparation fails."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for command in PREPARE:
        code, said = run(command, folder)
        if code:
            raise SystemExit(f"{command} ended with {code}:\n{said}")
    net, record = (folder / "net" / name for name in (NET, RECORD))
    shutil.copytree(folder / "net", folder / "cut")
    (folder / "cut" / RECORD).unlink()
    (folder / "cut" / NET).write_bytes(net.read_bytes()[:3000])
    for name in ("records", "edited"):
        (folder / name).mkdir()
        shutil.copyfile(record, folder / name / "imp.json")
        shutil.copyfile(outcomes_path(record), outcomes_path(folder / name / "imp.json"))
    edited = folder / "edited" / "imp.json"
    edited.write_text(edited.read_text().replace('"n": 8', '"n": 9', 1))
    shutil.copytree(folder / "claim", folder / "swapped")
    shutil.copyfile(folder / "other" / NET, folder / "swapped" / NET)
    (folder / "pickle.pt").write_bytes(b"\x80\x04cposix\nsystem\n.")


def run(command: str, folder: Path, interrupt: bool = False) -> tuple[int, str]:
    """The exit code of the shell words `command` in `folder`, and all that it printed.

    It finds no network, even where there is one. With `interrupt`, it gets Ctrl-C once it has begun its work, which it
    says in its output.
    """
    program, *words = shlex.split(command)
    executable = Path(sys.executable).with_name(program)
    environment = os.environ | {"COLUMNS": str(WIDTH), "XDG_CACHE_HOME": str(folder / ".cache"), "TERM": "dumb"}
    environment |= {f"{way}_proxy": NOWHERE for way in ("http", "https", "all")}
    environment |= {f"{way}_PROXY": NOWHERE for way in ("HTTP", "HTTPS", "ALL")}
    for name in ("PRUNEBENCH_DATA", "no_proxy", "NO_PROXY"):
        environment.pop(name, None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would its children
    log = folder / ".log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [executable, *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        ) as process,
    ):
        try:
            if interrupt:
                _interrupt(process, log)
            code = process.wait(LONGEST)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return code, log.read_text(errors="replace").replace(f"{folder}/", "").strip()


def _interrupt(process: subprocess.Popen[bytes], log: Path) -> None:
    """Press Ctrl-C as a terminal does, for the whole group of processes, once the first lines have been printed."""
    for _ in range(LONGEST * 10):
        if log.stat().st_size or process.poll() is not None:
            break
        time.sleep(0.1)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)


def answers(prepared: Path, only: str = "") -> Iterator[Answer]:
    """Make every mistake whose command contains `only`, each in a copy of the folder `prepared`; yield the answers."""
    for kind, commands in MISTAKES.items():
        for command in commands:
            if only in command:
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name).resolve()
                    shutil.copytree(prepared, folder, dirs_exist_ok=True)
                    before = _results(folder)
                    code, said = run(command.removeprefix(INTERRUPT), folder, command.startswith(INTERRUPT))
                    made = sorted(path for path, data in _results(folder).items() if before.get(path) != data)
                yield Answer(kind, command, code, said, tuple(made))


def _results(folder: Path) -> dict[str, bytes]:
    """The nets, records and claims below `folder`, by their path there."""
    names = (NET, RECORD, "CLAIM.toml", "index.html")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.name in names}


def page(found: list[Answer]) -> str:
    """The answers as Markdown, a section per kind."""
    parts = [HEAD.format(count=len(found), kinds=len({answer.kind for answer in found}))]
    for kind in dict.fromkeys(answer.kind for answer in found):
        parts.append(f"\n## {kind}\n")
        for answer in found:
            if answer.kind == kind:
                typed = f"$ {answer.command.removeprefix(INTERRUPT)}"
                pressed = "\n^C" * answer.command.startswith(INTERRUPT)
                parts.append(f"\n```text\n{typed}{pressed}\n{answer.said}\n```\n\nExit code {answer.code}.\n")
    return "".join(parts)


def main(arguments: list[str] | None = None) -> None:
    """Make the mistakes, print or write the page, and fail if an answer is not sound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page to FILE instead of printing it")
    parser.add_argument("--only", default="", metavar="WORD", help="make only the mistakes that contain WORD")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder).resolve())
        found = list(answers(Path(folder).resolve(), asked.only))
    if asked.write is None:
        print(page(found), end="")
    else:
        write_bytes(asked.write, page(found).encode())
    if bad := [answer.command for answer in found if not answer.sound]:
        raise SystemExit("Not answered as a mistake:\n" + "\n".join(bad))


if __name__ == "__main__":
    main()
