"""Records measured again: an honest one holds, and none that says otherwise than its net does gets through."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest

from prunebench.bench.attacks.pgd import pgd
from prunebench.bench.attacks.suite import Listed, Pursuit
from prunebench.bench.attacks.suites import SUITES
from prunebench.bench.beside import net_path
from prunebench.bench.checkpoint import open_net
from prunebench.bench.claims import rescore
from prunebench.bench.claims.nets import Nets
from prunebench.bench.claims.verdict import Verdict
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes
from prunebench.bench.outcomes import outcomes_path, pack_outcomes, recount
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.record import Record, load_record
from prunebench.bench.score.scoring import score
from prunebench.leaderboard.check import check, look, write
from prunebench.leaderboard.provenance import LEDGER, read_ledger
from tests.support.claims import weakened
from tests.support.nets import RANKED, STORE, changed, quick_attacks, seal_state, suite_with, use_attacks
from tests.support.records import make, refusal, save

RULES = changed(name="tiny-official", test=256, shard=128)
SEED = ("--draw", 5)


@pytest.fixture(autouse=True)
def _official(monkeypatch):
    """The small rules are built in, and the referee's attacks are quick."""
    monkeypatch.setitem(PROTOCOLS, RULES.name, RULES)
    use_attacks(monkeypatch, quick_attacks())


@pytest.fixture(scope="module")
def scored(nets, tmp_path_factory):
    """A folder of two scored nets, "good" and "weak" (its weights disturbed), under the small rules."""
    folder = tmp_path_factory.mktemp("scored")
    good = seal_state(folder / "good" / "net.safetensors", open_net(nets["dense"]).module, RULES)
    bad = weakened(good, folder / "bad.safetensors", 0.3)
    weak = seal_state(folder / "weak" / "net.safetensors", open_net(bad).module, RULES)
    with (
        patch.dict(PROTOCOLS, {RULES.name: RULES}),
        patch.dict(SUITES, {"standard": suite_with(quick_attacks())}),
    ):
        for net in (good, weak):
            score(net, out=net.parent, store=STORE, device="cpu")
    return folder


@pytest.fixture
def board(scored, tmp_path):
    """Records as they are handed in: one of the good net, with net and outcomes; returns it."""
    return handed_in(scored / "good", tmp_path / "records" / "good.json")


def handed_in(job, path):
    write_bytes(net_path(path), (job / "net.safetensors").read_bytes())
    write_bytes(outcomes_path(path), outcomes_path(job / "record.json").read_bytes())
    write_bytes(path, (job / "record.json").read_bytes())
    return path


@pytest.fixture
def once(scored, monkeypatch):
    """The nets of these tests are scored once: the second time gives the same bytes, which another test shows."""

    def known(net, rules, *, out, **_):
        for job in (scored / "good", scored / "weak"):
            if net.read_bytes() == (job / "net.safetensors").read_bytes():
                shutil.copytree(job, out, dirs_exist_ok=True)
                return load_record(job / "record.json")
        raise AssertionError("another net")

    monkeypatch.setattr(rescore, "score", known)


def measured(path):
    record = load_record(path)
    return rescore.rescore(path, record, net_path(path), STORE, device="cpu")[0]


def told(path, arrays=None, **changes):
    """Write another record over `path`, with counts from `arrays` and whole hashes: what its author can do."""
    values = json.loads(path.read_bytes())
    if arrays is not None:
        parts = {
            kind: {name.partition("/")[2]: bits for name, bits in arrays.items() if name.startswith(f"{kind}/")}
            for kind in ("survived", "weak", "curve")
        }
        best = {name: bits for name, bits in arrays.items() if name.startswith("best/")}
        raw = pack_outcomes(arrays["labels"], arrays["predicted"], *parts.values(), best)
        write_bytes(outcomes_path(path), raw)
        standing = arrays["labels"] == arrays["predicted"]
        right, values["score"]["clean"] = standing, int(standing.sum())
        for name, bits in parts["survived"].items():
            standing = standing & bits
            values["score"]["survived"][name] = int(standing.sum())
        values["score"]["robust"] = int(standing.sum())
        values["score"]["weak"] = {name: int((right & bits).sum()) for name, bits in parts["weak"].items()}
        for point in values["score"]["curve"]:
            point["robust"] = int((right & parts["curve"][point["eps"]]).sum())
        for name, bits in best.items():
            values["beyond"]["best"]["by"][name.partition("/")[2]] = int((standing & ~bits).sum())
            standing = standing & bits
        if best:
            values["beyond"]["best"]["robust"] = int(standing.sum())
        values["outcomes"] = sha256_of(raw)
    for key, change in changes.items():
        values[key] = values[key] | change if isinstance(change, dict) else change
    write_bytes(path, json.dumps(values | {"sha256": Record.model_validate(values).own_sha256}).encode())
    return path


