"""The verb that says what this machine can run."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.bench.cli import show
from prunebench.bench.cli.options import AsJson, DataRoot, Quiet, store_of
from prunebench.bench.protocol import PROTOCOLS, Protocol

if TYPE_CHECKING:
    from prunebench.bench.data import Store


def doctor(data: DataRoot = Path("data"), quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Show what this machine can run: protocols, device, versions."""
    from prunebench.bench import executor, machine
    from prunebench.bench.datasets import DATASETS
    from prunebench.bench.player import sandbox as walls

    store, compiler = store_of(data), executor.compiler()
    device = machine.device_named("auto")
    facts = {key: str(value) for key, value in machine.env(device).items()}
    facts["ray"] = machine.package("ray") or "not installed; `run --engine ray` needs it"
    facts |= {"cores": str(os.cpu_count()), "compiler": Path(compiler).name if compiler else "none found"}
    facts |= {"sparse kernels": executor.explain(), "sandbox": walls.lacking() or "here; `run --sandbox` uses it"}
    facts |= {f"data: {name}": "here" if store.present(name) else f"not in {data}" for name in DATASETS}
    verdicts = {rules.name: _verdict(rules, store, device.type) for rules in PROTOCOLS.values()}
    if as_json:
        show.print_json(facts | {f"protocol: {name}": verdict for name, verdict in verdicts.items()})
        return
    show.out(show.table("", "", rows=list(facts.items())), "", "PROTOCOLS")
    show.out(show.table("", "", rows=list(verdicts.items())))


def _verdict(rules: Protocol, store: Store, device: str) -> str:
    """Whether a run by `rules` can begin here, what is missing, and how long it takes to train a net."""
    if store.present(rules.data):
        here = "ready"
    else:
        here = (
            f"data missing: {rules.data} is not in {store.root}; with a network, the first run downloads it there, or "
            "name its folder with --data"
        )
    hours = _hours(rules, device)
    takes = f"{hours:.0f} h" if hours >= 1 else f"{max(1.0, 60 * hours):.0f} min"
    return f"{here}; GPU: {'none' if device == 'cpu' else 'yes'}, expect about {takes} to train a net"


def _hours(rules: Protocol, device: str) -> float:
    """Roughly the hours to train one dense net: one step of a batch is timed, for every net and shape once."""
    from prunebench.bench.datasets import DATASETS
    from prunebench.bench.lab.meter import granted

    data = DATASETS[rules.data]
    images = rules.train or data.images[0] - rules.validation
    return granted(rules, images) * _pass_seconds(rules.model, rules.data, device) / 3600


@cache
def _pass_seconds(model: str, data: str, device: str) -> float:
    """Seconds per sample pass of a net of this architecture on images of this data set, in training mode."""
    import torch

    from prunebench.bench.datasets import DATASETS
    from prunebench.bench.models import build

    info, batch = DATASETS[data].info, 16 if device == "cpu" else 256
    torch.set_num_threads(1)  # as a job has, unless --threads says otherwise
    net, images = build(model, info=info).to(device).train(), torch.rand(batch, *info.shape, device=device)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        net(images).sum().backward()  # forward 1, backward 2
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times) / (3 * batch)
