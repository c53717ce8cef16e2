"""A pruner's budget and spending, in sample passes."""

from __future__ import annotations

from dataclasses import dataclass, field

from prunebench.bench.errors import BudgetExceeded
from prunebench.bench.facts import StageCost, Validated
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

    def charge(self, name: str, passes: int, seconds: float | None = None, curve: tuple[Validated, ...] = ()) -> None:
        """Spend `passes` on the stage `name`. Raises BudgetExceeded, and spends nothing, when too few are left."""
        self.check(name, passes)
        self.stages.append(StageCost(name=name, passes=passes, seconds=seconds, curve=curve))


def granted(protocol: Protocol, images: int) -> int:
    """The sample passes in a pruner's budget when there are `images` training images."""
    recipe = protocol.training
    return int(protocol.units * TrainingPlan(recipe, protocol.threat, recipe.epochs).passes(images))
