"""The page on flags, on paper: levels of a flag, and how its verdicts match the slack of records made up for it."""

from __future__ import annotations

import sys

import pytest

from prunebench.bench.beyond import Beyond
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.facts import Flag
from prunebench.bench.score.flags import THRESHOLDS
from tests.support.records import make, refusal, save
from tools import flag_levels
from tools.flag_levels import Level, Slack, distinct, groups, hits, level, page, records_in, slack_of


def flag(value, threshold=0.02, name="black-box-wins"):
    return Flag(name=name, value=value, threshold=threshold, sentence="Said.")


def net(seed, value=0.0, slack=None, **job):
    """A record of 100 images, 50 robust: one flag of this value, and `slack` images less under other attacks."""
    more = {}
    if slack is not None:
        best = {"suite": "best-1", "robust": 50 - slack, "by": {"malt": slack}, "long": 0, "passes": 0}
        more["beyond"] = Beyond.model_validate({"best": best})
    return make(seed=seed, score={"flags": [flag(value).model_dump()]}, **job, **more)


def test_a_level_on_paper():
    """Of 1 to 200, the median is 100.5; 198 is the smallest that 99 % do not exceed; 198 to 200 are above 197."""
    assert level([flag(float(i), 197.0) for i in range(1, 201)]) == Level(100.5, 198.0, 3, 200)
    assert level([flag(0.1), flag(0.3), flag(None)]) == Level(0.2, 0.3, 2, 2)
    assert level([flag(None)]) is None and level([]) is None
    assert str(Level(0.0123456, 0.5, 1, 9)) == "0.0123, 0.5, 1 of 9"


def test_a_level_counts_by_the_threshold_in_the_record():
    assert level([flag(0.03, 0.02), flag(0.03, 0.04)]).up == 1


def test_groups_are_ordered_by_role_and_sparsity():
    shuffled = {"job": {"options": {"shuffle": True}}}
    records = [
        make("random", 0.9),
        make("imp", 0.95),
        make("imp", 0.9),
        make("hydra", 0.9),
        make("imp", 0.9, **shuffled),
        make("dense", 0.0),
    ]
    found = {title: [record.job.label for record in group] for title, group in groups(records).items()}
    assert list(found) == ["unpruned", "methods .9", "methods .95", "controls .9"]
    assert found["methods .9"] == ["imp", "hydra"] and found["controls .9"] == ["random", "imp:shuffle=true"]


def test_slack_is_the_difference_to_the_best_known_number():
    assert slack_of(net(0, slack=3)) == Slack(3, 100)
    assert slack_of(net(0)) is None


@pytest.mark.parametrize(
    ("slack", "percent", "there"),
    [
        (Slack(2, 100), 1, True),
        (Slack(1, 100), 1, False),
        (Slack(5, 500), 1, False),
        (Slack(6, 500), 1, True),
        (Slack(0, 9), 0, False),
    ],
)
def test_slack_above_a_limit(slack, percent, there):
    assert slack.above(percent) is there


def test_hits_on_paper():
    """Of three nets with slack above 1 %, two are up; of three without, one is: two of three raised flags are right."""
    nets = [(True, 2), (True, 9), (False, 2), (True, 1), (False, 0), (False, 1)]
    found = hits([(up, Slack(images, 100)) for up, images in nets], 1)
    assert found.counts == {(True, True): 2, (False, True): 1, (True, False): 1, (False, False): 2}
    assert found.cells == ["2 of 3 (67 %)", "2 of 3 (67 %)", "2 of 3 (67 %)"]
    assert hits([(False, Slack(0, 100))], 1).cells == ["none", "1 of 1 (100 %)", "none"]


def cells(text, first):
    """The cells of every table row that begins with `first`."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [row[1:] for row in rows]


def test_the_page_on_paper():
    """imp: slack 5 and up, slack 0 and down; hydra: slack 3 and down, but up at .01; magnitude: slack not measured."""
    records = [
        net(0, 0.04, 5),
        net(1, 0.0, 0),
        net(0, 0.015, 3, pruner="hydra"),
        net(0, 0.5, pruner="magnitude"),
    ]
    text = page(records, "made so")
    assert "    made so\n" in text
    assert "## digits-linf: 4 nets" in text and "3 nets with a best-known number" in text
    levels, matches = cells(text, "`black-box-wins`")
    assert levels == ["0.02", "0.0275, 0.5, 2 of 4"]
    whole, half, all_of_one = "1 of 1 (100 %)", "1 of 2 (50 %)", "2 of 2 (100 %)"
    assert matches == ["1 of 3", half, whole, whole, half, whole, whole, "5.0 %", "1.5 %"]
    assert cells(text, "0.02") == [["1", *matches[1:]]]
    assert cells(text, "0.01") == [
        ["2", all_of_one, whole, all_of_one, all_of_one, whole, all_of_one, "4.0 %", "0.0 %"]
    ]
    assert cells(text, "`imp`") == [["1 of 2", whole, whole, whole, whole, whole, whole, "5.0 %", "0.0 %"]]
    missed = "0 of 1 (0 %)"
    assert cells(text, "`hydra`") == [["0 of 1", missed, "none", "none", missed, "none", "none", "none", "3.0 %"]]
    assert not cells(text, "`magnitude`")
    assert [len(cells(text, f"`{name}`")) for name in THRESHOLDS if name != "black-box-wins"] == [1] * 13
    assert cells(text, "`planted`") == [["0.05", "not measured"]]


def test_a_page_without_slack_says_so():
    text = page([net(0, 0.04)], "made so")
    assert "No best-known number has been measured here." in text and "found |" not in text


def test_one_record_counts_per_net(tmp_path):
    """A record with the best-known number replaces the one without, from whichever folder; journals are passed over."""
    old, new = tmp_path / "old", tmp_path / "new"
    save(old, net(0, 0.04)), save(old, net(1, 0.0))
    refusal().save(old / "refused.json")
    net(0, 0.04, 5).save(new / "imp-s0.9-seed0" / "record.json")
    (new / "imp-s0.9-seed0" / "journal").mkdir()
    (new / "imp-s0.9-seed0" / "journal" / "shard.json").write_text("no record")
    for folders in ([old, new], [new, old]):
        found = {record.job.seed: slack_of(record) for record in records_in(folders)}
        assert found == {0: Slack(5, 100), 1: None}
    (new / "other.json").write_text("no record")
    with pytest.raises(PrunebenchError, match="not valid JSON"):
        records_in([new])


def test_folders_without_records_are_refused(tmp_path):
    with pytest.raises(PrunebenchError, match="hold no record"):
        records_in([tmp_path])


def test_two_squares_are_all_there_are_on_one_pixel():
    assert distinct((1, 1, 1)) == 2
    assert distinct((1, 2, 2)) > 2


def test_the_command_prints_the_page(tmp_path, monkeypatch, capsys):
    save(tmp_path, net(0, 0.04, 5))
    monkeypatch.setattr(sys, "argv", ["flag_levels", str(tmp_path)])
    flag_levels.main()
    out = capsys.readouterr().out
    assert out == page(records_in([tmp_path]), f"python -m tools.flag_levels {tmp_path}") + "\n"
