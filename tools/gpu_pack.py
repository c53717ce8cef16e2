"""Results as volumes for a machine that returns few small files: records first, nets apart, the smallest first.

`FILE.1-records.000`, `.001`, ... hold everything but nets and stages of training; `FILE.2-nets.000`, ... the nets. If
the last volumes of nets do not come along, the nets before them are still read. A net knows its own hash, so a damaged
one is refused when it is opened, and trained again.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

SERIES = ("1-records", "2-nets")
LEFT_OUT = ("runs/stages", "registered", "site", "data")  # below the folder
NET = "net.safetensors"


class Volumes(io.RawIOBase):
    """A stream written to FILE.000, FILE.001, ... of at most `size` bytes."""

    def __init__(self, file: Path, size: int) -> None:
        super().__init__()
        self.file, self.size, self.count, self.room = file, size, 0, 0
        self.part: BinaryIO | None = None

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        """Write all of `data`, in as many volumes as it takes."""
        rest = memoryview(data)
        while len(rest):
            if not self.room:
                self._end()
                self.part = self.file.with_name(f"{self.file.name}.{self.count:03}").open("wb")
                self.count, self.room = self.count + 1, self.size
            assert self.part is not None
            done = self.part.write(rest[: self.room])
            rest, self.room = rest[done:], self.room - done
        return len(data)

    def _end(self) -> None:
        if self.part is not None:
            self.part.close()

    def close(self) -> None:
        """End the last volume."""
        self._end()
        super().close()


def pack(out: Path, file: Path, size: int) -> list[Path]:
    """Write the folder `out` to volumes of at most `size` bytes beside `file`; returns them, in order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in (path for series in SERIES for path in volumes(file, series)):
        old.unlink()
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and not _left_out(path.relative_to(out))]
    nets = sorted((path for path in files if path.name.endswith(NET)), key=lambda path: (path.stat().st_size, path))
    for series, members in zip(SERIES, ([path for path in files if path not in set(nets)], nets), strict=True):
        _write(out, members, file.with_name(f"{file.name}.{series}"), size)
    return [path for series in SERIES for path in volumes(file, series)]


def volumes(file: Path, series: str) -> list[Path]:
    """The volumes of a series, up to the first that is missing."""
    there: list[Path] = []
    while (path := file.with_name(f"{file.name}.{series}.{len(there):03}")).exists():
        there.append(path)
    return there


def _left_out(name: Path) -> bool:
    return any(name.is_relative_to(folder) for folder in LEFT_OUT)


def _write(out: Path, members: list[Path], file: Path, size: int) -> None:
    """One archive; a file whose bytes are there already becomes a link to it, as a record's net to its job's."""
    seen: dict[str, str] = {}
    with (
        Volumes(file, size) as raw,
        gzip.GzipFile(fileobj=cast(BinaryIO, raw), mode="wb", compresslevel=1) as zipped,
        tarfile.open(fileobj=zipped, mode="w|") as archive,
    ):
        for path in members:
            data = path.read_bytes()  # a file may be growing: the archive gets what it holds now
            name = path.relative_to(out).as_posix()
            info = tarfile.TarInfo(name)
            info.mtime = int(path.stat().st_mtime)
            first = seen.setdefault(hashlib.sha256(data).hexdigest(), name)
            if first != name and path.name.endswith(NET):
                info.type, info.linkname = tarfile.LNKTYPE, first
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def unpack(file: Path, out: Path) -> tuple[int, bool]:
    """Write what `out` lacks from the volumes of `file`; returns how many files, and whether all nets were there.

    Raises ValueError if the volumes of the records are not complete; then nothing is written.
    """
    records, nets = (_Joined(volumes(file, series)) for series in SERIES)
    try:
        while records.read(2**20):
            pass
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file}.{SERIES[0]}.000 and on are no complete pack ({error})") from error
    count = sum(1 for _ in _read(_Joined(volumes(file, SERIES[0])), out))
    try:
        for _ in _read(nets, out):
            count += 1
    except (EOFError, OSError, zlib.error, tarfile.TarError):
        return count, False
    return count, True


class _Joined(gzip.GzipFile):
    """The uncompressed stream of volumes that follow one another; empty volumes are an end too early."""

    def __init__(self, parts: list[Path]) -> None:
        super().__init__(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts) or b"\x1f\x8b"), mode="rb")


def _read(stream: gzip.GzipFile, out: Path) -> Iterator[Path]:
    """Write the members that `out` lacks, each when it is there as a whole, and yield their paths."""
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            safe = tarfile.data_filter(member, str(out))
            path = out / safe.name
            if safe.islnk():
                data = (out / safe.linkname).read_bytes()
            else:
                source = archive.extractfile(member)
                assert source is not None
                data = source.read()
                if len(data) != member.size:
                    raise EOFError(f"{member.name} is cut off")
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"{path.name}.aside")
            aside.write_bytes(data)
            os.utime(aside, (member.mtime, member.mtime))
            aside.replace(path)
            yield path


def main(verb: str, file: str, out: str, mebibytes: str = "15") -> int:
    """`pack FILE OUT MIB` or `unpack FILE OUT`; 0 if it succeeded."""
    if verb == "pack":
        made = pack(Path(out), Path(file), int(mebibytes) * 2**20)
        print(f"packed: {' '.join(map(str, made))}")
        return 0
    try:
        count, whole = unpack(Path(file), Path(out))
    except ValueError as error:
        print(f"{error}: bring all of them again, or leave --from out.", file=sys.stderr)
        return 2
    print(f"unpacked: {count} files{'' if whole else '; not all nets came along, those missing are trained again'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
