"""Records are strict in both directions, know whether they were edited, and can be counted again."""

from __future__ import annotations

import io
import json
import time
import zipfile

import numpy as np
import pytest
from pydantic import ValidationError

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sha256_of, write_bytes, write_json
from prunebench.bench.outcomes import outcomes_path, pack_outcomes, recount
from prunebench.bench.protocol import PROTOCOLS, identity
from prunebench.bench.record import LARGEST, Record, Refusal, load_all, load_record
from tests.support.nets import changed
from tests.support.records import ATTACKS, make, outcomes, refusal, save


def edited(path, change, *, sealed):
    """Change the JSON of the record at `path`; `sealed`: with the hash that belongs to the change."""
    values = json.loads(path.read_text())
    change(values)
    if sealed:
        values["sha256"] = Record.model_validate(values).own_sha256
    write_json(path, values)


def test_a_record_comes_back_as_it_was(tmp_path):
    record = make(notes={"a": None, "b": 0.1, "c": "ä\u202e\x00"}, job={"options": {"rounds": 5, "global": True}})
    path = save(tmp_path, record)
    assert load_record(path) == record
    assert load_record(path).sha256 == record.own_sha256
    before = path.read_bytes()
    load_record(path).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("schema", [3, 4])
def test_an_older_record_is_read_under_the_names_of_today_and_written_under_its_own(schema, tmp_path):
    path = save(tmp_path, make(schema=schema, score={"rejected": 3, "kernel_only": 1}))
    before, old = path.read_bytes(), load_record(path)
    values = json.loads(before)
    assert values["score"]["disagreements"] == 3 and values["score"]["unconfirmed"] == 1 and "rules" not in values
    assert ("processor_seconds" in values["cost"]) == (schema == 4)
    assert (old.score.rejected, old.score.kernel_only) == (3, 1)
    assert old.rules is None and old.known_rules == PROTOCOLS["digits-linf"] and old.built_in
    old.save(path)
    assert path.read_bytes() == before


CURVE = [{"epoch": 5, "clean": 0.9, "robust": 0.4}, {"epoch": 10, "clean": 0.95, "robust": 0.35}]


def staged(curve, schema=7):
    stages = [
        {"name": "search", "passes": 1, "seconds": 1.0},
        {"name": "fit", "passes": 2, "seconds": 1.0, "curve": curve},
    ]
    return make(schema=schema, cost={"stages": stages})


def test_a_stage_keeps_the_curve_of_its_training(tmp_path):
    path = save(tmp_path, staged(CURVE))
    search, fit = load_record(path).cost.stages
    assert search.curve == () and [(point.epoch, point.robust) for point in fit.curve] == [(5, 0.4), (10, 0.35)]


def test_a_record_of_schema_6_has_no_curves_and_keeps_its_bytes(tmp_path):
    path = save(tmp_path, make(schema=6))
    before = path.read_bytes()
    assert b"curve" not in before.split(b'"cost"')[1].split(b'"env"')[0] and b'"beyond"' in before
    load_record(path).save(path)
    assert path.read_bytes() == before
    with pytest.raises(ValidationError, match="stages have curves and say that they collapsed since schema 7"):
        staged(CURVE, schema=6)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (CURVE[::-1], "do not increase"),
        ([CURVE[0], CURVE[0]], "do not increase"),
        ([CURVE[0] | {"robust": 1.5}], "less than or equal to 1"),
        ([CURVE[0] | {"epoch": 0}], "greater than"),
    ],
)
def test_a_curve_that_cannot_be_is_refused(points, said):
    with pytest.raises(ValidationError, match=said):
        staged(points)


def test_a_record_carries_its_rules(tmp_path):
    own = changed(name="mine", shard=256)
    known = {"name": "mine", "version": 1, "sha256": own.sha256}
    path = save(tmp_path, make(schema=5, protocol=known, rules=plain(own)))
    assert load_record(path).known_rules == own and not load_record(path).built_in


def plain(rules):
    return rules.model_dump(mode="json")


def test_rules_that_have_a_key_more_than_today_leave_a_record_readable(tmp_path):
    """As rules of a later version would: nobody here knows what they are, and the record says its own hash of them."""
    later = plain(changed(name="later", shard=256)) | {"moon": "full"}
    known = {"name": "later", "version": 1, "sha256": identity(later)}
    read = load_record(save(tmp_path, make(schema=5, protocol=known, rules=later)))
    assert read.known_rules is None and not read.built_in and read.rules == later


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 5, "data": {"name": "mnist"}}, "the rules need digits in shards of 256"),
        ({"score": {"shard": 16}}, "the rules need digits in shards of 256"),
        ({"net": {"arch": "mnist-cnn"}}, "the rules are for digits-cnn, but the net is mnist-cnn"),
    ],
)
def test_a_score_that_cannot_be_by_its_rules_is_refused(change, said):
    with pytest.raises(ValidationError, match=said):
        make(**change)


