"""The claim file: strict, and unable to name anything outside its folder; and how a claim is made of a record."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from prunebench.bench.claims.claim import LARGEST, NAME, find, is_claim, load_claim, outcomes_of, rules_of, sound
from prunebench.bench.claims.make import make
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pack_outcomes, proposals_path
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.schema import LARGEST_TOML
from tests.support import records
from tests.support.nets import TINY, toml

ROOT = Path(__file__).parents[2]
DIGITS = PROTOCOLS["digits-linf"]
VALUES = {
    "schema": 1,
    "n": 100,
    "robust": 50,
    "protocol": {"name": DIGITS.name, "sha256": DIGITS.sha256},
    "net": {"path": "net.safetensors", "sha256": sha256_of(b"a net")},
}


NO_SHARES = (
    "60",
    "60%",
    "60.0000001 %",
    "0 %",
    "0.0 %",
    "100.1 %",
    "-1 %",
    "1e1 %",
    "060 %",
    "60,5 %",
    "60 %\n",
    "\u0666\u0660 %",
    "nan %",
)


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
        ({"schema": 4}, "schema = 4"),
        ({"schema": 2, "by": "best-1"}, "`by` needs schema = 3; write schema = 3"),
        *(({"schema": 3, "by": text}, "by = ") for text in ("", "Best 1", "best-1\n", "../best", "b" * 41, 1)),
        ({"at_least": "60 %"}, "`at_least` and `about` need schema = 2"),
        ({"about": {}}, "`at_least` and `about` need schema = 2"),
        ({"schema": 2, "at_least": "50.5 %"}, "robust = 50 of 100 is less than at_least = '50.5 %'"),
        *(({"schema": 2, "at_least": text}, "is not a percentage above 0 and up to 100") for text in NO_SHARES),
        ({"schema": 2, "at_least": 60}, "at_least = 60"),
        ({"schema": 2, "about": {"author": "me"}}, "unknown key 'about.author'"),
        ({"schema": 2, "about": {"pruner": "x" * 201}}, "about.pruner"),
        ({"schema": 2, "about": {"pruner": ""}}, "about.pruner"),
        ({"schema": 2, "about": {"pruner": "a\nb"}}, "unprintable characters"),
        ({"schema": 2, "about": {"version": "\x1b[31m"}}, "unprintable characters"),
        ({"schema": 2, "about": {"sparsity": 1.0}}, "about.sparsity"),
        ({"schema": 2, "about": {"sparsity": float("nan")}}, "about.sparsity"),
        ({"schema": 2, "about": {"sparsity": "0.9"}}, "about.sparsity"),
        ({"schema": 2, "about": {"date": "2026-02-30"}}, "is not a date"),
        ({"schema": 2, "about": {"date": "20260101"}}, "is not a date"),
        ({"schema": 2, "about": {"url": "javascript:alert(1)"}}, "about.url"),
        ({"schema": 2, "about": {"url": "https://a b"}}, "about.url"),
        ({"schema": 2, "about": {"url": f"https://{'a' * 500}"}}, "about.url"),
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


def test_a_claim_may_state_a_count_a_share_or_both(place):
    values = {key: value for key, value in VALUES.items() if key != "robust"}

    def read(**changes):
        path = place()
        path.write_text(tomli_w.dumps(values | {"schema": 2} | changes))
        return load_claim(path)

    for changes, needed in (
        ({"robust": 50}, 50),
        ({"at_least": "50 %"}, 50),
        ({"at_least": "62.5 %"}, 63),
        ({"at_least": "100 %"}, 100),
        ({"at_least": "0.000001 %"}, 1),
        ({"robust": 50, "at_least": "49.5 %"}, 50),
        ({"robust": 0}, 0),
    ):
        assert read(**changes).needed == needed
    assert read(at_least="62.5 %").explained == " At least 62.5 % of 100 images are 63."
    assert read(robust=1).explained == ""
    with pytest.raises(PrunebenchError, match="nothing is claimed; add robust = COUNT or at_least"):
        read()
    about = {"pruner": "imp", "sparsity": 0.95, "date": "2026-01-31", "version": "0.1", "url": "https://a.b/c?d#e"}
    assert read(robust=1, about=about).about.model_dump() == about
    path = place()
    path.write_text(path.read_text().replace("schema = 1\n", ""))
    assert load_claim(path).schema_ == 1  # claims of the first format, their number left out too


def test_a_claim_may_name_the_suite_that_its_number_is_by(place):
    claim = load_claim(place(schema=3, by="best-1"))
    assert (claim.by, claim.needed) == ("best-1", 50)
    assert claim.explained == " The claim counts the images that survive AutoAttack and then best-1."
    assert load_claim(place(schema=3)).by is None


def test_claims_of_older_formats_keep_their_hashes(place):
    """Those hashes draw the images of a quick check; these two are from before the format had suites."""
    assert load_claim(ROOT / "claims" / "awt-s0.95-seed0" / NAME).sha256 == (
        "9a63c674c778e1565d0db62a0a2376573a0ab4246261e111b6f1461ac44f40dc"
    )
    plain, suite = (load_claim(place(schema=3, **by)).sha256 for by in ({}, {"by": "best-1"}))
    assert plain != suite  # the twin: a suite is part of the hash


def test_outcomes_of_a_suite_must_show_the_count_by_that_suite(place):
    labels, n = np.arange(100) % 10, np.arange(100)
    parts = {"survived": {"square": n < 50}, "best": {"best/a": n < 45, "best/b": n < 40}}
    far = {"distance": np.zeros(100, "<f4")}
    for by, robust, beyond, said in (
        ("best-1", 40, parts["best"], None),
        ("best-1", 40, parts["best"] | far, None),
        ("best-1", 50, parts["best"], "claims 50 robust images, but its outcomes show 40"),
        ("best-1", 50, {}, "does not hold the best-1 outcomes of 100 images"),
        (None, 50, parts["best"], None),
        (None, 40, parts["best"], "claims 40 robust images, but its outcomes show 50"),
    ):
        data = pack_outcomes(labels, labels, parts["survived"], {}, {}, beyond)
        suite = {} if by is None else {"by": by}
        path = place(schema=3, robust=robust, outcomes={"path": "o.npz", "sha256": sha256_of(data)}, **suite)
        (path.parent / "o.npz").write_bytes(data)
        if said is None:
            assert outcomes_of(path, load_claim(path)) is not None
        else:
            with pytest.raises(Refused, match=said):
                outcomes_of(path, load_claim(path))


def test_a_share_that_the_outcomes_do_not_show_is_refused(place):
    data = records.outcomes(100, 80, 50)
    for share, said in (("50 %", None), ("50.1 %", "claims at least 50.1 % of 100 images \\(51 images\\), but its")):
        path = place(schema=2, at_least=share, outcomes={"path": "o.npz", "sha256": sha256_of(data)})
        path.write_text(path.read_text().replace("robust = 50\n", ""))
        (path.parent / "o.npz").write_bytes(data)
        if said is None:
            assert outcomes_of(path, load_claim(path)) is not None
        else:
            with pytest.raises(Refused, match=said):
                outcomes_of(path, load_claim(path))


def test_duplicate_keys_nonsense_and_floods_are_refused(place):
    path = place()
    sound_text = path.read_text()
    for text, said in (
        ("n = 100\n" + sound_text, "not valid TOML"),
        (sound_text.replace("robust", "roubst"), "unknown key 'roubst'|'robust' is missing"),
        ("n = " + "[" * 30000, "not valid TOML"),
        ("\0", "not valid TOML"),
        (sound_text + "#" * LARGEST_TOML, "is larger than 65536 bytes"),
        (sound_text.replace("n = 100", f"n = 0x{'f' * 9000}"), "a number with thousands of digits"),
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
        "../net.safetensors",
        "/etc/passwd",
        "a/../../net",
        "..",
        ".",
        "",
        "a//b",
        "./net.safetensors",
        "net\\a",
        "~/net",
        "C:net",
        "net\x1b[31m",
        "<b>net",
        "a\nb",
        "nét",
        "a/",
        "x" * 300,
    ],
)
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
    with pytest.raises(Refused, match="of at most 268435456 bytes"):
        sound(path, load_claim(path).net, "a net")


def test_what_can_be_read_for_ever_is_never_opened(place, tmp_path):
    """A claim, or its net, that is a device, a pipe or a link to one: refused at once, and before it is opened."""
    path = place()
    sound_text, net = path.read_bytes(), path.parent / "net.safetensors"
    for target in ("/dev/zero", "/dev/urandom", tmp_path / "pipe"):
        if not os.path.lexists(target):
            os.mkfifo(target)
        net.unlink()
        net.symlink_to(target)
        with pytest.raises(Refused, match="not a file below"):
            sound(path, load_claim(path).net, "a net")
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(PrunebenchError, match="not a regular file"):
            load_claim(path)
        with pytest.raises(PrunebenchError, match="There is no claim in"):
            find(path.parent)
        path.unlink()
        path.write_bytes(sound_text)
    net.unlink()
    net.symlink_to("net.safetensors")  # a link to itself
    with pytest.raises(Refused, match="which does not exist"):
        sound(path, load_claim(path).net, "a net")
    net.unlink()
    net.write_bytes(b"a net")
    assert sound(path, load_claim(path).net, "a net") == net  # the twin


def test_a_protocol_beside_the_claim(place):
    path = place(protocol={"name": "rules.toml", "sha256": TINY.sha256})
    (path.parent / "rules.toml").write_text(toml(TINY))
    assert rules_of(path, load_claim(path)) == TINY
    (path.parent / "rules.toml").write_text(toml(TINY).replace('"0.15"', '"0.14"'))
    with pytest.raises(Refused, match=r"made under rules.toml with the sha256 .*score the net again"):
        rules_of(path, load_claim(path))


def test_protocols_that_are_none_or_reach_outside(place):
    for name, said in (("digits-lin", "neither built in"), ("none.toml", "does not exist")):
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
    for n, robust, said in (
        (100, 50, None),
        (100, 51, "claims 51 robust images, but its outcomes show 50"),
        (99, 50, "does not hold outcomes of 99 images"),
    ):
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
    assert [str(path.relative_to(tmp_path)) for path in find(tmp_path)] == [
        "CLAIM.toml",
        "a/CLAIM.toml",
        "a/b.claim.toml",
    ]
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
    with pytest.raises(PrunebenchError, match=r"is not the net of .*its sha256 differs"):
        make(record, record, tmp_path / "claim")
    with pytest.raises(PrunebenchError, match=r"Cannot read .*none, the net of"):
        make(record, tmp_path / "none", tmp_path / "claim")
    outcomes_path(record).write_bytes(records.outcomes(100, 80, 49))
    with pytest.raises(PrunebenchError, match="its sha256 differs"):
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


def files_in(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def other_score(tmp_path, robust=40, net=b"another net", name="imp-other"):
    record = records.make(robust=robust, net={"sha256": sha256_of(net)})
    (tmp_path / "other-net").write_bytes(net)
    return records.save(tmp_path / "others", record, name), tmp_path / "other-net"


def test_a_claim_never_lands_beside_another(scored, tmp_path):
    """Another claim or net in the folder is refused with the way out, and nothing is touched."""
    out = tmp_path / "claim"
    make(*scored, out)
    before, other = files_in(out), other_score(tmp_path)
    with pytest.raises(PrunebenchError, match=r"holds another claim or another net \(net.*\); name another .*--force"):
        make(*other, out)
    assert files_in(out) == before
    make(*scored, out)  # the very same again is no harm
    assert files_in(out) == before
    with pytest.raises(PrunebenchError, match=r"holds another claim or another net \(CLAIM.toml\)"):
        make(*scored, out, at_least="40 %")
    for name in ("proposals.npz", "protocol.toml"):  # of an old claim, which a new one would be taken to own
        (out / name).write_bytes(b"old")
        with pytest.raises(PrunebenchError, match=rf"\({name}\)"):
            make(*scored, out)
        (out / name).unlink()
    (out / "notes.txt").write_text("mine")
    assert make(*scored, out)  # other files are no business of a claim


def test_force_leaves_nothing_of_the_old_claim(scored, tmp_path):
    out, other = tmp_path / "claim", other_score(tmp_path)
    make(*scored, out)
    (out / "notes.txt").write_text("mine")
    for name in ("proposals.npz", "protocol.toml"):
        (out / name).write_bytes(b"old")
    claim = load_claim(make(*other, out, force=True))
    fresh = tmp_path / "fresh"
    make(*other, fresh)
    assert files_in(out) == files_in(fresh) | {"notes.txt": b"mine"} and claim.robust == 40
    pipe = out / "protocol.toml"
    os.mkfifo(pipe)  # never opened
    with pytest.raises(PrunebenchError, match=r"protocol\.toml"):
        make(*other, out)
    make(*other, out, force=True)
    assert not pipe.exists()


def test_a_killed_replacement_leaves_no_claim_and_goes_on(scored, tmp_path, monkeypatch):
    import prunebench.bench.claims.make

    out, other, done = tmp_path / "claim", other_score(tmp_path), []
    make(*scored, out)
    write = prunebench.bench.claims.make.write_bytes

    def dies(path, data):
        if done:
            raise KeyboardInterrupt
        done.append(write(path, data))

    monkeypatch.setattr(prunebench.bench.claims.make, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        make(*other, out, force=True)
    assert not (out / NAME).exists()  # a new net, the old outcomes: and no claim that says so
    monkeypatch.undo()
    assert load_claim(make(*other, out, force=True)).robust == 40


def test_a_claim_of_a_share_and_what_the_record_tells(scored, tmp_path):
    claim = load_claim(make(*scored, tmp_path / "claim", at_least="49.5 %"))
    assert (claim.robust, claim.at_least, claim.needed) == (None, "49.5 %", 50)
    assert (claim.about.pruner, claim.about.sparsity, claim.about.version) == ("imp", 0.9, None)
    assert claim.about.date is None and claim.about.url is None
    with pytest.raises(
        PrunebenchError, match="has 50 of 100 images robust, but a claim of at least 51 % needs 51; claim a"
    ):
        make(*scored, tmp_path / "more", at_least="51 %")
    with pytest.raises(PrunebenchError, match="write it as '60 %'"):
        make(*scored, tmp_path / "more", at_least="half")
    assert not (tmp_path / "more").exists()
    record = records.make(net={"sha256": sha256_of(b"a net")}, env={"prunebench": "0.1.0"})
    path = records.save(tmp_path / "versions", record)
    assert load_claim(make(path, scored[1], tmp_path / "version")).about.version == "0.1.0"


def test_a_claim_of_the_best_known_number(scored, tmp_path):
    n = np.arange(100)
    bits = {"best/a": n < 45, "best/b": n < 40}
    labels, predicted = n % 10, np.where(n < 80, n % 10, (n + 1) % 10)
    kinds = (dict.fromkeys(records.ATTACKS, n < 50), {"pgd-20": n < 50}, {"0.2": n < 50})
    data = pack_outcomes(labels, predicted, *kinds, bits)
    best = {"suite": "best-1", "robust": 40, "by": {"a": 5, "b": 5}, "long": 0, "passes": 1}
    about = {"net": {"sha256": sha256_of(b"a net")}, "outcomes": sha256_of(data), "beyond": {"best": best}}
    path = tmp_path / "best" / "record.json"
    records.make(**about).save(path)
    write_bytes(outcomes_path(path), data)
    claim = load_claim(make(path, scored[1], tmp_path / "one", best=True))
    assert (claim.schema_, claim.robust, claim.by) == (3, 40, "best-1")
    claim = load_claim(make(path, scored[1], tmp_path / "two", best=True, at_least="40 %"))
    assert (claim.robust, claim.at_least, claim.by) == (None, "40 %", "best-1")
    with pytest.raises(PrunebenchError, match="has 40 of 100 images robust, but a claim of at least 50 % needs 50"):
        make(path, scored[1], tmp_path / "three", best=True, at_least="50 %")
    claim = load_claim(make(path, scored[1], tmp_path / "four"))  # the same record, and AutoAttack's number
    assert (claim.schema_, claim.robust, claim.by) == (2, 50, None)
    with pytest.raises(PrunebenchError, match=r"imp.*json has no best-known number to claim; score .* with --best, or"):
        make(*scored, tmp_path / "five", best=True)
    assert not (tmp_path / "three").exists() and not (tmp_path / "five").exists()
