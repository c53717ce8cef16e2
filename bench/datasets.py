"""The data sets of the benchmark: one table row each, with the function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from prunebench.bench.errors import PrunebenchError

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (n, channels, height, width) and labels (n,)


@dataclass(frozen=True)
class Info:
    """What a net must know about its data: number of classes, image shape (c, h, w), pixel statistics in [0, 1]."""

    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    `images`: how many it has for training and for tests. `files`: paths below the data root, none for a data set that
    ships with a package. `read(root, train, download)`: its training or test half. `marks`: path parts that identify an
    opened file as part of this data set. `cut`: for a data set published in one piece, how many images are the test
    split, the first in its order.
    """

    info: Info
    images: tuple[int, int]
    files: tuple[str, ...]
    read: Callable[[Path, bool, bool], Arrays]
    marks: tuple[str, ...]
    cut: int | None = None


def _digits(root: Path, train: bool, download: bool) -> Arrays:
    """The 8x8 digits that ship with scikit-learn: 1,297 training and 500 test images, 17 grey levels."""
    table = np.loadtxt(digits_file(), delimiter=",")
    return np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8), table[:, -1]


def digits_file() -> Path:
    """The path of scikit-learn's digits, one row of 64 pixels and a label each.

    Its own reader takes seconds to import. Raises PrunebenchError when the file is missing.
    """
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        if (file := Path(folder, "datasets", "data", "digits.csv.gz")).is_file():
            return file
    raise PrunebenchError("The digits of scikit-learn are not installed; install the package scikit-learn.")


def _mnist(root: Path, train: bool, download: bool) -> Arrays:
    from torchvision.datasets import MNIST

    data = MNIST(str(root), train=train, download=download)
    return data.data.numpy()[:, None], data.targets.numpy()


def _fashion_mnist(root: Path, train: bool, download: bool) -> Arrays:
    from torchvision.datasets import FashionMNIST

    data = FashionMNIST(str(root), train=train, download=download)
    return data.data.numpy()[:, None], data.targets.numpy()


def _cifar10(root: Path, train: bool, download: bool) -> Arrays:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(root), train=train, download=download)
    return data.data.transpose(0, 3, 1, 2), np.asarray(data.targets)


def _cifar100(root: Path, train: bool, download: bool) -> Arrays:
    from torchvision.datasets import CIFAR100

    data = CIFAR100(str(root), train=train, download=download)
    return data.data.transpose(0, 3, 1, 2), np.asarray(data.targets)


def _svhn(root: Path, train: bool, download: bool) -> Arrays:
    from torchvision.datasets import SVHN

    data = SVHN(str(root), split="train" if train else "test", download=download)
    return data.data, np.asarray(data.labels)


def _idx_files(folder: str) -> tuple[str, ...]:
    """The four files of MNIST, whose format and names Fashion-MNIST shares."""
    halves, kinds = ("train", "t10k"), ("images-idx3", "labels-idx1")
    return tuple(f"{folder}/raw/{half}-{kind}-ubyte" for half in halves for kind in kinds)


_RGB = (3, 32, 32)
DATASETS: dict[str, DataSet] = {
    "digits": DataSet(Info(10, (1, 8, 8), (0.3053,), (0.3763,)), (1297, 500), (), _digits, ("digits.csv",), cut=500),
    "mnist": DataSet(
        Info(10, (1, 28, 28), (0.1307,), (0.3081,)), (60_000, 10_000), _idx_files("MNIST"), _mnist, ("-ubyte",)
    ),
    "fashion-mnist": DataSet(
        Info(10, (1, 28, 28), (0.2860,), (0.3530,)),
        (60_000, 10_000),
        _idx_files("FashionMNIST"),
        _fashion_mnist,
        ("FashionMNIST/raw/",),
    ),
    "cifar10": DataSet(
        Info(10, _RGB, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        (50_000, 10_000),
        tuple(f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
        _cifar10,
        ("/data_batch_", "/test_batch"),
    ),
    "cifar100": DataSet(
        Info(100, _RGB, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        (50_000, 10_000),
        ("cifar-100-python/train", "cifar-100-python/test"),
        _cifar100,
        ("cifar-100-python/",),
    ),
    "svhn": DataSet(
        Info(10, _RGB, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        (73_257, 26_032),
        ("train_32x32.mat", "test_32x32.mat"),
        _svhn,
        ("_32x32.mat",),
    ),
}


def read_folder(folder: Path) -> Arrays:
    """The images below `folder`, one folder per class, in the order of the folders' names.

    Raises PrunebenchError when a file is not an image, or images differ in size.
    """
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
