"""Data sets are the same images in the same order everywhere, decoded once, and refused in one sentence."""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
import random
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

import prunebench.bench.data
from prunebench.bench import folders
from prunebench.bench.data import Split, Store, as_float
from prunebench.bench.datasets import DATASETS
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of
from prunebench.bench.folders import MOST, once
from prunebench.bench.seeds import order

TRAIN, TEST = 30, 12


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def idx(array):
    """The idx format of MNIST: magic number with type and rank, dimensions big-endian, bytes."""
    return b"".join(n.to_bytes(4, "big") for n in (0x800 + array.ndim, *array.shape)) + array.astype(np.uint8).tobytes()


def numbered(count, *shape):
    """Images whose every pixel is their number, so that an image tells where it came from."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, *(1 for _ in shape)), (count, *shape))


def write_mnist(root, *, zipped=(), folder="MNIST"):
    raw = root / folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        for kind, array in (("images-idx3", numbered(count, 28, 28)), ("labels-idx1", np.arange(count) % 10)):
            name = f"{part}-{kind}-ubyte"
            if name in zipped:
                (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (raw / name).write_bytes(idx(array))
    return raw


MNIST_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def write_cifar(root, monkeypatch, *, hundred):
    """Files in CIFAR's format; their md5 is not the published one, so that check is reduced to existence."""
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    labels, names = ("fine_labels", "fine_label_names") if hundred else ("labels", "label_names")
    parts = {"train": 6, "test": 4} if hundred else {f"data_batch_{i}": 2 for i in range(1, 6)} | {"test_batch": 4}
    first = 0
    for name, count in parts.items():
        first = 0 if name.startswith("test") else first
        # in a row of the file the planes red, green and blue follow each other; here they hold n, n + 50, n + 100
        rows = [np.repeat([n, n + 50, n + 100], 1024) for n in range(first, first + count)]
        data = {"data": np.stack(rows).astype(np.uint8), labels: list(range(first, first + count))}
        (folder / name).write_bytes(pickle.dumps(data))
        first += count
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps({names: ["a"]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: md5 is not None)


def write_folder(root, *, train=3, test=2, classes=("cat", "dog"), size=6):
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.full((size, size, 3), (10 * label + k, 100, 200), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    return root


def came_from(split):
    return split.images[:, 0, 0, 0].tolist()


# Order and splits


def test_the_order_of_a_data_set_never_changes():
    """Another order is another benchmark: a changed hash needs new protocol versions."""
    hashes = {
        f"{name} {part}": sha256_of(json.dumps(list(order(count, name, part))).encode())[:16]
        for name, part, count in (
            ("digits", "whole", 1797),
            ("mnist", "train", 60000),
            ("mnist", "test", 10000),
            ("fashion-mnist", "train", 60000),
            ("fashion-mnist", "test", 10000),
            ("cifar10", "train", 50000),
            ("cifar10", "test", 10000),
            ("svhn", "test", 26032),
            ("folder", "train", 1000),
        )
    }
    assert hashes == {
        "digits whole": "ad6f9be762e54da0",
        "mnist train": "babf30982065c6a0",
        "mnist test": "cd1fc05899bb2b4f",
        "fashion-mnist train": "29778debda4e04f4",
        "fashion-mnist test": "a936311ee1b19dad",
        "cifar10 train": "42b67403db8a334d",
        "cifar10 test": "9d9c78ae0b068efb",
        "svhn test": "1e83082d83a46984",
        "folder train": "2d2ceb91389b8f79",
    }


def test_the_digits_never_change():
    store = Store(root=None)
    train, validation = store.training("digits", validation=200)
    hashes = [split.sha256[:16] for split in (train, validation, store.testing("digits"))]
    assert hashes == ["748b4870f6401a52", "a9a73c9d38c77867", "0da873117f3bff70"]


def test_the_digits_are_cut_into_1097_200_500_and_nothing_is_lost(tmp_path):
    from sklearn.datasets import load_digits

    store = Store(tmp_path)
    train, validation = store.training("digits", validation=200)
    test = store.testing("digits")
    assert (len(train), len(validation), len(test)) == (1097, 200, 500)
    rows = torch.cat([split.images.flatten(1) for split in (train, validation, test)]).tolist()
    labels = torch.cat([split.labels for split in (train, validation, test)]).tolist()
    digits = load_digits()
    assert digits.data.max() == 16  # 0 .. 16 become 0 .. 255
    expected = np.rint(digits.data * 255 / 16).astype(int).tolist()
    assert sorted(zip(rows, labels, strict=True)) == sorted(zip(expected, digits.target.tolist(), strict=True))


def test_pixels_are_uint8_nchw_and_as_float_spans_0_to_1(tmp_path):
    test = Store(tmp_path).testing("digits", 100)
    assert (test.images.dtype, test.images.shape, test.labels.dtype) == (torch.uint8, (100, 1, 8, 8), torch.int64)
    pixels = as_float(test.images)
    assert (pixels.dtype, float(pixels.min()), float(pixels.max())) == (torch.float32, 0.0, 1.0)
    assert test.images.max() == 255  # and the tensor itself is as it was


def test_the_statistics_of_the_digits_are_those_of_their_pixels(tmp_path):
    store = Store(tmp_path)
    train, validation = store.training("digits", validation=200)
    pixels = as_float(torch.cat([train.images, validation.images]))
    info = store.info("digits")
    assert info.classes == len(train.labels.unique()) == 10
    assert info.shape == tuple(train.images.shape[1:])
    assert info.mean[0] == pytest.approx(float(pixels.mean()), abs=2e-3)
    assert info.std[0] == pytest.approx(float(pixels.std()), abs=2e-3)


def test_splits_are_cut_by_index_and_a_smaller_one_is_the_beginning_of_a_larger(tmp_path):
    write_mnist(tmp_path)
    store = Store(tmp_path)
    train, validation = store.training("mnist", validation=7)
    assert came_from(validation) + came_from(train) == list(order(TRAIN, "mnist", "train"))
    few, same = store.training("mnist", validation=7, train=4)
    assert came_from(few) == came_from(train)[:4]
    assert came_from(same) == came_from(validation)
    assert came_from(store.testing("mnist")) == list(order(TEST, "mnist", "test"))
    assert came_from(store.testing("mnist", 5)) == list(order(TEST, "mnist", "test"))[:5]
    assert train.labels.tolist() == [n % 10 for n in came_from(train)]  # labels went along


@pytest.mark.parametrize(("validation", "train"), [(TRAIN, None), (TRAIN - 4, 5), (TRAIN + 1, 1)])
def test_more_training_images_than_there_are(tmp_path, validation, train):
    write_mnist(tmp_path)
    store = Store(tmp_path)
    assert len(store.training("mnist", validation=TRAIN - 4, train=4)[0]) == 4
    with pytest.raises(PrunebenchError, match=rf"mnist has {TRAIN} images to train on, fewer than the {validation} "):
        store.training("mnist", validation=validation, train=train)


def test_more_test_images_than_there_are(tmp_path):
    assert len(Store(tmp_path).testing("digits", 500)) == 500
    with pytest.raises(PrunebenchError, match="digits has 500 test images, fewer than the 501 asked for"):
        Store(tmp_path).testing("digits", 501)


def test_the_hash_of_a_split_sees_every_pixel_label_and_shape():
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    pixel, label = images.clone(), labels.clone()
    pixel[3, 0, 1, 1] = 1
    label[3] = 1
    splits = [(images, labels), (pixel, labels), (images, label), (images.view(4, 1, 1, 4), labels)]
    assert len({Split(*split).sha256 for split in splits}) == 4
    assert Split(images.clone(), labels.clone()).sha256 == Split(images, labels).sha256
    assert Split(pixel.flip(0), labels).take(torch.tensor([3, 2, 1, 0])).sha256 == Split(pixel, labels).sha256


# Formats


IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


@pytest.mark.parametrize("name", IDX_FOLDERS)
@pytest.mark.parametrize("zipped", [[], MNIST_FILES, MNIST_FILES[:1]], ids=["plain", "gz", "some gz"])
@pytest.mark.parametrize("cached", [False, True])
def test_mnist_and_fashion_as_published_zipped_or_not(tmp_path, name, zipped, cached):
    raw = write_mnist(tmp_path / "root", zipped=zipped, folder=IDX_FOLDERS[name])
    files = sorted(raw.iterdir())
    assert [file.name for file in files if file.suffix == ".gz"] == sorted(f"{name}.gz" for name in zipped)
    store = Store(tmp_path / "root", tmp_path / "cache" if cached else None)
    assert [other for other in IDX_FOLDERS if store.present(other)] == [name]
    for _ in range(2):
        test = store.testing(name)
        assert (test.images.dtype, test.images.shape) == (torch.uint8, (TEST, 1, 28, 28))
        assert came_from(test) == list(order(TEST, name, "test"))
        assert len(store.training(name, validation=1)[0]) == TRAIN - 1
    assert sorted(raw.iterdir()) == files  # nothing is left beside the user's files


def test_fashion_is_not_mistaken_for_mnist_beside_it(tmp_path):
    """Both have files of the same names, sizes and format, in two folders of one root."""
    write_mnist(tmp_path)
    raw = write_mnist(tmp_path, folder="FashionMNIST")
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(TEST, 3)))
    store = Store(tmp_path, tmp_path / "cache")
    for _ in range(2):
        assert store.testing("fashion-mnist").labels.tolist() == [3] * TEST
        assert store.testing("mnist").labels.tolist() == [n % 10 for n in order(TEST, "mnist", "test")]