def outcomes(path):
    with np.load(outcomes_path(path)) as file:
        return dict(file)


def test_an_honest_record_holds(board):
    record = load_record(board)
    assert record.official and 60 < record.score.robust < record.score.clean - 20, "nothing to tell apart"
    assert measured(board).word == "holds"


@pytest.mark.parametrize("flipped", [1, 2])
@pytest.mark.usefixtures("once")
def test_a_few_other_images_are_the_noise_of_another_processor(board, flipped):
    arrays = outcomes(board)
    fallen = np.flatnonzero(arrays["clean"] & ~arrays["survived/square"])[:flipped]
    for bits in arrays.values():
        if bits.dtype == bool:
            bits[fallen] = True
    told(board, arrays)
    check_counts(board)
    assert measured(board).word == "holds"


def check_counts(path):
    """What is told passes every check of a board that measures nothing: the attack succeeds there."""
    write(path.parent)
    check(path.parent)


def overstated(path, count):
    arrays = outcomes(path)
    fallen = np.flatnonzero(arrays["clean"] & ~arrays["survived/square"])[:count]
    for name in arrays:
        if name.startswith("survived/"):
            arrays[name][fallen] = True
    return told(path, arrays)


def understated(path, count):
    arrays = outcomes(path)
    standing = np.flatnonzero(arrays["survived/square"])[:count]
    arrays["survived/square"][standing] = False
    return told(path, arrays)


def shuffled(path):
    """The counts stay, the images are others."""
    arrays, draw = outcomes(path), np.random.default_rng(0)
    right = np.flatnonzero(arrays["clean"])
    other = draw.permutation(right)
    for name in arrays:
        if "/" in name:
            arrays[name][right] = arrays[name][other]
    return told(path, arrays)


def relabelled(path):
    arrays = outcomes(path)
    wrong = np.flatnonzero(~arrays["clean"])[:20]
    arrays["predicted"][wrong] = (arrays["labels"][wrong] + 1) % 10
    arrays["predicted"][np.flatnonzero(arrays["clean"] & ~arrays["weak/fgsm"])[:20]] += 1
    arrays["predicted"] %= 10
    arrays["clean"] = arrays["labels"] == arrays["predicted"]
    return told(path, arrays)


def other_weak(path):
    arrays = outcomes(path)
    for name in arrays:
        if name.startswith("weak/"):
            arrays[name] = arrays["clean"].copy()
    return told(path, arrays)


def flags_gone(path):
    return told(path, score=json.loads(path.read_bytes())["score"] | {"flags": []})


def other_source(path):
    return told(path, notes={"source": "e" * 64})


def cheaper(path):
    return told(path, cost={"train_passes": 1})


def other_job(path):
    return told(path, job={"pruner": "mine"})


def other_pattern(path):
    return told(path, patterns=["channel"])


FORGERIES = {
    "overstated by 5 points": (lambda path: overstated(path, 20), "were claimed|now fooled"),
    "understated by 5 points": (lambda path: understated(path, 20), "but only .* in the record|claimed"),
    "other labels": (relabelled, "clean images get another label"),
    "weak attacks that find nothing": (other_weak, "weak/"),
    "no flags": (flags_gone, "the flag black-box-wins is missing"),
    "another source": (other_source, "the pruner's source is e+"),
    "a cheaper training": (cheaper, "the passes of the training"),
    "another job": (other_job, "the job is pruner='mine'"),
    "a pattern": (other_pattern, "the pattern of its zeros is .'channel',. in the record, but .. for the net"),
}


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.usefixtures("once")
def test_a_record_that_is_false_and_whole_is_refuted(board, name):
    forge, said = FORGERIES[name]
    check_counts(forge(board))
    verdict = measured(board)
    assert verdict.word == "refuted" and re.search(said, verdict.sentence), verdict.line


