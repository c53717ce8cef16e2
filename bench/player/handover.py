"""Messages between the referee's processes and a pruner's: requests one way, tensors and text the other.

Requests are pickled, since the referee writes them. Replies are parsed only as safetensors and JSON: they may come
from third-party code, and nothing in them is trusted but the weights themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.facts import StageCost
from prunebench.bench.files import read_outside, write_bytes
from prunebench.bench.job import Job
from prunebench.bench.protocol import Protocol
from prunebench.bench.schema import Strict, explain

if TYPE_CHECKING:  # this module imports no torch, so that a pruner's process starts before the referee has imported it
    from prunebench.bench.data import Store
    from prunebench.bench.mask import State

NAME = "handover.safetensors"
LARGEST = 2**31  # bytes; the largest net in the table is 60 MB


@dataclass(frozen=True)
class Describe:
    """Describe these pruners: `specs` as on the command line."""

    specs: tuple[str, ...]


@dataclass(frozen=True)
class Play:
    """Train the net of `job` with the pruner `spec`, and leave the weights in `folder`; `stages` are shared."""

    spec: str
    job: Job
    protocol: Protocol
    store: Store
    folder: Path
    stages: Path
    device: str
    threads: int
    tensorboard: bool

    @property
    def specs(self) -> tuple[str, ...]:
        """The pruner, as the only one that is run."""
        return (self.spec,)


Request = Describe | Play


class Described(Strict):
    """A pruner's description of itself: its non-default options, and whether it prunes at all."""

    options: dict[str, bool | int | float | str]
    prunes: bool


class Charged(Strict):
    """The stages of a training with their prices and seconds, as the pruner's process reported them."""

    stages: tuple[StageCost, ...] = Field(strict=False)


def leave(folder: Path, state: Any, stages: list[StageCost]) -> None:
    """Write weights and stages for the referee. Raises PrunebenchError if `state` is not a dict of tensors."""
    from torch import Tensor

    from prunebench.bench.checkpoint import pack

    if not (isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())):
        raise PrunebenchError(
            f"The pruner returned {type(state).__name__}, not a dict of tensors; return the state dict of lab.model()."
        )
    about = {"stages": [stage.model_dump(mode="json") for stage in stages]}
    write_bytes(folder / NAME, pack({key: tensor.detach().cpu().clone() for key, tensor in state.items()}, about))


def take(folder: Path) -> tuple[State, tuple[StageCost, ...]]:
    """The weights and the stages that a pruner left in `folder`. Raises Refused for anything else."""
    from prunebench.bench.checkpoint import unpack

    way_out = "make the pruner return the weights of its net, then run it again"
    data = read_outside(folder / NAME, "the result of the pruner", LARGEST, way_out=way_out, complain=Refused)
    state, about = unpack(data, "The result of the pruner")
    try:
        return state, Charged.model_validate(about).stages
    except ValidationError as error:
        raise Refused("handover", f"The pruner's report of its stages breaks the rules: {explain(error)}") from None
