"""The nineteen corruptions of `imagecorruptions-imaug`, in an environment of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("imagecorruptions", reason="needs the extra 'corruptions': make test-extras")

from prunebench.bench.data import as_float
from prunebench.bench.score.corruptions import COLOURFUL, NOISES, corrupted, known, measure_corruptions
from prunebench.bench.score.referee import Referee
from tests.support.nets import STORE, TINY, Bright

NAMES = list(known())
DIGITS = STORE.testing("digits", 24)
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "folder": (3, 40, 64)}


def flat(level, *, count=1, channels=1, side=8):
    """Images of one grey level."""
    return torch.full((count, channels, side, side), level, dtype=torch.uint8)


def noise(shape, count=3):
    """Images of random pixels."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8))


def test_there_are_nineteen():
    assert len(NAMES) == 19 and set(NAMES) >= NOISES | COLOURFUL


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_each_moves_images_of_every_kind_the_same_way_twice(name, shape):
    images, corrupt = noise(shape), known()[name]
    once = corrupted(images, name, corrupt, 1)
    assert once.shape == images.shape and once.dtype == torch.uint8
    np.random.rand(5)  # noqa: NPY002 - what others draw does not matter
    assert torch.equal(torch.cat([corrupted(images[i : i + 1], name, corrupt, 1, first=i) for i in range(3)]), once)
    moved = (once != images).flatten(1).any(1)
    assert moved.all() if shape[0] == 3 or name not in COLOURFUL else not moved.any()


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter"]
)
def test_another_seed_is_another_image(name):
    """The twin: what draws at random would show it."""
    images = noise((1, 8, 8))
    assert not torch.equal(corrupted(images, name, known()[name], 1), corrupted(images, name, known()[name], 2))


def test_brightness_adds_three_tenths():
    """At severity 3 (Hendrycks & Dietterich's code: 0.1 a step) to the value of HSV, which for grey is its level."""
    found = corrupted(flat(100), "brightness", known()["brightness"], 0)
    assert found.unique().tolist() == [176]  # 100 + 76.5, rounded down
    assert corrupted(flat(200), "brightness", known()["brightness"], 0).unique().tolist() == [255]


def test_contrast_keeps_a_fifth_of_the_way_to_the_mean():
    """Half of the pixels 50 and half 150: their mean 100, and 100 -+ 10 remain, rounded down to 8 bits."""
    images = flat(50)
    images[..., 4:] = 150
    found = corrupted(images, "contrast", known()["contrast"], 0)
    assert (found[..., :4].float() - 90).abs().max() <= 1 and (found[..., 4:].float() - 110).abs().max() <= 1


def test_noise_has_its_full_strength_on_small_grey_images():
    """A standard deviation of 0.18 at severity 3; clipping at 2.8 of them takes little, and a mean would leave less."""
    found = as_float(corrupted(flat(128, count=100), "gaussian_noise", known()["gaussian_noise"], 0))
    assert float(found.std()) == pytest.approx(0.18, rel=0.04)


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "zoom_blur", "pixelate"])
def test_what_moves_pixels_about_leaves_a_flat_image(name):
    found = corrupted(flat(100), name, known()[name], 0)
    assert (found.float() - 100).abs().max() <= 1  # rounding


def test_jpeg_rounds_the_mean_of_a_block():
    """At quality 15 libjpeg's step is 53 for 8 * (mean - 128): -224 becomes -212, and 100 becomes 101.5."""
    found = corrupted(flat(100), "jpeg_compression", known()["jpeg_compression"], 0)
    assert found.unique().tolist() in ([101], [102])


def test_a_record_of_all():
    """Bright images of class 1 stay bright when they get brighter, dark images of class 0 do not all stay dark."""
    referee = Referee(Bright(), TINY, 8, torch.device("cpu"))
    labels = (as_float(DIGITS.images).flatten(1).mean(1) > 0.5).long()
    test = type(DIGITS)(DIGITS.images, labels)
    clean = referee.answers(as_float(test.images)) == labels
    assert clean.all(), "premise"
    facts, arrays = measure_corruptions(referee, test, clean, clean, 0)
    assert facts.left_out == ("saturate",) and list(facts.right) == [name for name in NAMES if name != "saturate"]
    assert facts.right["brightness"] < facts.right["jpeg_compression"] <= len(test)
    again, _ = measure_corruptions(referee, test, clean, clean, 0)
    assert again == facts
    assert arrays["corruption/snow"].sum() == facts.right["snow"]
