"""Patterns of zeros that hardware and libraries can use: masks chosen in a pattern, and patterns found in a net."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor, nn

from prunebench.bench.channels import Group, hidden_groups, shrunk
from prunebench.bench.errors import PrunebenchError, Refused
from prunebench.bench.mask import Masks, apportion, keep_largest, keep_largest_by_layer, shuffled, two_of_four
from prunebench.bench.models import prunable
from prunebench.bench.protocol import Pattern, Protocol

PATTERNS: tuple[str, ...] = ("unstructured", *get_args(Pattern))


def refuse_unknown(pattern: str) -> None:
    """Raise ValueError unless `pattern` is one of PATTERNS."""
    if pattern not in PATTERNS:
        raise ValueError(f"pattern = {pattern!r} must be one of {', '.join(PATTERNS)}")


@dataclass(frozen=True)
class Chooser:
    """Chooses masks in a pattern that keep at most `keep` weights of a net whose prunable tensors have these `shapes`.

    `unstructured`: any weights. `2:4`: at most two of every four consecutive inputs of an output, at each kernel pixel
    (Mishra et al. 2021, arXiv 2104.08378). The inputs are what sparse tensor cores sum over: features of a linear
    layer, channels of a convolution. A layer whose inputs are no multiple of 4 counts as filled up with zeros, so its
    last one or two inputs may all stay. At most about half of the weights stay, at a higher sparsity the largest scores
    among those. As without a pattern, exactly `keep` weights stay.

    `channel`: whole filters and neurons, with the inputs of the next layers that read them, so that `bench.channels`
    can make the net smaller. Channels that are added up in a residual net stay or go together; the logits all stay.
    Every group of channels keeps the same share, rounded down but at least one channel; then the groups with the
    smallest share get one more while it fits. The net keeps at most `keep` weights: fewer, by less than any further
    channel needs. In its group, a channel is ranked by the sum of its filter's scores (Li et al. 2017, arXiv
    1608.08710, who choose each layer's share by hand). Batch norms and biases of removed channels keep their values,
    which nothing reads.

    `net`: makes a net of these shapes; called for `channel` only. Raises ValueError for an unknown pattern, and
    PrunebenchError when the pattern cannot keep `keep` weights or needs more.
    """

    pattern: str
    shapes: Mapping[str, Sequence[int]]
    keep: int
    net: Callable[[], nn.Module]

    def __post_init__(self) -> None:
        refuse_unknown(self.pattern)
        whole = sum(math.prod(shape) for shape in self.shapes.values())
        if self.pattern == "2:4" and (most := sum(_most_by_four(shape) for shape in self.shapes.values())) < self.keep:
            raise PrunebenchError(
                f"Pattern 2:4 leaves at most {most} of {whole} weights, but the sparsity asks for {self.keep}; ask for "
                f"a sparsity of {-(-1000 * (whole - most) // whole) / 1000:g} or more."
            )
        if self.pattern == "channel" and (least := self._cost([1] * len(self._groups))) > self.keep:
            raise PrunebenchError(
                f"Pattern channel keeps at least {least} of {whole} weights, one channel everywhere, but the sparsity "
                f"allows {self.keep}; ask for a sparsity of at most {1000 * (whole - least) // whole / 1000:g}."
            )

    def __call__(self, scores: Mapping[str, Tensor], keeps: Mapping[str, int] | None = None) -> Masks:
        """The masks of the largest `scores`, which are at least 0; `keeps`: of so many in each layer.

        By layer or over all layers together, except with `channel`, where the pattern decides how many stay in each.
        Raises ValueError for NaN scores.
        """
        if self.pattern == "channel":
            return self._channels(scores)
        among = two_of_four(scores) if self.pattern == "2:4" else None
        return keep_largest(scores, self.keep, among) if keeps is None else keep_largest_by_layer(scores, keeps, among)

    def capped(self, keeps: Mapping[str, int]) -> dict[str, int]:
        """The counts `keeps` by layer, with what 2:4 has no room for divided among the other layers."""
        if self.pattern != "2:4":
            return dict(keeps)
        most = [_most_by_four(self.shapes[name]) for name in keeps]
        return dict(zip(keeps, apportion(sum(keeps.values()), most, list(map(float, keeps.values()))), strict=True))

    def shuffled(self, masks: Masks, generator: torch.Generator) -> Masks:
        """Masks of the same pattern with the same number of weights in each layer, at random places."""
        if self.pattern == "unstructured":
            return shuffled(masks, generator)
        scores = {name: torch.rand(mask.shape, generator=generator) for name, mask in masks.items()}
        return self(scores, {name: int(mask.sum()) for name, mask in masks.items()})

    @property
    def by_four(self) -> bool:
        """Whether at most two of four inputs are kept."""
        return self.pattern == "2:4"

    @cached_property
    def _groups(self) -> list[Group]:
        return hidden_groups(self.net())

    @cached_property
    def _ends(self) -> dict[str, tuple[int | None, int | None]]:
        """The numbers of the groups that each weight makes and reads; None for the image and the logits."""
        maker = {f"{name}.weight": i for i, group in enumerate(self._groups) for name in group.makers}
        reader = {f"{name}.weight": i for i, group in enumerate(self._groups) for name in group.readers}
        return {name: (maker.get(name), reader.get(name)) for name in self.shapes}

    def _cost(self, widths: Sequence[int]) -> int:
        """The weights of the net whose groups have so many channels."""
        weights = 0
        for name, (made, read) in self._ends.items():
            share = Fraction(math.prod(self.shapes[name]))
            for group in (made, read):
                share *= 1 if group is None else Fraction(widths[group], self._groups[group].size)
            weights += int(share)
        return weights

    @cached_property
    def _widths(self) -> list[int]:
        """How many channels each group keeps."""
        sizes = [group.size for group in self._groups]
        shares = sorted({Fraction(width, size) for size in sizes for width in range(1, size + 1)})

        def at(share: Fraction) -> list[int]:
            return [max(1, math.floor(share * size)) for size in sizes]

        low, high = 0, len(shares)  # below `low` every share fits, from `high` on none does
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._cost(at(shares[middle])) <= self.keep else (low, middle)
        widths = at(shares[low - 1]) if low else [1] * len(sizes)
        while True:
            for i in sorted(range(len(sizes)), key=lambda i: (widths[i] / sizes[i], i)):
                more = [width + (j == i) for j, width in enumerate(widths)]
                if more[i] <= sizes[i] and self._cost(more) <= self.keep:
                    widths = more
                    break
            else:
                return widths

    def _channels(self, scores: Mapping[str, Tensor]) -> Masks:
        kept = []
        for group, width in zip(self._groups, self._widths, strict=True):
            sums = [scores[f"{name}.weight"].detach().double().flatten(1).sum(1) for name in group.makers]
            kept.append(keep_largest({"": torch.stack(sums).sum(0)}, width)[""])
        masks = {name: torch.ones(tuple(shape), dtype=torch.bool) for name, shape in self.shapes.items()}
        for name, (made, read) in self._ends.items():
            flat = masks[name].flatten(2) if masks[name].dim() > 2 else masks[name].unsqueeze(2)
            if made is not None:
                flat &= kept[made].view(-1, 1, 1)
            if read is not None:
                flat &= kept[read].repeat_interleave(flat.shape[1] // len(kept[read])).view(1, -1, 1)
            masks[name] = flat.view(tuple(self.shapes[name]))
        return masks


def _most_by_four(shape: Sequence[int]) -> int:
    """How many weights of a tensor of this shape 2:4 can keep."""
    inputs = shape[1]
    return math.prod(shape) // inputs * (inputs // 4 * 2 + min(2, inputs % 4))


def patterns_of(net: nn.Module) -> tuple[Pattern, ...]:
    """The patterns that the zeros of `net` have, whatever made them.

    `2:4`: no four consecutive inputs have more than two nonzero weights; at a sparsity of .98, single weights may lie
    so by chance. `channel`: a smaller dense net without a zero has the same function and the same number of nonzero
    weights. Nets whose channels cannot be followed do not have it.
    """
    masks = {name: weight.detach().cpu() != 0 for name, weight in prunable(net).items()}
    allowed = two_of_four({name: mask.float() for name, mask in masks.items()})
    found: list[Pattern] = []
    if not any((mask & ~allowed[name]).any() for name, mask in masks.items()):
        found.append("2:4")
    if any((~mask.transpose(0, 1).flatten(1).any(1)).any() for mask in masks.values()) and _is_smaller_net(net, masks):
        found.append("channel")
    return tuple(found)


def _is_smaller_net(net: nn.Module, masks: Masks) -> bool:
    try:
        weights = prunable(shrunk(net)).values()
    except PrunebenchError:
        return False
    left = sum(int(mask.sum()) for mask in masks.values())
    return sum(weight.numel() for weight in weights) == sum(int(weight.count_nonzero()) for weight in weights) == left


def refuse_other_patterns(net: nn.Module, rules: Protocol, sparsity: float, name: str) -> None:
    """Raise Refused (check "pattern") when `rules` ask for patterns and the pruned `net`, called `name`, has none."""
    if rules.patterns and sparsity > 0 and not set(rules.patterns) & set(found := patterns_of(net)):
        raise Refused(
            "pattern",
            f"{name} has zeros of {'the pattern ' + ', '.join(found) if found else 'no pattern'}, but "
            f"{rules.name} ranks only {' and '.join(rules.patterns)}; prune with pattern={rules.patterns[0]} or score "
            "by other rules.",
        )
