"""The role of each row, and which rows of one sparsity are compared: by names and options alone, never by a result."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Literal

from prunebench.bench.job import Job

PRIMARY, RANDOM = "magnitude", "random"  # the pruners that methods are compared with

Role = Literal["method", "control", "reference"]
Family = Literal["primary", "secondary", "parts", "places"]

# Options whose values replace a part of a method, so that a comparison shows what the part is worth.
_PARTS = {
    "awt": {"start": {"initial", "rescaled"}},
    "iwi": {"ticket": {"random"}, "remainder": {"init", "small"}},
}


def role_of(job: Job) -> Role:
    """A row's role on a board: reference at sparsity 0, control for random pruning, shuffles and replaced parts."""
    if job.sparsity == 0:
        return "reference"
    return "control" if job.pruner == RANDOM or job.options.get("shuffle") or _replaced(job) else "method"


def families(jobs: Mapping[str, Job]) -> dict[Family, list[tuple[str, str]]]:
    """The pairs to compare, by label, of rows of one sparsity.

    "primary": each method with magnitude pruning. "secondary": with random pruning, and with its own shuffle. "parts":
    with itself when one of its parts is replaced. "places": every other pair of methods.
    """
    methods = [label for label, job in jobs.items() if role_of(job) == "method"]
    shuffles = [(m, other) for m in methods for other, job in jobs.items() if _is_shuffle_of(job, jobs[m])]
    parts = [(m, other) for m in methods for other, job in jobs.items() if _is_part_of(job, jobs[m])]
    random = [(m, RANDOM) for m in methods if RANDOM in jobs]
    return {
        "primary": [(m, PRIMARY) for m in methods if PRIMARY in methods and m != PRIMARY],
        "secondary": sorted(random + shuffles),
        "parts": parts,
        "places": [pair for pair in combinations(methods, 2) if PRIMARY not in pair],
    }


def _is_shuffle_of(other: Job, job: Job) -> bool:
    return other.pruner == job.pruner and other.options == job.options | {"shuffle": True}


def _is_part_of(other: Job, job: Job) -> bool:
    kept = {name: value for name, value in other.options.items() if name not in _replaced(other)}
    return len(other.options) == len(kept) + 1 and (other.pruner, kept) == (job.pruner, job.options)


def _replaced(job: Job) -> set[str]:
    """The options of the job that replace a part."""
    parts = _PARTS.get(job.pruner, {})
    return {name for name, value in job.options.items() if value in parts.get(name, ())}
