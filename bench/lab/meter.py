"""A pruner's budget and spending, in sample passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prunebench.bench.errors import BudgetExceeded
from prunebench.bench.facts import StageCost, Validated
from prunebench.bench.lab.checks import refuse_short
from prunebench.bench.lab.schedule import TrainingPlan
from prunebench.bench.protocol import Protocol


@dataclass
class Meter:
    """Sample passes spent, stage by stage, out of `granted` (forward 1, backward 2)."""

    granted: int
    stages: list[StageCost] = field(default_factory=list)

    @property
    def spent(self) -> int:
        """Sample passes so far."""
        return sum(stage.passes for stage in self.stages)

    def check(self, name: str, passes: int) -> None:
        """Raise BudgetExceeded when `passes` more would overspend."""
        if self.spent + passes > self.granted:
            raise BudgetExceeded(
                f"Stage {name!r} costs {passes} sample passes, but only {self.granted - self.spent} of {self.granted} "
                "remain; train fewer epochs or leave a stage out."
            )

    def charge(
        self,
        name: str,
        passes: int,
        seconds: float | None = None,
        curve: tuple[Validated, ...] = (),
        collapsed: float | None = None,
    ) -> None:
        """Spend `passes` on the stage `name`; the other facts are those of `StageCost`.

        Raises BudgetExceeded, and spends nothing, when too few passes are left.
        """
        self.check(name, passes)
        self.stages.append(StageCost(name=name, passes=passes, seconds=seconds, curve=curve, collapsed=collapsed))


def granted(protocol: Protocol, images: int) -> int:
    """The sample passes in a pruner's budget when there are `images` training images."""
    recipe = protocol.training
    return int(protocol.units * TrainingPlan(recipe, protocol.threat, recipe.epochs).passes(images))


def divided(
    granted: int, plan: TrainingPlan, images: int, shares: Mapping[str, float], gradients: Sequence[int], last: str
) -> list[int]:
    """Epochs of stages that use up `granted` sample passes: one stage for each of `shares`, and `last` for the rest.

    `plan`: an epoch of the training, on `images` images. A stage takes so many `gradients` of the loss per step, the
    last a single one, and at least one epoch. Raises PrunebenchError when nothing is left for the last.
    """
    prices = [plan.passes(images, count) for count in (1, *gradients)]
    whole = granted // prices[0]
    counts = [
        max(1, round(share * whole * prices[0] / price))
        for share, price in zip(shares.values(), prices[1:], strict=True)
    ]
    rest = (granted - sum(count * price for count, price in zip(counts, prices[1:], strict=True))) // prices[0]
    refuse_short({last: rest}, budget=whole, steps=plan.batches(images), way_out=f"lower {' or '.join(shares)}")
    return [*counts, rest]