def test_rules_under_another_name_or_in_a_schema_without_them_are_refused():
    with pytest.raises(ValidationError, match=r"the rules are tiny .*, not the rules that protocol names"):
        make(rules=plain(changed()))
    with pytest.raises(ValidationError, match="rules are in records since schema 5"):
        make(rules=None)
    values = make().model_dump(mode="json", by_alias=True) | {"schema": 4}
    with pytest.raises(ValidationError, match=r"it has \['kernel_only', 'rejected', 'rules'\], which schema 4"):
        Record.model_validate(values)
    old = make(schema=4).model_dump(mode="json", by_alias=True)
    with pytest.raises(ValidationError, match=r"it has \['rules'\], which schema 4 does not know"):
        Record.model_validate(old | {"rules": None})


def test_a_stage_that_collapsed_says_so_since_schema_7(tmp_path):
    stages = [
        {"name": "search", "passes": 5, "seconds": None, "collapsed": 0.1},
        {"name": "train", "passes": 5, "seconds": 1.0},
    ]
    path = save(tmp_path, make(schema=7, cost={"stages": stages}))
    assert [stage.collapsed for stage in load_record(path).cost.stages] == [0.1, None]
    assert json.loads(path.read_bytes())["cost"]["stages"] == stages
    with pytest.raises(ValidationError, match="stages have curves and say that they collapsed since schema 7"):
        make(schema=6, cost={"stages": stages})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        make(schema=7, cost={"stages": [stages[0] | {"collapsed": 1.5}]})


TF32 = {"name": "tf32", "repaired": 3}


def test_the_arithmetic_of_attacks_is_in_records_where_it_is_not_exact(tmp_path):
    path = save(tmp_path, make(schema=8, attack_arithmetic=TF32))
    before, read = path.read_bytes(), load_record(path)
    assert json.loads(before)["attack_arithmetic"] == TF32
    assert (read.attack_arithmetic.name, read.attack_arithmetic.repaired) == ("tf32", 3)
    assert not read.attack_arithmetic.exact
    read.save(path)
    assert path.read_bytes() == before
    for older in (3, 6, 7):
        exact = make(schema=older)
        assert exact.attack_arithmetic.exact and "attack_arithmetic" not in exact.model_dump(by_alias=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 7, "attack_arithmetic": TF32}, "attack_arithmetic is tf32, but this is schema 7"),
        ({"schema": 8}, "attack_arithmetic is float32, but this is schema 8"),
        ({"schema": 7, "attack_arithmetic": {"name": "float32", "repaired": 1}}, "attacks in float32 are exact, but 1"),
        ({"schema": 8, "attack_arithmetic": {"name": "bf16", "repaired": 0}}, "Input should be 'float32' or 'tf32'"),
        ({"schema": 8, "attack_arithmetic": {"name": "tf32", "repaired": 231}}, "231 images .* run on 230 at most"),
    ],
)
def test_an_arithmetic_that_cannot_be_is_refused(change, said):
    """80 images are right when clean and 50 survive each of four attacks: the attacks were run on 80 + 3 x 50."""
    with pytest.raises(ValidationError, match=said):
        make(**change)


def test_patterns_are_in_records_since_schema_7(tmp_path):
    path = save(tmp_path, make(patterns=["2:4", "channel"]))
    assert json.loads(path.read_text())["patterns"] == ["2:4", "channel"]
    assert load_record(path).patterns == ("2:4", "channel") and make().patterns == ()
    assert make(schema=6).patterns is None and "patterns" not in make(schema=6).model_dump(by_alias=True)
    for wrong in ({"schema": 6, "patterns": ["2:4"]}, {"patterns": None}):
        with pytest.raises(ValidationError, match="patterns are in records since schema 7, but this is schema"):
            make(**wrong)
    with pytest.raises(ValidationError, match="Input should be '2:4' or 'channel'"):
        make(patterns=["1:2"])


@pytest.mark.parametrize("wrong", [[{}], 5, "2:4"])
def test_patterns_that_are_no_names_are_refused_in_one_sentence(wrong):
    rules = plain(changed(name="mine", shard=256)) | {"patterns": wrong}
    about = {"protocol": {"name": "mine", "version": 1, "sha256": identity(rules)}, "rules": rules, "schema": 7}
    with pytest.raises(ValidationError, match="not a list of names"):
        make(**about)


