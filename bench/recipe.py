"""The recipe of adversarial training that all pruners of a protocol share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from prunebench.bench.schema import Count, Exact, Share, Strict

EPOCHS = 10_000  # in all units of a budget together; the longest built-in protocol has 80
Objective = Literal["pgd", "trades", "fgsm-rs"]  # losses and prices: bench/lab/objectives.py
Size = Annotated[float, Field(ge=0, le=1e6)]  # of a rate or a weight; above it, float32 training fails


class Training(Strict):
    """The adversarial training that all pruners share; `epochs` epochs of it are one unit of budget."""

    objective: Objective
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    step_size: Exact
    beta: Size = 6.0
    epochs: Annotated[int, Field(ge=1, le=EPOCHS)]
    batch: Annotated[int, Field(ge=1, le=2**20)]
    lr: Annotated[Size, Field(gt=0)]
    schedule: Literal["cosine", "step"] = "cosine"
    momentum: Share = 0.9
    weight_decay: Size = 5e-4
    ema: Share = 0.995
    augment: Literal["none", "crop-flip"] = "none"
    validate_every: Count = 5

    @property
    def one_step(self) -> bool:
        """Whether the loss's attack is one step of its own size, to which `steps` and `step_size` do not apply."""
        return self.objective == "fgsm-rs"
