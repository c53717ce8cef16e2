"""Kill `prunebench train`, `score` and `run` again and again, and see that they end in the same bytes all the same.

Each verb runs once undisturbed. Then it runs in a new folder, is killed (SIGKILL) at a random moment of its work and
started again, until it is done; then again in another folder, until so many kills have hit a running process. Compared
are the bytes of the net and of the outcomes, and the record without its times.

    python -m tools.kill_and_resume digits-linf --pruner imp --sparsity 0.95 --examples 64
    python -m tools.kill_and_resume digits-linf --verb run --pruner imp --pruner hydra --epochs 4 --kills 50
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from prunebench.bench.files import canonical_json
from prunebench.bench.names import NET, RECORD
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.record import Record, load_record

RECORDS = "records"
SLOWEST = 3600.0  # seconds that one command may take


def timeless(record: Record) -> bytes:
    """A record without what may differ in a repeated measurement: seconds, what follows from them, the commit."""
    values = record.model_dump(mode="json", by_alias=True, exclude={"sha256"})
    values["cost"] |= {"train_seconds": None, "processor_seconds": None, "score_seconds": None}
    values["cost"]["stages"] = [stage | {"seconds": None} for stage in values["cost"]["stages"]]
    values["score"]["flags"] = [flag for flag in values["score"]["flags"] if flag["name"] != "budget-overrun"]
    values["env"].pop("commit", None)
    return canonical_json(values)


def result(folder: Path) -> dict[str, bytes]:
    """The results of a finished command in `folder`, as bytes to compare: every net, record and outcomes file."""
    found = {}
    for net in sorted(folder.rglob(NET)):
        found[_name(net, folder)] = net.read_bytes()
    for record in sorted(
        path for path in folder.rglob("*.json") if path.name == RECORD or path.parent.parent.name == RECORDS
    ):
        scored = load_record(record)
        if not isinstance(scored, Record):
            raise SystemExit(f"The score was refused: {scored.reason}")
        found[_name(record, folder)] = timeless(scored)
        found[_name(outcomes_path(record), folder)] = outcomes_path(record).read_bytes()
    return found


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


@dataclass
class Tally:
    """The results for one verb; `seconds`: its undisturbed working time; `resumed`: kills that left work on disk."""

    verb: str
    seconds: float
    kills: int = 0
    resumed: int = 0
    finished: int = 0
    differ: int = 0


def work(command: list[str], folder: Path, after: float | None) -> tuple[bool, float]:
    """Run `command`, which works in `folder`, and kill it `after` seconds of work (None: never).

    Returns whether it was killed, and how long it worked after it acquired the folder's lock.
    """
    lock = folder / ".lock"
    lock.unlink(missing_ok=True)  # nobody holds it; its reappearance shows that imports are done
    with tempfile.TemporaryFile() as told, subprocess.Popen(command, stdout=told, stderr=told) as process:
        try:
            patience = time.monotonic() + SLOWEST
            while not lock.exists() and process.poll() is None and time.monotonic() < patience:
                time.sleep(0.005)
            began = time.monotonic()
            process.wait(SLOWEST if after is None else after)
        except subprocess.TimeoutExpired:
            if after is None:
                raise
        finally:
            process.kill()  # has no effect on a finished process
        seconds = time.monotonic() - began
        if process.wait() == -9:
            return True, seconds
        if process.returncode:
            told.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{told.read().decode()}")
    return False, seconds


def torment(verb: str, command: list[str], base: Path, kills: int, moments: random.Random) -> Tally:
    """Run `command --out FOLDER` undisturbed, then with kills; the folders are below `base`."""
    reference = base / f"{verb}-undisturbed"
    _, seconds = work([*command, "--out", str(reference)], reference, None)
    wanted, tally = result(reference), Tally(verb, seconds)
    while tally.kills < kills:
        folder = base / f"{verb}-{tally.finished}"
        killed = True
        while killed:
            after = moments.uniform(0, seconds) if tally.kills < kills else None
            killed, _ = work([*command, "--out", str(folder)], folder, after)
            tally.kills += killed
            tally.resumed += killed and any(path.is_file() and path.name != ".lock" for path in folder.rglob("*"))
        tally.finished += 1
        tally.differ += result(folder) != wanted
    return tally


def main(arguments: list[str] | None = None) -> int:
    """Torment the verbs; 1 if any run ended with different bytes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("protocol", help="a built-in protocol or a TOML file")
    parser.add_argument("--verb", action="append", choices=("train", "score", "run"), help="train and score by default")
    parser.add_argument("--pruner", action="append", help="imp by default; several for run")
    parser.add_argument("--sparsity", default="0.95")
    parser.add_argument("--epochs", help="of a unit, instead of the protocol's")
    parser.add_argument("--jobs", default="2", help="of run, side by side")
    parser.add_argument("--examples", type=int, default=64, help="test images to score")
    parser.add_argument("--kills", type=int, default=20, help="of each verb")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which to kill")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kill-and-resume-") as name:
        base = Path(name)
        print("verb   seconds  kills  with work on disk  finished  different", flush=True)
        tallies = []
        for verb in options.verb or ("train", "score"):
            moments = random.Random(f"{options.seed}/{verb}")
            tally = torment(verb, _command(verb, options, base), base, options.kills, moments)
            print(
                f"{verb:5}  {tally.seconds:7.1f}  {tally.kills:5}  {tally.resumed:17}  {tally.finished:8}  "
                f"{tally.differ:9}",
                flush=True,
            )
            tallies.append(tally)
    return int(any(tally.differ for tally in tallies))


def _command(verb: str, options: argparse.Namespace, base: Path) -> list[str]:
    """The command of one verb, without its folder."""
    begins = [sys.executable, "-m", "prunebench", verb]
    if verb == "score":
        return [*begins, str(base / "train-undisturbed" / NET), "--examples", str(options.examples)]
    pruners = options.pruner or ["imp"]
    asked = [*begins, options.protocol, "--sparsity", options.sparsity, "--seed", "0"]
    asked += [part for pruner in pruners for part in ("--pruner", pruner)]
    asked += ["--epochs", options.epochs] if options.epochs else []
    return [*asked, "--jobs", options.jobs, "--examples", str(options.examples)] if verb == "run" else asked


if __name__ == "__main__":
    sys.exit(main())
