"""Rules are exact, strict, and known by their hash."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.job import Job
from prunebench.bench.protocol import PROTOCOLS, Protocol, as_sparsity, from_values, load
from prunebench.bench.record import load_record

DIGITS = PROTOCOLS["digits-linf"]


def values(**changes):
    return json.loads(DIGITS.model_dump_json()) | {"name": "mine"} | changes


@pytest.mark.parametrize("sparsity", [0, "0.0", 0.55, "0.9", Decimal("0.999"), 1e-7])
def test_sparsity_is_the_decimal_that_is_printed(sparsity):
    assert as_sparsity(sparsity) == Decimal(str(sparsity))


def test_055_of_100_is_55():
    assert as_sparsity(0.55) * 100 == 55
    assert 0.55 * 100 > 55  # what binary floats would make of it


@pytest.mark.parametrize(
    "sparsity", [1, 1.0, -0.1, "1.5", float("nan"), "sNaN", float("inf"), "", "90%", True, None, "0." + "9" * 40]
)
def test_sparsity_outside_is_refused(sparsity):
    with pytest.raises(PrunebenchError, match=r"not in \[0, 1\).*write 0.9 for 90 %"):
        as_sparsity(sparsity)


@given(st.integers(0, 999), st.integers(0, 6))
def test_sparsity_has_one_spelling(thousandths, zeros):
    text = f"0.{thousandths:03d}"
    assert str(as_sparsity(text + "0" * zeros)) == str(as_sparsity(text))
    assert Fraction(as_sparsity(text)) == Fraction(thousandths, 1000)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_built_ins_are_official_and_load_by_name(name):
    protocol = load(name)
    assert protocol.official
    assert from_values(json.loads(protocol.model_dump_json()), "copy").sha256 == protocol.sha256


def test_eps_are_the_exact_ones():
    assert {name: protocol.threat.eps for name, protocol in PROTOCOLS.items()} == {
        "digits-linf": "0.2",
        "mnist-linf": "0.3",
        "fashion-linf": "0.1",
        "cifar10-small-linf": "8/255",
        "cifar10-linf": "8/255",
        "cifar10-linf-vgg16": "8/255",
        "digits-l2": "0.6",
        "mnist-l2": "2",
        "cifar10-l2": "0.5",
    }
    assert PROTOCOLS["cifar10-linf"].threat.radius == 8 / 255


@pytest.mark.parametrize(("name", "eps", "step"), [("digits", 0.6, 0.15), ("mnist", 2, 0.5), ("cifar10", 0.5, 0.125)])
def test_the_rules_in_l2_are_those_in_linf_for_another_threat(name, eps, step):
    """The training's ten steps are a quarter of eps each, 2.5 eps together."""
    linf, l2 = PROTOCOLS[f"{name}-linf"], PROTOCOLS[f"{name}-l2"]
    assert (l2.threat.norm, l2.threat.radius, l2.training.steps) == ("L2", eps, 10)
    assert float(Fraction(l2.training.step_size)) == step
    training = linf.training.model_copy(update={"step_size": l2.training.step_size})
    assert linf.model_copy(update={"name": l2.name, "threat": l2.threat, "training": training}) == l2


@pytest.mark.parametrize(
    ("name", "data", "model", "sparsities", "test"),
    [
        ("fashion-linf", "fashion-mnist", "mnist-cnn", (0.9, 0.95, 0.99), 500),
        ("cifar10-small-linf", "cifar10", "resnet-small", (0.8, 0.9, 0.95), 1000),
    ],
)
def test_boards_that_a_laptop_makes(name, data, model, sparsities, test):
    """Part of the training and test images, with an attack that can go half as far again as the edge of the ball."""
    rules = PROTOCOLS[name]
    assert (rules.data, rules.model, rules.sparsities, rules.seeds) == (data, model, sparsities, (0, 1, 2))
    assert (rules.train, rules.test) == (15_000, test)
    reach = rules.training.steps * Fraction(rules.training.step_size)
    assert reach == Fraction(3, 2) * Fraction(rules.threat.eps)
    assert name.replace("linf", "l2") not in PROTOCOLS


def test_every_rule_is_in_the_hash():
    hashes = {
        from_values(values(**change), "x").sha256
        for change in (
            {},
            {"version": 2},
            {"units": 3.0},
            {"name": "another"},
            {"threat": {"norm": "L2", "eps": "0.2"}},
            {"threat": {"norm": "Linf", "eps": "1/5"}},
            {"test": None},
            {"attack_seed": 1},
            {"patterns": ["2:4"]},
            {"patterns": ["2:4", "channel"]},
        )
    }
    assert len(hashes) == 10


