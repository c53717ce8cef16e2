"""What `import prunebench` offers where one call does what a verb of the command line does."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import nn

from prunebench.bench import protocol as rulebook
from prunebench.bench.checkpoint import Net, open_net
from prunebench.bench.data import Store
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import sole_user
from prunebench.bench.grid import task
from prunebench.bench.grid.run import job_of
from prunebench.bench.interop.checkpoints import ingest
from prunebench.bench.player.host import resolve
from prunebench.bench.protocol import Protocol
from prunebench.bench.record import Record
from prunebench.bench.score import scoring

if TYPE_CHECKING:
    from prunebench.leaderboard.board import Ranking


def load(path: str | Path) -> Net:
    """The net in the file `path`: `module` (float32, on the CPU, in eval mode, frozen), `header`, `id`.

    Its images are float32 (n, c, h, w) in [0, 1], its logits (n, classes). Raises Refused, a PrunebenchError, for a
    file that is damaged, altered or no net.
    """
    return open_net(path)


def train(
    pruner: str,
    protocol: str | Protocol,
    out: str | Path,
    *,
    sparsity: float | None = None,
    seed: int = 0,
    data: str | Path = "data",
    device: str = "auto",
) -> Net:
    """Train and prune a net by `protocol` in a process of its own, leave it in the folder `out`, and open it.

    `pruner`: "NAME[:option=value,...]", "module:Class" or "file.py:Class". `protocol`: a name, a TOML file or a
    Protocol. `sparsity`: in [0, 1), None for a pruner that does not prune. A run that was cut off resumes; a finished
    net is kept. Raises PrunebenchError for a pruner that breaks a rule or its budget, and for another net in `out`.
    """
    rules, folder = _rules(protocol), Path(out)
    (resolved,) = resolve([pruner])
    job = job_of(resolved, sparsity, seed)
    with sole_user(folder):
        task.make_room(folder, job, rules, force=False)
        return open_net(task.train(pruner, job, rules, folder, folder / "stages", Store(Path(data)), device=device))


def score(
    net: str | Path | nn.Module,
    protocol: str | Protocol | None = None,
    *,
    arch: str | None = None,
    normalisation: str | None = None,
    examples: int | None = None,
    out: str | Path | None = None,
    data: str | Path = "data",
    device: str = "auto",
) -> Record:
    """Attack a net with AutoAttack *standard* and count the test images that survive.

    `net`: a net file, "robustbench:NAME", or a module whose state dict fits the architecture `arch`; a module also
    needs a `protocol`, and `normalisation` as "MEAN/STD" or "none" where it has no such layer of its own. `examples`:
    only the first so many test images. `out`: a folder for the record and for the journal from which a killed run
    resumes. Raises Refused, a PrunebenchError, for a net that cannot be scored.
    """
    store = Store(Path(data))
    if not isinstance(net, nn.Module):
        return scoring.score(net, protocol, examples, out=out, store=store, device=device)
    if protocol is None or arch is None:
        raise PrunebenchError("A module does not say how it was made; name its architecture and a protocol.")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "module.safetensors"
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}, file)
        sealed = ingest(file, arch, _rules(protocol), Path(folder), store, normalisation=normalisation)
        return scoring.score(sealed.path, examples=examples, out=out, store=store, device=device)


def rank(records: str | Path) -> Ranking:
    """The places, intervals and origins of the records below the folder `records`; nothing is written.

    Raises PrunebenchError for records that cannot be read or compared.
    """
    from prunebench.leaderboard.check import look

    return look(records)


def _rules(protocol: str | Protocol) -> Protocol:
    return protocol if isinstance(protocol, Protocol) else rulebook.load(protocol)
