"""What a new user types first: help, versions, completion, lists, folders, and what each verb says in JSON."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from rich.console import Console

from prunebench.bench.cli import doctor, main, show, watch
from prunebench.bench.cli.examples import EXAMPLES
from prunebench.bench.cli.given import seeds_of, sparsities_of, split
from prunebench.bench.datasets import DATASETS
from prunebench.bench.errors import PrunebenchError, unknown
from prunebench.bench.protocol import PROTOCOLS
from prunebench.bench.spec import registered
from prunebench.bench.stand_in import StandIn, stand_in
from tests.support.nets import SMALL, STORE
from tests.support.records import make, save


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("PRUNEBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def mistake(prunebench, *arguments):
    """The one sentence that a mistake ends in."""
    code, out, err = prunebench(*arguments)
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith("prunebench: ")
    return err


# Help


def test_version_and_short_help(prunebench):
    assert prunebench("--version") == (0, f"prunebench {version('prunebench')}\n", "")
    for words in ((), ("train",)):
        assert prunebench(*words, "-h") == prunebench(*words, "--help")
        assert prunebench(*words, "-h")[0] == 0


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_is_quiet_or_speaks_json_on_request(verb):
    assert {"quiet", "as_json"} <= inspect.signature(main.VERBS[verb]).parameters.keys()


@pytest.mark.parametrize("example", [example for examples in EXAMPLES.values() for example in examples])
def test_examples_can_be_parsed(example):
    """Every verb, argument and option in them exists, with a value of the right type."""
    parse(example)


def test_an_example_with_a_wrong_option_would_be_seen():
    with pytest.raises(Exception, match="No such option"):
        parse("train digits-linf --pruner imp --out my --sparsities 0.9")


def parse(example):
    verb, *words = re.findall(r"'[^']*'|\S+", example)
    command = typer.main.get_command(main.app).commands[verb]
    command.make_context(verb, [word.strip("'") for word in words])


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("prunebench tr", ["train"]),
        ("prunebench train digits", ["digits-l2", "digits-linf"]),
        ("prunebench run digits-linf --pruner i", ["imp", "iwi", "iwi-dense"]),
        ("prunebench verify claims --level q", ["quick"]),
    ],
)
def test_the_shell_completes(prunebench, monkeypatch, line, wanted):
    monkeypatch.setenv("_PRUNEBENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert prunebench()[1].split() == wanted


def test_help_and_completion_import_no_torch():
    code = "import sys; from prunebench.bench.cli import main; print({'torch', 'numpy'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "set()"


# Lists and folders


def test_lists_of_values():
    assert split("imp,magnitude") == ["imp", "magnitude"]
    assert split("imp:rounds=3,shuffle=true,magnitude") == ["imp:rounds=3,shuffle=true", "magnitude"]
    assert split("mine.py:Mine:a=1,other.py:Other:b=2") == ["mine.py:Mine:a=1", "other.py:Other:b=2"]
    assert sparsities_of(["0.9,0.95", "0.5"]) == [0.9, 0.95, 0.5]
    assert seeds_of(["0,1", "7"]) == [0, 1, 7]
    for bad in ("-1", "1.5", "x", "", "1,", "9" * 30, "²"):
        with pytest.raises(PrunebenchError, match="is no seed; write whole numbers"):
            seeds_of([bad])


@pytest.mark.slow
def test_run_takes_lists_and_goes_on_where_it_was(prunebench, here, quick, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    grid = ("run", "small.toml", "--pruner", "random", "--sparsity", "0.8,0.9", "--seed", "0", "--device", "cpu")
    code, out, err = prunebench(*grid, "--json")
    found = json.loads(out)
    assert code == 0 and [job["how"] for job in found["jobs"]] == ["done"] * 2
    assert {job["job"] for job in found["jobs"]} == {"random-s0.8-seed0", "random-s0.9-seed0"}
    assert any(file.endswith("runs/board.json") for file in found["written"]) and "goes on" not in err
    assert re.search(r"\(1 of 2 jobs, about \d+ s left\)$", err, flags=re.MULTILINE)
    code, _, err = prunebench(*grid)
    assert code == 0 and "runs has records of 2 of them and nets of 0 more; the run goes on from there.\n" in err
    assert "(1 of 2 jobs)" in err and "left" not in err  # what was kept says nothing about the pace


def test_one_net_has_one_of_each(prunebench, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    for pruner, sparsity, said in (
        ("imp,random", "0.9", "--pruner imp,random"),
        ("imp", "0.9,0.95", "--sparsity 0.9,0"),
    ):
        words = ("train", "small.toml", "--pruner", pruner, "--sparsity", sparsity, "--out", "o")
        assert f"{said}" in (found := mistake(prunebench, *words)) and "use prunebench run" in found


def test_a_choice_in_capitals_is_suggested():
    assert "did you mean 'imp'?" in str(unknown("pruner", "IMP", registered()))
    assert "did you mean 'digits-linf'?" in str(unknown("protocol", "Digits-Linf", PROTOCOLS))


def test_all_names_that_go_on_are_suggested():
    """Three at most, in the order of the table; a similar name only if none begins so, and nothing for nothing."""
    names = ("digits-linf", "cifar10-linf", "cifar10-linf-vgg16", "digits-l2", "cifar10-l2", "cifar10-small")
    suggested = {
        "digits": "'digits-linf' or 'digits-l2'?",
        "CIFAR10": "'cifar10-linf' or 'cifar10-linf-vgg16' or 'cifar10-l2'?",
        "CIFAR10-linf": "'cifar10-linf'?",
        "digit-l2": "'digits-l2'?",
    }
    for name, near in suggested.items():
        assert f"; did you mean {near} Choose from: cifar10-l2, " in str(unknown("protocol", name, names))
    assert str(unknown("protocol", "", names)).startswith("Unknown protocol ''. Choose from: cifar10-l2, ")


def test_train_ends_with_its_accuracy_and_the_next_command(prunebench, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    train = ("train", "small.toml", "--pruner", "random", "--sparsity", "0.9", "--out", "a net")
    code, out, err = prunebench(*train)
    assert code == 0 and out.endswith("Next: prunebench score 'a net/net.safetensors'\n")
    assert err.count("ended near chance") == 1  # it was said once, while the net was trained
    facts = json.loads(prunebench(*train, "--json")[1])
    curve = facts["header"]["stages"][-1]["curve"][-1]
    said = facts["validation"]
    assert said == {"stage": "train", **{key: curve[key] for key in ("epoch", "clean", "robust")}}
    assert f"{said['clean']:.1%} clean, {said['robust']:.1%} under the training's attack" in out
    # A folder is as good as the net in it.
    assert prunebench("inspect", "a net") == prunebench("inspect", "a net/net.safetensors")
    (tmp_path / "empty").mkdir()
    assert "The folder empty holds no net.safetensors" in mistake(prunebench, "score", "empty")


def test_nets_records_and_checkpoints_are_told_apart(prunebench, tmp_path):
    save(tmp_path, make(), "a"), save(tmp_path, make(seed=1), "b")
    a, b = "digits-linf/a.json", "digits-linf/b.json"
    for name in ("digits-linf/a.net.safetensors", "lone.safetensors", "theirs.pt"):
        (tmp_path / name).write_bytes(b"net")
    said = mistake(prunebench, "compare", "digits-linf/a.net.safetensors", b)
    assert "a.net.safetensors is a net, but a record is needed; give its record, digits-linf/a.json." in said
    assert "score it first: prunebench score lone.safetensors" in mistake(prunebench, "compare", "lone.safetensors", b)
    assert "holds no record.json" in mistake(prunebench, "compare", a, "digits-linf")
    assert "prunebench import theirs.pt --arch" in mistake(prunebench, "score", "theirs.pt")
    assert "There is no file x.pt, and x.pt is no net" in mistake(prunebench, "score", "x.pt")
    assert "a.json is a JSON file, not a net" in mistake(prunebench, "score", a)


def test_small_verbs_speak_json(prunebench, tmp_path):
    save(tmp_path / "runs" / "records", make())
    found = json.loads(prunebench("site", "runs", "--out", "web", "--json")[1])
    assert found == {"written": ["web/index.html"], "boards": 1, "rows": 1}
    found = json.loads(prunebench("new", "mine", "--json")[1])
    assert found["next"] == "prunebench check mine/mine.py:Mine" and "mine/mine.py" in found["written"]
    found = json.loads(prunebench("rank", "runs", "--json")[1])
    assert found["files"] == [] and [len(board["rows"]) for board in found["boards"]] == [1]


# Tables


def printed(capsys, columns, *, at):
    """A table of these columns (title -> cell) printed at a width."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(at)) if at else patch.delenv("COLUMNS", raising=False)
        show.out(show.table(*columns, rows=[tuple(columns.values())], right=tuple(columns)[1:]))
    return capsys.readouterr().out


