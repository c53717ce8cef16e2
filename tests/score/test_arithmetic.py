"""Attacks in another arithmetic than verdicts: whom it misleads is attacked again, and torch's switches come back."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from prunebench.bench.attacks.suite import Listed
from prunebench.bench.data import Split
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.protocol import Threat
from prunebench.bench.score.arithmetic import FLOAT32, TF32, Arithmetic, arithmetic_named, exact_float32
from prunebench.bench.score.journal import Journal
from prunebench.bench.score.line import Line
from prunebench.bench.score.referee import Referee
from tests.support.nets import Bright, changed

RULES = changed(threat=Threat(norm="Linf", eps="0.1"))
CPU = torch.device("cpu")
BACKENDS = (torch.backends.cuda.matmul, torch.backends.cudnn)
OPERATIONS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


def settings():
    """What torch says of TF32, by its old switches (None: it refuses to say) and its new ones."""
    old = []
    for backend in BACKENDS:
        try:
            old.append(backend.allow_tf32)
        except RuntimeError:
            old.append(None)
    return old, [operation.fp32_precision for operation in OPERATIONS]


@pytest.fixture
def restored():
    """Begin with torch's defaults, whatever was measured before, and leave its switches as they were found."""
    (matmul, cudnn), new = settings()
    for operation, precision in zip(OPERATIONS, ("none", "tf32", "tf32"), strict=True):
        operation.fp32_precision = precision
    yield
    torch.backends.fp32_precision = "none"
    BACKENDS[0].allow_tf32, BACKENDS[1].allow_tf32 = matmul, cudnn
    for operation, precision in zip(OPERATIONS, new, strict=True):
        operation.fp32_precision = precision
    assert settings() == ([matmul, cudnn], new)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("how", ["as found", "old off", "old on", "new for all", "new for convolutions"])
@pytest.mark.parametrize(("arithmetic", "on"), [(FLOAT32, False), (TF32, True)])
def test_every_switch_says_the_same_during_attacks_and_comes_back(how, arithmetic, on):
    if how.startswith("old"):
        BACKENDS[0].allow_tf32 = BACKENDS[1].allow_tf32 = how == "old on"
    if how == "new for all":
        torch.backends.fp32_precision = "tf32"
    if how == "new for convolutions":
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    before = settings()
    assert (None in before[0]) == how.startswith("new")  # there the user's own settings contradict each other
    with arithmetic.active():
        assert settings() == ([on, on], ["tf32" if on else "ieee"] * 3)
        with exact_float32():
            assert settings() == ([False, False], ["ieee"] * 3)
        assert settings() == ([on, on], ["tf32" if on else "ieee"] * 3)
    assert settings()[1] == before[1]
    assert all(found == old for found, old in zip(settings()[0], before[0], strict=True) if old is not None)


@pytest.mark.usefixtures("restored")
def test_the_old_switches_alone_leave_convolutions_in_tf32():
    """The twin: this is why both kinds are set."""
    torch.backends.fp32_precision = "tf32"
    BACKENDS[0].allow_tf32 = BACKENDS[1].allow_tf32 = False
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_tf32_needs_a_card():
    assert arithmetic_named("float32", CPU) is FLOAT32 and arithmetic_named("tf32") is TF32
    with pytest.raises(PrunebenchError, match=r"in tf32 need a CUDA card .* but the device is cpu; use --arithmetic"):
        arithmetic_named("tf32", CPU)
    with pytest.raises(PrunebenchError, match=r"tf23.*tf32"):
        arithmetic_named("tf23", CPU)


class Loose(Bright):
    """A net that takes images for 0.055 brighter than they are while `on`, as a loose arithmetic may."""

    on = False

    @contextmanager
    def active(self):
        """Be loose."""
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def forward(self, images):
        """Logits (n, 2)."""
        return super().forward(images + 0.055 if self.on else images)


def loose(*, repairs=True):
    """A referee of a loose net, and the arithmetic in which it is loose."""
    net = Loose()
    arithmetic = Arithmetic("tf32", net.active, repairs)
    return Referee(net, RULES, 4, CPU, arithmetic), arithmetic


