"""The functions of `import prunebench` that each do the work of one command-line verb."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import nn

from prunebench.bench import beside
from prunebench.bench import protocol as rulebook
from prunebench.bench.checkpoint import Net, open_net
from prunebench.bench.claims import verify as measured_again
from prunebench.bench.claims.claim import find
from prunebench.bench.claims.verdict import Verdict
from prunebench.bench.claims.verify import Level
from prunebench.bench.cli.options import store_of
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sole_user
from prunebench.bench.grid import task
from prunebench.bench.grid.run import job_of
from prunebench.bench.interop.checkpoints import ingest
from prunebench.bench.player.host import describe
from prunebench.bench.protocol import Protocol
from prunebench.bench.record import Record
from prunebench.bench.score import scoring

if TYPE_CHECKING:
    from prunebench.leaderboard.board import Ranking


def load(path: str | Path) -> Net:
    """The net in the file `path`: `module` (float32, on the CPU, in eval mode, frozen), `header`, `id`.

    Its images are float32 (n, c, h, w) in [0, 1], its logits (n, classes). Raises Refused, a PrunebenchError, for a
    file that is damaged, altered or not a net.
    """
    return open_net(path)


def train(
    pruner: str,
    protocol: str | Protocol,
    out: str | Path,
    *,
    sparsity: float | None = None,
    seed: int = 0,
    data: str | Path | None = None,
    device: str = "auto",
) -> Net:
    """Train and prune a net by `protocol` in its own process, save it in the folder `out`, and open it.

    `pruner`: "NAME[:option=value,...]", "module:Class" or "file.py:Class". `protocol`: a name, a TOML file or a
    Protocol. `sparsity`: in [0, 1), None for a pruner that does not prune. `data`: the folder of data sets, by default
    $PRUNEBENCH_DATA or `data`. An interrupted run resumes; a finished net is kept. Results depend on torch's number of
    threads, which is 1 on the command line. Raises PrunebenchError for a pruner that breaks a rule or its
    budget, and for another net in `out`.
    """
    rules, folder = _rules(protocol), Path(out)
    (described,) = describe([pruner])
    job = job_of(described, sparsity, seed)
    with sole_user(folder):
        task.make_room(folder, job, rules, described.source, force=False)
        return open_net(task.train(pruner, job, rules, folder, folder / "stages", _store(data), device=device))


def score(
    net: str | Path | nn.Module,
    protocol: str | Protocol | None = None,
    *,
    arch: str | None = None,
    normalisation: str | None = None,
    examples: int | None = None,
    out: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    best: bool = False,
    also: Sequence[str] = (),
    arithmetic: str = "float32",
) -> Record:
    """Attack a net with AutoAttack *standard* and count the test images that survive.

    `net`: a net file, "robustbench:NAME", or a module whose state dict fits the architecture `arch`; a module also
    needs a `protocol`, and `normalisation` as "MEAN/STD" or "none" if it has no such layer of its own. `examples`: use
    only this many test images, from the start. `out`: a folder for the record, a module's net file, and the journal
    from which a killed run resumes. `data`: as in `train`. `best`: attack the survivors again, for the best-known
    number, `record.beyond.best`. `also`: more measurements, "planted", "distances", "corruptions" or "other-norm", for
    `record.beyond`, and weak attacks, such as "torchattacks:CW". `arithmetic`: of attacks, "float32" or, on a CUDA
    card, "tf32"; verdicts are always measured in float32. Raises Refused, a PrunebenchError, for a net that
    cannot be scored, and PrunebenchError when `out` holds the record of another net or a name in `also` is unknown.
    """
    how: dict[str, Any] = {"device": device, "best": best, "also": also, "arithmetic": arithmetic}
    if isinstance(net, nn.Module):
        return _score_module(net, protocol, arch, normalisation, examples, out, data, how)
    if arch is not None or normalisation is not None:
        raise PrunebenchError("A net file states how it was made; give arch and normalisation only with a module.")
    rules = None if protocol is None else _rules(protocol, to_train=False)
    if out is None:
        return scoring.score(net, rules, examples, store=_store(data), **how)
    with sole_user(Path(out)):
        beside.make_room(Path(out), Path(net), str(net), force=False)
        return scoring.score(net, rules, examples, out=out, store=_store(data), **how)


def _score_module(
    net: nn.Module,
    protocol: str | Protocol | None,
    arch: str | None,
    normalisation: str | None,
    examples: int | None,
    out: str | Path | None,
    data: str | Path | None,
    how: dict[str, Any],
) -> Record:
    """The score of a module, sealed as a net file in `out` or in a temporary folder; `how`: the rest for `score`."""
    if protocol is None or arch is None:
        raise PrunebenchError("A module does not state how it was made; give its architecture and a protocol.")
    with TemporaryDirectory() as folder:
        file, store = Path(folder) / "module.safetensors", _store(data)
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}, file)
        rules = _rules(protocol, to_train=False)
        place = Path(folder) / "net" if out is None else Path(out)
        sealed = ingest(file, arch, rules, place, store, normalisation=normalisation)
        return score(sealed.path, examples=examples, out=out, data=data, **how)


def verify(
    claim: str | Path,
    level: Level = "replay",
    *,
    seed: int | None = None,
    out: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
) -> Verdict:
    """Check the claim in the file or folder `claim` anew: `word`, `sentence`, `images`, `p`, `good` of its verdict.

    `level`: "replay" measures the stored adversarials again, "quick" runs APGD on images drawn by `seed` or anew each
    time, "full" runs all of AutoAttack on all images, with a journal in `out`. A claim of the best-known number faces
    its suite as well: the short attacks at level quick, all at level full. `data`: as in `train`. Raises
    PrunebenchError for a claim whose files are not those it names, or that lacks what the level needs, and for a folder
    of several claims.
    """
    claims = find(Path(claim))
    if len(claims) > 1:
        raise PrunebenchError(f"{claim} holds {len(claims)} claims; name one of them, such as {claims[0]}.")
    folder = None if out is None else Path(out)
    return measured_again.verify(claims[0], level, store=_store(data), device=device, seed=seed, out=folder)


def rank(records: str | Path) -> Ranking:
    """The ranks, intervals and origins of the records below the folder `records`; nothing is written.

    Raises PrunebenchError for records that cannot be read or compared.
    """
    from prunebench.leaderboard.check import look

    return look(records)


def _rules(protocol: str | Protocol, *, to_train: bool = True) -> Protocol:
    return protocol if isinstance(protocol, Protocol) else rulebook.load(protocol, to_train=to_train)


def _store(data: str | Path | None) -> Store:
    return store_of(Path(os.environ.get("PRUNEBENCH_DATA", "data") if data is None else data))
