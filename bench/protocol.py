"""The rules of a benchmark: the threat, the training and the budget."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from prunebench.bench.errors import PrunebenchError, unknown
from prunebench.bench.files import canonical_json, sha256_of
from prunebench.bench.recipe import EPOCHS, Training
from prunebench.bench.schema import Count, Exact, Natural, Strict, exact, explain, read_toml

SMALLEST = Fraction(1, 10**6)  # below it, float32 pixels near 1 do not change


def as_sparsity(value: str | float | Decimal) -> Decimal:
    """The exact decimal in [0, 1) that `value` prints as. Raises PrunebenchError outside that range."""
    try:
        sparsity = Decimal(str(value)).normalize() + 0  # rounds to 28 digits, so check the range afterwards
    except ArithmeticError:
        sparsity = Decimal("NaN")
    if not (sparsity.is_finite() and 0 <= sparsity < 1):
        raise PrunebenchError(
            f"Sparsity {value} is not in [0, 1): it is the share of weights that are zero, so write 0.9 for 90 %."
        )
    return sparsity


Pattern = Literal["2:4", "channel"]  # of a net's zeros; what each means: bench/pattern.py
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
Images = Annotated[int, Field(ge=1, le=10**9)]


class Threat(Strict):
    """What the adversary may do: change an image of [0, 1] pixels by at most `eps` in `norm`."""

    norm: Literal["Linf", "L2"]
    eps: Annotated[Exact, Field(max_length=24)]  # curve points are multiples, with longer names

    @model_validator(mode="after")
    def _check(self) -> Threat:
        largest = 1 if self.norm == "Linf" else 1000
        if exact(self.eps) < SMALLEST:
            raise ValueError(f"eps {self.eps} is below {SMALLEST}, which is too small to change a float32 pixel")
        if exact(self.eps) > largest:
            raise ValueError(f"eps {self.eps} is above {largest}, further than images in [0, 1] can move")
        return self

    @property
    def radius(self) -> float:
        """`eps` as the nearest float."""
        return float(exact(self.eps))


PLAN = ("sparsities", "seeds")  # of a protocol: which nets a run makes by default, not how they are made


def identity(rules: Mapping[str, Any]) -> str:
    """The sha256, 64 hex digits, of everything in `rules` that must be equal for two records to be comparable."""
    return sha256_of(canonical_json({key: value for key, value in rules.items() if key not in PLAN}))


class Protocol(Strict):
    """The rules under which records are comparable, identified by a sha256, and the grid that a run makes by default.

    `sparsities` and `seeds` are the grid. They are not part of the identity: a board grows by nets of other sparsities
    and seeds. `patterns`: a pruned net's zeros must have one of these; with none, which is left out of the identity,
    nets of all patterns and of no pattern share the board.
    """

    name: Name
    version: Count = 1
    data: Annotated[str, Field(min_length=1, max_length=200)]
    model: Annotated[str, Field(max_length=64)]
    threat: Threat
    training: Training
    units: Annotated[float, Field(gt=0, le=EPOCHS)]
    sparsities: Annotated[tuple[float, ...], Field(min_length=1, max_length=1000, strict=False)]
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1, max_length=1000, strict=False)] = (0, 1, 2)
    validation: Images
    test: Images | None = None
    train: Images | None = None
    attacks: Literal["standard"] = "standard"
    attack_seed: Natural = 0
    shard: Images = 256
    patterns: Annotated[tuple[Pattern, ...], Field(strict=False)] = ()

    @model_serializer(mode="wrap")
    def _without_empty_patterns(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if not self.patterns:
            values.pop("patterns", None)
        return values

    @model_validator(mode="after")
    def _check(self) -> Protocol:
        folder = PurePosixPath(self.data.removeprefix("folder:"))
        if folder.is_absolute() or ".." in folder.parts or not self.data.isprintable():
            raise ValueError(f"data = {self.data!r} leads outside the data folder; name a folder inside it")
        for sparsity in self.sparsities:
            try:
                as_sparsity(sparsity)
            except PrunebenchError as error:
                raise ValueError(str(error)) from None
        lists = {"sparsities": self.sparsities, "seeds": self.seeds, "patterns": self.patterns}
        for key, values in lists.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{key} = {values} has a duplicate")
        if self.units * self.training.epochs > EPOCHS:
            raise ValueError(
                f"{self.units:g} units of {self.training.epochs} epochs are more than {EPOCHS} epochs per net; lower "
                "units or training.epochs"
            )
        return self

    @property
    def sha256(self) -> str:
        """The identity of the rules, 64 hex digits."""
        return identity(self.model_dump(mode="json"))

    @property
    def official(self) -> bool:
        """Whether these are the built-in rules of that name, for whatever sparsities and seeds."""
        known = PROTOCOLS.get(self.name)
        return known is not None and known.sha256 == self.sha256


_CIFAR: dict[str, Any] = dict(
    data="cifar10",
    threat=Threat(norm="Linf", eps="8/255"),
    units=2.0,
    sparsities=(0.9, 0.95, 0.99),
    validation=1000,
    training=Training(
        objective="pgd", steps=10, step_size="2/255", epochs=30, batch=256, lr=0.2, ema=0.995, augment="crop-flip"
    ),
)

_LINF = (
    Protocol(
        name="digits-linf",
        data="digits",
        model="digits-cnn",
        threat=Threat(norm="Linf", eps="0.2"),
        units=4.0,
        sparsities=(0.95, 0.98, 0.99),
        seeds=tuple(range(15)),
        validation=200,
        test=500,
        training=Training(objective="pgd", steps=10, step_size="0.05", epochs=20, batch=64, lr=0.2),
    ),
    Protocol(
        name="mnist-linf",
        data="mnist",
        model="mnist-cnn",
        threat=Threat(norm="Linf", eps="0.3"),
        units=4.0,
        sparsities=(0.9, 0.95, 0.99),
        validation=5000,
        test=1000,
        training=Training(objective="pgd", steps=10, step_size="0.075", epochs=5, batch=128, lr=0.05),
    ),
    Protocol(
        name="fashion-linf",
        data="fashion-mnist",
        model="mnist-cnn",
        threat=Threat(norm="Linf", eps="0.1"),
        units=2.0,
        sparsities=(0.9, 0.95, 0.99),
        validation=1000,
        test=500,
        train=15_000,
        training=Training(objective="pgd", steps=3, step_size="0.05", epochs=5, batch=64, lr=0.05),
    ),
    Protocol(
        name="cifar10-small-linf",
        data="cifar10",
        model="resnet-small",
        threat=Threat(norm="Linf", eps="8/255"),
        units=2.0,
        sparsities=(0.8, 0.9, 0.95),
        validation=1000,
        test=1000,
        train=15_000,
        training=Training(
            objective="pgd", steps=3, step_size="4/255", epochs=12, batch=128, lr=0.2, augment="crop-flip"
        ),
    ),
    Protocol(name="cifar10-linf", model="resnet18", **_CIFAR),
    Protocol(name="cifar10-linf-vgg16", model="vgg16-bn", **_CIFAR),
)
_L2 = {"digits-linf": "0.6", "mnist-linf": "2", "cifar10-linf": "0.5"}  # eps by protocol


def _in_l2(rules: Protocol) -> Protocol:
    """`rules` for its data set's L2 threat, trained with steps of 2.5 eps divided by their number."""
    eps = _L2[rules.name]
    step_size = str(exact(eps) * Fraction(5, 2) / rules.training.steps)
    changes = {"name": rules.name.replace("linf", "l2"), "threat": Threat(norm="L2", eps=eps)}
    return rules.model_copy(update=changes | {"training": rules.training.model_copy(update={"step_size": step_size})})


