"""The mistakes that `tools.mistakes` makes, by kind, and the files they are made with."""

from __future__ import annotations

INTERRUPT = "^C "  # before a command that Ctrl-C stops

_PRUNER = """from dataclasses import dataclass

import torch

from prunebench import Job, Lab


@dataclass(frozen=True)
class Mine:
    def __call__(self, job: Job, lab: Lab) -> dict[str, torch.Tensor]:
        {body}
"""


def _pruner(body: str) -> str:
    return _PRUNER.format(body=body)


FILES = {
    "short.toml": 'base = "digits-linf"\nname = "short"\nunits = 1\n[training]\nepochs = 2\n',
    "long.toml": 'base = "digits-linf"\nname = "long"\nunits = 500\n',  # the most: none ends before Ctrl-C
    "typo.toml": 'base = "digits-linf"\nname = "typo"\n[training]\nepoch = 2\n',
    "broken.toml": 'base = "digits-linf"\nname = \n',
    "boom.py": _pruner('raise ZeroDivisionError("no scores")'),
    "greedy.py": _pruner('return lab.fit("train", lab.initial(), epochs=lab.epochs).weights'),
    "empty.py": _pruner("return None"),
    "dead.py": _pruner("return {name: torch.zeros_like(value) for name, value in lab.initial().items()}"),
    "dear.py": _pruner('return lab.fit("train", lab.initial(), epochs=10 * lab.epochs).weights'),
    "needs.py": "import some_package\n" + _pruner("return lab.initial()"),
    "wrong.py": _pruner("return (lab.initial()"),
    "plain.py": "class Mine:\n    def __call__(self, job, lab):\n        return lab.initial()\n",
    "notes.txt": "Not a net.\n",
    "full/thesis.txt": "Years of work.\n",
    "nothing/readme.txt": "No records here.\n",
    "bad/imp.json": "{]\n",
    "mine/mine.py": "# written by hand\n",
}

# Run before the mistakes: two small nets, a record and a claim.
PREPARE = (
    "prunebench train short.toml --pruner magnitude --sparsity 0.9 --out net",
    "prunebench train short.toml --pruner random --sparsity 0.9 --out other",
    "prunebench score net --examples 8 --keep-proposals",
    "prunebench score other --examples 6",
    "prunebench claim net/record.json --out claim",
)

_TRAIN = "prunebench train short.toml --sparsity 0.9 --out new"

MISTAKES = {
    "Names that do not exist": (
        "prunebench tran digits-linf",
        "prunebench train digit-linf --pruner imp --sparsity 0.9 --out new",
        f"{_TRAIN} --pruner IMP",
        f"{_TRAIN} --pruner magnitud",
        f"{_TRAIN} --pruner imp:round=3",
        f"{_TRAIN} --pruner imp:rounds=many",
        f"{_TRAIN} --pruner imp --device gpu",
        "prunebench list pruner",
        "prunebench score net --also pgd",
        "prunebench rank records --format pdf",
        "prunebench verify claim --level fast",
        "prunebench import notes.txt --arch resnet --protocol digits-linf --out new",
    ),
    "Values outside their range": (
        "prunebench train short.toml --pruner imp --sparsity 90 --out new",
        "prunebench train short.toml --pruner imp --sparsity 0,9 --out new",
        "prunebench train short.toml --pruner imp --out new",
        f"{_TRAIN} --pruner imp --seed -1",
        f"{_TRAIN} --pruner imp --epochs 1",
        f"{_TRAIN} --pruner imp,magnitude",
        "prunebench run short.toml --sparsity 0.9 --pruner imp magnitude",
        "prunebench score net --examples 0",
        "prunebench score net --examples 5000",
        "prunebench run short.toml --pruner imp --sparsity 0.9 --seed 0..4",
        "prunebench run short.toml --jobs 0",
        "prunebench claim net/record.json --at-least 60 --out new",
        "prunebench claim net/record.json --at-least '100 %' --out new",
    ),
    "Options that do not go together": (
        "prunebench train short.toml",
        "prunebench rank net --reason mended",
        "prunebench rank net --since main",
        "prunebench compare net other",
        "prunebench claim net/record.json --best --out new",
    ),
    "Folders that hold something else": (
        "prunebench train short.toml --pruner random --sparsity 0.9 --out net",
        "prunebench score other --out net",
        "prunebench claim other/record.json --out claim",
        "prunebench new mine",
        "prunebench import net/net.safetensors --arch digits-cnn --protocol short.toml --sparsity 0.9 --out other",
        "prunebench site records --out full",
        f"{_TRAIN.removesuffix('new')}notes.txt --pruner imp",
    ),
    "Nets that are dead": (
        "prunebench check dead.py:Mine",
        "prunebench train short.toml --pruner imp --sparsity 1 --out new",
    ),
    "A pruner of one's own": (
        f"{_TRAIN} --pruner boom.py:Mine",
        f"{_TRAIN} --pruner wrong.py:Mine",
        f"{_TRAIN} --pruner needs.py:Mine",
        f"{_TRAIN} --pruner plain.py:Mine",
        f"{_TRAIN} --pruner boom.py",
        f"{_TRAIN} --pruner boom.py:Other",
        f"{_TRAIN} --pruner missing.py:Mine",
        f"{_TRAIN} --pruner empty.py:Mine",
        f"{_TRAIN} --pruner greedy.py:Mine",
        f"{_TRAIN} --pruner dear.py:Mine",
        "prunebench check boom.py:Mine",
    ),
    "Data that is not there": (
        "prunebench train cifar10-linf --pruner imp --sparsity 0.9 --out new",
        "prunebench run mnist-linf --pruner imp --sparsity 0.9 --data nowhere",
    ),
    "Files that are not what they should be": (
        "prunebench train missing.toml --pruner imp --sparsity 0.9 --out new",
        "prunebench train typo.toml --pruner imp --sparsity 0.9 --out new",
        "prunebench train broken.toml --pruner imp --sparsity 0.9 --out new",
        "prunebench score missing.safetensors",
        "prunebench score notes.txt",
        "prunebench score net/record.json",
        "prunebench score cut",
        "prunebench inspect pickle.pt",
        "prunebench import pickle.pt --arch digits-cnn --protocol digits-linf --out new",
        "prunebench rank nothing",
        "prunebench rank edited",
        "prunebench rank bad",
        "prunebench site missing --out new",
        "prunebench verify swapped",
        "prunebench verify net/record.json",
        "prunebench sign net/record.json --key notes.txt",
    ),
    "Ctrl-C": (
        f"{INTERRUPT}prunebench train long.toml --pruner imp --sparsity 0.9 --out stopped",
        f"{INTERRUPT}prunebench run long.toml --pruner imp --sparsity 0.9 --seed 0 --out runs",
    ),
}