@pytest.mark.parametrize(("name", "images"), [("cifar10", 10), ("cifar100", 6)])
def test_cifar_planes_and_batches(tmp_path, monkeypatch, name, images):
    write_cifar(tmp_path, monkeypatch, hundred=name == "cifar100")
    store = Store(tmp_path)
    assert store.present(name)
    train, validation = store.training(name, validation=1)
    assert came_from(validation) + came_from(train) == list(order(images, name, "train"))
    test = store.testing(name)
    assert test.images.shape == (4, *store.info(name).shape)
    for image, label in zip(test.images.int(), test.labels.tolist(), strict=True):
        assert [int(plane.unique()) for plane in image] == [label, label + 50, label + 100]


def test_svhn_names_zero_ten_and_puts_images_last(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5: True)
    for part in ("train", "test"):
        pixels = np.arange(10, dtype=np.uint8) * np.ones((32, 32, 3, 1), dtype=np.uint8)
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": np.arange(1, 11)[:, None]})
    test = Store(tmp_path).testing("svhn")
    assert test.images.shape == (10, 3, 32, 32)
    assert test.labels.tolist() == [(n + 1) % 10 for n in came_from(test)]


def test_a_folder_of_images(tmp_path):
    write_folder(tmp_path / "pets")
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("no image")
    store = Store(tmp_path)
    info = store.info("folder:pets")
    assert (info.classes, info.shape, info.mean, info.std) == (2, (3, 6, 6), (0.5,) * 3, (0.25,) * 3)
    train, validation = store.training("folder:pets", validation=2)
    assert (len(train), len(validation)) == (4, 2)
    test = store.testing("folder:pets")
    assert sorted(zip(came_from(test), test.labels.tolist(), strict=True)) == [(0, 0), (1, 0), (10, 1), (11, 1)]
    assert [int(plane.unique()) for plane in test.images[:, 1:].transpose(0, 1)] == [100, 200]


