"""CIFAR-10's files from volumes that travel a few at a time, under any names: `gpu_volumes FROM DATA`.

Each file in FROM is one of the published ones, plain or packed with xz, and is known by its md5 sum. It is written
below DATA as torchvision reads it. What is there is kept, so that later calls bring the rest.
"""

from __future__ import annotations

import hashlib
import lzma
import sys
from pathlib import Path

FOLDER = "cifar-10-batches-py"


def known() -> dict[str, str]:
    """The published files by md5 sum, as torchvision lists them."""
    from torchvision.datasets import CIFAR10

    listed = {md5: name for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list]}
    return listed | {CIFAR10.meta["md5"]: CIFAR10.meta["filename"]}


def unpack(source: Path, data: Path) -> list[str]:
    """Write the published files among those in `source` below `data`; returns the names that are still missing.

    Raises ValueError for a file that is none of them.
    """
    names, folder = known(), data / FOLDER
    for path in sorted(source.iterdir()) if source.is_dir() else []:
        content = path.read_bytes()
        try:
            content = lzma.decompress(content) if content.startswith(b"\xfd7zXZ") else content
        except lzma.LZMAError as error:
            raise ValueError(f"{path} is damaged ({error}); bring it again.") from error
        name = names.get(hashlib.md5(content, usedforsecurity=False).hexdigest())
        if name is None:
            raise ValueError(f"{path} is none of CIFAR-10's files, or damaged; bring it again, or take it away.")
        if not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f"{name}.aside"
            aside.write_bytes(content)
            aside.replace(folder / name)
    return sorted(name for name in names.values() if not (folder / name).exists())


def main(source: str, data: str) -> int:
    """Unpack, and say what is missing; 0 unless a file is none of the published ones."""
    try:
        missing = unpack(Path(source), Path(data))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"CIFAR-10 in {data}: {'complete' if not missing else 'missing ' + ', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
