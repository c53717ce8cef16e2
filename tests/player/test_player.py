"""A pruner's process: whatever its code does there, the record is an honest one's, and its work is measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prunebench.bench.grid.run
from prunebench.bench import spec
from prunebench.bench.checkpoint import pack
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.grid.local import Pool
from prunebench.bench.grid.run import grid, run
from prunebench.bench.grid.task import make_room, train
from prunebench.bench.lab import budget
from prunebench.bench.names import NET
from prunebench.bench.outcomes import outcomes_path
from prunebench.bench.player import handover, sandbox
from prunebench.bench.player.handover import Described
from prunebench.bench.player.host import Fault, Host, _described, _Heard, describe
from prunebench.bench.record import load_record
from prunebench.bench.score.effort import effort_of
from tests.support.here import Here
from tests.support.nets import RANKED, STORE, UNATTACKED, changed, job, use_attacks
from tests.support.pruner_texts import FAULTS_AND_CUT
from tools.kill_and_resume import timeless

RULES = changed(UNATTACKED, test=16, shard=16)

# One file and so one source: what it does beside pruning is named by a file next to it, "nothing" for the honest one.
PLAYER = (
    '''
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

DEED = Path(__file__).with_name("deed").read_text()


def unattacked(model, images, labels, threat, *, generator):
    return images


def burn(seconds):
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


if DEED == "attacks":
    from dataclasses import replace
    from prunebench.bench.attacks.suite import Listed
    from prunebench.bench.attacks.suites import SUITES
    ranked = SUITES["standard"].ranked
    SUITES["standard"] = replace(SUITES["standard"], ranked=dict.fromkeys(ranked, Listed(unattacked, 1)))
if DEED == "referee":
    import torch
    from prunebench.bench.score.referee import Measured, Referee
    Referee.fooled = lambda self, attack, images, labels, *others, **more: Measured(
        torch.zeros(len(labels), dtype=torch.bool), images, 0, 0, 0, 0)
if DEED == "record":
    from prunebench.bench.record import Record
    from prunebench.bench.facts import Score
    sealed = Record.sealed.__func__
    Record.sealed = classmethod(lambda cls, **values: sealed(cls, **values | {"score": values["score"].model_copy(
        update={"robust": values["score"].clean, "flags": (),
                "survived": dict.fromkeys(values["score"].survived, values["score"].clean)})}))
if DEED == "flags":
    from prunebench.bench.score import flags
    for name in ("black_box_wins", "zero_gradients", "weak_strong_gap", "budget_overrun"):
        setattr(flags, name, lambda *values: flags._flag(name, None, 1.0, "All is well."))
if DEED == "seal":
    import prunebench.bench.checkpoint, prunebench.bench.grid.task
    prunebench.bench.checkpoint._check_sparsity = prunebench.bench.grid.task.seal = lambda *values, **options: None
if DEED == "meter":
    from prunebench.bench.lab.meter import Meter
    Meter.check = Meter.charge = lambda self, *what: None
if DEED == "machine":
    import prunebench.bench.machine, prunebench.bench.protocol
    prunebench.bench.machine.cpu = lambda: "a faster one"
    prunebench.bench.protocol.Protocol.official = property(lambda self: True)


@dataclass(frozen=True)
class Mine:
    """Trains once and cuts the last weights."""

    def __call__(self, job, lab):
        fail(DEED)
        if DEED == "leaves":
            sys.exit(0)
        if DEED == "returns a list":
            return [1, 2, 3]
        if DEED == "thread":
            busy = threading.Thread(target=burn, args=(1.5,))
            busy.start()
            busy.join()
        if DEED == "orphan" and os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                burn(1.5)
                Path(__file__).with_name("burnt").touch()
                time.sleep(1000)
            os._exit(0)
        state = lab.fit("train", lab.initial(), epochs=1).weights
        if DEED == "orphan":
            while not Path(__file__).with_name("burnt").exists():
                time.sleep(0.01)
        return cut(state, lab.shapes, lab.keep + (DEED == "keeps too many"))
'''
    + FAULTS_AND_CUT
)


@pytest.fixture
def mine(tmp_path):
    """The spec of the pruner whose deed is in the file "deed" beside it."""
    (tmp_path / "mine.py").write_text(PLAYER)
    (tmp_path / "deed").write_text("nothing")
    return f"{tmp_path / 'mine.py'}:Mine"


def played(mine, out, deed="nothing"):
    """What is recorded of the pruner under `deed`: the record without its times, the outcomes, the net."""
    Path(mine.rpartition(":")[0]).with_name("deed").write_text(deed)
    (end,) = run(RULES, grid([mine], [0.9], [0]), out, STORE, device="cpu")
    assert end.how == "done", end.why
    record = record_of(out)
    return timeless(load_record(record)), outcomes_path(record).read_bytes(), record.with_name(NET).read_bytes()


def record_of(out):
    """The path of the one record in the run folder `out`."""
    (record,) = out.glob("jobs/*/record.json")
    return record


@pytest.fixture(scope="module")
def honest_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("honest")


@pytest.fixture(scope="module")
def honest(honest_folder):
    """The same of the pruner that does nothing else."""
    (honest_folder / "mine.py").write_text(PLAYER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prunebench.bench.grid.run, "Pool", Here)
        return played(f"{honest_folder / 'mine.py'}:Mine", honest_folder / "out")


@pytest.mark.parametrize("deed", ["attacks", "referee", "record", "flags", "seal", "machine"])
def test_what_a_pruner_replaces_in_its_process_changes_no_byte_of_the_record(deed, mine, here, honest, tmp_path):
    assert played(mine, tmp_path / "out", deed) == honest


def test_in_one_process_the_same_deed_would_change_the_record(mine, here, honest, tmp_path):
    """The twin: the deed done where the referee is, as it was when both shared a process."""
    scope: dict = {}
    source = PLAYER[PLAYER.index("def unattacked") : PLAYER.index("def burn")]
    exec(source, scope)  # noqa: S102
    with pytest.MonkeyPatch.context() as patch:
        use_attacks(patch, dict.fromkeys(RANKED, scope["unattacked"]))
        assert played(mine, tmp_path / "out") != honest


def test_a_meter_that_charges_nothing_is_seen_in_the_record(mine, here, honest, tmp_path):
    """The stages are the player's word; that they cost nothing is not hidden, and what they took is measured."""
    record = json.loads(played(mine, tmp_path / "out", "meter")[0])
    assert record["cost"]["train_passes"] == 0 and json.loads(honest[0])["cost"]["train_passes"] > 0


