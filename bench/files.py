"""Files that are never half-written, never shared by two writers, and known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.errors import PrunebenchError


def sha256_of(data: bytes) -> str:
    """The sha256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces; raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_known(path: Path, sha256: str, what: str, largest: int, *, missing: str, other: str) -> bytes:
    """The bytes of the file `path`, which is `what`, takes at most `largest` bytes and has this sha256.

    `missing`, `other`: the way out when the file cannot be read or is too large, and when it is another one. Raises
    PrunebenchError in these cases.
    """
    try:
        if path.stat().st_size > largest:
            raise PrunebenchError(f"{path} is larger than {largest} bytes, so it is not {what}; {missing}.")
        data = path.read_bytes()
    except OSError as error:
        raise PrunebenchError(f"Cannot read {path}, {what} ({error.strerror}); {missing}.") from None
    if sha256_of(data) != sha256:
        raise PrunebenchError(f"{path} is not {what}: its sha256 is another; {other}.")
    return data


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new file next to `path`, then rename it into place.

    A reader sees the old file or the whole new one. When `write` fails, the old file stays and the new one is
    removed. Raises PrunebenchError when the disk cannot take the file.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".aside")
        os.close(handle)
        aside = Path(name)
        aside.chmod(0o644)
        write(aside)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
    except OSError as error:
        raise PrunebenchError(
            f"Could not write {path} ({error.strerror or error}); what was finished before is kept: make room "
            "or choose another folder, then run the same command again."
        ) from error
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    write_aside(path, lambda aside: _fill(aside, data))


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` fill a new folder next to `folder`, then rename it into place; what was in `folder` is removed.

    When `fill` fails, the old folder stays and the new one is removed. Raises PrunebenchError when the disk cannot
    take the files.
    """
    folder = folder.resolve()
    aside = old = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".aside"))
        aside.chmod(0o755)
        fill(aside)
        if folder.exists():
            old = aside.with_suffix(".old")
            folder.rename(old)
        aside.rename(folder)
    except OSError as error:
        if old is not None and not folder.exists():
            old.rename(folder)
        raise PrunebenchError(
            f"Could not write {folder} ({error.strerror or error}); what was there before is kept: make room or "
            "choose another folder, then run the same command again."
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        if old is not None and folder.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def sole_user(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` against other prunebench processes; the lock goes with the process, killed or not.

    `wait`: queue up behind the holder instead of refusing. Raises PrunebenchError when the folder is taken.
    """
    lock = FileLock(folder / ".lock", timeout=-1 if wait else 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise PrunebenchError(
            f"Another prunebench command is at work in {folder}; only one may be: wait for it, or name another folder."
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise PrunebenchError(f"Cannot use the folder {folder} ({reason}); name one that can be written.") from error
    try:
        yield
    finally:
        lock.release()
