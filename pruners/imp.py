"""Iterative magnitude pruning: the adversarial lottery ticket."""

from __future__ import annotations

from dataclasses import dataclass

from prunebench.bench.job import Job
from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import Masks, State, keep_largest, masked, shuffled


@dataclass(frozen=True)
class IMP:
    """Train, cut the globally smallest weights, rewind weights and batch norm to epoch `rewind`, repeat.

    Frankle & Carbin 2019 (arXiv 1803.03635) and Frankle et al. 2020 (arXiv 1912.05671) for the ticket and the
    rewinding; Li et al. 2020 (arXiv 2003.05733) for adversarial training in each round. Each of the cuts multiplies the
    density by the same factor. Our reading: the search trainings divide the share `search` of the budget equally, in
    at most `rounds` rounds. There are fewer if a training would have less than `least` optimiser steps: 68 are the
    least that were seen to work (digits), while four rounds of one short epoch end at one class (MNIST-4k at .99, where
    two rounds of three epochs are best). The last training, whose weights are the result, gets the rest, since all
    pruners have the same budget and short last trainings lose to longer ones. The cut ranks the averaged weights. The
    rewind restores the raw weights, and training resumes at epoch `rewind` of its schedule. With `rounds=1, rewind=0`
    this is the one-shot ticket. `shuffle`: permute the kept positions within each layer before the last training.
    """

    rounds: int = 4
    least: int = 68
    rewind: int = 1
    search: float = 0.5
    shuffle: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.least < 1 or self.rewind < 0 or not 0 < self.search < 1:
            raise ValueError(
                f"rounds = {self.rounds} must be at least 1, least = {self.least} at least 1, "
                f"rewind = {self.rewind} at least 0, search = {self.search} in (0, 1)"
            )

    def divided(self, budget: int, steps: int) -> tuple[int, int]:
        """Search trainings, and epochs for each, in a budget of so many epochs of so many steps.

        The most rounds, at most `rounds`, of `least` steps or more; one round, of whatever there is, if none has them.
        """
        share = self.search * budget - self.rewind
        found = [(rounds, int(share / rounds)) for rounds in range(self.rounds, 0, -1)]
        return next((each for each in found if each[1] * steps >= self.least), (1, max(1, int(share))))

    def __call__(self, job: Job, lab: Lab) -> State:
        """Find the ticket, then train it."""
        rounds, epochs = self.divided(lab.epochs, lab.steps)
        rest = lab.epochs - self.rewind - rounds * epochs
        lab.refuse_short({"train the ticket": rest}, way_out="lower rewind or search")
        early = lab.initial()
        if self.rewind:
            early = lab.fit("to the rewind point", early, epochs=self.rewind + epochs, stop=self.rewind).last
        masks: Masks | None = None
        for cut in range(1, rounds + 1):
            start = early if masks is None else masked(early, masks)
            trained = lab.fit(
                f"search {cut}", start, epochs=self.rewind + epochs, first=self.rewind, masks=masks
            ).weights
            masks = keep_largest({name: trained[name].abs() for name in lab.shapes}, _keep(cut / rounds, lab), masks)
        assert masks is not None  # rounds >= 1
        if self.shuffle:
            masks = shuffled(masks, lab.generator("shuffle"))
        return lab.fit(
            "train the ticket", masked(early, masks), epochs=self.rewind + rest, first=self.rewind, masks=masks
        ).weights


def _keep(share: float, lab: Lab) -> int:
    """How many weights remain after this share of the rounds: the density falls by the same factor each round."""
    density = (lab.keep / lab.prunable) ** share
    return max(lab.keep, round(density * lab.prunable))
