"""Accuracy under the nineteen corruptions of Hendrycks & Dietterich 2019 (arXiv 1903.12261), made on the fly.

The package `imagecorruptions-imaug` makes them, with the strengths of ImageNet-C, on colour images of at least 32
pixels a side. Its results are rounded down to 8 bits. Four rules complete it:

- A grey image is given as three equal channels and its result read as luma (ITU-R 601-2). The noises draw for every
  channel, so one channel of theirs is taken instead: a mean would be a weaker noise.
- A smaller image is enlarged by the least whole factor, each pixel becoming a square, and the result averaged over
  these squares. The noises alone are made at the image's own size: averaging would remove them.
- `saturate` changes no grey image and is left out there.
- Where `spatter` puts no drop on an image, the package divides zero by zero; the image then stays as it is.

CIFAR-10-C has images made with other, mostly weaker strengths, so its figures are not comparable with these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunebench.bench.beyond import Corruptions
from prunebench.bench.data import Split, as_float
from prunebench.bench.errors import PrunebenchError, reason
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive

SEVERITY = 3  # of 5
LEAST = 32  # pixels a side, of images given to the package
NOISES = frozenset({"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"})
COLOURFUL = frozenset({"saturate"})  # what changes only images with colours

Corrupt = Callable[..., Any]  # of the package: a PIL image and a severity to an image or an array of its shape


def known() -> Mapping[str, Corrupt]:
    """The nineteen corruptions by name. Raises PrunebenchError when their package is not installed."""
    try:
        import imagecorruptions
    except ImportError as error:  # also when a library of the system is missing
        raise PrunebenchError(
            f"Corruptions need the extra corruptions ({reason(error)}): from a checkout, pip install '.[corruptions]'."
        ) from None
    found: Mapping[str, Corrupt] = imagecorruptions.corruption_dict
    return found


def corrupted(images: Tensor, name: str, corrupt: Corrupt, seed: int, first: int = 0) -> Tensor:
    """`images`, uint8 (n, c, h, w) with c 1 or 3, under the corruption `name`, which `corrupt` makes; same shape.

    Each image's draws depend only on `seed`, `name` and its index; `first`: the index of the first. The global random
    state is unchanged.
    """
    made = [_one(image, name, corrupt, derive(seed, name, first + index)) for index, image in enumerate(images.numpy())]
    return torch.from_numpy(np.stack(made)) if made else images.clone()


def _one(image: np.ndarray, name: str, corrupt: Corrupt, seed: int) -> np.ndarray:
    """One image, uint8 (c, h, w), corrupted with draws from `seed`."""
    channels, *sides = image.shape
    factor = 1 if name in NOISES else -(-LEAST // min(sides))
    large = np.broadcast_to(image, (3, *sides)).repeat(factor, 1).repeat(factor, 2).transpose(1, 2, 0)
    own = {"seed": seed} if "seed" in inspect.signature(corrupt).parameters else {}  # numpy's state is not enough
    with _seeded(seed), np.errstate(invalid="ignore"):
        found = np.asarray(corrupt(Image.fromarray(large), SEVERITY, **own))
    found = np.where(np.isfinite(found), found, large).astype(np.uint8)
    if channels == 1:
        found = found[..., :1] if name in NOISES else np.asarray(Image.fromarray(found).convert("L"))[..., None]
    height, width = sides
    squares = found.reshape(height, factor, width, factor, channels)
    return np.rint(squares.mean((1, 3))).astype(np.uint8).transpose(2, 0, 1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global random state, from which the package draws, and restore it afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def measure_corruptions(
    referee: Referee, test: Split, clean: Tensor, robust: Tensor, seed: int
) -> tuple[Corruptions, dict[str, np.ndarray]]:
    """The images of `test` classified correctly under each corruption, whether or not they are when clean.

    An image is right as `Referee.answers` decides, which raises Refused as it does for clean images. Raises
    PrunebenchError when the package is missing, or for images of neither one nor three channels.
    """
    channels = test.images.shape[1]
    if channels not in (1, 3):
        raise PrunebenchError(
            f"Corruptions are made for grey images and images of three colours, and these have {channels} channels."
        )
    table = known()
    left_out = tuple(name for name in table if channels == 1 and name in COLOURFUL)
    right = {}
    for name, corrupt in table.items():
        if name not in left_out:
            found = []
            for shard in referee.shards(len(test)):  # this bounds the memory for large images
                part = test.take(shard)
                images = corrupted(part.images, name, corrupt, seed, shard.start)
                found.append(referee.answers(as_float(images)) == part.labels)
            right[name] = torch.cat(found).numpy()
    facts = Corruptions(
        severity=SEVERITY, right={name: int(bits.sum()) for name, bits in right.items()}, left_out=left_out
    )
    return facts, {f"corruption/{name}": bits for name, bits in right.items()}
