"""A machine with torch but without prunebench: what it has, what is carried along, and both laid out on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Of the packages that this project's environment has, those that a common image for CUDA has as well.
HAS = (
    *("absl-py", "cloudpickle", "cuda-bindings", "cuda-pathfinder", "execnet", "filelock", "fsspec", "grpcio"),
    *("hypothesis", "iniconfig", "jinja2", "joblib", "markdown", "markdown-it-py", "markupsafe", "mdurl", "mpmath"),
    *("narwhals", "networkx", "numpy", "packaging", "pillow", "pluggy", "protobuf", "py-cpuinfo2", "pygments"),
    *("annotated-doc", "pytest", "pytest-benchmark", "pytest-xdist", "python-dateutil", "rich", "safetensors"),
    *("scikit-learn", "scipy", "setuptools", "shellingham", "sortedcontainers", "sympy", "tensorboard"),
    *("tensorboard-data-server", "threadpoolctl", "torch", "torchvision", "triton", "typer", "werkzeug"),
    *("nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cudnn-cu13"),  # with all that share their folder
)
# Its typing_extensions is older than the one that pydantic needs.
CARRIED = (*("annotated-types", "pyautoattack", "pydantic", "pydantic-core", "typing-extensions", "typing-inspection"),)


def lay_out(folder: Path, has: tuple[str, ...] = HAS, carried: tuple[str, ...] = CARRIED) -> dict[str, str]:
    """An interpreter below `folder` with the packages `has`, and the wheels `carried` unpacked beside it.

    Returns the environment of its commands; PYTHON is the interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "machine")], check=True)
    (site,) = (folder / "machine" / "lib").glob("python3.*/site-packages")
    wheels = folder / "wheels"
    wheels.mkdir()
    for place, names in ((site, has), (wheels, carried)):
        for name in names:
            _link(name, place)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL"))}
    path = os.pathsep.join(map(str, (wheels, ROOT / "src", ROOT)))
    return kept | {"PYTHON": str(folder / "machine" / "bin" / "python"), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _link(name: str, place: Path) -> None:
    """Links in `place` to the files of an installed package."""
    found = distribution(name)
    for part in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
        target = Path(str(found.locate_file(part)))
        if target.exists() and not (place / part).exists():
            (place / part).symlink_to(target)
