"""What holds for every test: one thread a process, set before torch is imported; and nets that tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all test processes of this run share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "nets"


@pytest.fixture(scope="session")
def nets(shared: Path) -> dict[str, Path]:
    """Two nets of the protocol `tests.support.nets.TINY`, "dense" and "imp", trained once for all test processes."""
    from prunebench.bench.files import sole_user
    from tests.support.nets import make_nets

    with sole_user(shared, wait=True):
        return make_nets(shared)


@pytest.fixture(scope="session")
def scored(nets: dict[str, Path], shared: Path) -> dict[str, Path]:
    """The folders of those nets with record and outcomes of the whole AutoAttack, scored once for all processes."""
    from prunebench.bench.files import sole_user
    from prunebench.bench.score.scoring import score
    from tests.support.nets import STORE

    order = sorted(nets, reverse=os.environ.get("PYTEST_XDIST_WORKER") == "gw1")  # two processes begin with one each
    for name in order:
        with sole_user(nets[name].parent, wait=True):
            score(nets[name], out=nets[name].parent, store=STORE, device="cpu")
    return {name: net.parent for name, net in nets.items()}


@pytest.fixture
def dense_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let dense nets run on torch, however small."""
    import prunebench.bench.executor

    monkeypatch.setattr(prunebench.bench.executor, "SMALL", 0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the referee run four quick attacks under the names of AutoAttack's."""
    from tests.support.nets import quick_attacks, use_attacks

    use_attacks(monkeypatch, quick_attacks())


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `run` take all steps but those of the pruner in this process."""
    import prunebench.bench.grid.run
    from tests.support.here import Here

    monkeypatch.setattr(prunebench.bench.grid.run, "Pool", Here)


@pytest.fixture
def prunebench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """The command, run in this process: exit code, standard output, standard error."""
    from prunebench.bench.cli import main

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prunebench", *map(str, arguments)])
        code = 0
        try:
            main.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
