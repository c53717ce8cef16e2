"""Data sets as uint8 tensors in memory, with train, validation and test fixed by index."""

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
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunebench.bench.errors import PrunebenchError, unknown
from prunebench.bench.files import canonical_json, open_outside, sha256_of, write_aside
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
        """The same images in the memory of `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    @cached_property
    def sha256(self) -> str:
        """The hash of shapes, pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().cpu().numpy().tobytes())
        digest.update(self.labels.contiguous().cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Info:
    """What a net must know of its data: number of classes, image shape (c, h, w), and pixel statistics in [0, 1]."""

    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def as_float(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return images.float().div_(255)


@dataclass(frozen=True)
class _Published:
    """A data set that torchvision can load: `files` below the data root, `read(root, train)` -> arrays."""

    info: Info
    files: tuple[str, ...]
    read: Callable[[Path, bool, bool], tuple[np.ndarray, np.ndarray]]


def _mnist(root: Path, train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import MNIST

    data = MNIST(str(root), train=train, download=download)
    return data.data.numpy()[:, None], data.targets.numpy()


def _cifar10(root: Path, train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(root), train=train, download=download)
    return data.data.transpose(0, 3, 1, 2), np.asarray(data.targets)


def _cifar100(root: Path, train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import CIFAR100

    data = CIFAR100(str(root), train=train, download=download)
    return data.data.transpose(0, 3, 1, 2), np.asarray(data.targets)


def _svhn(root: Path, train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import SVHN

    data = SVHN(str(root), split="train" if train else "test", download=download)
    return data.data, np.asarray(data.labels)


_MNIST_FILES = tuple(
    f"MNIST/raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_RGB = (3, 32, 32)
_PUBLISHED: dict[str, _Published] = {
    "mnist": _Published(Info(10, (1, 28, 28), (0.1307,), (0.3081,)), _MNIST_FILES, _mnist),
    "cifar10": _Published(
        Info(10, _RGB, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        tuple(f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
        _cifar10,
    ),
    "cifar100": _Published(
        Info(100, _RGB, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("cifar-100-python/train", "cifar-100-python/test"),
        _cifar100,
    ),
    "svhn": _Published(
        Info(10, _RGB, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        ("train_32x32.mat", "test_32x32.mat"),
        _svhn,
    ),
}
_DIGITS = Info(10, (1, 8, 8), (0.3053,), (0.3763,))
_DIGITS_TEST = 500
_LARGEST = 2**40  # bytes of decoded images, which are mapped and not read

DATASETS = ("digits", *_PUBLISHED)
# What a file that is cut short or is no data set at all can raise, in torchvision and in what it reads with.
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
    """Where data sets lie (`root`) and where their decoded arrays are kept (`cache`, None for nowhere)."""

    root: Path
    cache: Path | None = None

    def info(self, name: str) -> Info:
        """What a net must know of the data set `name`; for `folder:PATH` this decodes the images once."""
        if name == "digits":
            return _DIGITS
        if name in _PUBLISHED:
            return _PUBLISHED[name].info
        if not name.startswith("folder:"):
            raise unknown("data set", name, DATASETS, _FOLDER)
        train = self._arrays(name, True)
        channels, height, width = train.images.shape[1:]
        return Info(int(train.labels.max()) + 1, (channels, height, width), (0.5,) * channels, (0.25,) * channels)

    def training(self, name: str, *, validation: int, train: int | None = None) -> tuple[Split, Split]:
        """The training images and, cut from their published split, `validation` images to measure progress on.

        Both are taken in an order fixed by the name of the data set, so that any first part is a random sample:
        first the validation images, then the training images (`train` of them, None for all).
        """
        whole = self._arrays(name, True)
        last = len(whole) if train is None else validation + train
        if validation >= len(whole) or last > len(whole):
            raise PrunebenchError(
                f"Data set {name} has {len(whole)} images to train on, fewer than the {validation} for validation and "
                f"{train or 1} for training that the protocol asks for; lower `validation` or `train`."
            )
        return whole.take(slice(validation, last)), whole.take(slice(0, validation))

    def testing(self, name: str, count: int | None = None) -> Split:
        """The first `count` test images (None for all) in the fixed order of the data set."""
        whole = self._arrays(name, False)
        if count is not None and count > len(whole):
            raise PrunebenchError(f"Data set {name} has {len(whole)} test images, fewer than the {count} asked for.")
        return whole.take(slice(0, count))

    def present(self, name: str) -> bool:
        """Whether the files of a data set of the table are here, as they are or zipped."""
        files = _PUBLISHED[name].files if name in _PUBLISHED else ()
        return all((self.root / file).exists() or (self.root / f"{file}.gz").exists() for file in files)

    def _arrays(self, name: str, train: bool) -> Split:
        if name == "digits":
            return _digits(train)
        if name in _PUBLISHED:
            images, labels = self._published(name, train)
        elif name.startswith("folder:"):
            images, labels = self._folder(self.root / name.removeprefix("folder:"), train)
        else:
            raise unknown("data set", name, DATASETS, _FOLDER)
        return _ordered(Split(images, labels), name if name in _PUBLISHED else "folder", train)

    def _published(self, name: str, train: bool) -> tuple[Tensor, Tensor]:
        known, root = _PUBLISHED[name], self.root
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
                    f"({_reason(error)}); put it there or name its folder with --data."
                ) from error
        return self._decoded(name, train, [root / file for file in known.files], lambda: self._read(name, root, train))

    def _unzipped(self, name: str, train: bool, missing: list[str]) -> tuple[Tensor, Tensor]:
        known = _PUBLISHED[name]

        def read() -> tuple[np.ndarray, np.ndarray]:
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

    def _read(self, name: str, folder: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
        try:
            images, labels = _PUBLISHED[name].read(folder, train, False)
            if len(images) != len(labels):
                raise ValueError(f"{len(images)} images but {len(labels)} labels")
        except _UNREADABLE as error:
            raise PrunebenchError(
                f"The files of data set {name} in {self.root} cannot be read ({_reason(error)}); delete them and fetch "
                "them again."
            ) from error
        return images, labels

    def _folder(self, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
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
        files = sorted(path for path in (folder / half).rglob("*") if path.is_file())
        return self._decoded(f"folder-{half}", train, files, lambda: _images(folder / half))

    def _decoded(
        self, name: str, train: bool, files: list[Path], read: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[Tensor, Tensor]:
        """What `read` returns as tensors, from the cache while `files` are the same by path, size and time."""
        if self.cache is None:
            return _tensors(*read())
        facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        kept = self.cache / f"{name}-{'train' if train else 'test'}-{sha256_of(canonical_json(facts))[:16]}.safetensors"
        damaged = suppress(PrunebenchError, SafetensorError, OSError)  # what is not whole is decoded anew
        with damaged, open_outside(kept, "decoded images", _LARGEST), safe_open(kept, "pt") as opened:
            split = Split(opened.get_tensor("images"), opened.get_tensor("labels"))
            if (opened.metadata() or {}).get("sha256") == split.sha256:
                return split.images, split.labels
        images, labels = _tensors(*read())
        facts_of = {"sha256": Split(images, labels).sha256}
        write_aside(kept, lambda aside: save_file({"images": images, "labels": labels}, aside, metadata=facts_of))
        return images, labels


def digits_file() -> Path:
    """Where scikit-learn keeps its digits, a row of 64 pixels and a label each; its own reader takes seconds to import.

    Raises PrunebenchError where they are not.
    """
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        if (file := Path(folder, "datasets", "data", "digits.csv.gz")).is_file():
            return file
    raise PrunebenchError("The digits of scikit-learn are not installed; install the package scikit-learn.")


def _digits(train: bool) -> Split:
    """The 8x8 digits that ship with scikit-learn: 1,297 to train on and 500 to test on, 17 grey levels."""
    table = np.loadtxt(digits_file(), delimiter=",")
    pixels = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    whole = _ordered(Split(*_tensors(pixels, table[:, -1])), "digits", None)
    index = torch.arange(len(whole))  # copies: a slice would share its memory, and so the other split, with its user
    return whole.take(index[_DIGITS_TEST:] if train else index[:_DIGITS_TEST])


def _ordered(split: Split, name: str, train: bool | None) -> Split:
    """`split` in the order of its data set: published files are often sorted by class or by difficulty."""
    part = {None: "whole", True: "train", False: "test"}[train]
    return split.take(torch.tensor(order(len(split), name, part)))


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64))


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import ImageFolder

    if odd := next((path for path in folder.rglob("*") if not (path.is_file() or path.is_dir())), None):
        raise PrunebenchError(f"{odd} is neither a file nor a folder; every file must be an image.")
    try:
        listing = ImageFolder(str(folder))
        images = [np.asarray(image) for image, _ in listing]
    except OSError as error:  # no images, or one that cannot be decoded
        raise PrunebenchError(f"Cannot read the images in {folder} ({error}); every file must be an image.") from error
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise PrunebenchError(f"The images in {folder} have {len(shapes)} different sizes; resize them to one.")
    return np.stack(images).transpose(0, 3, 1, 2), np.asarray(listing.targets)