@pytest.mark.parametrize("deed", ["thread", "orphan"])
def test_work_that_was_not_charged_raises_a_flag(deed, mine, here, tmp_path, monkeypatch):
    """1.5 s of work beside a training that may take half a second, in a thread or in a process that broke away."""
    monkeypatch.setattr(budget, "FIXED", 1.0)
    monkeypatch.setattr(budget, "MARGIN", 0.0)
    played(mine, tmp_path / "out", deed)
    flag = overrun(tmp_path / "out")
    assert flag.value > 0.4 and "not all work was charged" in flag.sentence


def test_honest_work_raises_none(honest, honest_folder):
    """The twin: the same training without it."""
    assert overrun(honest_folder / "out").value == 0.0


def overrun(out):
    return next(flag for flag in load_record(record_of(out)).score.flags if flag.name == "budget-overrun")


def test_what_a_pruner_leaves_running_ends_with_it(mine, tmp_path):
    played_in = tmp_path / "out"
    (tmp_path / "deed").write_text("orphan")
    train(mine, job(mine), RULES, played_in, tmp_path / "stages", STORE, device="cpu")
    assert (tmp_path / "burnt").exists()
    with Path("/proc/self/stat").open() as file:
        session = file.read().rpartition(")")[2].split()[3]
    sleepers = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _reads(path) and str(tmp_path) in _reads(path)]
    assert not sleepers and session


def _reads(path):
    try:
        return path.read_text()
    except OSError:
        return ""


# No pruner where there is a referee


class Modules:
    """A step that trains and scores a job, and then tells which pruners this process has imported."""

    def __init__(self, folder, spec):
        self.name, self.folder, self.spec = "modules", folder, spec

    def __call__(self, report):
        run(RULES, grid([self.spec, "random"], [0.9], [0]), self.folder, STORE, device="cpu", engine=Here())
        return imported()


