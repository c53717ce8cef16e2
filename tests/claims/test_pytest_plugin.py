"""Claims as items of pytest, run by pytest itself on folders of other people."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.claims import copied, edited, make_claim, overstated
from tests.support.nets import quick_attacks, use_attacks

pytest_plugins = ("pytester",)


@pytest.fixture(scope="module")
def honest(nets, tmp_path_factory):
    return make_claim(nets["dense"], tmp_path_factory.mktemp("claims"))


@pytest.fixture
def claims(honest, pytester):
    """A folder with a claim that stands and one that does not, next to an ordinary test."""
    copied(honest, pytester.path / "good")
    overstated(copied(honest, pytester.path / "bad"), 5).rename(pytester.path / "bad" / "mine.claim.toml")
    pytester.makepyfile("def test_ordinary():\n    pass\n")
    return pytester


def test_claims_are_items_that_pass_or_fail_with_a_sentence(claims):
    found = claims.runpytest("-p", "no:cacheprovider", "-v")
    found.assert_outcomes(passed=2, failed=1)
    found.stdout.fnmatch_lines(
        ["*bad/mine.claim.toml::replay FAILED*", "*good/CLAIM.toml::replay PASSED*", "*test_ordinary PASSED*"]
    )
    found.stdout.fnmatch_lines(["not reproduced: Of 400 images 20 were claimed robust but are wrong here: *"])
    assert "Traceback" not in found.stdout.str() and "verify.py" not in found.stdout.str()


def test_the_level_is_an_option(claims, monkeypatch):
    use_attacks(monkeypatch, quick_attacks())  # those that the claim was scored with
    found = claims.runpytest("--claim-level", "quick", "good", "-v")
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["*good/CLAIM.toml::quick PASSED*"])
    assert claims.runpytest("--claim-level", "thorough").ret == pytest.ExitCode.USAGE_ERROR


def test_a_refused_claim_fails_with_the_reason(claims):
    (claims.path / "good" / "net.safetensors").write_bytes(b"another net")
    found = claims.runpytest("good")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["refused: *names a net with the sha256 *restore that file, or make a new claim*"])


def test_images_are_looked_for_where_the_option_says(claims):
    from prunebench.bench.protocol import PROTOCOLS

    rules = PROTOCOLS["mnist-linf"]
    claim = claims.path / "good" / "CLAIM.toml"
    edited(claim, drop=("outcomes", "proposals", "data"), protocol={"name": rules.name, "sha256": rules.sha256})
    claims.runpytest("good", "--claim-data", "elsewhere").stdout.fnmatch_lines(["refused: *claim it under a protocol*"])


def test_others_do_not_wait_for_torch(tmp_path):
    """The plugin is loaded wherever prunebench is installed; without claims it costs nothing."""
    (tmp_path / "test_a.py").write_text(
        "import sys\n\ndef test_a():\n    assert 'prunebench.bench.claims.pytest_plugin' in sys.modules\n"
    )
    code = (
        "import pytest, sys; code = pytest.main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'pydantic', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1].endswith("0 []"), ended.stdout + ended.stderr


def test_the_plugin_imports_nothing_of_ours_at_its_top():
    import prunebench.bench.claims.pytest_plugin as plugin
    from prunebench.bench.claims import claim

    assert (plugin.NAME, plugin.SUFFIX) == (claim.NAME, claim.SUFFIX)
    top = [line for line in Path(plugin.__file__).read_text().splitlines() if line.startswith(("import", "from"))]
    assert not [line for line in top if "prunebench." in line]