def test_a_record_without_the_patterns_of_its_rules_is_refused():
    own = changed(name="mine", shard=256, patterns=("channel",))
    about = {"protocol": {"name": "mine", "version": 1, "sha256": own.sha256}, "rules": plain(own), "schema": 7}
    assert make(**about, patterns=["2:4", "channel"]).known_rules == own
    assert make("dense", 0.0, **about).patterns == ()  # a reference is not pruned
    with pytest.raises(ValidationError, match=r"rank nets of the patterns \['channel'\], but the net has \['2:4'\]"):
        make(**about, patterns=["2:4"])


def test_a_refusal_comes_back_as_it_was(tmp_path):
    refusal().save(tmp_path / "a.json")
    assert load_record(tmp_path / "a.json") == refusal()


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["cost"].update(train_seconds=1.0),
        lambda values: values.update(official=False),
        lambda values: values["notes"].update(new=1),
        lambda values: values["job"].update(seed=1),
        lambda values: values.update(sha256="0" * 64),
    ],
)
def test_an_edit_is_seen_by_the_hash(tmp_path, change):
    path = save(tmp_path, make())
    edited(path, lambda values: None, sealed=False)
    assert load_record(path) == make()  # writing it again is no edit
    edited(path, change, sealed=False)
    with pytest.raises(PrunebenchError, match=r"was edited.*score the net again"):
        load_record(path)


def key(name, value):
    def change(values):
        *path, last = name.split(".")
        for part in path:
            values = values[int(part) if part.isdigit() else part]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (key("extra", 1), "unknown key 'extra'"),
        (key("score.extra", 1), "unknown key 'score.extra'"),
        (lambda values: values["score"].pop("clean"), "the key 'score.clean' is missing"),
        (key("schema", 1), "schema = 1"),
        (key("score.clean", "80"), "score.clean = '80'"),
        (key("score.clean", 80.0), "score.clean = 80.0"),
        (key("score.clean", True), "score.clean = True"),
        (key("score.clean", None), "score.clean = None"),
        (key("score.clean", -1), "score.clean = -1"),
        (key("score.n", 0), "score.n = 0"),
        (key("score.clean", 101), "rise somewhere in [100, 101, 50, 50, 50, 50]"),
        (key("score.survived.square", 51), "rise somewhere"),
        (key("score.robust", 49), "robust = 49, but 50 survived"),
        (key("net.nonzero", 99), "add up to nonzero = 100, not 99"),
        (key("net.prunable", 999), "add up to prunable = 1000, not 999"),
        (key("net.sha256", "A" * 64), "net.sha256 = "),
        (key("cost.score_seconds", "3"), "cost.score_seconds = '3'"),
        (key("cost.train_passes", 10**400), "cost.train_passes"),
        (key("official", 1), "official = 1"),
        (key("official", "true"), "official = 'true'"),
        (key("job.sparsity", 1.0), "job.sparsity = 1.0"),
        (key("job.sparsity", "0.9"), "job.sparsity = '0.9'"),
    ],
)
def test_a_record_is_strict(tmp_path, change, rule):
    path = save(tmp_path, make())
    edited(path, change, sealed=False)
    with pytest.raises(PrunebenchError) as error:
        load_record(path)
    assert rule in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ['"score_seconds": 3.0', '"torch": "2.11.0"', '"seed": 0', '"sparsity": 0.9'])
def test_no_number_that_is_none(tmp_path, place, number):
    path = save(tmp_path, make())
    text = path.read_text()
    assert text.count(place) == 1
    path.write_text(text.replace(place, f"{place.split(':')[0]}: {number}"))
    with pytest.raises(PrunebenchError, match="is not a record of prunebench"):
        load_record(path)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[1]", "is not a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1, "a": 2}', "a key appears twice"),
        (b'{"refused": "finite"}', "is missing; add it"),
        (b" " * (LARGEST + 1), "larger than"),
    ],
)
def test_other_files_are_no_records(tmp_path, text, rule):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(PrunebenchError, match=rule):
        load_record(tmp_path / "a.json")


def test_a_key_that_stands_twice_could_hide_a_number(tmp_path):
    path = save(tmp_path, make())
    path.write_text(path.read_text().replace('"clean": 80,', '"clean": 99, "clean": 80,'))
    with pytest.raises(PrunebenchError, match="a key appears twice"):
        load_record(path)


def test_load_all_reads_in_order_and_tells_refusals(tmp_path):
    paths = [save(tmp_path, make(seed=seed)) for seed in (2, 0, 1)]
    refusal().save(tmp_path / "refused.json")
    assert list(load_all(tmp_path)) == [*sorted(paths), tmp_path / "refused.json"]
    assert [load_all(tmp_path)[path].job.seed for path in sorted(paths)] == [0, 1, 2]
    assert isinstance(load_all(tmp_path)[tmp_path / "refused.json"], Refusal)
    with pytest.raises(PrunebenchError, match="There is no folder"):
        load_all(tmp_path / "none")


