"""Bounded reads of untrusted files, atomic writes and folder locks."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from prunebench.bench.errors import PrunebenchError


def sha256_of(data: bytes) -> str:
    """The sha256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces; raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


Complaint = Callable[[str, str], PrunebenchError]  # makes an error of a check ("file" or "format") and a sentence

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FLAGS = ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")  # open without waiting for another process
_CHUNK = 2**20  # bytes


def plainly(check: str, sentence: str) -> PrunebenchError:
    """A complaint without a check."""
    return PrunebenchError(sentence)


@contextmanager
def open_outside(
    path: Path, what: str, largest: int, *, way_out: str = "check the path", complain: Complaint = plainly
) -> Iterator[BinaryIO]:
    """The regular file at `path`, described as `what` and of at most `largest` bytes, open for reading.

    Links are followed. The target is checked after it is opened, so it cannot be swapped in between. Raises the error
    that `complain` makes if the target is not a regular file (check "file"), is too large ("format"), or cannot be
    read ("file"); `way_out` ends its sentence.
    """
    try:
        flags = os.O_RDONLY | functools.reduce(operator.or_, (getattr(os, name, 0) for name in _FLAGS))
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte or a lone surrogate
        reason = getattr(error, "strerror", None) or error
        raise complain("file", f"Cannot read {path}, {what} ({reason}); {way_out}.") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
            raise complain("file", f"{path} is {kind}, not a regular file that could be {what}; {way_out}.")
        if found.st_size > largest:
            raise complain("format", _too_large(path, what, largest, way_out))
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def read_outside(
    path: Path, what: str, largest: int, *, way_out: str = "check the path", complain: Complaint = plainly
) -> bytes:
    """The bytes of an untrusted file under the rules of `open_outside`, even if it grows or misreports its size."""
    with open_outside(path, what, largest, way_out=way_out, complain=complain) as file:
        try:
            parts = [file.read(os.fstat(file.fileno()).st_size) or b""]
            while more := file.read(_CHUNK):
                parts.append(more)
                if sum(map(len, parts)) > largest:
                    raise complain("format", _too_large(path, what, largest, way_out))
        except OSError as error:
            raise complain("file", f"Cannot read {path}, {what} ({error.strerror}); {way_out}.") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def digest_outside(
    path: Path, what: str, largest: int, *, way_out: str = "check the path", complain: Complaint = plainly
) -> str:
    """The sha256 of an untrusted file, using little memory: see `open_outside`."""
    digest, size = hashlib.sha256(), 0
    with open_outside(path, what, largest, way_out=way_out, complain=complain) as file:
        try:
            while more := file.read(_CHUNK):
                digest.update(more)
                if (size := size + len(more)) > largest:
                    raise complain("format", _too_large(path, what, largest, way_out))
        except OSError as error:
            raise complain("file", f"Cannot read {path}, {what} ({error.strerror}); {way_out}.") from None
    return digest.hexdigest()


def _too_large(path: Path, what: str, largest: int, way_out: str) -> str:
    return f"{path} is larger than {largest} bytes, so it is not {what}; {way_out}."


def read_known(path: Path, sha256: str, what: str, largest: int, *, missing: str, other: str) -> bytes:
    """The bytes of the file `path`, described as `what`, of at most `largest` bytes and with this sha256.

    Raises PrunebenchError with the remedy `missing` if the file is unreadable or too large, and with `other` if its
    sha256 differs.
    """
    data = read_outside(path, what, largest, way_out=missing)
    if sha256_of(data) != sha256:
        raise PrunebenchError(f"{path} is not {what}: its sha256 differs; {other}.")
    return data


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new file next to `path`, then rename it into place.

    A reader sees either the old file or the complete new one. If `write` fails, the old file is kept and the new one
    removed. Raises PrunebenchError when the file cannot be written to disk.
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
    except (FileExistsError, NotADirectoryError) as error:
        raise PrunebenchError(f"Could not write {path} ({error.strerror}); name a folder where a file is.") from error
    except OSError as error:
        raise PrunebenchError(
            f"Could not write {path} ({error.strerror or error}); finished work is kept: make room "
            "or choose another folder, then run the same command again."
        ) from error
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    write_aside(path, lambda aside: _fill(aside, data))


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` fill a new folder next to `folder`, then rename it into place; the old content is removed.

    If `fill` fails, the old folder is kept and the new one removed. Raises PrunebenchError when the files cannot be
    written to disk.
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
            f"Could not write {folder} ({error.strerror or error}); the old content is kept: make room or "
            "choose another folder, then run the same command again."
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        if old is not None and folder.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def sole_user(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock `folder` against other prunebench processes; the lock ends with the process, even if it is killed.

    `wait`: wait for the holder instead of refusing. Raises PrunebenchError when the folder is locked.
    """
    lock = FileLock(folder / ".lock", timeout=-1 if wait else 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise PrunebenchError(
            f"Another prunebench command is using {folder}; wait for it, or name another folder."
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise PrunebenchError(f"Cannot use the folder {folder} ({reason}); name a writable folder.") from error
    try:
        yield
    finally:
        lock.release()
