"""The tests marked gpu, a table of measurements and as much of a grid as fits a time limit; called by gpu_board.sh.

Each part is a process with what is left of the time. What is whole is kept in --out and not done again: tests and
measurements of this very source, and what `prunebench run` keeps. --pack makes a few files of it that can be carried
home, for --from. The last lines of the output are a short table.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zlib
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EPOCH, STEPS = 50_000, 10  # images of an epoch, and steps of the peer that are timed
TEST, ROBUST, CLEAN = 10_000, 0.45, 0.85  # of the scoring that a pace is laid over
PEER_BATCH = 500
# Sample passes of stock pyautoattack for an image that withstands it: forwards + 2 * backwards.
PEER_PASSES = {"apgd-ce": 102 + 2 * 101, "apgd-t": 910 + 2 * 909, "fab-t": 1800 + 2 * 900, "square": 5000}
TESTS = 1 / 3  # of the time that is left
MIB = 1 << 20
# What a pack leaves out: a later call trains the stages again where a job is not finished, and makes the rest anew.
LEFT_OUT = "stages", "site", "registered", "*.lock", "*.aside"
LATE = "no time was left", "cut off by the time limit"  # what a part may say that has not failed


def options(arguments: list[str]) -> argparse.Namespace:
    """Ours, and in `run` the rest, which is for `prunebench run`."""
    parser = argparse.ArgumentParser(prog="gpu_board", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; what is there is kept")
    parser.add_argument(
        "--from", dest="earlier", type=Path, help="the --out or --pack of an earlier call; what --out lacks is copied"
    )
    parser.add_argument(
        "--pack",
        type=Path,
        metavar="FILE",
        help="at the end, --out without the stages of training as a tar.gz in volumes FILE.00, FILE.01, ...",
    )
    parser.add_argument("--volume", type=volume, default=15 * MIB, metavar="MIB", help="most MiB of a volume (15)")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (8)")
    parser.add_argument("--skip", default="", help="any of tests,table,grid")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (cuda)")
    parser.add_argument("--data", default=os.environ.get("PRUNEBENCH_DATA", "data"), help="where data sets lie")
    parser.add_argument("--arch", default="resnet18", help="the net that is measured (resnet18)")
    parser.add_argument("--images", type=int, default=EPOCH, help="random images to train on (50000)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each trial of an attack (5)")
    parser.add_argument("--measure", choices=("train", "score"), help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("run", nargs=argparse.REMAINDER, help="PROTOCOL and options of `prunebench run`")
    return parser.parse_args(arguments)


def volume(text: str) -> int:
    """Bytes of that many MiB."""
    size = round(float(text) * MIB) if 0 < float(text) < math.inf else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text} MiB hold nothing; a volume needs a number above 0")
    return size


class Board:
    """One call: where it writes and when it has to end."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.out = asked, asked.out.resolve()
        self.deadline = time.monotonic() + 60 * asked.minutes
        if asked.earlier is not None:
            go_on_from(asked.earlier, self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.env = os.environ | {
            "PYTHONPATH": f"{registered(self.out)}:{ROOT / 'src'}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        }
        self.source = source()

    def call(self, name: str, *command: str, share: float = 1.0, folder: Path = ROOT) -> str:
        """Run a part in `folder`, for at most that share of what is left; its output goes to NAME.log.

        Returns why it did not succeed, and nothing when it did.
        """
        left = share * (self.deadline - time.monotonic())
        if left <= 0:
            return LATE[0]
        log = self.out / f"{name}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env=self.env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | str = process.wait(left)
            except subprocess.TimeoutExpired:
                code = LATE[1]
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return "" if code == 0 else f"exit {code}" if isinstance(code, int) else code

    def tests(self) -> tuple[str, bool]:
        """The tests that need a card, in a line, and whether they passed."""
        kept = self.out / "tests.json"
        if (known := self._kept(kept)) is not None:
            return known["line"], True
        pytest = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/grid/test_gpu.py")
        failed = self.call("tests", *pytest, share=TESTS)
        if failed == LATE[1]:
            failed = "cut off by their own limit, a third of the time that was left"
        log = self.out / "tests.log"
        said = [line for line in log.read_text().splitlines() if line.strip()] if log.exists() else []
        line = said[-1].strip("= ") if said else "nothing was said"
        if failed:
            return f"{failed}; {line}; see {log}", False
        self._keep(kept, {"line": line})
        return line, True

    def measured(self, name: str) -> dict[str, Any]:
        """One measurement; {"failed": why} where there is none."""
        asked, path = self.asked, self.out / f"measured-{name}.json"
        about = {"arch": asked.arch, "images": asked.images, "seconds": asked.seconds, "device": asked.device}
        if (known := self._kept(path)) is not None and known["about"] == about:
            return known
        part = (f"--measure={name}", f"--device={asked.device}", f"--arch={asked.arch}", f"--images={asked.images}")
        failed = self.call(
            f"measured-{name}", "tools/gpu_board.py", f"--out={self.out}", f"--seconds={asked.seconds}", *part
        )
        if failed:
            return {"failed": f"{failed}; see {self.out / f'measured-{name}.log'}"}
        found = json.loads((self.out / f"measured-{name}.log").read_text().splitlines()[-1]) | {"about": about}
        self._keep(path, found)
        return found

    def grid(self, arguments: list[str]) -> tuple[str, bool]:
        """As much of the grid as fits, in a line, and whether nothing but the time limit ended it."""
        runs = self.out / "runs"
        common = ("--device", self.asked.device, "--data", str(Path(self.asked.data).resolve()), "--out", str(runs))
        # Where the caller is, for paths among the arguments; -P: no `prunebench` of that folder is taken for ours.
        failed = self.call("grid", "-P", "-m", "prunebench", "run", *arguments, *common, folder=Path.cwd())
        records = [path for path in (runs / "records").rglob("*.json") if path.parent.name != "records"]
        if failed and records:
            self.deadline = max(self.deadline, time.monotonic() + 60)  # a table of what there is
            self.call("rank", "-m", "prunebench", "rank", str(runs / "records"), "--write")
        return f"{len(records)} records in {runs / 'records'}, {failed or 'complete'}", failed in ("", *LATE)

    def _kept(self, path: Path) -> dict[str, Any] | None:
        try:
            known: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        return known if known.get("source") == self.source and known.get("device") == self.asked.device else None

    def _keep(self, path: Path, facts: dict[str, Any]) -> None:
        aside = path.with_suffix(".aside")
        aside.write_text(json.dumps(facts | {"source": self.source, "device": self.asked.device}, indent=1) + "\n")
        aside.replace(path)


def go_on_from(earlier: Path, out: Path) -> None:
    """Copy what `out` lacks from an earlier one, a folder or a pack; raises PrunebenchError when there is neither."""
    if earlier.is_dir():
        shutil.copytree(earlier, out, dirs_exist_ok=True, copy_function=copy_new)
        return
    with tempfile.TemporaryDirectory() as folder:
        unpack(earlier, Path(folder))
        shutil.copytree(folder, out, dirs_exist_ok=True, copy_function=copy_new)


def volumes(stem: Path) -> dict[int, Path]:
    """The volumes of a pack that lie there, by number."""
    ends = re.compile(rf"{re.escape(stem.name)}\.(\d{{2,}})")
    found = {int(end[1]): path for path in stem.parent.glob("*") if (end := ends.fullmatch(path.name))}
    return dict(sorted(found.items()))


def pack(out: Path, stem: Path, most: int) -> list[Path]:
    """Write `out`, without what is LEFT_OUT, as volumes of at most that many bytes; those of an older pack go.

    The first volume is written last: where it is, all are.
    """
    from prunebench.bench.files import write_bytes

    stem = stem.resolve()
    stem.parent.mkdir(parents=True, exist_ok=True)
    for old in volumes(stem).values():
        old.unlink()

    def needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if any(fnmatch(Path(member.name).name, pattern) for pattern in LEFT_OUT) else member

    with tempfile.TemporaryFile(dir=stem.parent) as whole:
        with tarfile.open(fileobj=whole, mode="w:gz", compresslevel=1) as archive:
            archive.add(out, ".", filter=needed)
        count = -(-whole.tell() // most)
        written = [stem.with_name(f"{stem.name}.{number:02}") for number in range(count)]
        for number in reversed(range(count)):
            whole.seek(number * most)
            write_bytes(written[number], whole.read(most))
    return written


def unpack(stem: Path, folder: Path) -> None:
    """Extract a pack, named by its stem or its first volume, into a new folder.

    Raises PrunebenchError when a volume is missing or broken; what is in the folder then is of no use.
    """
    from prunebench.bench.errors import PrunebenchError

    stem = stem.with_suffix("") if stem.suffix == ".00" else stem
    found = volumes(stem)
    lacking = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if lacking:
        raise PrunebenchError(
            f"{stem}.{lacking[0]:02} is missing, a volume of the pack (or no folder {stem}): bring all its volumes, "
            "or leave --from out."
        )
    with tempfile.TemporaryFile() as whole:
        for path in found.values():
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole)
        whole.seek(0)
        try:
            with gzip.GzipFile(fileobj=whole) as plain:
                with tarfile.open(fileobj=plain, mode="r|") as archive:
                    archive.extractall(folder, filter="data")
                while plain.read(MIB):  # to the end, where the checksum is
                    pass
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise PrunebenchError(
                f"The volumes {stem}.00 to .{max(found):02} do not make a pack ({error}): one of them is broken, or a "
                "later one is missing: bring all of them again, or leave --from out."
            ) from None


def copy_new(earlier: str, new: str) -> str:
    """Copy a file unless one is there, which is of a later call."""
    return new if Path(new).exists() else str(shutil.copy2(earlier, new))


def source() -> str:
    """The hash of the code that is tested and measured."""
    files = sorted(path for room in ("bench", "pruners", "tools") for path in (ROOT / room).rglob("*.py"))
    return hashlib.sha256(
        b"\0".join(path.read_bytes() for path in [*files, ROOT / "tests" / "grid" / "test_gpu.py"])
    ).hexdigest()


def registered(out: Path) -> str:
    """A folder for PYTHONPATH that tells Python of our pruners where prunebench is not installed."""
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
    return str(site)


def measure_training(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an epoch of PGD-10 training: ours, and those of a plain eager float32 loop."""
    import torch

    from prunebench.bench.data import Split
    from prunebench.bench.lab.schedule import Plan
    from prunebench.bench.lab.train import fit
    from prunebench.bench.models import build
    from prunebench.bench.protocol import PROTOCOLS

    rules, info, device = PROTOCOLS["cifar10-linf"], shape_of(asked.arch), torch.device(asked.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (asked.images, *info.shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(info.classes, (asked.images,), generator=generator)
    batch = min(rules.training.batch, asked.images)
    recipe = rules.training.model_copy(update={"validate_every": 100, "lr": 0.01})
    plan = Plan(recipe, rules.threat, epochs=10, stop=3)
    split = Split(images, labels).to(device)
    times = fit(build(asked.arch, info=info), plan, split, split.take(slice(0, 16)), seed=0).times
    ours = times[1]  # the first compiles, the last validates
    peer = peer_step(build(asked.arch, info=info).to(device), split, batch, rules) * plan.batches(asked.images)
    return {
        "what": f"{asked.arch}, PGD-10 training, an epoch of {asked.images:,}",
        "ours": ours,
        "peer": peer,
        "unit": "s",
        "ratio": peer / ours,
        "batch": batch,
    } | where(device)


def peer_step(net: Any, split: Any, batch: int, rules: Any) -> float:
    """Seconds of a step of a plain loop: eager, float32, contiguous, a batch fetched from the CPU, a loss read back."""
    import torch
    import torch.nn.functional as F

    from prunebench.bench.data import as_float

    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    radius, size = rules.threat.radius, 2 / 255
    device = split.images.device
    images, labels = as_float(split.images.cpu()), split.labels.cpu()
    times = []
    for step in range(STEPS + 2):
        began = time.perf_counter()
        index = torch.arange(step * batch, (step + 1) * batch) % len(labels)
        x, y = images[index].to(device), labels[index].to(device)
        net.eval()
        adversarial = (x + torch.empty_like(x).uniform_(-radius, radius)).clamp(0, 1)
        for _ in range(rules.training.steps):
            adversarial.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(net(adversarial), y), adversarial)
            adversarial = (adversarial.detach() + size * gradient.sign()).clamp(x - radius, x + radius).clamp(0, 1)
        net.train()
        loss = F.cross_entropy(net(adversarial), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def measure_scoring(asked: argparse.Namespace) -> dict[str, Any]:
    """Images a second of AutoAttack *standard* on a net of which a tenth of the weights is left, ours and stock."""
    import torch

    from prunebench.bench.attacks.standard import STANDARD
    from prunebench.bench.data import Split
    from prunebench.bench.grid.timing import Pace
    from prunebench.bench.mask import draw, masked, rescaled
    from prunebench.bench.models import build, prunable
    from prunebench.bench.protocol import PROTOCOLS
    from prunebench.bench.score.progress import expected
    from prunebench.bench.score.referee import Referee, batch_size, exact_float32

    device, info = torch.device(asked.device), shape_of(asked.arch)
    rules = PROTOCOLS["cifar10-linf"].model_copy(update={"model": asked.arch})
    net = build(asked.arch, info=info)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    keeps = {name: round(0.1 * torch.Size(shape).numel()) for name, shape in shapes.items()}
    masks = draw(shapes, keeps, torch.Generator().manual_seed(1))
    net.load_state_dict(masked(rescaled(net.state_dict(), masks), masks))
    pixels = torch.randint(
        256, (min(asked.images, PEER_BATCH), *info.shape), generator=torch.Generator().manual_seed(0)
    )
    images = pixels.float() / 255
    split = Split(pixels.to(torch.uint8), torch.zeros(len(pixels), dtype=torch.int64))
    pace = Pace(rules, split, split, device, asked.seconds)

    class Plain(Referee):
        """The net as stock pyautoattack sees it: as it is, its weights with gradients."""

        def attacked(self, images: torch.Tensor) -> torch.Tensor:
            cost = self._count(images)
            if self.listener is not None:
                self.listener(cost)
            return self.net(images)

    reached = {name: TEST * (CLEAN if name == "apgd-ce" else ROBUST) for name in STANDARD}
    priced = expected(rules.threat, split, clean=CLEAN, robust=ROBUST)
    ours = {name: passes * TEST / len(split) for name, passes in priced.items()}
    sides = {
        "ours": (Referee, STANDARD, images[: rules.shard], ours),
        "peer": (Plain, stock(), images, {name: PEER_PASSES[name] * reached[name] for name in STANDARD}),
    }
    seconds = {}
    for side, (kind, attacks, lent, passes) in sides.items():
        referee = kind(net, rules, batch_size(rules, asked.arch, device.type), device)
        referee.net.requires_grad_(kind is Plain)
        with exact_float32():
            seconds[side] = sum(passes[name] * pace.attack(referee, run, lent) for name, run in attacks.items())
    return {
        "what": f"AutoAttack standard, {asked.arch} 90 % sparse, {TEST:,} images, {ROBUST:.0%} robust",
        "ours": TEST / seconds["ours"],
        "peer": TEST / seconds["peer"],
        "unit": "images/s",
        "ratio": seconds["peer"] / seconds["ours"],
        "minutes": seconds["ours"] / 60,
    } | where(device)


def stock() -> dict[str, Any]:
    """The attacks of pyautoattack's AutoAttack *standard*, each under the signature of ours."""
    from pyautoattack import AutoAttack

    def made(pick: Any) -> Any:
        def attack(model: Any, images: Any, labels: Any, threat: Any, *, generator: Any) -> Any:
            seed = generator.initial_seed() % 2**32
            whole = AutoAttack(
                model, eps=threat.radius, norm=threat.norm, seed=seed, version="standard", device=images.device
            )
            whole.apgd.loss, whole.fab.targeted = "ce", True  # as run_standard_evaluation sets them
            return pick(whole).perturb(images, labels).detach()

        return attack

    return {
        "apgd-ce": made(lambda whole: whole.apgd),
        "apgd-t": made(lambda whole: whole.apgd_targeted),
        "fab-t": made(lambda whole: whole.fab),
        "square": made(lambda whole: whole.square),
    }


def shape_of(arch: str) -> Any:
    """Images as that architecture takes them."""
    from prunebench.bench.datasets import Info

    shape = {"digits-cnn": (1, 8, 8), "mnist-cnn": (1, 28, 28)}.get(arch, (3, 32, 32))
    return Info(10, shape, (0.5,) * shape[0], (0.25,) * shape[0])


def where(device: Any) -> dict[str, Any]:
    """What it was measured on."""
    from prunebench.bench import machine

    return {"env": machine.env(device)}


def parts(board: Board) -> tuple[list[tuple[str, str]], bool]:
    """Do all parts: the rows of the table, and whether none of them failed."""
    asked, skip, rows, good = board.asked, board.asked.skip.split(","), list[tuple[str, str]](), True
    if "tests" not in skip:
        line, good = board.tests()
        rows.append(("tests marked gpu", line))
    if "table" not in skip:
        for name in ("train", "score"):
            found = board.measured(name)
            good &= "failed" not in found
            rows.append(
                (name, found["failed"])
                if "failed" in found
                else (
                    found["what"],
                    f"ours {found['ours']:.3g} {found['unit']}, peer {found['peer']:.3g}, ratio {found['ratio']:.2f}",
                )
            )
    if "grid" not in skip and asked.run:
        line, whole = board.grid(asked.run)
        good &= whole
        rows.append((f"grid {' '.join(asked.run)}", line))
    return rows, good


def main(arguments: list[str]) -> int:
    """Do all parts and print the table; 0 when none of them failed."""
    from prunebench.bench.errors import PrunebenchError

    asked = options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no part outlives this call
    if asked.measure:
        print(json.dumps({"train": measure_training, "score": measure_scoring}[asked.measure](asked)))
        return 0
    try:
        board = Board(asked)
    except PrunebenchError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        rows, good = parts(board)
    finally:
        if asked.pack is not None:
            ended = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who ends us wants the pack, too
            print(f"packed: {', '.join(map(str, pack(board.out, asked.pack, asked.volume)))}", flush=True)
            signal.signal(signal.SIGTERM, ended)
    print("\n".join(f"| {what} | {line} |" for what, line in [("what", "found"), ("---", "---"), *rows]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