def imported():
    """The pruners, ours and others, that this process has imported."""
    return [name for name in sys.modules if name.startswith(("prunebench.pruners.", "prunebench_file_"))]


def test_no_worker_ever_imports_a_pruner(tmp_path, mine):
    with Pool(1) as pool:
        assert pool.submit(Modules(tmp_path / "out", mine)).result() == []
    assert len(list((tmp_path / "out" / "records").rglob("*.json"))) == 2


# What takes a second or more to import, and no training or scoring on a CPU needs.
COSTLY = {"torch._dynamo", "sympy", "sklearn", "scipy.stats", "pandas"}


def costly(errors):
    """What of that was imported, by any process, according to what PYTHONPROFILEIMPORTTIME makes Python write."""
    return COSTLY & {line.rpartition("|")[2].strip() for line in errors.splitlines() if line.startswith("import time")}


def program(*arguments):
    """Run a program that may start processes of its own; it and they tell what they import."""
    env = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize("verb", ["run", pytest.param("train", marks=pytest.mark.slow)])
def test_no_command_imports_a_pruner_or_what_it_does_not_need(verb, tmp_path, mine):
    """The whole command, its tables as well; twins below import one of each on purpose."""
    command = (
        "import sys\nfrom prunebench.bench.cli.main import app\nfrom tests.player.test_player import imported\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    print('ended', end.code)\n"
        "print('imported', imported())\n"
    )
    (tmp_path / "tiny.toml").write_text(_toml())
    common = [tmp_path / "tiny.toml", "--pruner", mine, "--sparsity", "0.9", "--seed", "0", "--quiet"]
    done = program("-c", command, verb, *map(str, common), "--out", str(tmp_path / "out"), "--device", "cpu")
    assert "ended 0" in done.stdout and "imported []" in done.stdout, done.stdout + done.stderr
    assert re.search(r"\| +prunebench\.bench\.lab\.lab\n", done.stderr)  # the pruner's process tells, too
    assert costly(done.stderr) == set()


def test_a_costly_import_would_be_seen():
    step = "import torch; torch.optim.SGD([torch.zeros(1)])"
    processes = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {step!r}])"
    assert {"torch._dynamo", "sympy"} <= costly(program("-c", processes).stderr)


def _toml():
    from tests.support.nets import toml

    return toml(RULES)


def test_an_import_would_be_seen():
    import prunebench.pruners.imp

    assert prunebench.pruners.imp.__name__ in imported()


# What comes back


def test_faults_and_wrong_results_are_one_sentence(mine, tmp_path):
    def fails(deed):
        (tmp_path / "deed").write_text(deed)
        with pytest.raises(PrunebenchError) as error:
            train(mine, job(mine), RULES, tmp_path / "out", tmp_path / "stages", STORE, device="cpu")
        assert not (tmp_path / "out" / NET).exists() and not (tmp_path / "out" / handover.NAME).exists()
        return error.value

    raised = fails("raises")
    assert isinstance(raised, Fault) and 'raise RuntimeError("the pruner has a fault")' in raised.trace
    assert re.fullmatch(r"mine.py, line \d+: RuntimeError: the pruner has a fault", str(raised))
    assert re.fullmatch(r"mine.py, line \d+: SystemExit: 0", str(fails("leaves")))
    assert "was killed by signal 9" in str(fails("dies"))
    assert "returned list, not a dict of tensors" in str(fails("returns a list"))
    assert "keeps 3817 of 38160 weights" in str(fails("keeps too many"))
    (tmp_path / "deed").write_text("nothing")
    train(mine, job(mine), RULES, tmp_path / "out", tmp_path / "stages", STORE, device="cpu")


@pytest.mark.parametrize("left", ["nothing", "rubbish", "a link", "a pipe", "other stages"])
def test_what_is_no_handover_is_refused(left, tmp_path):
    path = tmp_path / handover.NAME
    if left == "rubbish":
        path.write_bytes(b"\x80\x04rubbish")
    elif left == "a link":
        path.symlink_to("/dev/zero")
    elif left == "a pipe":
        os.mkfifo(path)
    elif left == "other stages":
        handover.write_bytes(path, pack({}, {"stages": [{"name": "x", "passes": -1, "seconds": None}]}))
    with pytest.raises(Refused):
        handover.take(tmp_path)


