"""The file from which an interrupted training resumes, to end in the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunebench.bench.lab.stages import load_stage, save_stage
from prunebench.bench.lab.trainer import Trainer
from prunebench.bench.mask import State


def save(partial: Path, trainer: Trainer) -> None:
    """Write everything that the next epoch needs, atomically."""
    tensors = {f"net/{name}": tensor for name, tensor in trainer.live.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in trainer.average.items()}
    tensors |= {f"momentum/{name}": tensor for name, tensor in trainer.momentum.items()}
    about = {"epoch": trainer.epoch, "steps": trainer.steps, "times": trainer.times, "curve": trainer.curve}
    save_stage(partial, tensors, about)


def restore(partial: Path, trainer: Trainer) -> None:
    """Restore `trainer` to the state where an earlier run was interrupted, if that left a complete file."""
    kept = load_stage(partial)
    if kept is None or not _fits(trainer, *kept):
        return
    tensors, about = kept
    net = {name.removeprefix("net/"): tensor for name, tensor in tensors.items() if name.startswith("net/")}
    trainer.model.load_state_dict(net)
    for name, average in trainer.average.items():
        average.copy_(tensors[f"average/{name}"])
    for name, parameter in trainer.model.named_parameters():
        if f"momentum/{name}" in tensors:
            momentum = torch.empty_like(parameter).copy_(tensors[f"momentum/{name}"])  # fused SGD needs its strides
            trainer.momentum[name] = momentum.detach()
    trainer.epoch, trainer.steps, trainer.times, trainer.curve = (
        about[key] for key in ("epoch", "steps", "times", "curve")
    )


def _fits(trainer: Trainer, tensors: State, about: Any) -> bool:
    """Whether these tensors and facts belong to this training, and not to another."""
    live = {name: tensor.shape for name, tensor in trainer.live.items()}
    moving = {name: parameter.shape for name, parameter in trainer.model.named_parameters()}
    wanted = {f"{kind}/{name}": shape for kind in ("net", "average") for name, shape in live.items()}
    extra = {f"momentum/{name}": shape for name, shape in moving.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return (
        isinstance(about, dict)
        and about.keys() == {"epoch", "steps", "times", "curve"}
        and wanted.items() <= shapes.items() <= (wanted | extra).items()
    )
