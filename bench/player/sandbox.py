"""A sandbox for a pruner's process, if bubblewrap is installed: no network, no test images, one writable folder.

https://github.com/containers/bubblewrap makes new namespaces of the Linux kernel for one command and its children.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunebench.bench.data import Split, Store
from prunebench.bench.datasets import Info, digits_file
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import write_aside
from prunebench.bench.protocol import Protocol

PROGRAM = "bwrap"
HERE = Path(__file__).parent
LENT = "lent.safetensors"


@dataclass(frozen=True)
class Lent(Store):
    """A store of training and validation images only, in the file `root`."""

    about: Info | None = None

    def info(self, name: str) -> Info:
        """What a net must know about the data set."""
        assert self.about is not None
        return self.about

    def training(self, name: str, *, validation: int, train: int | None = None) -> tuple[Split, Split]:
        """The training and validation images that were lent."""
        with safe_open(self.root, "pt") as file:
            parts = [Split(file.get_tensor(f"{part}.images"), file.get_tensor(f"{part}.labels")) for part in _PARTS]
        return parts[0], parts[1]

    def testing(self, name: str, count: int | None = None) -> Split:
        """Raise PrunebenchError: test images are not lent."""
        raise PrunebenchError("The test images are not available: a pruner in a sandbox sees only training images.")


_PARTS = ("train", "validation")


def lend(store: Store, protocol: Protocol, folder: Path) -> Lent:
    """Write the images that a pruner may learn from to a file in `folder`."""
    splits = store.training(protocol.data, validation=protocol.validation, train=protocol.train)
    tensors: dict[str, Tensor] = {}
    for part, split in zip(_PARTS, splits, strict=True):
        tensors |= {f"{part}.images": split.images.contiguous(), f"{part}.labels": split.labels.contiguous()}
    path = folder / LENT
    write_aside(path, lambda aside: save_file(tensors, aside))
    return Lent(path, None, store.info(protocol.data))


def command(folder: Path, hidden: Iterable[Path], *, cards: bool) -> list[str]:
    """A prefix for a command: it can then write only to `folder`, and sees neither `hidden` nor other processes.

    `cards`: it may use the devices of this machine, including GPUs. Raises PrunebenchError if there is no sandbox.
    """
    require()
    covers: list[str] = []
    place = str(folder.resolve())
    for path in (path.resolve() for path in hidden):
        if path.is_file():
            covers += ["--ro-bind", "/dev/null", str(path)]
            continue
        if inside := [held for held in (place, sys.prefix, str(HERE)) if Path(held).resolve().is_relative_to(path)]:
            raise PrunebenchError(
                f"The sandbox hides the data folder {path}, but {inside[0]} lies in it; name a folder that holds only "
                "data with --data."
            )
        covers += ["--tmpfs", str(path)]
    devices = ["--dev-bind", "/dev", "/dev"] if cards else ["--dev", "/dev"]
    return [
        PROGRAM,
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/",
        "/",
        *devices,
        "--proc",
        "/proc",
        *covers,
        "--bind",
        place,
        place,
        "--setenv",
        "TMPDIR",
        place,
        "--",
    ]


def hidden(store: Store) -> list[Path]:
    """Where test images are stored: the folders of data sets and decoded arrays, and scikit-learn's digits file."""
    places = [store.root, *([store.cache] if store.cache is not None else [])]
    places.append(digits_file())
    return [place for place in places if place.exists()]


def require() -> None:
    """Raise PrunebenchError if there is no sandbox."""
    if (why := lacking()) is not None:
        raise PrunebenchError(f"No sandbox is available: {why} Install bubblewrap, or leave --sandbox out.")


def lacking() -> str | None:
    """Why there is no sandbox on this machine, as a sentence; None if there is one."""
    if shutil.which(PROGRAM) is None:
        return f"the program {PROGRAM} is not on the path."
    tried = subprocess.run(
        [PROGRAM, "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode == 0:
        return None
    return f"the kernel does not allow {PROGRAM} ({tried.stderr.strip()[:200]})."