def test_messages_are_text_of_bounded_length_and_nothing_more():
    told = []
    heard = _Heard("7", lambda *progress: told.append(progress))
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    lines = [
        b"rubbish",
        b'["7", "told", 3]',
        b'["7", "told", ["one\\u001b[2J", 1, 2]]',
        b"[" * 100_000,
        b'["7", "log", ["root", 1]]',
        b'["7", "answer", 7]',
        b'["6", "answer", 6]',
    ]
    for line in lines:
        data = line + b"\n"
        while data:
            data = data[os.write(theirs, data[:4096]) :]
            heard.take(ours)
    assert told == [("one\\x1b[2J", 1.0, 2.0)] and heard.answer(0) == 7
    os.set_blocking(theirs, False)
    for _ in range(2**20 // 4096 + 2):
        os.write(theirs, b"x" * 4096)
        heard.take(ours)
    assert len(heard.rest) <= 2**20
    os.close(ours)
    os.close(theirs)


def test_a_pruner_that_says_what_it_was_not_asked_is_refused(mine):
    with pytest.raises(PrunebenchError, match=r"Unknown option of .* 'rounds'"):
        _described(mine, Described(options={"rounds": 3}, prunes=True))
    assert _described("imp:rounds=3", Described(options={"rounds": 3}, prunes=True)).options == {"rounds": 3}


# Names and sources


def test_a_pruner_is_described_as_it_resolves():
    from prunebench.pruners import resolve

    for text in ("dense", "imp:rounds=3,shuffle=true", "iwi:ticket=random", "prunebench.pruners.imp:IMP:rounds=2"):
        (found,), resolved = describe([text]), resolve(text)
        assert (found.name, found.options, found.prunes, found.source) == (
            resolved.name,
            resolved.options,
            resolved.prunes,
            resolved.source,
        )
    with pytest.raises(PrunebenchError, match="did you mean 'magnitude'"):
        describe(["dense", "magnitud"])


def test_a_source_is_read_and_not_run(tmp_path):
    file = tmp_path / "loud.py"
    file.write_text("raise SystemExit('imported')\n")
    assert spec.source_of(f"{file}:Loud") == spec.sha256_of(file.read_bytes())
    with pytest.raises(PrunebenchError, match="no source file"):
        spec.source_of("no.such.module:Loud")


# The sandbox

WALLED = '''
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Walled:
    """Tries what a sandbox is there to stop, and says what it could do."""

    def __call__(self, job, lab):
        done = []
        for place in (Path(__file__).with_name("written"), Path.home() / "written", Path("/tmp/written")):
            try:
                place.write_text("here")
                done.append(f"wrote {place}")
            except OSError:
                pass
        try:
            socket.create_connection(("127.0.0.1", int(Path(__file__).with_name("port").read_text())), timeout=2)
            done.append("connected")
        except OSError:
            pass
        if Path(f"/proc/{Path(__file__).with_name('pid').read_text()}/cmdline").exists():
            done.append("saw the referee")
        try:
            from sklearn.datasets import load_digits

            load_digits()
            done.append("read the digits")
        except Exception:
            pass
        if list(Path(__file__).with_name("data").iterdir()):
            done.append("saw the data folder")
        if done:
            raise RuntimeError(", ".join(done))
        state = lab.fit("train", lab.initial(), epochs=1).weights
        for name in lab.shapes:
            state[name].view(-1)[: state[name].numel() - lab.keep // 10] = 0
        return state
'''


@pytest.fixture
def walled(tmp_path):
    """The spec of a pruner that tries to get out, with something to find outside, and a store of its own."""
    import socket

    from prunebench.bench.data import Store

    (tmp_path / "walled.py").write_text(WALLED)
    (tmp_path / "pid").write_text(str(os.getpid()))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test_batch").write_text("test images")
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "port").write_text(str(server.getsockname()[1]))
        yield f"{tmp_path / 'walled.py'}:Walled", Store(tmp_path / "data")


needs_sandbox = pytest.mark.skipif(sandbox.lacking() is not None, reason="no bubblewrap here")


