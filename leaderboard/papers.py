"""Where each method was published: what a reader of its row wants to read next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A publication: its authors and year, and its address."""

    cited: str
    url: str


def _arxiv(cited: str, number: str) -> Paper:
    return Paper(cited, f"https://arxiv.org/abs/{number}")


_IWI = (
    _arxiv("Wang et al. 2020", "2009.05423"),
    Paper("Liao et al. 2022", "https://doi.org/10.1007/s10994-021-06049-9"),
)

# As cited in the docstrings of the pruners; append new methods.
PAPERS: dict[str, tuple[Paper, ...]] = {
    "awt": (_arxiv("Shi et al. 2022", "2202.06488"),),
    "flying-bird": (_arxiv("Chen et al. 2022", "2202.09844"),),
    "grasp": (_arxiv("Wang et al. 2020", "2002.07376"),),
    "harp": (_arxiv("Zhao and Wressnegger 2023", "2412.14714"),),
    "hydra": (_arxiv("Sehwag et al. 2020", "2002.10509"),),
    "imp": (
        _arxiv("Frankle and Carbin 2019", "1803.03635"),
        _arxiv("Frankle et al. 2020", "1912.05671"),
        _arxiv("Li et al. 2020", "2003.05733"),
    ),
    "iwi": _IWI,
    "iwi-dense": _IWI,
    "r-admm": (_arxiv("Ye et al. 2019", "1903.12561"),),
    "random": (_arxiv("Evci et al. 2020", "1911.11134"),),
    "rst": (_arxiv("Fu et al. 2021", "2110.14068"), _arxiv("Ramanujan et al. 2020", "1911.13299")),
    "s2ap": (_arxiv("Piras et al. 2025", "2510.18381"),),
    "snip": (_arxiv("Lee et al. 2019", "1810.02340"),),
    "synflow": (_arxiv("Tanaka et al. 2020", "2006.05467"),),
}


def papers_of(label: str) -> tuple[Paper, ...]:
    """The papers behind the row `label`, `NAME` or `NAME:option=value`; none for a name that nobody planned."""
    return PAPERS.get(label.partition(":")[0], ())
