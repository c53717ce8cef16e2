"""The tests marked gpu, a table of measurements and as much of a grid as fits a time limit; called by gpu_board.sh.

Each part is a process of its own. What is complete is kept in --out: tests and measurements of the same source, and
what `prunebench run` keeps. A short table comes last.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LATE = ("no time was left", "cut off by the time limit")  # these are not failures


def options(arguments: list[str]) -> argparse.Namespace:
    """The options of this script, with those of `prunebench run` in `run`."""
    parser = argparse.ArgumentParser(prog="gpu_board", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="the folder of all results; what is there is kept")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (8)")
    parser.add_argument("--skip", default="", help="any of tests,train,score,grid")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (cuda)")
    parser.add_argument("--arch", default="resnet18", help="the net that is measured (resnet18)")
    parser.add_argument("--images", type=int, default=50_000, help="random images of the measured epoch (50000)")
    parser.add_argument("--measure", choices=("train", "score"), help=argparse.SUPPRESS)  # for the subprocess
    parser.add_argument("run", nargs=argparse.REMAINDER, help="PROTOCOL and options of `prunebench run`")
    return parser.parse_args(arguments)


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
    same = [f"--{name}={getattr(asked, name)}" for name in ("device", "arch", "images")]
    commands = {
        "tests": ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/grid/test_gpu.py"],
    } | {name: ["tools/gpu_board.py", "--out=.", f"--measure={name}", *same] for name in ("train", "score")}
    for name, command in commands.items():
        if name in asked.skip.split(","):
            continue
        kept, log = out / f"{name}-{source(*command[1:])}.txt", out / f"{name}.log"
        share = 1 / 3 if name == "tests" else 1.0  # a test that hangs leaves time for the rest
        failed = "" if kept.exists() else call(command, log, share * (end - time.monotonic()))
        if not failed and not kept.exists():
            kept.write_text(log.read_text().strip().splitlines()[-1].strip("= "))
        rows.append((name, failed or kept.read_text()))
        good &= not failed
    if asked.run and "grid" not in asked.skip.split(","):
        # In the caller's folder, for paths among the arguments; -P: a `prunebench` in that folder is not this one.
        command = ["-P", "-m", "prunebench", "run", *asked.run, "--device", asked.device, "--out", str(out / "runs")]
        failed = call(command, out / "grid.log", end - time.monotonic(), Path.cwd())
        records = list(out.glob("runs/records/*/*.json"))
        if failed and records:  # a table of the records so far
            call(["-m", "prunebench", "rank", str(out / "runs" / "records"), "--write"], out / "rank.log", 60)
        rows.append((f"grid {' '.join(asked.run)}", f"{len(records)} records, {failed or 'complete'}"))
        good &= failed in ("", *LATE)
    return rows, good


def source(*options: str) -> str:
    """A hash of the tested and measured code, and of `options`."""
    rooms = ("bench", "pruners", "tools", "tests/grid", "tests/support")
    files = sorted(path for room in rooms for kind in ("*.py", "*.cpp") for path in (ROOT / room).rglob(kind))
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

        print(measure(asked.measure, asked.arch, asked.images, asked.device))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # no part may outlive this call
    asked.out.mkdir(parents=True, exist_ok=True)
    rows, good = parts(asked, asked.out.resolve())
    print("\n".join(f"| {what} | {line} |" for what, line in [("what", "found"), ("---", "---"), *rows]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
