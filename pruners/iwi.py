"""Inverse weights inheritance: a large net inherits the weights of a small robust one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import State, keep_largest, masked, shuffled

SMALL = 1e-3  # times a weight's initial value: the remainder "small"


def inherit(small: State, initial: State, names: list[str], remainder: str) -> State:
    """The large net W = m * w_s + (1 - m) * r, where m marks the small net's weights.

    `remainder`: r = "zero", "init" (theta0) or "small" (a thousandth of theta0). Batch norm and biases are inherited.
    """
    scale = {"zero": 0.0, "small": SMALL, "init": 1.0}[remainder]
    filled = {name: torch.where(small[name] != 0, small[name], scale * initial[name]) for name in names}
    return small | filled


def _check(ticket: str, ticket_share: float, large_share: float, remainder: str, *rates: float) -> None:
    if ":" in ticket:  # its file would be missing from the method's source hash, and its path would enter records
        raise ValueError(
            f"ticket = {ticket!r} must be the name of an installed pruner, without options; install yours to name it"
        )
    if not (ticket_share > 0 and large_share > 0 and ticket_share + large_share <= 1 and min(rates) > 0):
        raise ValueError("the shares of the budget must be above 0 and sum to at most 1, and learning rates above 0")
    if remainder not in ("zero", "init", "small"):
        raise ValueError(f"remainder = {remainder!r} must be zero, init or small")


def _large(lab: Lab, ticket: str, sparsity: float, epochs: tuple[int, int], remainder: str, lr: float) -> State:
    """Ticket, inheritance, and training of all weights; `epochs`: for the ticket and for the large net."""
    small = lab.run(ticket, name="ticket", sparsity=sparsity, epochs=epochs[0])
    start = inherit(small, lab.initial(), list(lab.shapes), remainder)
    return lab.fit("large", start, epochs=epochs[1], lr=lr * lab.protocol.training.lr).weights


@dataclass(frozen=True)
class IWI:
    """An adversarial ticket, a large net that inherits its weights and trains all of them, pruned and fine-tuned again.

    Wang et al. 2020, arXiv 2009.05423; Liao et al. 2022, Machine Learning 111, doi 10.1007/s10994-021-06049-9. Verified
    in abstract and taxonomy: an iterative, global, unstructured magnitude ticket trained by PGD, and a large net that
    inherits from the small one. The full text was not available to us: this is a re-implementation after the paper. We
    added the last step (global magnitude pruning to the job's sparsity, fine-tuning), since the method's own result is
    dense (`iwi-dense`) and could not be compared with the others.

    `ticket`: the pruner of the small net, "imp" or, as a control, "random" (any name in the registry, without options).
    `share`, `large`: shares of the budget for the ticket and for the large net; the rest is for fine-tuning.
    `remainder`: the values of the weights that the ticket lacks, "zero" (default), "init" or "small". `lr`: peak
    learning rate of the large net as a multiple of the protocol's. It is low because thousands of weights start at zero
    and all move in their first steps; at 0.5 they undo the ticket for good (digits, .95 and .98: near one class).
    `tune`: the same for fine-tuning. Both were chosen on validation images under seeds that no board uses. `shuffle`:
    permute the kept positions within each layer after the last cut.
    """

    ticket: str = "imp"
    share: float = 0.5
    large: float = 0.25
    remainder: str = "zero"
    lr: float = 0.05
    tune: float = 0.5
    shuffle: bool = False

    def __post_init__(self) -> None:
        _check(self.ticket, self.share, self.large, self.remainder, self.lr, self.tune)
        if self.share + self.large >= 1:
            raise ValueError(f"share = {self.share} and large = {self.large} leave nothing for the fine-tuning")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Ticket, inherit, train all, prune, fine-tune."""
        epochs = round(self.share * lab.epochs), max(1, round(self.large * lab.epochs))
        stages = {"ticket": epochs[0], "fine-tune": lab.epochs - sum(epochs)}
        lab.refuse_short(stages, way_out="choose other values of share and large")
        large = _large(lab, self.ticket, job.sparsity, epochs, self.remainder, self.lr)
        masks = keep_largest({name: large[name].abs() for name in lab.shapes}, lab.keep)
        if self.shuffle:
            masks = shuffled(masks, lab.generator("shuffle"))
        return lab.fit(
            "fine-tune",
            masked(large, masks),
            epochs=lab.epochs - sum(epochs),
            masks=masks,
            lr=self.tune * lab.protocol.training.lr,
        ).weights


@dataclass(frozen=True)
class IWIDense:
    """The method's own, dense result: a ticket, and a large net that inherits its weights and trains all of them.

    Papers as for `iwi`. Compare with `dense` at the same budget; otherwise the extra training explains the difference.
    `sparsity`: of the ticket, in (0, 1). `share`: the ticket's share of the budget; `ticket`, `remainder`, `lr` as in
    `iwi`. `shuffle` has no mask to permute; it is accepted so that a whole grid can be shuffled.
    """

    ticket: str = "imp"
    sparsity: float = 0.9
    share: float = 0.5
    remainder: str = "zero"
    lr: float = 0.1
    shuffle: bool = False
    prunes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.ticket, self.share, 1 - self.share, self.remainder, self.lr)
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity = {self.sparsity} of the ticket must be in (0, 1)")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Ticket, inherit, train all."""
        ticket = round(self.share * lab.epochs)
        epochs = ticket, lab.epochs - ticket
        lab.refuse_short(
            {"ticket": ticket, "large": epochs[1]},
            way_out="choose another value of share",
        )
        return _large(lab, self.ticket, self.sparsity, epochs, self.remainder, self.lr)
