"""An example of each verb, shown at the end of its --help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": ("run digits-linf --jobs 2", "run digits-linf --pruner imp,hydra --sparsity 0.98 --seed 0,1,2"),
    "plan": ("plan digits-linf --jobs 2",),
    "train": ("train digits-linf --pruner imp:rounds=3 --sparsity 0.95 --out my",),
    "score": ("score my", "score my --examples 200 --best"),
    "import": ("import net.pt --arch resnet18 --protocol cifar10-linf --out net",),
    "inspect": ("inspect my",),
    "rank": ("rank runs", "rank leaderboard/records --write --reason 'Three seeds more.'"),
    "sign": ("sign my/record.json --key ~/.ssh/id_ed25519",),
    "site": ("site runs --out site",),
    "compare": ("compare my/record.json their/record.json",),
    "claim": ("claim my/record.json --out claims/my", "claim my --at-least '60 %' --out claims/my"),
    "verify": ("verify claims --level quick",),
    "new": ("new my_pruner",),
    "check": ("check my_pruner/my_pruner.py:MyPruner",),
    "list": ("list pruners",),
    "doctor": ("doctor --data ~/data",),
}


def epilog(verb: str) -> str:
    """The end of the verb's help: each example on a line of its own, which is not wrapped."""
    title = "Examples:" if len(EXAMPLES[verb]) > 1 else "Example:"
    return "\n".join(["\b", title, *(f"  prunebench {example}" for example in EXAMPLES[verb])])
