"""Data sets as uint8 tensors in memory, decoded once, with train, validation and test splits fixed by index."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunebench.bench.datasets import DATASETS, Arrays, Info, read_folder
from prunebench.bench.errors import PrunebenchError, unknown
from prunebench.bench.files import canonical_json, open_outside, sha256_of, write_aside
from prunebench.bench.folders import folder_info, load_info, once, save_info
from prunebench.bench.seeds import order


@dataclass(frozen=True)
class Split:
    """Images of one split: `images` uint8 (n, channels, height, width), `labels` int64 (n,) in [0, classes)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Split:
        """The images at `index`."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Split:
        """The same images on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    @cached_property
    def sha256(self) -> str:
        """The hash of shapes, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().cpu().numpy().tobytes())
        digest.update(self.labels.contiguous().cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def as_float(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return images.float().div_(255)


_LARGEST = 2**40  # bytes of decoded images, which are memory-mapped rather than read

# Errors that torchvision and its readers can raise on a truncated file or one that is not a data set.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    EOFError,
    HTTPException,
    UnpicklingError,
    zlib.error,
)
_FOLDER = "Or name a folder below the data root with train/ and test/ inside: folder:PATH."


@dataclass(frozen=True)
class Store:
    """The folder of the data sets (`root`) and of their decoded arrays (`cache`, None for no cache)."""

    root: Path
    cache: Path | None = None

    def info(self, name: str) -> Info:
        """What a net must know about the data set `name`; for `folder:PATH` this decodes the images once."""
        if name in DATASETS:
            return DATASETS[name].info
        if not name.startswith("folder:"):
            raise unknown("data set", name, DATASETS, _FOLDER)
        folder = self.root / name.removeprefix("folder:")
        return once((folder, self.cache, "info"), folder, lambda: self._info_of(name, folder))

    def _info_of(self, name: str, folder: Path) -> Info:
        """The facts of a folder, from beside the cache if its images are there: only a training needs these."""
        kept = None if self.cache is None else self._kept("folder-train", True, _files(folder, True))
        if kept is not None and (info := load_info(kept.with_suffix(".info.json"))) is not None:
            return info
        train = self._arrays(name, True)
        info = folder_info(int(train.labels.max()) + 1, tuple(train.images.shape[1:]))
        if kept is not None:
            save_info(kept.with_suffix(".info.json"), info)
        return info

    def training(self, name: str, *, validation: int, train: int | None = None) -> tuple[Split, Split]:
        """The training images, and `validation` images held out of their published split to measure progress.

        The data set's name fixes the order, so that any prefix is a random sample. The validation images come first,
        then the training images (`train` of them, None for all).
        """
        whole = self._arrays(name, True)
        last = len(whole) if train is None else validation + train
        if validation >= len(whole) or last > len(whole):
            raise PrunebenchError(
                f"Data set {name} has {len(whole)} images to train on, fewer than the {validation} for validation and "
                f"{train or 1} for training that the protocol needs; lower `validation` or `train`."
            )
        return whole.take(slice(validation, last)), whole.take(slice(0, validation))

    def testing(self, name: str, count: int | None = None) -> Split:
        """The first `count` test images (None for all) in the fixed order of the data set."""
        whole = self._arrays(name, False)
        if count is not None and count > len(whole):
            raise PrunebenchError(
                f"Data set {name} has {len(whole)} test images, fewer than the {count} asked for; ask "
                f"for {len(whole)} or fewer."
            )
        return whole.take(slice(0, count))

    def present(self, name: str) -> bool:
        """Whether the files of a data set in the table are present, unpacked or zipped."""
        files = DATASETS[name].files if name in DATASETS else ()
        return all((self.root / file).exists() or (self.root / f"{file}.gz").exists() for file in files)

    def _arrays(self, name: str, train: bool) -> Split:
        if name in DATASETS:
            cut = DATASETS[name].cut
            if cut is None:
                return _ordered(Split(*self._published(name, train)), name, train)
            whole = _ordered(Split(*self._published(name, True)), name, None)
            index = torch.arange(len(whole))  # copies: a slice would keep the other split in memory
            return whole.take(index[cut:] if train else index[:cut])
        if not name.startswith("folder:"):
            raise unknown("data set", name, DATASETS, _FOLDER)
        folder = self.root / name.removeprefix("folder:")
        read = lambda: _ordered(Split(*self._folder(folder, train)), "folder", train)  # noqa: E731
        return once((folder, self.cache, train), folder, read)

    def _published(self, name: str, train: bool) -> tuple[Tensor, Tensor]:
        known, root = DATASETS[name], self.root
        if not known.files:
            return _tensors(*known.read(root, train, False))
        missing = [file for file in known.files if not (root / file).exists()]
        if missing and all((root / f"{file}.gz").exists() for file in missing):
            return self._unzipped(name, train, missing)
        if missing:
            try:
                for part in (True, False):
                    known.read(root, part, True)
            except _UNREADABLE as error:
                raise PrunebenchError(
                    f"Data set {name} is not in {root} ({missing[0]} is missing) and could not be downloaded "
                    f"({_reason(error).rstrip(':')}); put it there or name the folder that holds it with --data."
                ) from error
        return self._decoded(name, train, [root / file for file in known.files], lambda: self._read(name, root, train))

    def _unzipped(self, name: str, train: bool, missing: list[str]) -> tuple[Tensor, Tensor]:
        known = DATASETS[name]

        def read() -> Arrays:
            with tempfile.TemporaryDirectory() as folder:
                for file in known.files:
                    target, zipped = Path(folder, file), file in missing
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = self.root / (f"{file}.gz" if zipped else file)
                    try:
                        with (gzip.open if zipped else open)(source, "rb") as packed, target.open("wb") as plain:
                            shutil.copyfileobj(packed, plain)
                    except _UNREADABLE as error:
                        raise PrunebenchError(
                            f"Cannot unzip {source} ({_reason(error)}); delete it and fetch it again."
                        ) from error
                return self._read(name, Path(folder), train)

        return self._decoded(name, train, [self.root / f"{file}.gz" for file in missing], read)

    def _read(self, name: str, folder: Path, train: bool) -> Arrays:
        try:
            images, labels = DATASETS[name].read(folder, train, False)
            if len(images) != len(labels):
                raise ValueError(f"{len(images)} images but {len(labels)} labels")
        except _UNREADABLE as error:
            raise PrunebenchError(
                f"The files of data set {name} in {self.root} cannot be read ({_reason(error)}); delete them and fetch "
                "them again."
            ) from error
        return images, labels

    def _folder(self, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
        half, files = ("train" if train else "test"), _files(folder, train)
        return self._decoded(f"folder-{half}", train, files, lambda: read_folder(folder / half))

    def _kept(self, name: str, train: bool, files: list[Path]) -> Path:
        """Where the cache keeps what was decoded from `files`, as long as their paths, sizes and times are these."""
        assert self.cache is not None
        facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return self.cache / f"{name}-{'train' if train else 'test'}-{sha256_of(canonical_json(facts))[:16]}.safetensors"

    def _decoded(self, name: str, train: bool, files: list[Path], read: Callable[[], Arrays]) -> tuple[Tensor, Tensor]:
        """What `read` returns, as tensors, from the cache while path, size and time of `files` are unchanged."""
        if self.cache is None:
            return _tensors(*read())
        kept = self._kept(name, train, files)
        damaged = suppress(PrunebenchError, SafetensorError, OSError)  # a damaged cache is decoded again
        with damaged, open_outside(kept, "decoded images", _LARGEST), safe_open(kept, "pt") as opened:
            split = Split(opened.get_tensor("images"), opened.get_tensor("labels"))
            if (opened.metadata() or {}).get("sha256") == split.sha256:
                return split.images, split.labels
        images, labels = _tensors(*read())
        facts_of = {"sha256": Split(images, labels).sha256}
        write_aside(kept, lambda aside: save_file({"images": images, "labels": labels}, aside, metadata=facts_of))
        return images, labels


def _files(folder: Path, train: bool) -> list[Path]:
    """The files of one half of a folder of images. Raises PrunebenchError if its class folders are not in order."""
    half, other = ("train", "test") if train else ("test", "train")
    for part in (half, other):
        if not (folder / part).is_dir():
            raise PrunebenchError(
                f"There is no {folder / part}; folder:PATH needs train/CLASS/ and test/CLASS/ inside."
            )
    classes = [sorted(path.name for path in (folder / part).iterdir() if path.is_dir()) for part in (half, other)]
    if classes[0] != classes[1]:
        raise PrunebenchError(
            f"{folder / half} and {folder / other} have different classes; give them the same folders."
        )
    if len(classes[0]) < 2:
        raise PrunebenchError(f"{folder / half} has {len(classes[0])} class folders; at least 2 are needed.")
    return sorted(path for path in (folder / half).rglob("*") if path.is_file())


def _ordered(split: Split, name: str, train: bool | None) -> Split:
    """`split` in the order of its data set: published files are often sorted by class or by difficulty."""
    part = {None: "whole", True: "train", False: "test"}[train]
    return split.take(torch.tensor(order(len(split), name, part)))


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64))


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
