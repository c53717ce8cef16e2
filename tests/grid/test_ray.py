"""What can be said of Ray as an engine where there is no Ray: what is refused, what fits, what a node must see."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from prunebench.bench.cli.main import app
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.grid.ray import DESK, LOST, OFTEN, SEE_ALL, SHARE, TOKEN, Ray, _do


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda:1"}, "device 'cuda:1' is not possible"),
        ({"gpus": -0.5}, r"cannot have -0\.5 GPUs"),
        ({"gpus": 1.5}, r"cannot have 1\.5 GPUs"),
        ({"gpus": 0.5, "device": "cpu"}, r"device cpu cannot use 0\.5 GPUs"),
        ({"address": "auto", "jobs": 2}, "leave --jobs out"),
        ({"address": "ray://head:10001"}, "on a machine of the cluster"),
    ],
)
def test_what_cannot_be_asked_of_ray_is_refused(options, said, tmp_path):
    with pytest.raises(PrunebenchError, match=said):
        Ray(tmp_path, **options)


@pytest.mark.parametrize("options", [{}, {"device": "cuda", "gpus": 0.25}, {"gpus": 2.0}, {"address": "auto"}])
def test_what_can_be_asked_of_it_is_taken(options, tmp_path):
    Ray(tmp_path, **options)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_without_the_extra_it_says_how_to_get_it(tmp_path):
    with pytest.raises(PrunebenchError, match=r"pip install '\.\[ray\]'"), Ray(tmp_path):
        pass


def test_where_no_ray_answers_it_says_how_to_start_one(tmp_path, monkeypatch):
    def init(**options):
        raise ConnectionError("Failed to connect\nand much more")

    monkeypatch.setattr("prunebench.bench.grid.ray._ray", lambda: SimpleNamespace(init=init))
    with pytest.raises(PrunebenchError, match=r"Cannot use Ray at auto \(Failed to connect\); start it"):
        Ray(tmp_path, address="auto").__enter__()


def fitting(folder, *nodes, **options):
    engine = Ray(folder, **options)
    engine._ray = SimpleNamespace(
        nodes=lambda: [{"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}} for alive, cpus, gpus in nodes]
    )
    return engine._fitting(), [engine.room(running) for running in (0, 1, 5, 6)]


def test_as_many_steps_are_submitted_as_fit_twice(tmp_path):
    """Of 8 + 5 CPUs two a step make 4 + 2; four steps share a GPU; three of .3 fit on each of two, six in all."""
    assert fitting(tmp_path, (True, 8, 0), (True, 5, 0), (False, 64, 8), threads=2, gpus=0.0)[0] == 6
    assert fitting(tmp_path, (True, 64, 1), (True, 64, 0), gpus=SHARE)[0] == 4
    assert fitting(tmp_path, (True, 64, 2), gpus=0.3)[0] == 6
    assert fitting(tmp_path, (True, 64, 5), gpus=2.0)[0] == 2
    assert fitting(tmp_path, (True, 3, 0), gpus=0.0) == (3, [True, True, True, False])
    assert fitting(tmp_path, (False, 3, 0), gpus=0.0) == (0, [True, False, False, False])  # one waits for a node


@pytest.mark.parametrize(("gpus", "sees_all"), [(0.0, False), (0.25, True), (0.5, True), (1.0, False), (2.0, False)])
def test_steps_that_share_cards_see_all_of_them_and_choose(gpus, sees_all, tmp_path):
    """Ray fills one card before it begins the next, however idle that is; a card of a step's own needs no choice."""
    asked = {}
    engine = Ray(tmp_path, gpus=gpus)
    engine._ray = SimpleNamespace(
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 8, "GPU": 8}}],
        remote=lambda **options: asked.update(options) or (lambda function: function),
    )
    engine._begin()
    assert asked["num_gpus"] == gpus
    assert asked.get("runtime_env") == ({"env_vars": {SEE_ALL: "1"}} if sees_all else None)


class Step:
    name = "step"

    def __init__(self):
        self.at, self.left = None, []

    def __call__(self, report):
        report("half", 1.0, 2.0)
        report("more", 1.5, 2.0)  # too soon after the first to be told
        self.at = Path.cwd()
        self.left = self.engine.looked()
        return "done"


def desk(folder, token="token"):
    """Where steps tell how far they are, as the one who started the run sees it."""
    engine = Ray(folder)
    engine._looked, engine._seen = -OFTEN, {}
    engine.desk.mkdir()
    (engine.desk / TOKEN).write_text(token)
    engine.looked = lambda: [*engine.updates()]
    return engine


def test_a_node_stands_where_the_run_was_started_and_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back at the end
    (tmp_path / "home").mkdir()
    step, engine = Step(), desk(tmp_path)
    step.engine = engine
    assert _do(step, str(tmp_path / "home"), str(engine.desk), "token") == "done"
    assert step.at == tmp_path / "home"
    assert step.left == [("step", "half", 1.0, 2.0)]
    assert [path.name for path in engine.desk.iterdir()] == [TOKEN]  # nothing is left of a step that has ended


def test_what_was_told_is_told_once_and_spoilt_files_are_passed_over(tmp_path):
    engine = desk(tmp_path)
    (engine.desk / "a.json").write_text('["a", "half", 1.0, 2.0]')
    (engine.desk / "b.json").write_text("[")
    first = engine.looked()
    engine._looked = math.inf  # just now
    (engine.desk / "b.json").write_text('["b", "half", 1.0, 2.0]')
    soon, engine._looked = engine.looked(), -OFTEN
    assert (first, soon, engine.looked()) == ([("a", "half", 1.0, 2.0)], [], [("b", "half", 1.0, 2.0)])


def test_a_full_disk_does_not_stop_a_step_that_tells(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError("No space left on device")

    monkeypatch.chdir(tmp_path)
    step, engine = Step(), desk(tmp_path)
    step.engine = engine
    monkeypatch.setattr(Path, "write_text", full)
    assert _do(step, str(tmp_path), str(engine.desk), "token") == "done" and step.left == []


@pytest.mark.parametrize("other", ["no folder", "no run", "another run"])
def test_a_node_that_does_not_see_the_run_folder_refuses(other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if other == "another run":
        desk(tmp_path, "another")
    home, step = tmp_path / "missing" if other == "no folder" else tmp_path, Step()
    with pytest.raises(PrunebenchError, match="share these folders between all nodes under the same paths"):
        _do(step, str(home), str(tmp_path / DESK), "token")
    assert step.at is None


def test_what_a_future_holds_is_said_in_a_sentence(tmp_path):
    """An error of ours, one of Ray's after it has tried again, one of a package that a node lacks."""
    engine, caused = Ray(tmp_path), RuntimeError("a traceback")
    caused.cause = PrunebenchError("What is wrong.")
    assert engine.why(caused) == "What is wrong."
    lost = type(LOST[0], (Exception,), {})
    assert f"was lost 4 times, perhaps because memory ran out ({LOST[0]})" in engine.why(lost("and so on"))
    caused.cause = ModuleNotFoundError("No module named 'mine'\nand more")
    said = engine.why(caused)
    assert "(ModuleNotFoundError: No module named 'mine'); make sure that all nodes have the same" in said
    assert "lost" not in said


@pytest.mark.parametrize("option", ["--address=auto", "--gpus-per-job=0.5"])
def test_options_for_ray_are_refused_without_it(option, tmp_path):
    result = CliRunner().invoke(app, ["run", "digits-linf", "--out", str(tmp_path / "out"), option])
    assert isinstance(result.exception, PrunebenchError) and "add --engine ray" in str(result.exception)
    assert not (tmp_path / "out").exists()
