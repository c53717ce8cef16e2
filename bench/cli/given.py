"""What a user may give: a net file or its folder, a record, and lists of values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prunebench.bench.errors import PrunebenchError
from prunebench.bench.names import NET, RECORD
from prunebench.bench.protocol import as_sparsity

_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar")


def net_at(path: Path) -> Path:
    """The net file that `path` names: the file itself, or the net in a folder that `train` made.

    Raises PrunebenchError for a folder without a net, for a record, and for a checkpoint from elsewhere.
    """
    if path.is_dir():
        if (path / NET).is_file():
            return path / NET
        below = sorted(path.glob(f"jobs/*/{NET}")) or sorted(path.glob(f"*/{NET}"))
        way_out = f"name one of the nets below it, such as {below[0]}" if below else "name a net file"
        raise PrunebenchError(f"The folder {path} holds no {NET}; {way_out}, or a folder that `train` made.")
    if path.suffix in _CHECKPOINTS:
        missing = "" if path.exists() else f"There is no file {path}, and "
        raise PrunebenchError(
            f"{missing}{path.name} is no net file of prunebench: make one of such a checkpoint with prunebench import "
            f"{path} --arch ARCH --protocol PROTOCOL --out FOLDER."
        )
    if path.suffix == ".json" and path.is_file():
        raise PrunebenchError(f"{path} is a JSON file, not a net; name the {NET} beside it.")
    return path


def record_at(path: Path) -> Path:
    """The record that `path` names: the file itself, or the record in a folder that `score` wrote to.

    Raises PrunebenchError for a folder without a record, and for a net, with where its record is or how to make it.
    """
    if path.is_dir():
        if (path / RECORD).is_file():
            return path / RECORD
        raise PrunebenchError(
            f"The folder {path} holds no {RECORD}; name a record, or score the net first: prunebench score NET."
        )
    if path.suffix == ".safetensors":
        beside = next((file for file in (path.with_name(RECORD), _published(path)) if file.is_file()), None)
        way_out = f"give its record, {beside}" if beside else f"score it first: prunebench score {path}"
        raise PrunebenchError(f"{path} is a net, but a record is needed; {way_out}.")
    return path


def net_of(record: Path) -> Path:
    """The net that `record` scores: beside a published record under its own name, else the net in its folder."""
    from prunebench.bench.beside import net_path

    return published if (published := net_path(record)).is_file() else record.parent / NET


def records_in(folder: Path) -> Path:
    """The folder of records: `folder` itself, or its subfolder if it is a run folder.

    Raises PrunebenchError for a single record, and for the folder of one net.
    """
    if (folder / NET).is_file() and not (folder / RECORD).is_file():
        raise PrunebenchError(f"{folder} holds a net but no record; score it first: prunebench score {folder / NET}.")
    if folder.is_file() or (folder / RECORD).is_file():
        what = "a single file" if folder.is_file() else "the folder of one net"
        raise PrunebenchError(
            f"{folder} is {what}, but a folder of records is needed, such as the folder of a run; to test whether two "
            "nets differ, use prunebench compare."
        )
    return folder / "records" if (folder / "records").is_dir() else folder


def claim_at(path: Path) -> Path:
    """The claim that `path` names, or a folder of claims. Raises PrunebenchError for a record or a net."""
    if path.suffix in (".json", ".safetensors") and path.is_file():
        record = record_at(path) if path.suffix == ".json" else path.with_name(RECORD)
        raise PrunebenchError(
            f"{path} is no claim; make one from a record: prunebench claim {record} --out FOLDER, and verify FOLDER."
        )
    return path


def _published(net: Path) -> Path:
    """The record of a net that is published beside it as NAME.net.safetensors."""
    return net.with_name(f"{net.name.removesuffix('.safetensors').removesuffix('.net')}.json")


def sparsity_of(text: str | float) -> float:
    """Parse a sparsity, and check it again as a float: 0.999... with enough nines rounds to 1."""
    value = float(as_sparsity(text))
    return float(as_sparsity(value))


def one(text: str, option: str) -> str:
    """`text`, a single value. Raises PrunebenchError for several, separated by commas."""
    several = split(text)
    if len(several) == 2 and all(part.isascii() and part.isdigit() for part in several):
        raise PrunebenchError(f"{option} {text} is written with a comma; write {'.'.join(several)}.")
    if len(several) > 1:
        raise PrunebenchError(
            f"{option} {text} names {len(several)} values, but this command takes one; use prunebench run for a grid, "
            "or this command once for each."
        )
    return text


def split(text: str) -> list[str]:
    """The values in `text`, separated by commas; an item like `option=value` belongs to the pruner before it."""
    found: list[str] = []
    for item in text.split(","):
        if found and "=" in item and ":" not in item.partition("=")[0]:
            found[-1] += f",{item.strip()}"
        else:
            found.append(item.strip())
    return found


def sparsities_of(texts: Iterable[str | float]) -> list[float]:
    """The sparsities in `texts`, each one or several, separated by commas."""
    return [sparsity_of(value) for text in texts for value in split(str(text))]


def seeds_of(texts: Iterable[str]) -> list[int]:
    """The seeds in `texts`, each one or several, separated by commas. Raises PrunebenchError for what is no seed."""
    values = [value for text in texts for value in split(text)]
    for value in values:
        if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) < 2**63):
            raise PrunebenchError(f"--seed {value} is no seed; write whole numbers from 0 to {2**63 - 1}, as in 0,1,2.")
    return [int(value) for value in values]
