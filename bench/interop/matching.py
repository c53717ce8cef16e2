"""A checkpoint's tensors under prunebench's names, with its masks or scores applied."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunebench.bench.errors import Refused
from prunebench.bench.interop.shown import listed, plain, quoted, shape
from prunebench.bench.mask import State, keep_count, keep_largest
from prunebench.bench.models import ARCHITECTURES

MEAN, STD = "0.mean", "0.std"
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_ROLES = (  # a name's ending, its replacement, and the tensor's role
    ("_orig", "", "value"),
    ("_mask", "", "mask"),
    (".mask", ".weight", "mask"),
    (".popup_scores", ".weight", "scores"),
)


def matched(
    theirs: Mapping[str, Tensor], ours: State, names: list[str], arch: str, sparsity: float | None, file: str
) -> tuple[State, list[tuple[str, str, str]]]:
    """Their values under our names with masks applied, and how each tensor was matched."""
    parts: dict[str, dict[str, str]] = {}  # the name without its role -> role -> their name
    for name in theirs:
        base, role = _role(name)
        if role in parts.setdefault(base, {}):
            raise Refused(
                "keys",
                f"{file!r} holds {quoted(name)} and {quoted(parts[base][role])} for the same tensor; remove one.",
            )
        parts[base][role] = name
    rename = max(_renamings(arch), key=lambda rename: sum(rename(base) in ours for base in parts))
    places = {base: _statistics(rename(base), ours) for base in parts}
    foreign = [name for base in parts if places[base] not in ours for name in parts[base].values()]
    filled = {MEAN, STD} | {name for name in ours if name.endswith(".num_batches_tracked")}
    found = {places[base] for base, roles in parts.items() if "value" in roles}
    missing = [name for name in ours if name not in found | filled]
    if foreign or missing:
        said = [f"it lacks {listed(missing)}"] * bool(missing) + [f"it adds {listed(foreign)}"] * bool(foreign)
        raise Refused("keys", f"{file!r} is not a checkpoint of {arch}: {'; '.join(said)}; rename or remove keys.")
    state: State = {}
    matches: list[tuple[str, str, str]] = []
    for base, roles in parts.items():
        place = places[base]
        if place in state or "value" not in roles:
            raise Refused(
                "keys", f"{file!r} names {place!r} twice, or masks it without a weight: {listed(roles.values())}."
            )
        for name in roles.values():
            if not _fits(theirs[name], ours[place], place):
                wanted = tuple(ours[place].shape)
                raise Refused("shapes", f"{file!r} holds {quoted(name)} as {shape(theirs[name])}, not {wanted}.")
        values = theirs[roles["value"]].detach()
        if values.is_floating_point() != ours[place].is_floating_point():
            raise Refused(
                "shapes", f"{file!r} holds {quoted(roles['value'])} as {values.dtype}, not {ours[place].dtype}."
            )
        how = "unchanged" if values.dtype == ours[place].dtype else f"{values.dtype} as {ours[place].dtype}"
        state[place] = values.to(ours[place].dtype).reshape(ours[place].shape).clone()
        for role, name in roles.items():
            if role != "value":
                mask, by = _mask(theirs[name], role, sparsity, name, file)
                state[place], how = torch.where(mask, state[place], 0.0), by
        matches += [(plain(name), place, how) for name in roles.values()]
    return state, matches


def _role(name: str) -> tuple[str, str]:
    """The tensor that `name` refers to, without wrapper prefixes, and its role: value, mask or scores."""
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    for ending, base, role in _ROLES:
        if name.endswith(ending):
            return name.removesuffix(ending) + base, role
    return name, "value"


def _renamings(arch: str) -> list[Callable[[str], str]]:
    """Renamings from others' names for the tensors of `arch`; in ours, the net after the normalisation is "1."."""

    def other(name: str) -> str:
        for pattern, word in ARCHITECTURES[arch].names:
            name = re.sub(pattern, word, name)
        return f"1.{name}"

    return [lambda name: name, lambda name: f"1.{name}", other, lambda name: other(name.removeprefix("1."))]


def _statistics(name: str, ours: State) -> str:
    """Our name for `name`, which may be a normalisation's mean or deviation under another name."""
    if name not in ours and (found := re.fullmatch(r"(?:1\.)?(?:\w+\.)?(mean|mu|std|sigma)", name)):
        return MEAN if found[1] in ("mean", "mu") else STD
    return name


def _fits(tensor: Tensor, wanted: Tensor, place: str) -> bool:
    """Whether the shapes agree; pixel statistics may have a batch dimension or no dimensions at all."""
    if place in (MEAN, STD):
        return tensor.numel() == wanted.numel() and tensor.dim() <= 4
    return tensor.shape == wanted.shape


def _mask(tensor: Tensor, role: str, sparsity: float | None, name: str, file: str) -> tuple[Tensor, str]:
    """The mask that `tensor` is, or that its scores define."""
    scores = tensor.detach().float()
    if ((scores == 0) | (scores == 1)).all():
        return scores == 1, "weight x mask"
    if role == "mask":
        raise Refused(
            "masks", f"{file!r} holds the mask {quoted(name)} with values other than 0 and 1; make it binary."
        )
    if sparsity is None:
        raise Refused(
            "masks", f"{file!r} holds the scores {quoted(name)}; state with --sparsity how many weights to keep."
        )
    if not scores.isfinite().all():
        raise Refused("non-finite", f"{file!r} holds NaN or infinite scores in {quoted(name)}.")
    keep = keep_count(scores.numel(), sparsity)
    return keep_largest({"": scores.abs()}, keep)[""], f"weight under its {keep} largest |scores|"
