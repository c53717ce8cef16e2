"""Checkpoints that were trained elsewhere: read without running their code, matched by name, sealed as net files."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from prunebench.bench import collapse
from prunebench.bench.bounded import unzipped_size
from prunebench.bench.checkpoint import LARGEST, Header, Net, open_net, seal
from prunebench.bench.data import Store
from prunebench.bench.datasets import Info
from prunebench.bench.errors import PrunebenchError, Refused, printable
from prunebench.bench.files import read_outside, sha256_of
from prunebench.bench.interop.pickled import refuse_explosive
from prunebench.bench.mask import State, keep_count, keep_largest
from prunebench.bench.models import ARCHITECTURES, build, prunable
from prunebench.bench.protocol import Job, Protocol

PRUNER = "import"
NET = "net.safetensors"
_NESTED = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_ROLES = (  # the ending of a name, what stands in its place, and what the tensor is
    ("_orig", "", "value"),
    ("_mask", "", "mask"),
    (".mask", ".weight", "mask"),
    (".popup_scores", ".weight", "scores"),
)
_MEAN, _STD = "0.mean", "0.std"
_SHOWN = 5  # names in a refusal


@dataclass(frozen=True)
class Imported:
    """A sealed checkpoint: where it lies, and for every tensor of it whose it is: (theirs, ours, how).

    `warnings`: what speaks against the net before anybody attacks it, a sentence each.
    """

    path: Path
    net: Net
    matches: list[tuple[str, str, str]]
    warnings: list[str]

    def as_json(self) -> dict[str, Any]:
        """What happened as a JSON value."""
        names = [dict(zip(("theirs", "ours", "how"), match, strict=True)) for match in self.matches]
        facts = {"net": str(self.path), "sha256": self.net.id.sha256, "sparsity": self.net.sparsity}
        return facts | {"matches": names, "warnings": self.warnings}


def ingest(
    file: Path,
    arch: str,
    rules: Protocol,
    out: Path,
    store: Store,
    *,
    sparsity: float | None = None,
    label: str | None = None,
    normalisation: str | None = None,
) -> Imported:
    """Seal the checkpoint `file` of the architecture `arch` as a net file in `out`, to be scored by `rules`.

    A weight is taken as it is, as weight times mask (`weight_orig` and `weight_mask`, or `mask`), or under the mask of
    its scores (`popup_scores`, as HYDRA saves them): binary scores are the mask, others keep in each layer the largest
    |score| that `sparsity` leaves. `sparsity` is what the net is held to, by default what is counted.

    The header says that nobody trained under the rules here: the job's pruner is "import", no stage was paid for, and
    the rules go by the name of `rules` with "-import" behind it, so they are not the official ones. Raises Refused,
    with the names, for tensors that are missing, foreign, or of another shape.
    """
    if label is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", label):
        raise PrunebenchError(f"The label {label!r} is no plain name; write up to 64 letters, digits and . _ + -.")
    path = out / NET
    if path.exists():
        raise PrunebenchError(f"{path} is there already and stays as it is; choose another folder with --out.")
    info = store.info(rules.data)
    ours = build(arch, info=info).state_dict()
    with torch.device("meta"):
        names = list(prunable(build(arch, info=info)))
    data = read_outside(file, "a checkpoint", LARGEST, complain=Refused)
    theirs = _tensors(data, file)
    state, matches = _matched(theirs, ours, names, arch, sparsity, str(file))
    state, told = _completed(state, ours, info, normalisation, str(file))
    whole = sum(ours[name].numel() for name in names)
    zeros = whole - sum(int(torch.count_nonzero(state[name])) for name in names)
    asked = min(zeros * 10_000 // whole, 9_999) / 10_000 if sparsity is None else sparsity
    header = Header(
        arch=arch,
        classes=info.classes,
        shape=info.shape,
        source=sha256_of(data),
        train_sha256=None,
        stages=(),
        protocol=rules.model_copy(update={"name": f"{rules.name[:57]}-import", "model": arch}),
        job=Job(pruner=PRUNER, options={} if label is None else {"label": label}, sparsity=asked, seed=0),
    )
    seal(path, state, header, passes_granted=0)
    net = open_net(path)
    return Imported(path, net, matches + told, collapse.warnings(net))


# Reading, without running anything


def _tensors(data: bytes, file: Path) -> dict[str, Tensor]:
    """The tensors by name in a safetensors file, or in what torch.save wrote of tensors alone."""
    pickled = data[:2] == b"PK" or (data[:1] == b"\x80" and data[2:8] != b"\0" * 6)  # a header is not so long
    held: Any
    try:
        held = _unpickled(data) if pickled else load_safetensors(data)
    except SafetensorError as error:
        raise Refused(
            "format", f"{str(file)!r} is neither a safetensors file ({_short(error)}) nor what torch.save writes."
        ) from None
    except Exception as error:  # noqa: BLE001  foreign bytes may break their reader anywhere; nothing is kept of them
        raise Refused(
            "format",
            f"{str(file)!r} cannot be read as tensors alone ({_short(error)}); no code in it was run: save "
            "net.state_dict() and nothing else with torch.save, or write safetensors.",
        ) from None
    for key in _NESTED:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not held:
        raise Refused("format", f"{str(file)!r} holds {type(held).__name__}, not a state dict; save net.state_dict().")
    for name, value in held.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            kind = type(value).__name__
            raise Refused("keys", f"{str(file)!r} holds {_name(name)} of type {kind}, not a tensor; leave it out.")
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise Refused("shapes", f"{str(file)!r} holds {_name(name)} as no plain tensor; save it as float32.")
    if any(name.endswith(".bitmask") for name in held):
        raise Refused("format", f"{str(file)!r} is a net file already; score it as it is.")
    return held


def _unpickled(data: bytes) -> Any:
    """What torch.save wrote, by torch's reader that knows tensors and plain containers and no other code."""
    if data[:2] == b"PK" and (size := unzipped_size(data)) > LARGEST:
        raise ValueError(f"it unpacks to {size} bytes")
    refuse_explosive(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old formats
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


# Matching by name


def _matched(
    theirs: Mapping[str, Tensor], ours: State, names: list[str], arch: str, sparsity: float | None, file: str
) -> tuple[State, list[tuple[str, str, str]]]:
    """Their values under our names, masks applied, and what became of what."""
    parts: dict[str, dict[str, str]] = {}  # the name without its role -> role -> theirs
    for name in theirs:
        base, role = _role(name)
        if role in parts.setdefault(base, {}):
            raise Refused("keys", f"{file!r} holds {_name(name)} and {_name(parts[base][role])}, which are one tensor.")
        parts[base][role] = name
    rename = max(_renamings(arch), key=lambda rename: sum(rename(base) in ours for base in parts))
    places = {base: _statistics(rename(base), ours) for base in parts}
    foreign = [name for base in parts if places[base] not in ours for name in parts[base].values()]
    filled = {_MEAN, _STD} | {name for name in ours if name.endswith(".num_batches_tracked")}
    found = {places[base] for base, roles in parts.items() if "value" in roles}
    missing = [name for name in ours if name not in found | filled]
    if foreign or missing:
        said = [f"it lacks {_list(missing)}"] * bool(missing) + [f"{_list(foreign)} have no place"] * bool(foreign)
        raise Refused("keys", f"{file!r} is not a checkpoint of {arch}: {'; '.join(said)}; rename or leave out.")
    state: State = {}
    matches: list[tuple[str, str, str]] = []
    for base, roles in parts.items():
        place = places[base]
        if place in state or "value" not in roles:
            raise Refused(
                "keys", f"{file!r} names {place!r} twice or masks it without a weight: {_list(roles.values())}."
            )
        for name in roles.values():
            if not _fits(theirs[name], ours[place], place):
                wanted = tuple(ours[place].shape)
                raise Refused("shapes", f"{file!r} holds {_name(name)} as {_shape(theirs[name])}, not {wanted}.")
        values = theirs[roles["value"]].detach()
        if values.is_floating_point() != ours[place].is_floating_point():
            raise Refused(
                "shapes", f"{file!r} holds {_name(roles['value'])} as {values.dtype}, not {ours[place].dtype}."
            )
        how = "as it is" if values.dtype == ours[place].dtype else f"{values.dtype} as {ours[place].dtype}"
        state[place] = values.to(ours[place].dtype).reshape(ours[place].shape).clone()
        for role, name in roles.items():
            if role != "value":
                mask, by = _mask(theirs[name], role, sparsity, name, file)
                state[place], how = torch.where(mask, state[place], 0.0), by
        matches += [(_plain(name), place, how) for name in roles.values()]
    return state, matches


def _role(name: str) -> tuple[str, str]:
    """The tensor that `name` is about, without the prefixes of wrappers, and whether it is value, mask or scores."""
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    for ending, base, role in _ROLES:
        if name.endswith(ending):
            return name.removesuffix(ending) + base, role
    return name, "value"


def _renamings(arch: str) -> list[Callable[[str], str]]:
    """Ways in which others name the tensors of `arch`; ours is the net behind the normalisation, at "1."."""

    def other(name: str) -> str:
        for pattern, word in ARCHITECTURES[arch].names:
            name = re.sub(pattern, word, name)
        return f"1.{name}"

    return [lambda name: name, lambda name: f"1.{name}", other, lambda name: other(name.removeprefix("1."))]


def _statistics(name: str, ours: State) -> str:
    """The place of `name`, which may be the mean or the deviation of a normalisation under another name."""
    if name not in ours and (found := re.fullmatch(r"(?:1\.)?(?:\w+\.)?(mean|mu|std|sigma)", name)):
        return _MEAN if found[1] in ("mean", "mu") else _STD
    return name


def _fits(tensor: Tensor, wanted: Tensor, place: str) -> bool:
    """Whether the shapes agree; those of pixel statistics may have a batch dimension or none at all."""
    if place in (_MEAN, _STD):
        return tensor.numel() == wanted.numel() and tensor.dim() <= 4
    return tensor.shape == wanted.shape


def _mask(tensor: Tensor, role: str, sparsity: float | None, name: str, file: str) -> tuple[Tensor, str]:
    """The mask that `tensor` is or, being scores, leads to."""
    scores = tensor.detach().float()
    if ((scores == 0) | (scores == 1)).all():
        return scores == 1, "weight x mask"
    if role == "mask":
        raise Refused("masks", f"{file!r} holds the mask {_name(name)} with values other than 0 and 1; make it binary.")
    if sparsity is None:
        raise Refused("masks", f"{file!r} holds the scores {_name(name)}; say with --sparsity how many they keep.")
    if not scores.isfinite().all():
        raise Refused("non-finite", f"{file!r} holds NaN or infinite scores in {_name(name)}.")
    keep = keep_count(scores.numel(), sparsity)
    return keep_largest({"": scores.abs()}, keep)[""], f"weight under its {keep} largest |scores|"


def _completed(
    state: State, ours: State, info: Info, normalisation: str | None, file: str
) -> tuple[State, list[tuple[str, str, str]]]:
    """`state` with what a checkpoint need not have: pixel statistics, and batch norm's counters."""
    told = []
    given = {} if normalisation is None else _normalisation(normalisation, info.shape[0])
    if given and (_MEAN in state or _STD in state):
        raise Refused("keys", f"{file!r} brings its own normalisation; leave --normalisation out.")
    if (_MEAN in state) != (_STD in state):
        raise Refused("keys", f"{file!r} has a mean or a deviation of pixels, but not both.")
    for name, tensor in ours.items():
        if name not in state:
            state[name] = given.get(name, tensor).clone()
            counter = name.endswith(".num_batches_tracked")
            told.append(("", name, "0: not in the file" if counter else "given" if given else "of the data set"))
    return {name: state[name] for name in ours}, told


def _normalisation(text: str, channels: int) -> dict[str, Tensor]:
    try:
        halves = ["0", "1"] if text == "none" else text.split("/")
        mean, std = ([float(number) for number in half.split(",")] for half in halves)
        if not all(math.isfinite(number) for number in mean + std) or min(std) <= 0:
            raise ValueError
        mean, std = (half * channels if len(half) == 1 else half for half in (mean, std))
        if {len(mean), len(std)} != {channels}:
            raise ValueError
    except ValueError:
        raise PrunebenchError(
            f"Cannot read the normalisation {text!r}; write MEAN/STD with one number or {channels} with commas, the "
            "deviations above 0, or none."
        ) from None
    return {_MEAN: torch.tensor(mean).view(-1, 1, 1), _STD: torch.tensor(std).view(-1, 1, 1)}


# Names from a file, as they may be shown


def _plain(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def _name(name: object) -> str:
    return f"'{_plain(str(name))}'"


def _list(names: Any) -> str:
    names = list(names)
    shown = ", ".join(_name(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape)[:8])


def _short(error: Exception) -> str:
    if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):  # torch's own advice would be to run it after all
        return f"it holds {_plain(foreign[1])}"
    return _plain(str(error).strip().partition("\n")[0] or type(error).__name__)
