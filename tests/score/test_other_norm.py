"""AutoAttack under the other norm: its radius, and survivors known on paper."""

from __future__ import annotations

import pytest
import torch

from prunebench.bench.data import Split
from prunebench.bench.protocol import Threat
from prunebench.bench.score import other_norm
from prunebench.bench.score.other_norm import measure_other_norm, other_threat
from prunebench.bench.score.referee import Referee
from prunebench.bench.seeds import derive
from tests.support.nets import Bright, changed, use_attacks

RULES = changed(threat=Threat(norm="Linf", eps="0.1"), shard=2)


@pytest.mark.parametrize(
    ("norm", "eps", "data", "shape", "expected"),
    [
        ("Linf", "0.3", "mnist", (1, 28, 28), "2"),
        ("L2", "2", "mnist", (1, 28, 28), "3/10"),
        ("Linf", "8/255", "cifar10", (3, 32, 32), "1/2"),
        ("L2", "1/2", "cifar10", (3, 32, 32), "8/255"),
        ("Linf", "4/255", "svhn", (3, 32, 32), "1/4"),  # half of the custom in one norm, half of it in the other
        ("Linf", "0.2", "digits", (1, 8, 8), "2/5"),  # 0.2 * 8 / 4
        ("L2", "0.4", "digits", (1, 8, 8), "1/5"),
        ("Linf", "8/255", "folder:mine", (3, 32, 32), "43/100"),  # 8/255 * 55.43 / 4 = 0.4347
        ("Linf", "0.0313725490196078", "cifar10", (3, 32, 32), "1/2"),  # too long a fraction: two digits
        ("L2", "1000", "folder:mine", (1, 2, 2), "1"),  # an Linf eps beyond 1 moves no pixel further
        ("L2", "0.000001", "folder:mine", (1, 64, 64), "1/1000000"),  # below it, pixels do not move
    ],
)
def test_the_radius(norm, eps, data, shape, expected):
    found = other_threat(Threat(norm=norm, eps=eps), data, shape)
    assert found == Threat(norm="L2" if norm == "Linf" else "Linf", eps=expected)


def greys(*levels, side=2):
    """Square images of these grey levels of 255."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, side, side).contiguous()


def measured(test, rules=RULES, batch=2, seed=5):
    """The facts, the survivors and the passes of `Bright`, which sees class 1 above a mean of 1/2."""
    referee = Referee(Bright(), rules, batch, torch.device("cpu"))
    clean = referee.answers(test.images / 255) == test.labels
    referee.passes = 0
    facts, arrays = measure_other_norm(referee, test, clean, clean, seed)
    assert list(arrays) == list(facts.kinds(len(test))) and arrays["other-norm"].dtype == bool
    return facts, arrays["other-norm"].tolist(), referee.passes


def white(model, images, labels, threat, *, generator):
    """Propose white images, which the referee brings to the edge of the ball."""
    return torch.ones_like(images)


# In L2 with eps 0.1 * 2 / 4 = 0.05, four pixels move by 0.025 each: 122/255 = 0.478 reaches 0.503 and 0.471 does not
# reach 1/2. In Linf with eps 0.1, all of them would. The last is wrong when clean.
TEST = Split(greys(120, 122, 110, 123, 140), torch.zeros(5, dtype=torch.long))


def test_survivors_are_those_of_the_other_ball(monkeypatch):
    use_attacks(monkeypatch, {"square": white})
    facts, standing, _ = measured(TEST)
    assert facts.threat == Threat(norm="L2", eps="1/20")
    assert standing == [True, False, True, False, False] and facts.robust == 2
    assert facts.recounted({"clean": torch.tensor(standing).numpy(), "other-norm": torch.tensor(standing).numpy()}) == {
        "other_norm.robust": (2, 2)
    }


def test_with_the_protocols_own_ball_none_would_survive(monkeypatch):
    """The twin."""
    use_attacks(monkeypatch, {"square": white})
    monkeypatch.setattr(other_norm, "other_threat", lambda threat, data, shape: threat)
    assert measured(TEST)[1] == [False] * 5


def test_each_attack_sees_the_survivors_of_the_ones_before(monkeypatch):
    seen = []

    def watched(attack):
        def watch(model, images, labels, threat, *, generator):
            model(images)
            seen.append((len(images), threat.norm, generator.initial_seed()))
            return attack(model, images, labels, threat, generator=generator)

        return watch

    use_attacks(monkeypatch, {"apgd-ce": watched(white), "square": watched(white)})
    _, standing, passes = measured(TEST)
    streams = [derive(5, "shard-0"), derive(5, "shard-1")]
    assert seen == [(2, "L2", streams[0]), (1, "L2", streams[0]), (2, "L2", streams[1]), (1, "L2", streams[1])]
    # Of the third shard's only image, wrong when clean, nothing is asked.
    assert standing == [True, False, True, False, False] and passes >= 6 + 4 * 2  # asked, and measured in batches of 2


def test_any_split_gives_the_same(monkeypatch):
    use_attacks(monkeypatch, {"square": white})
    for shard in (1, 3, 8):
        assert measured(TEST, changed(RULES, shard=shard))[1] == [True, False, True, False, False]


def test_the_real_attacks_find_what_there_is():
    """On 8x8 images and Linf 0.2, L2 is 0.4, so the mean moves by 0.4 / 8 = 0.05: 0.44 stays below 1/2."""
    test = Split(greys(112, 117, side=8), torch.zeros(2, dtype=torch.long))
    assert 112 / 255 + 0.05 < 0.5 < 117 / 255 + 0.05, "premise"
    facts, standing, _ = measured(test, changed(threat=Threat(norm="Linf", eps="0.2")))
    assert standing == [True, False] and facts.threat.eps == "2/5"
