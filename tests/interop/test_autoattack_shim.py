"""The stand-in for `autoattack`, without robustbench: same attacks, other names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.interop import autoattack_shim


@pytest.fixture
def no_autoattack(monkeypatch):
    """Forget the stand-in before and after the test."""
    for name in ("autoattack", "autoattack.state"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(4, 16, generator=generator))
    images = torch.rand(5, 1, 4, 4, generator=generator)
    return model, images, model(images).argmax(1)


@pytest.mark.usefixtures("no_autoattack")
def test_same_images_as_pyautoattack(problem):
    import pyautoattack

    autoattack_shim.provide_autoattack()
    import autoattack
    from autoattack.state import EvaluationState

    assert EvaluationState is pyautoattack.state.EvaluationState
    model, *examples = problem
    asked = {"norm": "Linf", "eps": 0.05, "seed": 1, "version": "custom", "device": "cpu"}
    expected, taken_for = pyautoattack.AutoAttack(model, attacks=["apgd-ce"], **asked).run_standard_evaluation(
        *examples, batch_size=3
    )
    assert not torch.equal(expected, examples[0]), "premise: the attack moves something"
    adversary = autoattack.AutoAttack(model, attacks_to_run=["apgd-ce"], **asked)

    torch.testing.assert_close(adversary.run_standard_evaluation(*examples, bs=3), expected, rtol=0, atol=0)
    found, labels = adversary.run_standard_evaluation(*examples, bs=3, return_labels=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert labels.equal(taken_for)
    assert adversary.run_standard_evaluation_individual(*examples, bs=3)["apgd-ce"].equal(expected)


@pytest.mark.usefixtures("no_autoattack")
def test_a_second_call_changes_nothing():
    autoattack_shim.provide_autoattack()
    first = sys.modules["autoattack"]
    autoattack_shim.provide_autoattack()
    assert sys.modules["autoattack"] is first


@pytest.mark.usefixtures("no_autoattack")
def test_another_autoattack_is_refused(tmp_path, monkeypatch):
    (tmp_path / "autoattack.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PrunebenchError, match="pip uninstall autoattack"):
        autoattack_shim.provide_autoattack()


@pytest.mark.usefixtures("no_autoattack")
def test_a_missing_pyautoattack_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(PrunebenchError, match="pip install 'pyautoattack"):
        autoattack_shim.provide_autoattack()


@pytest.mark.usefixtures("no_autoattack")
def test_tensorflow_is_refused(problem):
    autoattack_shim.provide_autoattack()
    import autoattack

    with pytest.raises(PrunebenchError, match=r"torch\.nn\.Module"):
        autoattack.AutoAttack(problem[0], is_tf_model=True, device="cpu")


def test_the_environment_imports_pyautoattack_and_not_autoattack():
    """The premise of the stand-in, in a process that nothing was done to."""
    root = Path(__file__).resolve().parents[2]
    tried = "import pyautoattack, importlib.util as u; assert u.find_spec('autoattack') is None"
    done = subprocess.run([sys.executable, "-c", tried], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
