"""What is asked of the records: each question names its rows in advance, and the published claim that it bears on.

A question is data. No answer, number or verdict is written here, so new records change what is said, never this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pairs:
    """Compare these rows, the first minus the second, at every sparsity at which a board has both."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Every:
    """Compare every method with magnitude pruning, with random pruning, or with its own shuffle."""

    control: Literal["magnitude", "random", "its own shuffle"]


@dataclass(frozen=True)
class Unpruned:
    """Compare every method at every sparsity with the unpruned net `dense` of the same seed."""


@dataclass(frozen=True)
class Order:
    """Compare two rows as their authors' nets compare: (their name, our row) for each of the two."""

    pairs: tuple[tuple[tuple[str, str], tuple[str, str]], ...]
    arch: str
    source: str


@dataclass(frozen=True)
class Slack:
    """How many points of AutoAttack's number the best-known number takes away from every row."""


@dataclass(frozen=True)
class Overlaps:
    """How far masks agree beyond chance: between two `seeds` of a row, or between two rows at one seed."""

    seeds: bool


@dataclass(frozen=True)
class Overfitting:
    """How far the last epoch of the last training lies below the best one, on validation images."""


Asked = Pairs | Every | Unpruned | Order | Slack | Overlaps | Overfitting


@dataclass(frozen=True)
class Question:
    """A question: its `key` for links and `--only`, what is compared, and what others published about it.

    `claim` and `source`: the published claim and where it was made; empty where nobody made one. `first`: whether the
    README and the site show its answer.
    """

    key: str
    title: str
    asked: Asked
    claim: str = ""
    source: str = ""
    first: bool = False


_PIRAS = "Piras et al. 2024, arXiv 2409.01249, ResNet-18 on CIFAR-10"
_HYDRA = ("HYDRA", "hydra")

QUESTIONS = (
    Question(
        "magnitude",
        "Does any method beat plain magnitude pruning?",
        Every("magnitude"),
        "Most methods were published as improvements on pruning by magnitude.",
        "Sehwag et al. 2020, arXiv 2002.10509, among others",
        first=True,
    ),
    Question(
        "shuffle",
        "Do the positions of the kept weights matter, or only the layer densities?",
        Every("its own shuffle"),
        "Masks found at initialisation lose nothing when they are shuffled inside their layers.",
        "Frankle et al. 2021, arXiv 2009.08576, for standard training; Su et al. 2020, arXiv 2009.11094",
        first=True,
    ),
    Question(
        "random",
        "Does any method beat a random mask with good layer densities?",
        Every("random"),
        "Random masks with layer densities by Erdos-Renyi-Kernel are strong baselines.",
        "Liu et al. 2022, arXiv 2202.02643, for standard training",
    ),
    Question(
        "awt-mask",
        "AWT: do its mask or its searched weights carry its gain, and does it beat a random mask?",
        Pairs(
            (
                ("awt", "awt:start=rescaled"),  # the same mask
                ("awt", "awt:start=initial"),
                ("awt:start=rescaled", "awt:shuffle=true"),  # the same start
                ("awt", "awt:shuffle=true"),
                ("awt", "random"),
            )
        ),
        "A sparse net whose adversarial training follows the dense net's exists at initialisation and can be found.",
        "Shi et al. 2022, arXiv 2202.06488",
    ),
    Question(
        "awt-init",
        "AWT: does it beat SNIP, GraSP and SynFlow at initialisation?",
        Pairs((("awt", "snip"), ("awt", "grasp"), ("awt", "synflow"))),
        "A mask found at initialisation by matching tangent kernels trains as the dense net does.",
        "Shi et al. 2022, arXiv 2202.06488",
    ),
    Question(
        "iwi-ticket",
        "IWI: does a robust ticket give the large net more than a random ticket does?",
        Pairs(
            (
                ("iwi", "iwi:ticket=random"),
                ("iwi-dense", "dense"),
                ("iwi-dense", "iwi-dense:ticket=random"),
                ("iwi", "imp"),
            )
        ),
        "Weights inherited from a robust lottery ticket make the large net more robust.",
        "Wang et al. 2020, arXiv 2009.05423",
    ),
    Question(
        "iwi-remainder",
        "IWI: does it matter how the large net's other weights begin?",
        Pairs((("iwi:remainder=init", "iwi"), ("iwi:remainder=small", "iwi"))),
        "The large net inherits sparse weights: those outside the ticket begin at zero.",
        "Wang et al. 2020, arXiv 2009.05423",
    ),
    Question(
        "sparse",
        "Does sparsity itself improve robustness?",
        Unpruned(),
        "Weight sparsity does not hurt robustness but improves it.",
        "Wang et al. 2020, arXiv 2009.05423",
    ),
    Question(
        "hydra-layers",
        "HYDRA: one density for all layers, or those of the global magnitude cut?",
        Pairs((("hydra:layers=global", "hydra"), ("hydra:layers=erk", "hydra"))),
        "HYDRA was published with one density for all layers.",
        "Sehwag et al. 2020, arXiv 2002.10509",
    ),
    Question(
        "order",
        "Does the published order of methods hold here?",
        Order(
            (
                (("HARP", "harp"), _HYDRA),
                (("Flying Bird", "flying-bird"), _HYDRA),
                (("Flying Bird", "flying-bird"), ("HARP", "harp")),
                (_HYDRA, ("Twin-Rep", "twin-rep")),
                (_HYDRA, ("RST", "rst")),
                (("R-ADMM", "r-admm:layers=uniform"), _HYDRA),  # as published: one share for all layers
            ),
            "resnet18",
            "piras2024",
        ),
        "AutoAttack accuracies of one net for each method at .9, .95 and .99, with eps .031 and the authors' budgets. "
        "Where two are less than 1.4 points apart, which 10,000 images alone can make, the paper has no order.",
        _PIRAS,
    ),
    Question(
        "slack",
        "Does AutoAttack flatter pruned nets?",
        Slack(),
        "AutoAttack *standard* is a reliable estimate of robustness.",
        "Croce & Hein 2020, arXiv 2003.01690",
        first=True,
    ),
    Question(
        "seeds",
        "Is a ticket a ticket: do two seeds find the same mask?",
        Overlaps(seeds=True),
        "A winning ticket works with the initialisation that it was found with.",
        "Frankle & Carbin 2019, arXiv 1803.03635",
    ),
    Question("methods", "Do two methods find the same mask from the same first weights?", Overlaps(seeds=False)),
    Question(
        "overfitting",
        "Do nets overfit robustly: is the last epoch worse than the best?",
        Overfitting(),
        "PGD accuracy peaks after the first drop of the learning rate, then falls: 53.5 % to 45.6 % by epoch 200.",
        "Rice et al. 2020, arXiv 2002.11569",
    ),
)