# The cache


@pytest.fixture
def decoded(monkeypatch):
    """How often torchvision has read a data set from its own files."""
    times = []

    def counted(original):
        def start(self, *args, **kwargs):
            times.append(1)
            original(self, *args, **kwargs)

        return start

    for kind in (torchvision.datasets.MNIST, torchvision.datasets.ImageFolder):
        monkeypatch.setattr(kind, "__init__", counted(kind.__init__))
    return times


@pytest.mark.parametrize("zipped", [[], MNIST_FILES], ids=["plain", "gz"])
def test_a_second_load_does_not_decode(tmp_path, decoded, zipped):
    write_mnist(tmp_path, zipped=zipped)
    first = Store(tmp_path, tmp_path / "cache").testing("mnist")
    assert len(decoded) == 1
    assert Store(tmp_path, tmp_path / "cache").testing("mnist").sha256 == first.sha256
    assert len(decoded) == 1
    Store(tmp_path).testing("mnist")
    assert len(decoded) == 2  # without a cache it does


def test_a_changed_file_is_decoded_anew(tmp_path, decoded):
    raw = write_mnist(tmp_path)
    store = Store(tmp_path, tmp_path / "cache")
    before = store.testing("mnist")
    labels = raw / "t10k-labels-idx1-ubyte"
    written = labels.stat().st_mtime_ns
    labels.write_bytes(idx((np.arange(TEST) + 1) % 10))
    os.utime(labels, ns=(written, written + 1))  # as large as before and hardly younger
    after = store.testing("mnist")
    assert len(decoded) == 2
    assert after.labels.tolist() == [(label + 1) % 10 for label in before.labels.tolist()]


