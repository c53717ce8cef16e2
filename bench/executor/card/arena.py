"""Where a plan's tensors lie on a card: in buffers whose frames are zeroed once, shared by tensors of the same form."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunebench.bench.executor.card.geometry import Pitches
from prunebench.bench.executor.jobs import Plan, Tensor
from prunebench.bench.executor.packing import GROUP


def pitches(tensor: Tensor) -> Pitches:
    """Pixels before the first one inside the frame, and from one channel, row and column to the next."""
    row = tensor.row // GROUP
    return tensor.frame[0] * row + tensor.frame[1], tensor.channel // GROUP, row, 1


def pixels(tensor: Tensor) -> int:
    """The pixels of all channels, with their frames."""
    return tensor.size // GROUP


@dataclass(frozen=True)
class Buffers:
    """The memory of a plan: by tensor the number of its buffer, and a tensor of the form of each buffer."""

    number: tuple[int, ...]
    forms: tuple[Tensor, ...]

    def allocate(self, images: int, device: torch.device) -> list[torch.Tensor]:
        """The buffers for `images` images, zero everywhere: kernels never write to a frame."""
        return [torch.zeros(pixels(form) * images, device=device) for form in self.forms]

    def inside(self, buffers: list[torch.Tensor], tensor: int, form: Tensor, images: int) -> torch.Tensor:
        """A tensor without its frame as a view of its buffer: (channels, rows, cols, images)."""
        (channels, rows, cols), (high, wide) = form.shape, form.frame
        whole = buffers[self.number[tensor]].view(channels, rows + 2 * high, cols + 2 * wide, images)
        return whole[:, high : high + rows, wide : wide + cols]


def buffers_of(plan: Plan) -> Buffers:
    """Buffers for a plan's tensors; two tensors share one if they have the same form and are never alive together."""
    last, number = plan.last_uses(), dict[int, int]()
    forms: list[Tensor] = []
    free: list[int] = []
    for step, job in enumerate(plan.jobs):
        if job.target >= 0 and job.target not in number:
            form = plan.tensors[job.target]
            fitting = [each for each in free if (forms[each].shape, forms[each].frame) == (form.shape, form.frame)]
            if fitting:
                free.remove(fitting[0])
            else:
                forms.append(form)
            number[job.target] = fitting[0] if fitting else len(forms) - 1
        free += [number[tensor] for tensor in {job.source, job.add, job.target} if last.get(tensor) == step]
    return Buffers(tuple(number.get(tensor, -1) for tensor in range(len(plan.tensors))), tuple(forms))