@pytest.mark.usefixtures("once")
def test_outcomes_of_another_order_are_refuted(board):
    check_counts(shuffled(board))
    verdict = measured(board)
    assert verdict.word == "refuted", verdict.line


@pytest.mark.usefixtures("once")
def test_the_record_of_a_better_net_is_refuted_for_another(scored, board):
    """The weak net under the good one's numbers: hashes are the weak net's, so only measuring tells."""
    weak = load_record(scored / "weak" / "record.json")
    assert weak.score.robust < load_record(board).score.robust - 20
    write_bytes(net_path(board), (scored / "weak" / "net.safetensors").read_bytes())
    told(board, net=weak.net.model_dump(mode="json"))
    check_counts(board)
    assert measured(board).word == "refuted"


@pytest.mark.usefixtures("once")
def test_another_net_than_the_record_names_is_refuted(scored, board):
    write_bytes(net_path(board), (scored / "weak" / "net.safetensors").read_bytes())
    assert "the net's sha256 is" in measured(board).sentence


def test_official_is_what_the_net_is(board):
    net = seal_state(net_path(board), open_net(net_path(board)).module, changed(RULES, name="other"))
    told(board, net=open_net(net).id.model_dump(mode="json"))
    assert "official is True in the record, but False for the net" in measured(board).sentence


def test_rules_that_are_not_built_in_are_refused(board):
    other = changed(RULES, name="others")
    told(board, protocol={"name": "others", "sha256": other.sha256}, rules=other.model_dump(mode="json"))
    with pytest.raises(PrunebenchError, match="which no built-in protocol has today"):
        measured(board)


def test_nothing_beside_the_net_is_read(board):
    (board.parent / "times.json").write_text("[" * 100_000)
    assert measured(board).word == "holds"


# The best-known number

STRONG = Listed(partial(pgd, steps=10, step_size=0.05), 10)


def suite_named(name="test-1"):
    feeble = suite_with(dict.fromkeys(RANKED, partial(pgd, steps=2, step_size=0.03)))
    return replace(feeble, best=Pursuit(name, {"a": STRONG, "b": STRONG}, {}, 1.0))


@pytest.fixture(scope="module")
def better(scored, tmp_path_factory):
    """The folder of a scoring with the best-known number, for which the adversarials of the weak net were tried too."""
    folder = tmp_path_factory.mktemp("better")
    shutil.copy(scored / "good" / "net.safetensors", folder)
    with patch.dict(PROTOCOLS, {RULES.name: RULES}), patch.dict(SUITES, {"standard": suite_named()}):
        parent = scored / "weak" / "net.safetensors"
        score(folder / "net.safetensors", out=folder, store=STORE, device="cpu", best=True, parent=parent)
    return folder


@pytest.fixture
def known_better(scored, better, tmp_path, monkeypatch):
    """That record as it is handed in, with both nets."""
    monkeypatch.setitem(SUITES, "standard", suite_named())
    write_bytes(tmp_path / "records" / "weak.net.safetensors", (scored / "weak" / "net.safetensors").read_bytes())
    return handed_in(better, tmp_path / "records" / "good.json")


def measured_best(path, *folders):
    record, where = load_record(path), Nets(*folders or [path.parent])
    return rescore.rescore(
        path, record, where.of(path, record), STORE, parent=where.parent_of(path, record), device="cpu"
    )


def test_the_best_known_number_is_measured_again(known_better):
    found, again = measured_best(known_better)
    best = load_record(known_better).beyond.best
    assert found.word == "holds" and again.beyond.best == best, found.line
    assert tuple(best.by) == ("a", "b", "transfer") and best.robust > 40
    check_counts(known_better)


@pytest.mark.parametrize("points", [-5, 5])
def test_another_best_known_number_is_refuted(known_better, points):
    """The bits and hashes say the same as the edited count, and AutoAttack's numbers stay as they were."""
    before, arrays = load_record(known_better), outcomes(known_better)
    standing, best = arrays["survived/square"], arrays["best/transfer"]
    other = np.flatnonzero(standing & (~best if points > 0 else best))[:13]
    assert len(other) == 13, "nothing to tell apart"
    for name in arrays:
        if name.startswith("best/"):
            arrays[name][other] = points > 0
    told(known_better, arrays)
    after = load_record(known_better)
    assert after.score == before.score and after.beyond.best != before.beyond.best
    check_counts(known_better)
    found, _ = measured_best(known_better)
    assert found.word == "refuted" and found.sentence.startswith("the best-known number: "), found.line