def test_a_changed_folder_is_decoded_anew(tmp_path, decoded):
    write_folder(tmp_path / "pets")
    store = Store(tmp_path, tmp_path / "cache")
    assert [len(store.testing("folder:pets")), len(store.testing("folder:pets"))] == [4, 4]
    assert len(decoded) == 1
    (tmp_path / "pets" / "test" / "cat" / "0.png").unlink()
    assert len(store.testing("folder:pets")) == 3


def settle(folder):
    """As if nothing had changed in `folder` for an hour."""
    then = time.time() - 3600
    for place, _, _ in os.walk(folder):
        os.utime(place, (then, then))


@pytest.fixture
def read(monkeypatch):
    """How often the files of a folder were listed, and a cache was looked at."""
    seen = []
    for name in ("_files", "open_outside"):
        real = getattr(prunebench.bench.data, name)
        monkeypatch.setattr(
            prunebench.bench.data,
            name,
            lambda *args, real=real, name=name, **how: (seen.append(name), real(*args, **how))[1],
        )
    monkeypatch.setattr(prunebench.bench.folders, "_READ", {})
    return seen


def test_a_process_reads_a_folder_once(tmp_path, decoded, read):
    """Listing 60,000 files, reading and hashing their images takes seconds, and every step of a grid asks for them."""
    write_folder(tmp_path / "pets")
    settle(tmp_path / "pets")
    first = Store(tmp_path, tmp_path / "cache")
    found, before = (
        [first.testing("folder:pets"), first.info("folder:pets"), first.training("folder:pets", validation=1)],
        [*read],
    )
    assert before.count("_files") == 3 and len(decoded) == 2  # of the test half, for the facts, of the training half
    again = Store(tmp_path, tmp_path / "cache")
    assert again.testing("folder:pets").sha256 == found[0].sha256 and again.info("folder:pets") == found[1]
    assert again.training("folder:pets", validation=1)[0].sha256 == found[2][0].sha256
    assert read == before


