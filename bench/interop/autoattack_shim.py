"""A stand-in for the package `autoattack`, which robustbench imports but no package index provides."""

from __future__ import annotations

import logging
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from prunebench.bench.errors import PrunebenchError


def provide_autoattack() -> None:
    """Make `import autoattack` find pyautoattack, with the names and keywords that robustbench 1.1.1 uses.

    Call it before `import robustbench`; a second call changes nothing. pyautoattack has the same attacks by the same
    authors under new names: `attacks_to_run` is its `attacks`, `bs` its `batch_size`, and it always returns labels.
    Raises PrunebenchError when pyautoattack is missing, and when another `autoattack` can be imported, because then
    nobody could tell which of the two made a measurement.
    """
    if getattr(sys.modules.get("autoattack"), "provided_by", None) == __name__:
        return
    if find_spec("autoattack") is not None:
        raise PrunebenchError(
            "Another package named 'autoattack' is installed, which pyautoattack would replace: "
            "run `pip uninstall autoattack`, or import robustbench without calling provide_autoattack()."
        )
    try:
        import pyautoattack
        import pyautoattack.state
    except ImportError as error:
        raise PrunebenchError(
            f"pyautoattack, which replaces 'autoattack', cannot be imported ({error}): "
            "run `pip install 'pyautoattack>=0.2,<0.3'`."
        ) from error

    # The class stands inside the function, which is long by it: its base is known only here, after the import.
    class AutoAttack(pyautoattack.AutoAttack):
        """pyautoattack's AutoAttack under the signature of the package `autoattack`."""

        def __init__(
            self,
            model: Any,
            norm: str = "Linf",
            eps: float = 0.3,
            seed: int | None = None,
            verbose: bool = True,
            attacks_to_run: Any = (),
            version: str = "standard",
            is_tf_model: bool = False,
            device: Any = "cuda",
            log_path: Any = None,
        ) -> None:
            if is_tf_model:
                raise PrunebenchError("is_tf_model=True asks for a TensorFlow model; give a torch.nn.Module.")
            attacks = list(attacks_to_run) or None
            super().__init__(model, attacks=attacks, device=device, eps=eps, norm=norm, seed=seed, version=version)
            self.verbose = verbose
            if log_path is not None:
                self.logger.setLevel(logging.DEBUG)
                self.logger.addHandler(logging.FileHandler(log_path))

        def run_standard_evaluation(
            self,
            images: Any,
            labels: Any,
            bs: int = 250,
            return_labels: bool = False,
            state_path: Any = None,
            *,
            batch_size: int | None = None,
        ) -> Any:
            """Adversarial images, and the model's labels for them if `return_labels`.

            pyautoattack passes `batch_size` when it calls itself, and then expects both.
            """
            both = super().run_standard_evaluation(images, labels, batch_size=batch_size or bs, state_path=state_path)
            return both if return_labels or batch_size else both[0]

        def run_standard_evaluation_individual(
            self, images: Any, labels: Any, bs: int = 250, return_labels: bool = False
        ) -> dict[str, Any]:
            """The same for each attack on its own, by the attack's name."""
            each = super().run_standard_evaluation_individual(images, labels, batch_size=bs)
            return {attack: both if return_labels else both[0] for attack, both in each.items()}

    stand_in: Any = ModuleType("autoattack", provide_autoattack.__doc__)
    stand_in.__spec__ = ModuleSpec("autoattack", None, is_package=True)
    stand_in.__path__ = []
    stand_in.provided_by = __name__
    stand_in.AutoAttack = AutoAttack
    stand_in.state = pyautoattack.state
    sys.modules["autoattack"] = stand_in
    sys.modules["autoattack.state"] = pyautoattack.state
