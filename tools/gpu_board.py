"""A first look, a table of measurements, the tests marked gpu and as much of a grid as fits; called by gpu_board.sh.

Each part is a process of its own. What is complete is kept in --out: tests and measurements of the same source, and
what `prunebench run` keeps. A short table comes last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools.gpu_calls import CALLS, PARTS, REHEARSED, TINY, Call
from tools.gpu_tests import files as gpu_files
from tools.gpu_tests import kept_and_run

ROOT = Path(__file__).resolve().parents[1]
LATE = ("no time was left", "cut off by the time limit")  # these are not failures


def options(arguments: list[str]) -> argparse.Namespace:
    """The options of this script, with those of `prunebench run` in `run`."""
    parser = argparse.ArgumentParser(prog="gpu_board", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="the folder of all results; what is there is kept")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (8)")
    parser.add_argument("--skip", default="", help="any of smoke,convolutions,train,score,steps,tests,grid")
    parser.add_argument("--call", type=int, choices=CALLS, help="the parts and the grid of this call of the order")
    parser.add_argument("--tiny", action="store_true", help="what a CPU rehearses in place of them")
    parser.add_argument("--data", type=Path, help="the folder of the data sets, for --call (OUT/data)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (cuda)")
    parser.add_argument("--arch", default="resnet18", help="the net that is measured (resnet18)")
    parser.add_argument("--images", type=int, default=50_000, help="random images of the measured epoch (50000)")
    parser.add_argument("--measure", choices=PARTS[:-1], help=argparse.SUPPRESS)  # for the subprocess
    parser.add_argument("run", nargs=argparse.REMAINDER, help="PROTOCOL and options of `prunebench run`")
    asked = parser.parse_args(arguments)
    if asked.tiny:
        vars(asked).update(TINY)
    return asked


def planned(asked: argparse.Namespace, out: Path) -> tuple[Call, str]:
    """The parts and the grid asked for, by themselves or by --call; and why the grid has to wait, or ""."""
    skipped, waits = asked.skip.split(","), ""
    if asked.call is None:
        call = Call(PARTS, tuple(asked.run))
    else:
        call, data = (REHEARSED if asked.tiny else CALLS)[asked.call], asked.data or out / "data"
        if call.needs is not None and (lacking := missing(call.needs, data)):
            waits = f"waits for {', '.join(lacking)} in {data}"
        run = () if waits or not call.run else (*call.run, "--data", str(data.absolute()))
        call = Call(call.parts if waits or not call.run else (), run)
    parts = tuple(part for part in call.parts if part not in skipped)
    return Call(parts, () if "grid" in skipped else call.run), waits


def missing(name: str, data: Path) -> list[str]:
    """The files of a data set that are not below `data`, unpacked or zipped."""
    from prunebench.bench.datasets import DATASETS

    return [file for file in DATASETS[name].files if not any((data / f"{file}{end}").exists() for end in ("", ".gz"))]


def call(command: list[str], log: Path, seconds: float, folder: Path = ROOT) -> str:
    """Run Python in `folder` for at most `seconds`; its output goes to `log`. Returns why it failed, or ""."""
    if seconds <= 0:
        return LATE[0]
    own = [str(registered(log.parent)), str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, own))}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=env, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return LATE[1]
        finally:
            if process.poll() is None:  # with all its children
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return f"exit {code}; see {log}" if code else ""


def parts(asked: argparse.Namespace, out: Path) -> tuple[list[tuple[str, str]], bool]:
    """Run all parts; returns the rows of the table, and whether all parts succeeded."""
    end, rows, good = time.monotonic() + 60 * asked.minutes, [], True
    call_of, waits = planned(asked, out)
    same = [f"--{name}={getattr(asked, name)}" for name in ("device", "arch", "images")]
    for name in call_of.parts:
        left = end - time.monotonic()
        if name == "tests":
            share, log = 1 / 2 if call_of.run else 1.0, out / "tests.log"  # tests that hang leave time for the grid
            line, sound = kept_and_run(partial(call, log=log, seconds=share * left), log, out / f"tests-{source()}.txt")
        else:
            line, sound = measured(name, ["tools/gpu_board.py", "--out=.", f"--measure={name}", *same], out, left)
        rows.append((name, line))
        good &= sound
    if call_of.run:
        # In the caller's folder, for paths among the arguments; -P: a `prunebench` in that folder is not this one.
        command = ["-P", "-m", "prunebench", "run", *call_of.run, "--device", asked.device, "--out", str(out / "runs")]
        failed = call(command, out / "grid.log", end - time.monotonic(), Path.cwd())
        records = list(out.glob("runs/records/*/*.json"))
        if failed and records:  # a table of the records so far
            call(["-m", "prunebench", "rank", str(out / "runs" / "records"), "--write"], out / "rank.log", 60)
        rows.append((f"grid {' '.join(call_of.run)}", f"{len(records)} records, {failed or 'complete'}"))
        good &= failed in ("", *LATE)
    if waits:
        rows.append(("grid", waits))
    return rows, good


def measured(name: str, command: list[str], out: Path, seconds: float) -> tuple[str, bool]:
    """The line that a measurement told, now or before; and whether there is one, or only the time was short."""
    kept, log = out / f"{name}-{source(*command[1:])}.json", out / f"{name}.log"
    if not kept.exists():
        if failed := call(command, log, seconds):
            return failed, failed in LATE
        if (found := told(log.read_text(errors="replace"))) is None:
            return f"told nothing; see {log}", False
        kept.write_text(found + "\n")
    return str(json.loads(kept.read_text())["line"]), True


def told(text: str) -> str | None:
    """The last line of a log that starts with "{"; libraries may write anything before and after it."""
    return next((line for line in reversed(text.splitlines()) if line.startswith("{")), None)


def source(*options: str) -> str:
    """A hash of the tested and measured code, and of `options`."""
    rooms = ("bench", "pruners", "tools", "tests/support")
    files = sorted(path for room in rooms for kind in ("*.py", "*.cpp") for path in (ROOT / room).rglob(kind))
    files += [ROOT / name for name in gpu_files()]
    return hashlib.sha256(b"\0".join([path.read_bytes() for path in files] + [str(options).encode()])).hexdigest()[:12]


def registered(out: Path) -> Path:
    """A folder for PYTHONPATH that registers Prunebench's pruners where it is not installed."""
    site, project = out / "registered", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    try:
        version("prunebench")
    except PackageNotFoundError:
        info = site / f"prunebench-{project['version']}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prunebench\nVersion: {project['version']}\n")
        groups = [
            f"[{group}]\n" + "".join(f"{name} = {point}\n" for name, point in points.items())
            for group, points in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def main(arguments: list[str]) -> int:
    """Run all parts and print the table; 0 if none failed."""
    asked = options(arguments)
    if asked.measure:
        from tools.gpu_figures import measure

        print(json.dumps(measure(asked.measure, asked.arch, asked.images, asked.device)), flush=True)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # no part may outlive this call
    asked.out.mkdir(parents=True, exist_ok=True)
    rows, good = parts(asked, asked.out.resolve())
    print("\n".join(f"| {what} | {line} |" for what, line in [("what", "found"), ("---", "---"), *rows]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