def test_rules_that_ask_for_no_pattern_have_the_hash_that_they_always_had():
    """Of each protocol of the published records, whose rules know no patterns."""
    records = Path(__file__).parents[1] / "leaderboard" / "records"
    plain = {}
    for folder in records.iterdir():
        read = (load_record(path) for path in sorted(folder.glob("*.json")))
        if record := next((one for one in read if one.rules is not None), None):
            plain[record.protocol.sha256] = record.rules
    assert plain and not any("patterns" in rules for rules in plain.values())
    for sha256, rules in plain.items():
        read = Protocol.model_validate(rules)
        assert read.sha256 == sha256 and read.model_dump(mode="json") == rules
        assert Protocol.model_validate(rules | {"patterns": []}).sha256 == sha256
        assert Protocol.model_validate(rules | {"patterns": ["channel"]}).sha256 != sha256


def test_the_default_grid_is_no_rule(tmp_path):
    """A board grows by other sparsities and seeds; so the built-in rules stay official under their name."""
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "digits-linf"\nsparsities = [0.5]\nseeds = [77]\n')
    rules = load(mine)
    assert rules.sparsities == (0.5,) and rules.official and rules.sha256 == PROTOCOLS["digits-linf"].sha256
    mine.write_text('base = "digits-linf"\nunits = 3.0\n')  # the twin
    with pytest.raises(PrunebenchError, match="differ from the built-in ones"):
        load(mine)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"threat": {"norm": "Linf", "eps": "8/0"}}, "threat.eps = '8/0': '8/0' divides by zero"),
        ({"threat": {"norm": "Linf", "eps": "-0.1"}}, "'-0.1' is not a number"),
        ({"threat": {"norm": "Linf", "eps": "0"}}, "'0' is not above 0"),
        ({"threat": {"norm": "Linf", "eps": 0.3}}, "threat.eps = 0.3"),
        ({"threat": {"norm": "L1", "eps": "1"}}, "threat.norm = 'L1'"),
        ({"threat": {"norm": "Linf"}}, "the key 'threat.eps' is missing"),
        ({"sparsities": [1.0]}, "not in [0, 1)"),
        ({"sparsities": [-0.5]}, "not in [0, 1)"),
        ({"sparsities": ["0.9"]}, "sparsities.0 = '0.9'"),
        ({"sparsities": []}, "sparsities"),
        ({"sparsities": [0.9, 0.9]}, "has a duplicate"),
        ({"patterns": ["1:2"]}, "patterns.0 = '1:2'"),
        ({"patterns": ["2:4", "2:4"]}, "has a duplicate"),
        ({"seeds": [-1]}, "seeds.0 = -1"),
        ({"seeds": [0, 0]}, "has a duplicate"),
        ({"units": "4"}, "units = '4'"),
        ({"units": -1.0}, "units = -1.0"),
        ({"units": True}, "units = True"),
        ({"units": float("inf")}, "units = inf"),
        ({"units": float("nan")}, "units = nan"),
        ({"test": 0}, "test = 0"),
        ({"test": 1.0}, "test = 1.0"),
        ({"name": "../x"}, "name = '../x'"),
        ({"name": "a\n"}, "name = 'a\\n'"),
        ({"attacks": "rand"}, "attacks = 'rand'"),
    ],
)
def test_a_broken_rule_is_named(change, rule):
    with pytest.raises(PrunebenchError) as error:
        from_values(values(**change), "mine.toml")
    assert str(error.value).startswith("The protocol mine.toml breaks the rules: ")
    assert rule in str(error.value)
    assert str(error.value).count("\n") == 0


def test_the_values_above_are_sound_without_the_change():
    assert from_values(values(), "mine.toml").name == "mine"


TOML = """
base = "digits-linf"
name = "mine"
sparsities = [0.5]
[training]
epochs = 2
"""


