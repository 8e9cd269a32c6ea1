"""Options that name a class: the schema of each is made from the class, and only such classes are made as belong there.

A file conf/<group>/<option>.yaml is, at its shortest,

    defaults: [schema/<option>@_here_, _self_]
    _target_: package.Class

where schema/<option> is a dataclass with the settings of the class (signatures.py), its own defaults included. So a setting
of a class can be typed on the command line, a misspelt one is refused, and what else the file says is what differs.

Which classes may be named is said here once, for Hydra would call whatever it is told to: those of `ROOTS` and of the
modules in `plugins`, and of these only the kind that belongs in that place.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

from clipkal.config import schema
from clipkal.config.signatures import arguments_of, is_a, settings_of
from clipkal.errors import ConfigError

ROOTS = ("clipkal", "torch.optim", "pytorch_optimizer")
KINDS = {
    "adapter": ("clipkal.adapters.base.Adapter",),
    "optimizer": ("clipkal.optim.base.BatchOptimizer", "torch.optim.optimizer.Optimizer"),
    "optimizer.covariance": ("clipkal.optim.kalman.covariance.diagonal.Covariance",),
    "optimizer.gate": ("clipkal.optim.kalman.observation.Gate",),
    "optimizer.noise": ("clipkal.optim.kalman.observation.Noise",),
    "optimizer.observation": ("clipkal.optim.kalman.update.Observation",),
    "predictive": ("clipkal.uncertainty.predictive.Predictive",),
}
"""What belongs in a place of the configuration: classes that descend from one of these, or functions that return one."""
BASES = {
    "adapter": schema.AdapterConfig,
    "optimizer": schema.OptimizerConfig,
    "predictive": schema.PredictiveConfig,
}
"""What every option of a group can be set to, beside the settings of its class."""
GIVEN = ("model", "text_features", "logit_scale", "backbone", "prompts", "priors", "group")
"""Arguments that the program gives by their names to what asks for them; an adapter gets the run's `seed` as well."""


@dataclass(frozen=True)
class Option:
    """A file of `conf/` that names a class.

    Attributes:
        group: such as "optimizer" or "optimizer/covariance".
        name: of the file.
        kind: its schema.
    """

    group: str
    name: str
    kind: type


OPTIONS: dict[str, Option] = {}
"""Every option that was found, by the name of its schema class."""


def find_options(folder: Path) -> Iterator[Option]:
    """The options below a folder of configuration groups whose files name a class; ConfigError for one that is not there."""
    for path in sorted(folder.rglob("*.yaml")):
        group, text = path.parent.relative_to(folder).as_posix(), path.read_text(encoding="utf-8")
        target = re.search(r"^_target_:\s*['\"]?([\w.]+)", text, flags=re.MULTILINE)
        if target and group.replace("/", ".") in KINDS:
            try:
                kind = _schema(group, path.stem, target[1], re.findall(r"^(\w+):", text, flags=re.MULTILINE))
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            yield Option(group, path.stem, kind)


def _schema(group: str, name: str, target: str, keys: Sequence[str]) -> type:
    """A dataclass with the settings of a class and, of an optimiser, those of the loop around it.

    keys: at the top of the YAML file. An optimiser without a learning rate goes over the shots in batches where the
        file says how often (`epochs`), and is given all of them at once where it does not.
    """
    base = BASES.get(group, schema.PartConfig)
    arguments = arguments_of(target)
    if group == "optimizer" and "lr" in arguments:
        base = schema.RatesConfig
    elif group == "optimizer" and "epochs" in keys:
        base = schema.PassesConfig
    taken = {one.name for one in fields(base)} | {*GIVEN, *(["seed"] if group == "adapter" else [])}
    own: list[tuple[str, Any, Any]] = [("_target_", str, target)]
    own += [(one.name, one.type, name) for one in fields(base) if one.name == "name"]
    for one in settings_of(target):
        if one.name not in taken:
            copied = lambda value=one.default: list(value)
            default = field(default_factory=copied) if isinstance(one.default, list) else one.default
            own.append((one.name, one.kind, default))
    for place in KINDS:
        within, _, part = place.rpartition(".")
        if within == group and part in arguments - {one for one, *_ in own}:
            own.append((part, schema.PartConfig, field(default_factory=schema.PartConfig)))
    words = re.sub(r"\W", "_", f"{group}_{name}")
    return schema.node(make_dataclass(words, own, bases=(base,)))


def check_targets(cfg: Any, plugins: Sequence[str]) -> None:
    """Raises ConfigError for a `_target_` that does not belong where it stands, before anything of it is imported."""
    for group in {place.partition(".")[0] for place in KINDS}:
        for place, target in _targets(cfg[group], group):
            check_target(place, target, plugins)


def check_target(place: str, target: str, plugins: Sequence[str]) -> None:
    """The same for one of them."""
    said = f"{place}._target_={target}"
    if place not in KINDS:
        raise ConfigError(f"{said}: nothing is made from {place}")
    roots = (*ROOTS, *plugins)
    if not any(target.startswith(f"{root}.") for root in roots):
        raise ConfigError(
            f"{said}: only what is in {', '.join(roots)} is made; type plugins=[{target.partition('.')[0]}] "
            "for a module of your own"
        )
    if not is_a(target, KINDS[place]):
        raise ConfigError(f"{said}: that is no {' or '.join(KINDS[place])}, which {place} must be")


def _targets(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """(dotted place, target) of every `_target_` in a node."""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    for key, value in node.items() if hasattr(node, "items") else ():
        if key == "_target_":
            yield from [(place, str(value))] if value else []
        else:
            yield from _targets(value, f"{place}.{key}")


def make(node: Any, place: str, plugins: Sequence[str] = ()) -> Any:
    """What a node of the configuration names, as a function of what the program gives: `make(cfg.optimizer, …)(adapter)`.

    Raises:
        ConfigError: a target that does not belong there, or a part that cannot be made.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    plain: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    for at, target in _targets(plain, place):
        check_target(at, target, plugins)
    try:
        return instantiate(_arguments(plain, place) | {"_partial_": True}, _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"{place}: {error.__cause__ or error}") from error


def _arguments(node: dict[str, Any], place: str) -> dict[str, Any]:
    """Of a node's keys those that its class takes; a part that names none is left to the class."""
    known = arguments_of(node["_target_"])
    kept = {key: value for key, value in node.items() if key in known or key == "_target_"}
    parts = {
        key: value for key, value in kept.items() if f"{place}.{key}" in KINDS and not isinstance(value, str)
    }
    plain = {key: value for key, value in kept.items() if key not in parts}
    return plain | {key: _arguments(one, f"{place}.{key}") for key, one in parts.items() if one["_target_"]}
