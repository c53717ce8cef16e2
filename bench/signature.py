"""Signatures of records by OpenSSH: `ssh-keygen -Y sign` makes them, `ssh-keygen -Y verify` says whose they are."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prunebench.bench.beside import signature_path
from prunebench.bench.errors import PrunebenchError, printable
from prunebench.bench.files import read_outside, write_bytes
from prunebench.bench.record import LARGEST, load_record

NAMESPACE = "prunebench"  # a signature for another purpose, such as a commit, is not valid for a record
ALLOWED = "allowed_signers"  # OpenSSH's file that maps people to keys; see ssh-keygen(1)
LARGEST_SIGNATURE = 2**16  # bytes; a 16,384-bit RSA key makes one of 6,000
LARGEST_ALLOWED = 2**20
PATIENCE = 60.0  # seconds for one call of ssh-keygen
PASSPHRASE = 600.0  # seconds to type one


def sign(record: Path, key: Path) -> Path:
    """Sign the record in the file `record` with the private key in `key`, and return the path of the signature.

    Raises PrunebenchError when the file is not a record, OpenSSH is not installed, or it cannot use the key.
    """
    load_record(record)
    data = read_outside(record, "a record", LARGEST)
    done = _call(("sign", "-n", NAMESPACE, "-f", str(key)), data, PASSPHRASE)
    if done.returncode != 0 or not done.stdout:
        raise PrunebenchError(f"ssh-keygen cannot sign with {key} ({_said(done)}); name a private key with --key.")
    path = signature_path(record)
    write_bytes(path, done.stdout)
    return path


def signer(record: Path, allowed: Path) -> str | None:
    """Who signed the record in the file `record`, by their name in the file `allowed`; None when nobody did.

    The name is as in that file. Raises PrunebenchError for a signature of other bytes or by nobody in `allowed`,
    and when OpenSSH is not installed to verify it.
    """
    path = signature_path(record)
    if not path.exists() and not path.is_symlink():
        return None
    signature = read_outside(path, "a signature", LARGEST_SIGNATURE, way_out="remove it or sign the record again")
    if not allowed.exists():
        raise PrunebenchError(
            f"{path} is a signature, but no file {allowed} lists the accepted keys; add the key there, or "
            "remove the signature."
        )
    names = read_outside(allowed, "a list of signers", LARGEST_ALLOWED, way_out="restore it")
    data = read_outside(record, "a record", LARGEST)
    with tempfile.TemporaryDirectory(prefix="prunebench-") as scratch:  # verify the very bytes that were read
        of, by = Path(scratch, "signature"), Path(scratch, "allowed")
        of.write_bytes(signature)
        by.write_bytes(names)
        found = _call(("find-principals", "-s", str(of), "-f", str(by)), b"")
        for name in found.stdout.decode(errors="replace").splitlines() if found.returncode == 0 else []:
            done = _call(("verify", "-f", str(by), "-I", name, "-n", NAMESPACE, "-s", str(of)), data)
            if done.returncode == 0:
                return name
    if found.returncode != 0:
        raise PrunebenchError(
            f"{path} is by a signer who is not in {allowed} ({_said(found)}); add the signer there, or remove it."
        )
    raise PrunebenchError(
        f"{path} does not sign the present {record} ({_said(done)}); sign it again with `prunebench sign`, or remove "
        "the signature."
    )


def _call(options: Sequence[str], data: bytes, patience: float = PATIENCE) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise PrunebenchError(
            "ssh-keygen, which signs and verifies records, is not installed; install OpenSSH (Debian's package "
            "openssh-client)."
        )
    try:
        return subprocess.run([program, "-Y", *options], input=data, capture_output=True, timeout=patience, check=False)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise PrunebenchError(f"ssh-keygen did not work ({error}); run it by hand to see why.") from None


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line of ssh-keygen's error output."""
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return printable(lines[-1].strip().rstrip("."))[:200] if lines else f"exit code {done.returncode}"
