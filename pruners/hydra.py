"""HYDRA: the choice of weights to keep is itself learned adversarially."""

from __future__ import annotations

from dataclasses import dataclass

from prunebench.bench.lab.lab import Lab
from prunebench.bench.mask import State, masked, scaled_scores, uniform
from prunebench.bench.pattern import Chooser, refuse_unknown
from prunebench.bench.protocol import Job


@dataclass(frozen=True)
class HYDRA:
    """Dense adversarial training, a search for the mask by learned scores, fine-tuning under the mask.

    Sehwag et al. 2020, arXiv 2002.10509, and its published code. Every weight of a convolution or linear layer has a
    score; the mask keeps the largest |score| in each layer, at one density for all layers. In the search the weights
    are frozen and only the scores are trained, through the mask, on the adversarial loss. Verified in the original:
    scaled initialisation (so the search starts from magnitude pruning in each layer), straight-through gradient, three
    stages. Where the original goes wrong, we use exact counts by largest remainders (its rounding up keeps one weight
    too many), the protocol's eps (not .031), no extra data, and no weight decay on the scores. There we also freeze
    batch norm's affine part in the search (its statistics follow the pruned net), fix the mask once after the search,
    and select no checkpoint on test images. Papers use 100, 20 and 100 epochs; here the budget is divided similarly.

    `dense`, `search`: shares of the budget; the rest is for fine-tuning. `search_lr`, `lr`: peak learning rates of
    search and fine-tuning as multiples of the protocol's. `loss`: "pgd" or "trades" in all stages. `shuffle`: permute
    the kept positions within each layer after the search. `pattern`: "unstructured", "2:4" or "channel", as
    `bench.pattern.Chooser` has them. The search keeps to "2:4"; with "channel" it masks single weights as without a
    pattern, and afterwards a channel's score is the sum of its filter's |scores|.
    """

    dense: float = 0.5
    search: float = 0.1
    search_lr: float = 1.0
    lr: float = 0.5
    loss: str = "pgd"
    shuffle: bool = False
    pattern: str = "unstructured"

    def __post_init__(self) -> None:
        refuse_unknown(self.pattern)
        if not (self.dense > 0 and self.search > 0 and self.dense + self.search < 1):
            raise ValueError(f"dense = {self.dense} and search = {self.search} must be above 0 and sum to less than 1")
        if not (self.search_lr > 0 and self.lr > 0):
            raise ValueError(f"search_lr = {self.search_lr} and lr = {self.lr} must be above 0")
        if self.loss not in ("pgd", "trades"):
            raise ValueError(f"loss = {self.loss!r} must be pgd or trades")

    def __call__(self, job: Job, lab: Lab) -> State:
        """Pretrain, search, fine-tune."""
        chooser = Chooser(self.pattern, lab.shapes, lab.keep, lab.model)
        epochs = lab.affordable(self.loss)
        dense_epochs, search_epochs = (max(1, round(share * epochs)) for share in (self.dense, self.search))
        rate = lab.protocol.training.lr
        dense = lab.fit("dense", lab.initial(), epochs=dense_epochs, objective=self.loss).weights
        keeps = chooser.capped(uniform(lab.shapes, lab.keep))
        scores, searched = lab.fit_scores(
            "search",
            dense,
            scaled_scores({name: dense[name] for name in lab.shapes}),
            keeps,
            epochs=search_epochs,
            lr=self.search_lr * rate,
            objective=self.loss,
            by_four=chooser.by_four,
        )
        masks = chooser({name: score.abs() for name, score in scores.items()}, keeps)
        if self.shuffle:
            masks = chooser.shuffled(masks, lab.generator("shuffle"))
        return lab.fit(
            "fine-tune",
            masked(searched, masks),
            epochs=epochs - dense_epochs - search_epochs,
            masks=masks,
            lr=self.lr * rate,
            objective=self.loss,
        ).weights