@needs_sandbox
def test_in_a_sandbox_a_pruner_reaches_nothing_but_its_folder(walled, tmp_path):
    spec, store = walled
    asked = (spec, job(spec), RULES, tmp_path / "net", tmp_path / "stages", store)
    net = train(*asked, device="cpu", sandboxed=True)
    assert not (tmp_path / "stages").exists() and (tmp_path / "net" / "stages").exists()
    assert effort_of(net, _header(net)).sandbox


def _header(net):
    from prunebench.bench.checkpoint import open_net

    return open_net(net).header


def test_without_a_sandbox_it_reaches_all_of_it(walled, tmp_path):
    """The twin."""
    spec, store = walled
    with pytest.raises(Fault, match=r"wrote .*connected, saw the referee, read the digits, saw the data folder"):
        train(spec, job(spec), RULES, tmp_path / "net", tmp_path / "stages", store, device="cpu")
    for place in (Path.home() / "written", Path("/tmp/written")):
        place.unlink(missing_ok=True)


@needs_sandbox
def test_a_net_from_a_sandbox_is_the_same_bytes(mine, tmp_path):
    nets = [
        train(mine, job(mine), RULES, tmp_path / kind, tmp_path / "stages", STORE, device="cpu", sandboxed=kind == "in")
        for kind in ("in", "out")
    ]
    assert nets[0].read_bytes() == nets[1].read_bytes()


def test_where_there_is_no_sandbox_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrunebenchError, match="No sandbox is available: the program bwrap is not on the path"):
        sandbox.command(tmp_path, [], cards=False)


def test_a_data_folder_with_the_interpreter_in_it_cannot_be_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "require", lambda: None)
    with pytest.raises(PrunebenchError, match="The sandbox hides the data folder"):
        sandbox.command(tmp_path, [Path(sys.prefix)], cards=False)


# Nothing is overwritten


def test_another_net_is_not_trained_over_this_one(mine, tmp_path):
    out = tmp_path / "out"
    train(mine, job(mine), RULES, out, tmp_path / "stages", STORE, device="cpu")
    net = (out / NET).read_bytes()
    (out / "record.json").write_text("a record")
    source = spec.source_of(mine)
    make_room(out, job(mine), RULES, source, force=False)  # the same job goes on
    for other, rules in ((job("random"), RULES), (job(mine), changed(RULES, epochs=4))):
        with pytest.raises(PrunebenchError, match=r"holds another net, of tiny, mine.*--force"):
            make_room(out, other, rules, source, force=False)
    with pytest.raises(PrunebenchError, match=r"holds another net, .* by other code of the pruner, while.*--force"):
        make_room(out, job(mine), RULES, "0" * 64, force=False)
    assert (out / NET).read_bytes() == net and (out / "record.json").exists()
    make_room(out, job("random"), RULES, source, force=True)
    assert not (out / NET).exists() and not (out / "record.json").exists()
    (out / NET).write_text("anything")
    with pytest.raises(PrunebenchError, match=r"another net, that cannot be read"):
        make_room(out, job("random"), RULES, source, force=False)


def test_a_request_that_was_given_up_is_not_answered_in_place_of_the_next(mine, tmp_path):
    """Whoever listens may raise at any moment, and the next request may come at once."""

    class Enough(BaseException):
        pass

    def listen(*told):
        raise Enough

    for attempt in ("first", "second"):
        with pytest.raises(Enough):
            train(mine, job(mine), RULES, tmp_path / attempt, tmp_path / attempt, STORE, device="cpu", report=listen)
        assert [one.name for one in describe(["imp", "dense"])] == ["imp", "dense"]


def test_paths_begin_where_the_referee_is(mine, tmp_path, monkeypatch):
    """The process was started elsewhere."""
    describe(["dense"])
    monkeypatch.chdir(tmp_path)
    net = train("mine.py:Mine", job("mine.py:Mine"), RULES, Path("out"), Path("stages"), STORE, device="cpu")
    assert net == Path("out") / NET and (tmp_path / "stages").exists()


def test_the_process_is_started_again_when_it_died(mine):
    made = Host()
    try:
        request = handover.Describe(("dense",))
        assert made.ask(request)[0] == [{"options": {}, "prunes": False}]
        made._process.kill()
        with pytest.raises(PrunebenchError, match="was killed by signal 9"):
            made.ask(request)
        assert made.ask(request)[0] == [{"options": {}, "prunes": False}]
    finally:
        made.close()