def test_sparsity_is_exact():
    assert [make(sparsity=sparsity).net.sparsity for sparsity in (0.0, 0.55, 0.9, 0.95)] == [0.0, 0.55, 0.9, 0.95]


def test_outcomes_are_the_same_bytes_at_any_time(monkeypatch):
    made = outcomes(100, 80, 50)
    monkeypatch.setattr(time, "localtime", lambda *at: time.struct_time((2031, 2, 3, 4, 5, 6, 0, 34, 0)))
    with zipfile.ZipFile(io.BytesIO(), "w") as file:
        file.writestr("a", b"")
        assert file.infolist()[0].date_time == (2031, 2, 3, 4, 5, 6), "premise: an archive may hold the time"
    assert outcomes(100, 80, 50) == made


def test_recount_accepts_what_was_scored(tmp_path):
    path = save(tmp_path, make())
    recount(path, load_record(path))


def test_recount_takes_survivors_of_one_attack_after_the_other(tmp_path):
    labels = np.arange(4)
    bits = {"a": np.array([1, 1, 0, 1], bool), "b": np.array([0, 1, 1, 1], bool)}
    raw = pack_outcomes(labels, np.array([0, 1, 2, 9]), bits, {}, {})  # right: 0 1 2; after a: 0 1; after b: 1
    score = {"n": 4, "clean": 3, "survived": {"a": 2, "b": 1}, "robust": 1, "weak": {}, "curve": []}
    path = save(tmp_path, make(score=score, outcomes=sha256_of(raw)))
    write_bytes(outcomes_path(path), raw)
    recount(path, load_record(path))
    edited(path, key("score.survived.a", 3), sealed=True)
    with pytest.raises(PrunebenchError, match="says a = 3, but its outcomes say 2"):
        recount(path, load_record(path))


@pytest.mark.parametrize(
    ("score", "rule"),
    [
        ({"clean": 81}, "says clean = 81, but its outcomes say 80"),
        ({"robust": 51, "survived": dict.fromkeys(ATTACKS, 51)}, "says apgd-ce = 51, but its outcomes say 50"),
        ({"n": 101}, "differ in the images"),
        ({"survived": {"apgd-ce": 50}}, "differ in the images or attacks of"),
        ({"survived": dict.fromkeys((*ATTACKS, "more"), 50)}, "survived/more"),
    ],
)
def test_recount_sees_counts_changed_with_their_hash(tmp_path, score, rule):
    path = save(tmp_path, make())
    edited(path, lambda values: values["score"].update(score), sealed=True)
    with pytest.raises(PrunebenchError, match=rule):
        recount(path, load_record(path))


def test_recount_sees_other_and_missing_outcomes(tmp_path):
    path = save(tmp_path, make())
    write_bytes(outcomes_path(path), outcomes(100, 80, 49))
    with pytest.raises(PrunebenchError, match="is not the outcomes of"):
        recount(path, load_record(path))
    outcomes_path(path).unlink()
    with pytest.raises(PrunebenchError, match="No such file"):
        recount(path, load_record(path))


def npz(**arrays):
    sound = {name.replace("/", "__"): array for name, array in np.load(io.BytesIO(outcomes(100, 80, 50))).items()}
    buffer = io.BytesIO()
    np.savez(buffer, **{name.replace("__", "/"): array for name, array in (sound | arrays).items()})
    return buffer.getvalue()


def bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("labels.npy", bytes(LARGEST + 1))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (lambda: npz(), None),
        (lambda: npz(extra=np.zeros(3)), r"attacks of \['extra'\]"),
        (lambda: npz(survived__square=np.ones(1, bool)), "survived/square"),
        (lambda: npz(survived__square=np.full(100, 2, np.int8)), "survived/square"),
        (lambda: npz(clean=np.ones(100, bool)), "contradicts itself"),
        (lambda: npz(labels=np.array([None] * 100)), "is not the outcomes of"),
        (lambda: outcomes(100, 80, 50)[:-30], "is not the outcomes of"),
        (lambda: b"", "is not the outcomes of"),
        (lambda: b"\x80\x04N.", "is not the outcomes of"),
        (bomb, "unpacks to more than"),
    ],
)
def test_recount_of_a_foreign_file_is_one_sentence(tmp_path, raw, rule):
    data = raw()
    path = save(tmp_path, make(outcomes=sha256_of(data)))
    write_bytes(outcomes_path(path), data)
    if rule is None:
        recount(path, load_record(path))
        return
    with pytest.raises(PrunebenchError, match=rule):
        recount(path, load_record(path))
