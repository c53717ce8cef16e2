"""Numbers published by others, shown beside a board for orientation, never measured here and never ranked."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.protocol import PROTOCOLS, Protocol
from prunebench.bench.schema import Exact, Share, Strict, exact, explain

FILE = Path(__file__).with_name("published.toml")
NEAR = 0.02  # relative: a larger difference in eps makes another threat, whose rows are left out

Text = Annotated[str, Field(min_length=1, max_length=200)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Source(Strict):
    """A publication with numbers."""

    title: Text
    url: Annotated[str, Field(pattern=r"^https://[^\s\"'<>]+$")]


class PublishedNet(Strict):
    """One net as reported by its authors: accuracies in percent, `robust` under AutoAttack *standard*.

    `arch`: the nearest Prunebench architecture; `note`: how theirs differs. `eps`: the exact text.
    """

    name: Text
    source: Text
    arch: Text
    data: Text
    norm: Literal["Linf", "L2"]
    eps: Exact
    sparsity: Share
    clean: Percent
    robust: Percent
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> PublishedNet:
        if self.robust > self.clean:
            raise ValueError(f"robust = {self.robust} is above clean = {self.clean}")
        return self


class Published(Strict):
    """The whole file: nets and the sources that they cite."""

    sources: dict[str, Source]
    rows: Annotated[tuple[PublishedNet, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _check(self) -> Published:
        seen = set()
        for row in self.rows:
            if row.source not in self.sources:
                raise ValueError(f"{row.name!r} names the source {row.source!r}, which is not among the sources")
            key = (row.name, row.source, row.arch, row.data, row.norm, row.eps, row.sparsity)
            if key in seen:
                raise ValueError(f"{row.name!r} at sparsity {row.sparsity} on {row.arch} appears twice")
            seen.add(key)
        if unused := sorted(self.sources.keys() - {row.source for row in self.rows}):
            raise ValueError(f"no row names the source {unused[0]!r}")
        return self


@dataclass(frozen=True)
class Reference:
    """A published row for display beside a board; `differs`: how it departs from the board's protocol."""

    net: PublishedNet
    source: Source
    differs: tuple[str, ...]

    @property
    def place_shown(self) -> str:
        """The text shown instead of a rank."""
        return "published"


def load(path: Path = FILE) -> Published:
    """The published numbers in the file `path`. Raises PrunebenchError for an invalid key or value."""
    try:
        return Published.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise PrunebenchError(f"Cannot read {path} ({error.strerror}); restore the file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PrunebenchError(f"{path} is not valid TOML ({error}); correct the file.") from None
    except ValidationError as error:
        raise PrunebenchError(f"{path} breaks the rules: {explain(error)}") from None


def rows_for(protocol: Protocol | str, published: Published | None = None) -> tuple[Reference, ...]:
    """The published rows on the data, architecture and threat of `protocol`, the sparsest last, best first.

    `protocol`: the rules, or the name of built-in rules (other names have no published rows). An eps within 2 % of the
    protocol's counts as the same threat, and the difference is reported.
    """
    rules = PROTOCOLS.get(protocol) if isinstance(protocol, str) else protocol
    if rules is None:
        return ()
    published = load() if published is None else published
    found = []
    for net in published.rows:
        ours, theirs = exact(rules.threat.eps), exact(net.eps)
        same = (net.data, net.arch, net.norm) == (rules.data, rules.model, rules.threat.norm)
        if same and abs(theirs - ours) <= NEAR * ours:
            differs = [f"eps {net.eps}, not {rules.threat.eps}"] if theirs != ours else []
            differs += [net.note] if net.note else []
            found.append(Reference(net, published.sources[net.source], tuple(differs)))
    return tuple(sorted(found, key=lambda each: (each.net.sparsity, -each.net.robust, each.net.name)))