def test_attacks_that_are_kept_quiet_are_missed(known_better):
    arrays = {name: bits for name, bits in outcomes(known_better).items() if name != "best/b"}
    values = json.loads(known_better.read_bytes())
    del values["beyond"]["best"]["by"]["b"]
    known_better.write_text(json.dumps(values))
    told(known_better, arrays)
    recount(known_better, load_record(known_better))
    found, _ = measured_best(known_better)
    assert found.word == "refuted" and found.sentence.startswith("the attacks for the best-known number is ('a', ")


def test_without_the_dense_net_it_cannot_be_measured(known_better):
    (known_better.parent / "weak.net.safetensors").unlink()
    with pytest.raises(PrunebenchError, match=r"the dense net whose adversarials it was attacked with, .* --nets"):
        measured_best(known_better)


def test_another_suite_is_named(known_better, monkeypatch):
    monkeypatch.setitem(SUITES, "standard", suite_named("test-2"))
    with pytest.raises(PrunebenchError, match=r"number by test-1, but that suite is now test-2; score .* with --best"):
        measured_best(known_better)


# Where nets are


def test_a_net_is_found_beside_its_record_or_by_its_hash(board, tmp_path):
    record = load_record(board)
    assert Nets().of(board, record) == net_path(board)
    (tmp_path / "theirs").mkdir()
    for i in range(3):
        (tmp_path / "theirs" / f"{i}.safetensors").write_bytes(b"another")
    (tmp_path / "theirs" / "0-endless.safetensors").symlink_to("/dev/zero")
    kept = net_path(board).rename(tmp_path / "theirs" / "2-kept.safetensors")
    assert Nets(tmp_path / "theirs").of(board, record) == kept
    with pytest.raises(
        PrunebenchError, match=r"good.json cannot be measured again: its net, good.net.safetensors with"
    ):
        Nets().of(board, record)
    with pytest.raises(PrunebenchError, match="There is no folder"):
        Nets(tmp_path / "none")
    net_path(board).symlink_to("/dev/zero")
    with pytest.raises(PrunebenchError, match="is not a regular file"):
        measured(board)


# What is drawn


def official(folder, count=10, **changes):
    """So many official records of digits, and one that is not."""
    for seed in range(count):
        save(folder, make(seed=seed, **changes), f"r{seed}")
    save(folder, make(seed=99, official=False, **changes), "r99")
    return {path.relative_to(folder): load_record(path) for path in folder.rglob("*.json")}


def names(drawn):
    return [path.stem for path in drawn.paths]


def test_a_draw_can_be_repeated_and_not_foreseen(tmp_path):
    records = official(tmp_path)
    draws = {seed: names(rescore.draw(records, tmp_path, 3, seed, [], STORE)) for seed in range(50)}
    assert draws[7] == names(rescore.draw(records, tmp_path, 3, 7, [], STORE))
    assert {len(set(drawn)) for drawn in draws.values()} == {3}
    assert {name for drawn in draws.values() for name in drawn} == {f"r{seed}" for seed in range(10)}  # never r99
    assert len({rescore.fresh() for _ in range(20)}) == 20
    assert len(names(rescore.draw(records, tmp_path, 99, 0, [], STORE))) == 10
    assert rescore.draw(records, tmp_path, 3, 7, [], STORE).told == "Drew 3 of 10 official records with --draw 7."


def test_records_whose_images_are_not_here_are_counted(tmp_path):
    """By the rules, whatever the record says of its data."""
    records = official(tmp_path, 2, schema=4, data={"name": "cifar10"})
    assert len(names(rescore.draw(records, tmp_path, 9, 0, [], STORE))) == 2
    records[tmp_path / "old"] = make(protocol={"sha256": "e" * 64})  # of rules that are built in no longer
    cifar = PROTOCOLS["cifar10-linf"]
    records[tmp_path / "c"] = make(protocol={"name": cifar.name, "sha256": cifar.sha256}, data={"name": "digits"})
    drawn = rescore.draw(records, tmp_path, 9, 0, [], STORE)
    assert len(drawn.paths) == 2 and drawn.told.endswith("; the data sets of 1 others are missing (--data).")