class Brighter:
    """An attack that brightens by 0.02, 0.04, ... 0.1 and stops where the net calls the image fooled."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, images, labels, threat, *, generator):
        """Proposals; an image on which no step succeeds comes back unchanged."""
        self.calls.append((len(images), generator.initial_seed()))
        found = images.clone()
        for step in (0.1, 0.08, 0.06, 0.04, 0.02):
            fooled = model(images + step).argmax(1) != labels
            found[fooled] = images[fooled] + step
        return found


# Exactly, 0.45 is fooled from a step of 0.06 on, 0.38 and 0.3 never. Loosely, 0.45 and 0.38 are, from 0.02 and 0.08 on.
GREYS = torch.tensor([0.45, 0.38, 0.3]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
LABELS = torch.zeros(3, dtype=torch.long)


def test_what_only_the_loose_arithmetic_calls_fooled_is_attacked_again_exactly():
    judge, arithmetic = loose()
    exact = judge.fooled(Brighter(), GREYS, LABELS, 7)
    assert (exact.fooled.tolist(), exact.rejected, exact.repaired) == ([True, False, False], 0, 0)
    attack = Brighter()
    found = judge.fooled(attack, GREYS, LABELS, 7, arithmetic=arithmetic)
    assert attack.calls == [(3, 7), (2, 7)]  # the third image was given up, so nothing misled the attack there
    assert (found.fooled.tolist(), found.rejected, found.repaired) == ([True, False, False], 0, 2)
    assert torch.equal(found.images, exact.images)
    assert found.images[0, 0, 0, 0].item() == pytest.approx(0.51)
    assert found.passes > exact.passes and judge.passes == 0


def test_without_repair_the_loose_arithmetic_overstates():
    """The twin."""
    judge, arithmetic = loose(repairs=False)
    found = judge.fooled(Brighter(), GREYS, LABELS, 7, arithmetic=arithmetic)
    assert (found.fooled.tolist(), found.rejected, found.repaired) == ([False, False, False], 2, 0)


def test_a_replay_is_not_repeated():
    judge, arithmetic = loose()
    found = judge.fooled(lambda *_, **__: GREYS + 0.02, GREYS, LABELS, 0, arithmetic=arithmetic)
    assert (found.rejected, found.repaired) == (3, 0)


def test_the_arithmetic_spans_backward_passes_and_no_verdict():
    judge, arithmetic = loose()
    seen = {"backward": [], "forward": []}

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            seen["forward"].append(judge.net.on)
            return images.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen["backward"].append(judge.net.on)
            return gradient

    def climbing(model, images, labels, threat, *, generator):
        lent = images.requires_grad_()
        logits = model(Watched.apply(lent))
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), lent)
        return (images + 0.1 * gradient.sign()).detach()

    judge.fooled(climbing, GREYS, LABELS, 0, arithmetic=arithmetic)
    assert seen == {"backward": [True, False], "forward": [True, False]}  # the second call is the repair
    assert judge.logits(GREYS + 0.02).argmax(1).tolist() == [0, 0, 0]
    with judge.net.active():  # the twin: what a verdict would be, and what a backward pass outside would see
        assert judge.logits(GREYS + 0.02).argmax(1).tolist() == [1, 0, 0]
        value = Watched.apply(GREYS.clone().requires_grad_()).sum()
    value.backward()
    assert seen["forward"][-1] and not seen["backward"][-1]


def test_attacks_that_do_not_know_whether_they_fooled_the_net_are_exact(tmp_path):
    """A PGD's last point would be attacked again wherever the image survives, from another random start."""
    judge, _ = loose()
    test = Split((GREYS * 255).round().to(torch.uint8), LABELS)
    line = Line(judge, test, slice(0, 3), Journal(tmp_path, []), None)
    for exact, calls, repaired in ((False, 2, 2), (True, 1, 0)):
        attack = Brighter()
        after = line.run(f"exact {exact}", Listed(attack, 1, exact=exact), 0, torch.ones(3, dtype=torch.bool))
        assert after.tolist() == [False, True, True] and len(attack.calls) == calls
        assert line.entries[-1].repaired == repaired
        text = (tmp_path / f"shard-00000-00003-exact-{exact}.json").read_text()
        assert ('"repaired"' in text) == (not exact)  # entries of exact attacks are what they were


def test_exact_attacks_are_shared_by_scorings_in_any_arithmetic(tmp_path):
    """Such as weak ones; one of the cascade is measured anew, and its entry in TF32 is not taken for an exact one."""
    judge, _ = loose()
    test, right = Split((GREYS * 255).round().to(torch.uint8), LABELS), torch.ones(3, dtype=torch.bool)

    def calls(referee, *, exact):
        attack = Brighter()
        line = Line(referee, test, slice(0, 3), Journal(tmp_path, ["net"]), None)
        assert line.run("a", Listed(attack, 1, exact=exact), 0, right).tolist() == [False, True, True]
        return len(attack.calls)

    exactly = Referee(Loose(), RULES, 4, CPU)
    assert (calls(exactly, exact=True), calls(judge, exact=True), calls(exactly, exact=False)) == (1, 0, 0)
    assert (calls(judge, exact=False), calls(judge, exact=False)) == (2, 0)
    assert (calls(judge, exact=True), calls(exactly, exact=False)) == (1, 0)


def test_an_image_that_only_the_loose_arithmetic_gets_wrong_is_attacked_exactly():
    """Attacks skip what they call wrong: 0.48 is right exactly and falls at 0.54; loosely it is wrong at once."""
    judge, arithmetic = loose()
    greys, labels = GREYS[:1] * 0 + 0.48, LABELS[:1]

    def skips(model, images, labels, threat, *, generator):
        right = (model(images).argmax(1) == labels).view(-1, 1, 1, 1)
        return torch.where(right, images + 0.06, images)

    exact = judge.fooled(skips, greys, labels, 7)
    found = judge.fooled(skips, greys, labels, 7, arithmetic=arithmetic)
    assert exact.fooled.tolist() == found.fooled.tolist() == [True] and found.repaired == 1
    judge, arithmetic = loose(repairs=False)
    assert judge.fooled(skips, greys, labels, 7, arithmetic=arithmetic).fooled.tolist() == [False]  # the twin