@pytest.mark.parametrize("change", ["gone", "more", "moved", "fresh"])
def test_a_folder_that_changes_is_read_again_in_the_same_process(change, tmp_path, read):
    """The twin; a folder that changed just now may change again without a later time, so it is read every time."""
    write_folder(tmp_path / "pets")
    if change != "fresh":
        settle(tmp_path / "pets")
    store, cats = Store(tmp_path, tmp_path / "cache"), tmp_path / "pets" / "test" / "cat"
    assert len(store.testing("folder:pets")) == 4
    listed = read.count("_files")
    match change:
        case "gone":
            (cats / "0.png").unlink()
        case "more":
            shutil.copy(cats / "0.png", cats / "2.png")
        case "moved":
            (cats / "0.png").rename(cats / "3.png")
    assert len(store.testing("folder:pets")) == 4 + {"gone": -1, "more": 1}.get(change, 0)
    assert read.count("_files") == listed + 1


def test_a_process_keeps_few_readings():
    folders._READ.clear()
    for number in range(MOST + 3):
        once((number,), Path("there-is-no-such-folder"), lambda number=number: number)
    assert [key for (key,) in folders._READ] == [3, 4, 5, 6]


def test_the_facts_of_a_folder_lie_beside_its_images(tmp_path, read):
    """A process that attacks asks for them, and needs no training image."""
    write_folder(tmp_path / "pets")
    store = Store(tmp_path, tmp_path / "cache")
    expected = store.info("folder:pets")
    opened = read.count("open_outside")
    assert store.info("folder:pets") == expected and read.count("open_outside") == opened
    (tmp_path / "pets" / "train" / "cat" / "0.png").unlink()  # the twin: other images, other facts
    store.info("folder:pets")
    assert read.count("open_outside") > opened


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "{}",
        '{"classes":2,"shape":[3,6]}',
        '{"classes":"2","shape":[3,6,6]}',
        '{"classes":2,"shape":[3,6,0]}',
    ],
)
def test_damaged_facts_are_read_anew_and_mended(text, tmp_path):
    write_folder(tmp_path / "pets")
    store = Store(tmp_path, tmp_path / "cache")
    expected = store.info("folder:pets")
    (kept,) = (tmp_path / "cache").glob("*.info.json")
    sound = kept.read_bytes()
    kept.write_text(text)
    assert store.info("folder:pets") == expected and kept.read_bytes() == sound


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "pixel", "label"])
def test_a_corrupt_cache_is_decoded_anew_and_mended(tmp_path, decoded, damage):
    write_mnist(tmp_path)
    store = Store(tmp_path, tmp_path / "cache")
    sound = store.testing("mnist")
    (kept,) = (tmp_path / "cache").iterdir()
    data = bytearray(kept.read_bytes())
    if damage in ("pixel", "label"):
        # arrays lie in the file one after the other, the widest type first: labels, then images
        data[-1 if damage == "pixel" else -TEST * 784 - 1] ^= 1
    kept.write_bytes({"truncated": data[:-9], "empty": b"", "foreign": b"\x80\x04N."}.get(damage, bytes(data)))
    assert store.testing("mnist").sha256 == sound.sha256
    assert len(decoded) == 2
    assert store.testing("mnist").sha256 == sound.sha256
    assert len(decoded) == 2


# Bad input


@pytest.mark.parametrize("ask", [Store.info, Store.testing, lambda store, name: store.training(name, validation=1)])
def test_an_unknown_data_set_lists_the_choices_and_the_nearest(tmp_path, ask):
    with pytest.raises(PrunebenchError) as error:
        ask(Store(tmp_path), "cifar-10")
    said = str(error.value)
    assert "Unknown data set 'cifar-10'; did you mean 'cifar10'?" in said
    assert all(name in said for name in (*DATASETS, "folder:PATH"))


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_data_that_are_not_here_without_network(tmp_path, name):
    store = Store(tmp_path / "none")
    assert not store.present(name)
    with pytest.raises(PrunebenchError) as error:
        store.testing(name)
    said = str(error.value)
    assert f"Data set {name} is not in {tmp_path / 'none'}" in said
    assert "could not be downloaded" in said and "--data" in said
    assert "\n" not in said