def test_a_table_loses_columns_before_it_breaks_cells(capsys):
    """Cells of 6, 10, 10 and 10 letters and gaps of two need 6 + 2 + 3 * 10 + 2 * 2 = 42 columns."""
    columns = {"first": "aaaaaa", "second": "b" * 10, "third": "c" * 10, "fourth": "d" * 10}
    whole = printed(capsys, columns, at=42)
    assert whole.splitlines()[1].split() == list(columns.values()) and "Left out" not in whole
    short = printed(capsys, columns, at=41)
    assert short.splitlines()[1].split() == list(columns.values())[:3]
    assert short.splitlines()[-1].startswith("Left out for lack of space: fourth; ")
    shorter = printed(capsys, columns, at=25)
    assert shorter.splitlines()[1].split() == list(columns.values())[:2] and "space: third, fourth;" in shorter


def test_without_a_terminal_a_table_is_as_wide_as_its_text(capsys):
    columns = {"first": "a" * 100, "second": "b" * 200}
    assert printed(capsys, columns, at=None).splitlines()[1] == f"{'a' * 100}  {'b' * 200}"


# Progress and interruptions


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def test_the_time_left_on_paper(monkeypatch, capsys):
    """10 of 40 passes in 20 s, then a second job of four: 60 s left of the job; 3 jobs at 50 s each."""
    monkeypatch.setattr(watch, "time", clock := Clock())
    with watch.Watch(quiet=False, jobs=4) as shown:
        shown.report("a", "one: epoch 1/2", 0, 40)
        clock.now = 20.0
        shown.report("a", "two: epoch 1/9", 10, 40)  # another stage of the same job
        shown.finish("kept", "kept", worked=False)
        clock.now = 50.0
        shown.finish("a", "done")
    err = capsys.readouterr().err
    assert "a: two: epoch 1/9, 25%, about 1 min 00 s left\n" in err
    assert "kept: kept (1 of 4 jobs)\n" in err and "a: done (2 of 4 jobs, about 1 min 40 s left)\n" in err


