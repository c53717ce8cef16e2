"""The nets beside records: masks and sizes of weights against values made by hand, and files that are not the net."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import save as packed

from prunebench.bench.beside import net_path
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.leaderboard.nets import mask_of, sizes
from prunebench.leaderboard.table import rank
from tests.support.records import make, save


def kept(folder, bits="11" + "0" * 18, *, name="fc.bitmask", stated=2, values=(1, 1), seed=0):
    """A record of a net with one layer of 20 weights, and that net beside it."""
    array = np.packbits(np.array([int(bit) for bit in bits], bool))
    data = packed({name: array, "fc.values": np.array(values, np.float32)})
    layers = [{"name": "fc", "shape": [10, 2], "nonzero": stated}]
    net = {"sha256": sha256_of(data), "prunable": 20, "nonzero": stated, "layers": layers}
    record = make(seed=seed, net=net)
    path = save(folder, record)
    write_bytes(net_path(path), data)
    return path, record


def test_masks_come_from_the_net_beside_the_record(tmp_path):
    path, record = kept(tmp_path)
    found = mask_of(path, record)
    assert (found.sizes, found.kept) == ((20,), (2,)) and found.bits[0].tolist() == [192, 0, 0]
    net_path(path).unlink()
    assert mask_of(path, record) is None


def test_a_net_that_contradicts_its_record_is_refused(tmp_path):
    path, record = kept(tmp_path / "a", "111" + "0" * 17)
    with pytest.raises(PrunebenchError, match=r"does not keep 2 weights in fc, as .* says"):
        mask_of(path, record)
    path, record = kept(tmp_path / "b", name="other")
    with pytest.raises(PrunebenchError, match="holds no masks of its layers"):
        mask_of(path, record)
    path, record = kept(tmp_path / "c")
    write_bytes(net_path(path), b"another")
    with pytest.raises(PrunebenchError, match="its sha256 differs; restore the net"):
        mask_of(path, record)


def of_row(folder, *pairs):
    records = {path.relative_to(folder): record for path, record in pairs}
    (row,) = rank(records).boards[0].rows
    return sizes(row, records, folder)


def test_sizes_are_relative_to_the_root_mean_square_of_the_layer(tmp_path):
    """3 and -4 have the root mean square sqrt(12.5); a hundred times larger, they have the same sizes."""
    small, large = 3 / math.sqrt(12.5), 4 / math.sqrt(12.5)
    wanted = [small + share * (large - small) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    found = of_row(tmp_path, kept(tmp_path, values=(3, -4)), kept(tmp_path, values=(400, 300), seed=1))
    assert found.quantiles == pytest.approx(wanted) and found.tiny == 0.0


def test_tiny_weights_are_counted_over_the_seeds(tmp_path):
    """.001 beside 1 is below a hundredth of sqrt(.5): half of one net and none of the other, a quarter."""
    found = of_row(tmp_path, kept(tmp_path, values=(0.001, 1)), kept(tmp_path, values=(0.1, 1), seed=1))
    assert found.tiny == 0.25


def test_sizes_need_the_nets_of_all_seeds(tmp_path):
    first, second = kept(tmp_path), kept(tmp_path, seed=1)
    net_path(second[0]).unlink()
    assert of_row(tmp_path, first, second) is None


@pytest.mark.parametrize("values", [(1, 1, 1), (1, math.inf), (1, math.nan)])
def test_values_that_contradict_the_record_are_refused(values, tmp_path):
    with pytest.raises(PrunebenchError, match=r"does not hold 2 weights of fc, as .* says; restore the net"):
        of_row(tmp_path, kept(tmp_path, values=values))