@pytest.fixture
def repository(tmp_path):
    """A checkout with records in its first commit."""

    def git(*arguments, folder=tmp_path / "checkout"):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always")
        done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    (tmp_path / "checkout").mkdir()
    git("init", "-q", "-b", "main")
    official(tmp_path / "checkout" / "board" / "records")
    git("add", "-A")
    git("commit", "-qm", "one")
    return git, tmp_path / "checkout" / "board" / "records"


def drawn_since(folder, *since, count=20):
    records = {path.relative_to(folder): load_record(path) for path in folder.rglob("*.json")}
    return rescore.draw(records, folder, count, 1, since, STORE)


def test_what_changed_since_a_commit_is_drawn(repository):
    git, folder = repository
    save(folder, make(seed=3, robust=51), "r3")  # changed and committed
    git("rm", "-q", "--cached", "-r", "board/records/digits-linf/r9.json")
    git("commit", "-qam", "two")
    outcomes_path(folder / "digits-linf" / "r5.json").write_bytes(b"other")  # changed, not committed
    save(folder, make(seed=20), "new")  # not even added
    net_path(folder / "digits-linf" / "r7.json").write_bytes(b"a net")
    save(folder, make(seed=99, official=False, robust=51), "r99")
    drawn = drawn_since(folder, "no-such-branch", "HEAD~1")
    assert set(names(drawn)) == {"r3", "r5", "r7", "r9", "new"}
    assert (
        drawn.told
        == f"Drew 5 of 5 official records that changed since {git('rev-parse', 'HEAD~1')[:12]} with --draw 1."
    )
    assert len(names(drawn_since(folder, "HEAD~1", count=2))) == 2


def test_the_first_commit_that_is_another_counts(repository):
    git, folder = repository
    save(folder, make(seed=3, robust=51), "r3")
    git("commit", "-qam", "two")
    git("branch", "base")
    assert names(drawn_since(folder, "base", "HEAD~1")) == ["r3"]  # base is what is checked out
    git("checkout", "-q", "-b", "theirs", "HEAD~1")  # main went on: what it changed meanwhile is not ours
    save(folder, make(seed=4, robust=51), "r4")
    git("commit", "-qam", "three")
    assert names(drawn_since(folder, "main")) == ["r4"]


def test_where_nothing_says_what_changed_three_are_drawn(repository, tmp_path):
    git, folder = repository
    drawn = drawn_since(folder, "HEAD~1")
    assert len(drawn.paths) == 3 and "(no commit HEAD~1 to compare with)" in drawn.told
    (folder / "note.txt").write_text("")
    git("add", "-A")
    git("commit", "-qm", "two")
    drawn = drawn_since(folder, "HEAD~1")
    assert len(drawn.paths) == 3 and "(nothing changed since" in drawn.told
    git("clone", "-q", "--depth", "1", f"file://{tmp_path / 'checkout'}", str(tmp_path / "shallow"))
    assert len(drawn_since(tmp_path / "shallow" / "board" / "records", "HEAD~1").paths) == 3
    shutil.copytree(folder, tmp_path / "plain" / "records")  # no checkout at all
    assert len(drawn_since(tmp_path / "plain" / "records", "HEAD~1").paths) == 3
    assert len(drawn_since(folder, "--output=/tmp/x", "$(x)", "").paths) == 3


# The command


def test_a_board_that_was_measured_again_says_so(board, prunebench):
    records, ledger = board.parent, board.parent.parent / LEDGER
    write(records)
    code, out, err = prunebench("rank", records, "--check", "--rescore", 3)
    assert code == 0 and re.search(r"Drew 1 of 1 official records with --draw \d+\.", err), err
    assert "good.json: holds: " in err and "Origin of all rows: as handed in." in out and not ledger.exists()
    code, out, err = prunebench("rank", records, "--write", "--rescore", 3, *SEED, "--date", "2026-01-31")
    assert code == 0 and "with --draw 5" in err and "Origin of all rows: re-measured." in out
    (entry,) = read_ledger(records.parent).entries
    record = load_record(board)
    assert (entry.record, entry.net, entry.date, entry.verdict) == (
        record.sha256,
        record.net.sha256,
        "2026-01-31",
        "holds",
    )
    assert entry.versions["torch"] == record.env["torch"] and entry.processor == record.env["cpu"]
    assert prunebench("rank", records, "--check")[0] == 0
    before = ledger.read_bytes()
    overstated(board, 20)  # another record: the old measurement says nothing of it
    assert look(records).boards[0].rows[0].origin == "as handed in"
    code, out, err = prunebench("rank", records, "--write", "--rescore", 1, *SEED)
    assert code == 1 and out == "" and "Traceback" not in err and ledger.read_bytes() == before
    assert "good.json does not match its net: " in err.splitlines()[-1]