def test_a_count_that_falls_is_another_one(monkeypatch, capsys):
    """Attacks follow training: 5 of 10 in the 20 s since the first of them leave 20 s."""
    monkeypatch.setattr(watch, "time", clock := Clock())
    with watch.Watch(quiet=False) as shown:
        shown.report("a", "train", 99, 100)
        clock.now = 100.0
        shown.report("a", "attack", 0, 10)
        clock.now = 120.0
        shown.report("a", "attack", 5, 10)
    assert capsys.readouterr().err == "a: attack, 50%, about 20 s left\n"


def test_ctrl_c_says_where_it_stopped_and_what_to_type(prunebench, tmp_path, monkeypatch):
    from prunebench.bench.grid import task

    def interrupted(*_, report, **__):
        report("search 1: epoch 3/9", 30, 90)
        raise KeyboardInterrupt

    (tmp_path / "small.toml").write_text(SMALL)
    monkeypatch.setattr(task, "train", interrupted)
    words = ("train", "small.toml", "--pruner", "random", "--sparsity", "0.9", "--out", "a b")
    code, out, err = prunebench(*words)
    assert (code, out) == (130, "")
    assert "random-s0.9-seed0: stopped (search 1: epoch 3/9; 33% done)\n" in err
    assert err.endswith(f"goes on from there: prunebench {' '.join(words[:-1])} 'a b'\n")
    stages = tmp_path / "a b" / "stages"
    for name in ("one/done", "two/done", "three/partial"):
        (stages / name).parent.mkdir(parents=True)
        (stages / f"{name}.safetensors").touch()
    assert "a b holds 2 finished and 1 begun stages; training goes on from there.\n" in prunebench(*words)[2]
    assert "goes on from there.\n" not in prunebench(*words, "--quiet")[2]


