"""The claim file: strict, and unable to name anything outside its folder; and how a claim is made of a record."""

from __future__ import annotations

import os
import shutil

import pytest
import tomli_w

from bench.claim import LARGEST, NAME, find, is_claim, load_claim, make, outcomes_of, rules_of, sound
from bench.errors import PrunebenchError, Refused
from bench.files import sha256_of, write_bytes
from bench.protocol import LARGEST_TOML, PROTOCOLS
from bench.record import outcomes_path, proposals_path
from tests import records
from tests.nets import TINY, toml

DIGITS = PROTOCOLS["digits-linf"]
VALUES = {
    "schema": 1, "n": 100, "robust": 50, "protocol": {"name": DIGITS.name, "sha256": DIGITS.sha256},
    "net": {"path": "net.safetensors", "sha256": sha256_of(b"a net")},
}  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """Write a claim with these values; the file that it names as its net is there."""

    def write(**changes):
        folder = tmp_path / "claim"
        folder.mkdir(exist_ok=True)
        (folder / "net.safetensors").write_bytes(b"a net")
        (folder / NAME).write_text(tomli_w.dumps(VALUES | changes))
        return folder / NAME

    return write


def test_a_sound_claim_is_read(place):
    path = place()
    claim = load_claim(path)
    assert (claim.n, claim.robust, claim.outcomes, claim.data) == (100, 50, None, None)
    assert rules_of(path, claim) == DIGITS and outcomes_of(path, claim) is None
    assert sound(path, claim.net, "a net") == path.parent / "net.safetensors"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"robust": 101}, "robust = 101 is more than n = 100"),
        ({"robust": "50"}, "robust = '50': input should be a valid integer"),
        ({"robust": 50.0}, "robust = 50.0"),
        ({"robust": float("inf")}, "robust = inf"),
        ({"robust": True}, "robust = True"),
        ({"robust": -1}, "robust = -1"),
        ({"n": 0}, "n = 0"),
        ({"n": 2**63}, "n = 9223372036854775808"),
        ({"schema": 2}, "schema = 2"),
        ({"clean": 80}, "unknown key 'clean'"),
        ({"net": VALUES["net"] | {"url": "x"}}, "unknown key 'net.url'"),
        ({"net": VALUES["net"] | {"sha256": "A" * 64}}, "net.sha256"),
        ({"net": "net.safetensors"}, "net"),
        ({"n": 10**5000}, "not valid TOML"),
    ],
)
def test_values_that_break_the_rules(place, changes, said):
    if changes.get("n") == 10**5000:
        path = place()
        path.write_text(path.read_text().replace("n = 100", f"n = 1{'0' * 5000}"))
    else:
        path = place(**changes)
    with pytest.raises(PrunebenchError) as error:
        load_claim(path)
    assert said in str(error.value)