def write(folder, text, name="mine.toml"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def test_a_toml_file_changes_what_it_names_and_keeps_the_rest(tmp_path):
    protocol = load(write(tmp_path, TOML))
    assert (protocol.sparsities, protocol.training.epochs) == ((0.5,), 2)
    assert protocol.training.model_copy(update={"epochs": 20}) == DIGITS.training
    assert protocol.threat == DIGITS.threat
    assert not protocol.official


def test_a_toml_file_may_repeat_a_built_in_but_not_take_its_name(tmp_path):
    assert load(write(tmp_path, 'base = "digits-linf"')).official
    with pytest.raises(PrunebenchError, match="give it another name"):
        load(write(tmp_path, TOML.replace('"mine"', '"digits-linf"')))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (TOML + "epohcs = 3", "unknown key 'training.epohcs'"),
        (TOML + '[threat]\neps = "8/0"', "divides by zero"),
        (TOML + "ema = nan", "training.ema = nan"),
        (TOML + "lr = inf", "training.lr = inf"),
        (TOML.replace("digits-linf", "digit-linf"), "did you mean 'digits-linf'"),
        ("base = [1]", "Unknown protocol '[1]'"),
        ("base = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        ("", "is missing; add it"),
        ('base = "digits-linf"\nthreat = 3', "threat = 3"),
    ],
)
def test_a_wrong_toml_file_is_one_sentence(tmp_path, text, rule):
    path = write(tmp_path, text)
    with pytest.raises(PrunebenchError) as error:
        load(path)
    assert rule in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("threat", "training", "short"),
    [
        ({"norm": "L2", "eps": "2"}, {}, True),  # the trap: the ten steps of .05 are of the base
        ({"norm": "L2", "eps": "0.5"}, {}, False),  # to the edge and no further
        ({"norm": "L2", "eps": "0.501"}, {}, True),
        ({"norm": "L2", "eps": "2"}, {"step_size": "0.2"}, False),
        ({"norm": "L2", "eps": "2"}, {"steps": 40}, False),
        ({"norm": "L2", "eps": "2"}, {"objective": "trades"}, True),
        ({"norm": "L2", "eps": "2"}, {"objective": "fgsm-rs"}, False),  # its step is 1.25 eps
        ({"norm": "Linf", "eps": "8/255"}, {"steps": 4, "step_size": "2/255"}, False),
    ],
)
def test_an_attack_that_cannot_reach_eps_is_refused(threat, training, short):
    changes = {"base": "digits-linf", "name": "mine", "threat": threat, "training": training}
    if short:
        said = rf"mine breaks .* steps of step_size \S+ cannot reach the edge of the ball of eps {threat['eps']}; raise"
        with pytest.raises(PrunebenchError, match=said):
            from_values(changes, "mine")
    else:
        assert from_values(changes, "mine").threat.eps == threat["eps"]


def test_a_net_trained_by_such_rules_still_opens():
    """Its header is validated, not loaded as rules that somebody wrote."""
    changes = {"name": "mine", "threat": {"norm": "L2", "eps": "2"}}
    assert Protocol.model_validate_json(json.dumps(values(**changes))).threat.radius == 2


def test_unknown_names_list_the_choices(tmp_path):
    with pytest.raises(PrunebenchError, match=r"did you mean 'digits-linf'\? Choose from: cifar10-l2, .*\*.toml"):
        load("digits-lnf")
    with pytest.raises(PrunebenchError, match="No such file"):
        load(tmp_path / "none.toml")


def test_the_label_of_a_job_is_what_is_typed():
    assert Job(pruner="imp", sparsity=0.9, seed=0).label == "imp"
    job = Job(pruner="imp", options={"rounds": 5, "global": True, "alpha": 0.5}, sparsity=0.9, seed=3)
    assert job.label == "imp:alpha=0.5,global=true,rounds=5"
    assert job.name == "imp-alpha=0.5-global=true-rounds=5-s0.9-seed3"


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_the_name_of_a_job_is_a_file_name(pruner, options):
    name = Job(pruner=pruner, options=options, sparsity=0.9, seed=0).name
    assert "/" not in name
    assert name.endswith("-s0.9-seed0")
    assert name.isascii()
    assert name.isprintable()
    assert name[:1] != "."


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": seed} for seed in (-1, 0.0, "0", True, None, 2**63)),
        *({"sparsity": sparsity} for sparsity in (1.0, -0.1, "0.9", float("nan"))),
        *({"options": {"a": value}} for value in (float("nan"), float("inf"), None, [1])),
        {"x": 1},
    ],
)
def test_a_job_is_strict(change):
    sound = {"pruner": "imp", "sparsity": 0.9, "seed": 0}
    assert Job.model_validate(sound).seed == 0
    with pytest.raises(ValueError, match="validation error"):
        Job.model_validate(sound | change)


def test_rules_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        DIGITS.version = 2
    assert isinstance(DIGITS, Protocol)
