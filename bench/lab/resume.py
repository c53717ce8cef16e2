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
    tensors |= {f"mask/{name}": tensor for name, tensor in trainer.masks.items()}
    tensors |= {f"held/{name}": tensor for name, tensor in trainer.held.items()}
    about = {"epoch": trainer.epoch, "steps": trainer.steps, "times": trainer.times, "curve": trainer.curve}
    save_stage(partial, tensors, about)


def restore(partial: Path, trainer: Trainer) -> None:
    """Restore `trainer` to the state where an earlier run was interrupted, if that left a complete file."""
    kept = load_stage(partial)
    if kept is None or not _fits(trainer, *kept):
        return
    tensors, about = kept

    def part(kind: str) -> State:
        return {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}

    if any(not torch.equal(mask.cpu(), trainer.masks[name].cpu()) for name, mask in part("mask/").items()):
        trainer.remask(part("mask/"))
    trainer.model.load_state_dict(part("net/"))
    for name, average in part("average/").items():
        trainer.average[name].copy_(average)
    live = dict(trainer.model.named_parameters())
    for name, momentum in part("momentum/").items():  # fused SGD needs its strides
        trainer.momentum[name] = torch.empty_like(live[name]).copy_(momentum).detach()
    trainer.held |= {name: tensor.to(trainer.held[name].device) for name, tensor in part("held/").items()}
    trainer.epoch, trainer.steps, trainer.times, trainer.curve = (
        about[key] for key in ("epoch", "steps", "times", "curve")
    )


def _fits(trainer: Trainer, tensors: State, about: Any) -> bool:
    """Whether these tensors and facts belong to this training, and not to another."""
    live = {name: tensor.shape for name, tensor in trainer.live.items()}
    moving = {name: parameter.shape for name, parameter in trainer.model.named_parameters()}
    wanted = {f"{kind}/{name}": shape for kind in ("net", "average") for name, shape in live.items()}
    wanted |= {f"mask/{name}": mask.shape for name, mask in trainer.masks.items()}
    wanted |= {f"held/{name}": tensor.shape for name, tensor in trainer.held.items()}
    extra = {f"momentum/{name}": shape for name, shape in moving.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return (
        isinstance(about, dict)
        and about.keys() == {"epoch", "steps", "times", "curve"}
        and wanted.items() <= shapes.items() <= (wanted | extra).items()
    )