def test_a_record_without_its_net_fails_and_is_named(board, prunebench):
    write(board.parent)
    net_path(board).unlink()
    code, _, err = prunebench("rank", board.parent, "--check", "--rescore", 1)
    assert code == 1 and "good.json cannot be measured again: its net, good.net.safetensors" in err and "--nets" in err


def test_a_net_that_is_refused_fails_its_record(board, prunebench):
    write(board.parent)
    net_path(board).write_bytes(b"no net")
    code, _, err = prunebench("rank", board.parent, "--check", "--rescore", 1)
    assert code == 1 and "is not a whole safetensors file" in err and "Traceback" not in err


@pytest.mark.usefixtures("once")
def test_an_undecided_record_neither_fails_nor_counts(board, prunebench, monkeypatch):
    monkeypatch.setattr(rescore, "whole", lambda claimed, measured: Verdict("undecided", "Too few."))
    code, out, err = prunebench("rank", board.parent, "--write", "--rescore", 1)
    assert code == 0 and "undecided: Too few." in err and "Origin of all rows: as handed in." in out


def test_options_that_do_nothing_are_refused(board, prunebench):
    for option, other in (
        (("--reason", "x"), "--write"),
        (("--date", "2026-01-31"), "--write"),
        (("--draw", 1), "--rescore"),
        (("--since", "HEAD"), "--rescore"),
        (("--nets", "x"), "--rescore"),
    ):
        code, _, err = prunebench("rank", board.parent, *option)
        assert code == 1 and f"{option[0]} has no effect without {other}" in err


def test_rank_looks_and_writes_nothing_unless_asked(board, prunebench):
    refusal().save(board.with_name("refused.json"))
    before = sorted(board.parent.parent.rglob("*"))
    code, out, _ = prunebench("rank", board.parent)
    assert code == 0 and "dense" in out and out.rstrip().endswith("Nothing was written (--write).")
    assert sorted(board.parent.parent.rglob("*")) == before


def test_no_pruner_is_imported_where_records_are_measured_again(scored, tmp_path):
    """In a process of its own, which ranks, signs nothing, and scores the net of a record."""
    board = handed_in(scored / "good", tmp_path / "records" / "good.json")
    told(board, official=False)
    code = (
        "import sys\nfrom prunebench.bench import signature\nfrom prunebench.bench.cli import main\n"
        "from prunebench.bench.claims import rescore\nfrom prunebench.bench.attacks.suites import SUITES\n"
        "from prunebench.bench.protocol import PROTOCOLS\n"
        "from prunebench.bench.record import load_record\nfrom prunebench.bench.beside import net_path\n"
        "from prunebench.bench.data import Store\n"
        "from prunebench.bench.checkpoint import open_net\nfrom pathlib import Path\n"
        "from functools import partial\nfrom prunebench.bench.attacks.pgd import pgd\n"
        "from dataclasses import replace\nfrom prunebench.bench.attacks.suite import Listed\n"
        "weak, real = Listed(partial(pgd, steps=1, step_size=.05), 1), SUITES['standard']\n"
        "SUITES['standard'] = replace(real, ranked=dict.fromkeys(real.ranked, weak))\n"
        f"path = Path({str(board)!r})\n"
        "rules = open_net(net_path(path)).header.protocol\nPROTOCOLS[rules.name] = rules\n"
        "rescore.rescore(path, load_record(path), net_path(path), Store(Path('none')), device='cpu')\n"
        f"sys.argv = ['prunebench', 'rank', {str(board.parent)!r}, '--write', '--reason', 'new']\n"
        "try:\n    main.main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
    )
    ask = "print(sorted(name for name in sys.modules if name.startswith('prunebench.pruners')))"
    done = subprocess.run([sys.executable, "-c", code + ask], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    twin = subprocess.run(
        [sys.executable, "-c", "import sys, prunebench.pruners.imp\n" + ask], capture_output=True, text=True, check=True
    )
    assert "prunebench.pruners.imp" in twin.stdout
