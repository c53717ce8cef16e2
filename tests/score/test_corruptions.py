"""How corruptions are put on images and counted, with corruptions of our own; the package's: tests/extras."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from prunebench.bench.data import Split
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.score import corruptions
from prunebench.bench.score.corruptions import NOISES, corrupted, known, measure_corruptions
from prunebench.bench.score.referee import Referee
from tests.support.nets import Bright, changed


def greys(*levels, side=8):
    """Square images of these grey levels of 255."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, side, side).contiguous()


def identity(image, severity):
    """The image itself."""
    return image


def brighter(image, severity):
    """Twenty levels brighter for each step of severity."""
    return np.asarray(image) + 20.4 * severity


def red(image, severity):
    """Red."""
    return np.broadcast_to(np.array([255.0, 0.0, 0.0]), np.asarray(image).shape)


def drawn(image, severity):
    """Levels drawn from numpy's global state."""
    return np.random.randint(0, 256, np.asarray(image).shape)  # noqa: NPY002


def test_a_flat_image_gets_brighter_at_severity_3():
    assert corrupted(greys(100), "any", brighter, 0).unique().tolist() == [161]  # 100 + 61.2, rounded down


def test_a_grey_image_is_read_as_luma():
    assert corrupted(greys(7), "any", red, 0).unique().tolist() == [76]  # 0.299 * 255
    assert corrupted(greys(7), "shot_noise", red, 0).unique().tolist() == [255]  # a noise: one channel
    colours = corrupted(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "any", red, 0)
    assert colours.amax((0, 2, 3)).tolist() == colours.amin((0, 2, 3)).tolist() == [255, 0, 0]


@pytest.mark.parametrize(("side", "given"), [(8, 32), (28, 56), (31, 62), (32, 32), (40, 40)])
def test_small_images_are_enlarged_by_a_whole_factor(side, given):
    seen = []

    def watch(image, severity):
        seen.append(np.asarray(image))
        return image

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, side, side), dtype=np.uint8))
    assert torch.equal(corrupted(images, "any", watch, 0), images)  # there and back
    assert seen[0].shape == (given, given, 3)
    factor = given // side
    assert np.array_equal(seen[0][:factor, :factor, 1], np.full((factor, factor), images[0, 0, 0, 0]))
    corrupted(images, "gaussian_noise", watch, 0)
    assert seen[-1].shape == (side, side, 3)  # averaging would remove a noise


def test_oblong_images_keep_their_shape():
    images = torch.arange(24, dtype=torch.uint8).view(1, 1, 4, 6)
    assert torch.equal(corrupted(images, "any", identity, 0), images)


def test_squares_are_averaged():
    def striped(image, severity):
        made = np.zeros(np.asarray(image).shape)
        made[::2] = 100
        return made

    assert corrupted(greys(9), "any", striped, 0).unique().tolist() == [50]
    assert corrupted(greys(9, side=32), "any", striped, 0).unique().tolist() == [0, 100]


def test_draws_depend_on_seed_name_and_index_alone():
    images = greys(0, 0, 0, 0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    whole = corrupted(images, "any", drawn, 1)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.rand(3)  # noqa: NPY002
    parts = [corrupted(images[:1], "any", drawn, 1), corrupted(images[1:], "any", drawn, 1, first=1)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(corrupted(images[1:], "any", drawn, 1), whole[1:])  # the twin: from another index
    assert not torch.equal(corrupted(images, "other", drawn, 1), whole)
    assert not torch.equal(corrupted(images, "any", drawn, 2), whole)
    assert len({image.numpy().tobytes() for image in whole}) == 4


def test_a_corruption_with_a_seed_of_its_own_gets_it():
    def seeded(image, severity, seed=None):
        return np.random.default_rng(seed).integers(0, 256, np.asarray(image).shape)

    images = greys(0, 0)
    once = corrupted(images, "any", seeded, 1)
    assert torch.equal(once, corrupted(images, "any", seeded, 1)) and not torch.equal(once[0], once[1])


def test_a_pixel_that_is_no_number_stays():
    def half(image, severity):
        made = np.asarray(image) + 1.0
        made[:16] = np.nan
        return made

    assert corrupted(greys(9), "any", half, 0)[0, 0, :, 0].tolist() == [9] * 4 + [10] * 4


TEST = Split(greys(40, 120, 130, 190, 90), torch.tensor([0, 0, 1, 1, 1]))  # the last is wrong when clean


def measured(monkeypatch, made, net=None, shard=2, test=TEST):
    """The facts and the bits under the corruptions `made`."""
    monkeypatch.setattr(corruptions, "known", lambda: made)
    referee = Referee(net or Bright(), changed(shard=shard), 2, torch.device("cpu"))
    clean = referee.answers(test.images / 255) == test.labels
    before = referee.passes
    facts, arrays = measure_corruptions(referee, test, clean, clean, 3)
    assert referee.passes > before or not made
    assert list(arrays) == list(facts.kinds(len(test)))
    assert facts.recounted(arrays) == {f"corruptions.right.{name}": (n, n) for name, n in facts.right.items()}
    return facts, {name: bits.tolist() for name, bits in arrays.items()}


def test_what_a_net_gets_right_is_known_on_paper(monkeypatch):
    """Sixty-one levels brighter, 120 becomes bright and 90 does, too; the other three keep their class."""
    facts, bits = measured(monkeypatch, {"same": identity, "light": brighter})
    assert bits == {
        "corruption/same": [True, True, True, True, False],
        "corruption/light": [True, False, True, True, True],
    }
    assert facts.severity == 3 and facts.right == {"same": 4, "light": 4} and facts.left_out == ()


@pytest.mark.parametrize("shard", [1, 3, 8])
def test_any_split_gives_the_same(monkeypatch, shard):
    made = {"drawn": drawn, "same": identity}
    assert measured(monkeypatch, made, shard=shard) == measured(monkeypatch, made)


def test_a_constant_net_gets_the_share_of_its_class(monkeypatch):
    class Constant(nn.Module):
        def forward(self, images):
            return images.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([0.0, 1.0])

    facts, _ = measured(monkeypatch, {"drawn": drawn, "light": brighter}, Constant())
    assert set(facts.right.values()) == {3}


def test_a_corruption_of_colours_is_left_out_for_grey_images(monkeypatch):
    made = {"saturate": identity, "same": identity}
    facts, _ = measured(monkeypatch, made)
    assert list(facts.right) == ["same"] and facts.left_out == ("saturate",)
    colours = Split(TEST.images.expand(-1, 3, -1, -1).contiguous(), TEST.labels)
    facts, _ = measured(monkeypatch, made, test=colours)  # the twin
    assert list(facts.right) == ["saturate", "same"] and facts.left_out == ()


def test_other_channels_are_refused(monkeypatch):
    with pytest.raises(PrunebenchError, match="have 2 channels"):
        measured(monkeypatch, {}, test=Split(TEST.images.expand(-1, 2, -1, -1), TEST.labels))


@pytest.mark.skipif(find_spec("imagecorruptions") is not None, reason="the package is installed here")
def test_without_the_package_the_way_out_is_said():
    with pytest.raises(PrunebenchError, match=r"pip install '\.\[corruptions\]'"):
        known()


def test_the_noises_are_four():
    assert len(NOISES) == 4 and all(name.endswith("_noise") for name in NOISES)