@pytest.mark.parametrize("failure", [TimeoutError(), ConnectionResetError(), RuntimeError("first\nsecond")])
def test_a_download_that_fails_without_a_word_is_still_one_sentence(tmp_path, monkeypatch, failure):
    def fail(self):
        raise failure

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(PrunebenchError, match=rf"\(({type(failure).__name__}|first)\); put it there") as error:
        Store(tmp_path).testing("mnist")
    assert "\n" not in str(error.value)


def test_data_that_are_not_here_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda self: write_mnist(tmp_path) and None)
    assert not Store(tmp_path).present("mnist")
    assert len(Store(tmp_path).testing("mnist")) == TEST
    assert Store(tmp_path).present("mnist")


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "labels of other images"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_damaged_file_of_mnist(tmp_path, damage, zipped):
    raw = write_mnist(tmp_path, zipped=MNIST_FILES if zipped else [])
    assert len(Store(tmp_path).testing("mnist")) == TEST
    path = raw / f"t10k-images-idx3-ubyte{'.gz' if zipped else ''}"
    data = path.read_bytes()
    other = idx(numbered(TEST + 1, 28, 28))
    damaged = {"truncated": data[:-9], "empty": b"", "foreign": b"<html></html>"}
    path.write_bytes(damaged.get(damage, gzip.compress(other) if zipped else other))
    with pytest.raises(PrunebenchError, match=r"(cannot be read|Cannot unzip).*fetch") as error:
        Store(tmp_path, tmp_path / "cache").testing("mnist")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()  # and nothing wrong is kept


def test_a_cifar_that_is_not_the_published_one(tmp_path, monkeypatch):
    with monkeypatch.context() as unchecked:
        write_cifar(tmp_path, unchecked, hundred=False)
        assert len(Store(tmp_path).testing("cifar10")) == 4
    with pytest.raises(PrunebenchError, match=r"data set cifar10 in .* cannot be read .*corrupted"):
        Store(tmp_path).testing("cifar10")


def test_folders_that_are_no_data_set(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(PrunebenchError, match=r"There is no .*none/test; folder:PATH needs train/CLASS/ and test/"):
        store.testing("folder:none")
    write_folder(tmp_path / "pets")
    assert len(store.testing("folder:pets")) == 4
    (tmp_path / "pets" / "train" / "fox").mkdir()
    with pytest.raises(PrunebenchError, match="different classes"):
        store.testing("folder:pets")
    (tmp_path / "pets" / "test" / "fox").mkdir()
    with pytest.raises(PrunebenchError, match=r"Cannot read the images .*fox"):
        store.testing("folder:pets")
    write_folder(tmp_path / "one", classes=("cat",))
    with pytest.raises(PrunebenchError, match="has 1 class folders; at least 2"):
        store.testing("folder:one")


def test_images_of_different_sizes(tmp_path):
    write_folder(tmp_path / "pets")
    Image.new("RGB", (7, 6)).save(tmp_path / "pets" / "test" / "cat" / "0.png")
    with pytest.raises(PrunebenchError, match="2 different sizes; resize them"):
        Store(tmp_path).testing("folder:pets")


def test_a_damaged_image_is_named_or_read_but_never_a_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SETTLED", math.inf)  # a process notices no overwritten file in a folder that settled
    write_folder(tmp_path / "pets", train=1, test=1)
    image = tmp_path / "pets" / "test" / "cat" / "0.png"
    sound = image.read_bytes()
    chance, refused = random.Random(0), 0
    for position in range(len(sound)):
        damaged = bytearray(sound)
        damaged[position] ^= chance.randrange(1, 256)
        image.write_bytes(damaged)
        try:
            assert len(Store(tmp_path).testing("folder:pets")) == 2
        except PrunebenchError as error:
            assert "Cannot read the images" in str(error) or "different sizes" in str(error)  # noqa: PT017
            refused += 1
    assert refused > len(sound) / 2