def test_ctrl_c_says_what_a_verb_leaves_behind(prunebench, tmp_path, monkeypatch):
    """`rank --write` writes several files; `rank` alone writes nothing."""
    from prunebench.leaderboard import check

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "records").mkdir()
    monkeypatch.setattr(check, "write", interrupted)
    monkeypatch.setattr(check, "look", interrupted)
    code, _, err = prunebench("rank", "records", "--write")
    assert code == 130 and "what is written stays; the same command writes the rest: prunebench rank records" in err
    code, _, err = prunebench("rank", "records")
    assert code == 130 and "nothing is left half-done; the same command begins again: prunebench rank records" in err


def test_a_terminal_shows_something_at_once(monkeypatch):
    """Before anything is imported for the verb; nothing elsewhere, and nothing is left behind."""
    for terminal in (True, False):
        said = []

        class Spinner:
            def __init__(self, text, console, said=said):
                self.text, self.said = text, said

            def start(self):
                self.said.append(self.text)

            def stop(self):
                self.said.append("stopped")

        monkeypatch.setattr(watch, "Status", Spinner)
        monkeypatch.setattr(watch, "Console", lambda terminal=terminal, **_: Console(force_terminal=terminal))
        watched = main._watched("train", lambda said=said, **_: said.append("worked"))
        watched(quiet=False)
        assert said == (["prunebench train: starting", "worked", "stopped"] if terminal else ["worked"])
        said.clear()
        watched(quiet=True)
        assert said == ["worked"]


# Without the data


@pytest.mark.slow
def test_plan_needs_no_data(prunebench, tmp_path):
    (tmp_path / "far.toml").write_text(
        SMALL.replace('base = "digits-linf"', 'base = "mnist-linf"').replace('step_size = "0.2"', 'step_size = "0.3"')
    )
    code, out, err = prunebench("plan", "far.toml", "--pruner", "random", "--sparsity", "0.9", "--seconds", "0.01")
    assert (
        code == 0
        and "random" in out
        and err == ("mnist is not in data: these are the costs with noise of its shape and size in its place.\n")
    )


def test_a_stand_in_has_the_shape_and_size_of_the_data():
    """The twin: what is here is not replaced."""
    noise = stand_in(STORE, "mnist")
    assert isinstance(noise, StandIn) and stand_in(STORE, "digits") is STORE
    train, validation = noise.training("mnist", validation=100)
    assert (len(train), len(validation), len(noise.testing("mnist"))) == (59_900, 100, 10_000)
    assert train.images.shape[1:] == (1, 28, 28) and set(train.labels.tolist()) == set(range(10))
    digits = STORE.training("digits", validation=0)[0], STORE.testing("digits")
    assert [len(split) for split in digits] == [*DATASETS["digits"].images] == [1297, 500]


def test_doctor_gives_a_verdict_for_each_protocol(prunebench, monkeypatch):
    """A net of a second per sample pass: digits-linf grants 4 units of 20 epochs of 1088 images of 33 passes."""
    monkeypatch.setattr(doctor, "_pass_seconds", lambda *_: 1.0)
    rules = PROTOCOLS["digits-linf"]
    steps = 3 * rules.training.steps + 3
    passes = rules.units * rules.training.epochs * (1297 - rules.validation) // 128 * 128 * steps
    facts = json.loads(prunebench("doctor", "--json", "--data", "elsewhere")[1])
    hours = float(re.search(r"expect about (\d+) h to train a net$", facts["protocol: digits-linf"]).group(1))
    assert facts["protocol: digits-linf"].startswith("ready; GPU: ")
    assert hours == pytest.approx(passes / 3600, rel=0.15)  # whole batches only
    assert facts["protocol: mnist-linf"].startswith("data missing: mnist is not in elsewhere; with a network")
    assert {f"protocol: {name}" for name in PROTOCOLS} <= facts.keys()


def test_the_seconds_of_a_pass_are_measured_once():
    first = doctor._pass_seconds("digits-cnn", "digits", "cpu")
    assert 0 < first == doctor._pass_seconds("digits-cnn", "digits", "cpu")
