"""Published numbers: the file is whole, rows fit their protocol, and what differs is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.protocol import PROTOCOLS, Threat
from prunebench.leaderboard.published import FILE, load, rows_for
from prunebench.leaderboard.render.markdown import markdown
from prunebench.leaderboard.site import folder
from prunebench.leaderboard.table import rank
from prunebench.leaderboard.table import read as read_records
from tests.support.records import make, save

CIFAR = PROTOCOLS["cifar10-linf"]
ROW = """
[sources.a]
title = "A"
url = "https://example.org/a"
[[rows]]
name = "x"
source = "a"
arch = "resnet18"
data = "cifar10"
norm = "Linf"
eps = "8/255"
sparsity = 0.9
clean = 80.0
robust = 45.0
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "published.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_the_file_holds_what_its_sources_say():
    """HYDRA's ResNet-18 on Piras' board, and PGD training for 110 epochs."""
    rows = {(each.net.name, each.net.sparsity): each for each in rows_for("cifar10-linf")}
    hydra = [rows["HYDRA", sparsity].net for sparsity in (0.9, 0.95, 0.99)]
    assert [(net.clean, net.robust) for net in hydra] == [(76.74, 43.34), (76.16, 42.45), (72.21, 38.80)]
    assert rows["PGD-10, 110 epochs, last", 0.0].net.robust == 48.72
    assert len(rows) == 6 + 10 * 3 and len(rows_for("cifar10-linf-vgg16")) == 10 * 3


def test_eps_is_kept_to_the_letter_and_the_difference_told():
    rows = {(each.net.name, each.net.sparsity): each for each in rows_for(CIFAR)}
    assert rows["HYDRA", 0.9].net.eps == "0.031" and rows["HYDRA", 0.9].differs == ("eps 0.031, not 8/255",)
    assert rows["PGD-10, 110 epochs, last", 0.0].differs == ()
    assert rows["FGSM-RS", 0.0].differs == ("PreAct ResNet-18",)
    assert all(each.place_shown == "published" for each in rows.values())


def test_rows_of_another_threat_data_or_net_are_left_out():
    assert rows_for("digits-linf") == rows_for("no-such-protocol") == ()
    half = CIFAR.model_copy(update={"threat": Threat(norm="Linf", eps="4/255")})
    other_norm = CIFAR.model_copy(update={"threat": Threat(norm="L2", eps="8/255")})
    jpeg = CIFAR.model_copy(update={"data": "folder:cifar10-jpeg"})
    assert rows_for(half) == rows_for(other_norm) == rows_for(jpeg) == ()
    decimal = CIFAR.model_copy(update={"threat": Threat(norm="Linf", eps="0.031")})
    differs = {each.net.eps: each.differs for each in rows_for(decimal) if not each.net.note}
    assert differs == {"8/255": ("eps 8/255, not 0.031",), "0.031": ()}


def test_rows_are_ordered_by_sparsity_then_robustness():
    order = [(each.net.sparsity, -each.net.robust) for each in rows_for(CIFAR)]
    assert order == sorted(order)


def test_a_whole_file_is_read(tmp_path):
    """The premise of the next test: its row is sound as it stands."""
    assert [row.name for row in read(tmp_path, ROW).rows] == ["x"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("clean = 80.0", 'clean = "80.0"', "clean"),
        ("clean = 80.0", "clean = nan", "clean"),
        ("clean = 80.0", "clean = 44.9", "is above clean"),
        ("robust = 45.0", "robust = 45.0\nplace = 1", "unknown key"),
        ("robust = 45.0\n", "", "missing"),
        ("robust = 45.0", "robust = 45.0\nrobust = 46.0", "not valid TOML"),
        ('eps = "8/255"', "eps = 0.031", "eps"),
        ('eps = "8/255"', 'eps = ".031"', "is not a number"),
        ('source = "a"', 'source = "b"', "not among the sources"),
        ("https://example.org/a", "javascript:alert(1)", "url"),
        ("https://example.org/a", "https://example.org/<a>", "url"),
        ("[[rows]]", '[sources.b]\ntitle = "B"\nurl = "https://example.org"\n[[rows]]', "no row names the source 'b'"),
    ],
)
def test_a_broken_file_is_refused(old, new, said, tmp_path):
    assert ROW.count(old) == 1
    with pytest.raises(PrunebenchError, match=said):
        read(tmp_path, ROW.replace(old, new))


def test_a_row_that_stands_twice_is_refused(tmp_path):
    row = ROW[ROW.index("[[rows]]") :]
    with pytest.raises(PrunebenchError, match="appears twice"):
        read(tmp_path, ROW + row)
    assert len(read(tmp_path, ROW + row.replace("0.9", "0.95")).rows) == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PrunebenchError, match=r"Cannot read .*none\.toml"):
        load(tmp_path / "none.toml")
    assert FILE.exists()


def board_of(name):
    rules = PROTOCOLS[name]
    return make(protocol={"name": name, "version": rules.version, "sha256": rules.sha256})


def test_they_stand_below_the_board_of_their_task_and_of_no_other(tmp_path):
    save(tmp_path / "records", board_of("cifar10-linf"))
    page = markdown(rank(read_records(tmp_path / "records")))
    below = page.partition("neither measured here nor ranked")[2]
    assert below.count("&#124;") == 0 and "eps 0.031, not 8/255" in below and "45.69" in below
    assert below.count("published") == len(rows_for("cifar10-linf")) > 0
    folder.write(tmp_path / "records", tmp_path / "site")
    assert "eps 0.031, not 8/255" in (tmp_path / "site" / "boards" / "cifar10-linf.html").read_text()

    save(tmp_path / "digits", board_of("digits-linf"))
    assert "published" not in markdown(rank(read_records(tmp_path / "digits")))
    folder.write(tmp_path / "digits", tmp_path / "other")
    assert "Published by others" not in (tmp_path / "other" / "boards" / "digits-linf.html").read_text()