def test_duplicate_keys_nonsense_and_floods_are_refused(place):
    path = place()
    sound_text = path.read_text()
    for text, said in (
        ("n = 100\n" + sound_text, "not valid TOML"),
        (sound_text.replace("robust", "roubst"), "unknown key 'roubst'|'robust' is missing"),
        ("n = " + "[" * 30000, "not valid TOML"),
        ("\0", "not valid TOML"),
        (sound_text + "#" * LARGEST_TOML, "is larger than 65536 bytes"),
        (sound_text.replace("n = 100", f"n = 0x{'f' * 9000}"), "a number of thousands of digits"),
        (sound_text.replace("n = 100", f"n = '{'x' * 9000}\x7f'"), "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(PrunebenchError, match=said) as error:
            load_claim(path)
        assert len(str(error.value)) < 2000 and str(error.value).isprintable()
    path.write_bytes(b"n = '\xff'")
    with pytest.raises(PrunebenchError, match="not valid TOML"):
        load_claim(path)
    path.write_text(sound_text)
    assert load_claim(path)  # the twin


@pytest.mark.parametrize(
    "name",
    [
        "../net.safetensors", "/etc/passwd", "a/../../net", "..", ".", "", "a//b", "./net.safetensors", "net\\a",
        "~/net", "C:net", "net\x1b[31m", "<b>net", "a\nb", "nét", "a/", "x" * 300,
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["net", "outcomes", "proposals"])
def test_paths_that_may_leave_the_folder_are_refused(place, key, name):
    with pytest.raises(PrunebenchError, match="not name a file below the claim's folder") as error:
        load_claim(place(**{key: {"path": name, "sha256": "0" * 64}}))
    assert str(error.value).isprintable()


def test_links_out_of_the_folder_are_refused_and_links_within_are_followed(place, tmp_path):
    path = place()
    (tmp_path / "secret").write_bytes(b"a net")
    net = path.parent / "net.safetensors"
    net.rename(path.parent / "inside")
    for target, allowed in ((path.parent / "inside", True), (tmp_path / "secret", False), (net, False)):
        net.symlink_to(target)
        if allowed:
            assert sound(path, load_claim(path).net, "a net") == net
        else:
            with pytest.raises(Refused, match=r"copy it there|restore the file"):
                sound(path, load_claim(path).net, "a net")
        net.unlink()
    (path.parent / "link").symlink_to(tmp_path)
    with pytest.raises(Refused, match="not a file below"):
        sound(path, load_claim(place(net={"path": "link/secret", "sha256": VALUES["net"]["sha256"]})).net, "a net")


def test_what_is_no_file_or_too_large_is_not_read(place, monkeypatch):
    path = place()
    net = path.parent / "net.safetensors"
    net.unlink()
    os.mkfifo(net)  # reading it would wait for ever
    with pytest.raises(Refused, match="not a file below"):
        sound(path, load_claim(path).net, "a net")
    net.unlink()
    with net.open("wb") as file:
        file.truncate(LARGEST + 1)  # a hole: takes no room on the disk
    with pytest.raises(Refused, match="of at most 1073741824 bytes"):
        sound(path, load_claim(path).net, "a net")


def test_a_protocol_beside_the_claim(place):
    path = place(protocol={"name": "rules.toml", "sha256": TINY.sha256})
    (path.parent / "rules.toml").write_text(toml(TINY))
    assert rules_of(path, load_claim(path)) == TINY
    (path.parent / "rules.toml").write_text(toml(TINY).replace('"0.15"', '"0.14"'))
    with pytest.raises(Refused, match=r"made under rules.toml with the sha256 .*score the net again"):
        rules_of(path, load_claim(path))


def test_protocols_that_are_none_or_reach_outside(place):
    for name, said in (("digits-lin", "neither built in"), ("none.toml", "not there")):
        path = place(protocol={"name": name, "sha256": DIGITS.sha256})
        with pytest.raises(PrunebenchError, match=said):
            rules_of(path, load_claim(path))
    path = place(protocol={"name": DIGITS.name, "sha256": "0" * 64})
    with pytest.raises(Refused, match="made under digits-linf with the sha256"):
        rules_of(path, load_claim(path))
    for data in ("folder:../other", "folder:/etc", "folder:a/../../b"):
        rules = TINY.model_copy(update={"data": data})
        path = place(protocol={"name": "rules.toml", "sha256": rules.sha256})
        (path.parent / "rules.toml").write_text(toml(rules))
        with pytest.raises(PrunebenchError, match="outside the data folder"):
            rules_of(path, load_claim(path))


def test_outcomes_must_show_the_count(place):
    data = records.outcomes(100, 80, 50)
    for n, robust, said in ((100, 50, None), (100, 51, "claims 51 robust images, its outcomes show 50"),
                            (99, 50, "does not hold outcomes of 99 images")):  # fmt: skip
        path = place(n=n, robust=robust, outcomes={"path": "o.npz", "sha256": sha256_of(data)})
        (path.parent / "o.npz").write_bytes(data)
        if said is None:
            assert outcomes_of(path, load_claim(path)).keys() >= {"labels", "predicted", "survived/square"}
        else:
            with pytest.raises(Refused, match=said):
                outcomes_of(path, load_claim(path))


def test_claims_are_found_by_their_names(tmp_path):
    for name in ("CLAIM.toml", "a/CLAIM.toml", "a/b.claim.toml", "a/other.toml", "a/claim.toml"):
        write_bytes(tmp_path / name, b"")
    assert [str(path.relative_to(tmp_path)) for path in find(tmp_path)] == ["CLAIM.toml", "a/CLAIM.toml",
                                                                          "a/b.claim.toml"]  # fmt: skip
    assert find(tmp_path / "a" / "other.toml")  # named, so taken for one
    assert not is_claim(tmp_path / "a" / "other.toml")
    shutil.rmtree(tmp_path / "a")
    (tmp_path / NAME).unlink()
    with pytest.raises(PrunebenchError, match="There is no claim in"):
        find(tmp_path)


# Making a claim


@pytest.fixture
def scored(tmp_path):
    """A record with its outcomes and a file that is its net."""
    record = records.make(net={"sha256": sha256_of(b"a net")})
    path = records.save(tmp_path / "records", record)
    (tmp_path / "net").write_bytes(b"a net")
    return path, tmp_path / "net"


def test_a_claim_says_what_the_record_says(scored, tmp_path):
    path = make(*scored, tmp_path / "claim")
    claim = load_claim(path)
    assert (path.name, claim.n, claim.robust, claim.protocol.name) == (NAME, 100, 50, "digits-linf")
    assert claim.data == "d" * 64 and claim.proposals is None
    assert sound(path, claim.net, "a net").read_bytes() == b"a net"
    assert outcomes_of(path, claim) is not None and rules_of(path, claim) == DIGITS
    assert sorted(file.name for file in path.parent.iterdir()) == ["CLAIM.toml", "net.safetensors", "outcomes.npz"]


def test_nothing_is_written_unless_all_belongs_together(scored, tmp_path):
    record, net = scored
    with pytest.raises(PrunebenchError, match=r"is not the net of .*its sha256 is another"):
        make(record, record, tmp_path / "claim")
    with pytest.raises(PrunebenchError, match=r"Cannot read .*none, the net of"):
        make(record, tmp_path / "none", tmp_path / "claim")
    outcomes_path(record).write_bytes(records.outcomes(100, 80, 49))
    with pytest.raises(PrunebenchError, match="its sha256 is another"):
        make(record, net, tmp_path / "claim")
    records.refusal().save(record)
    with pytest.raises(PrunebenchError, match="is a refusal"):
        make(record, net, tmp_path / "claim")
    assert not (tmp_path / "claim").exists()


def test_missing_proposals_are_missed(scored, tmp_path):
    data = b"proposals"
    path = records.save(tmp_path / "kept", records.make(net={"sha256": sha256_of(b"a net")}, proposals=sha256_of(data)))
    with pytest.raises(PrunebenchError, match="the adversarial images of"):
        make(path, scored[1], tmp_path / "claim")
    proposals_path(path).write_bytes(data)
    assert load_claim(make(path, scored[1], tmp_path / "claim")).proposals.sha256 == sha256_of(data)