BESIDE_RECORDS = "leaderboard/protocols"  # where the rules of boards that are not built in lie
PROTOCOLS: dict[str, Protocol] = {
    rules.name: rules for rules in (*_LINF, *(_in_l2(rules) for rules in _LINF if rules.name in _L2))
}


def load(spec: str | Path, *, to_train: bool = True) -> Protocol:
    """The built-in protocol of that name, or the one that a TOML file describes (`*.toml`).

    Raises PrunebenchError for an unknown name and for a file with invalid keys or values. With `to_train` (nets will
    be trained by it), also when the training's attack could not reach `eps`.
    """
    text = str(spec)
    if text in PROTOCOLS:
        return PROTOCOLS[text]
    if not text.endswith(".toml"):
        own = next((path for place in (".", BESIDE_RECORDS) if (path := Path(place, f"{text}.toml")).is_file()), None)
        way_out = f"Or name the file {own}." if own else "Or name a TOML file (*.toml) with your own rules."
        raise unknown("protocol", text, PROTOCOLS, way_out)
    path = Path(text)
    protocol = from_values(read_toml(path, "protocol"), str(path), to_train=to_train)
    if protocol.name in PROTOCOLS and not protocol.official:
        raise PrunebenchError(
            f"The protocol {path} calls itself {protocol.name!r} but its rules differ from the built-in ones; "
            "give it another name."
        )
    return protocol


def from_values(values: dict[str, Any], source: str, *, to_train: bool = True) -> Protocol:
    """The protocol with these values; errors name `source` as their origin.

    Raises PrunebenchError for invalid values. With `to_train` (nets will be trained by them), also when the training's
    attack could not reach `eps`.
    """
    if "base" in values:
        base = str(values["base"])
        if base not in PROTOCOLS:
            raise unknown("protocol", base, PROTOCOLS, f"It is the `base` of {source}.")
        changes = {key: value for key, value in values.items() if key != "base"}
        values = _merged(PROTOCOLS[base].model_dump(mode="json"), changes)
    try:
        protocol = Protocol.model_validate(values)
    except ValidationError as error:
        raise PrunebenchError(f"The protocol {source} breaks the rules: {explain(error)}{_hint(values)}") from None
    if to_train:
        _refuse_short_attack(protocol, source)
    return protocol


def _hint(values: Mapping[str, Any]) -> str:
    """A hint on a key that stands above its table, or on the base of the rules, " (...)"; empty if there is none."""
    tables: dict[str, type[Strict]] = {"training": Training, "threat": Threat}
    found = [
        f" ({key} goes below [{table}].)"
        for key in values
        for table, kind in tables.items()
        if key in kind.model_fields and key not in Protocol.model_fields
    ]
    needed = {key for key, field in Protocol.model_fields.items() if field.is_required()}
    based = [" (Or begin with base = NAME, and list the differences.)"] if needed - values.keys() else []
    return [*found, *based, ""][0]


def _refuse_short_attack(protocol: Protocol, source: str) -> None:
    """Raise PrunebenchError when the training's attack cannot move an image as far as the adversary may.

    Checked only before training, where for example a large `eps` meets the steps of a `base`. `Protocol` itself does
    not enforce it: nets trained that way can still be opened and scored, and their claims verified.
    """
    how, eps = protocol.training, protocol.threat.eps
    if not how.one_step and how.steps * exact(how.step_size) < exact(eps):
        raise PrunebenchError(
            f"The protocol {source} breaks the rules: {how.steps} steps of step_size {how.step_size} cannot reach the "
            f"edge of the ball of eps {eps}; raise training.step_size or training.steps until steps x step_size is at "
            "least eps."
        )


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | both
