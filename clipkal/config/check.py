"""The one check that every configuration passes, before anything slow is imported.

Every key must be one of the schema, none may be without a value, each value must be of its type (`clipkal.settings`),
what is to be made must belong where it stands (options.py), and settings must not contradict each other. Raises
ConfigError with one line that names the key and what to type instead.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from clipkal import files
from clipkal.config.compose import conf_dir
from clipkal.config.explain import no_such_setting
from clipkal.config.options import check_targets
from clipkal.config.signatures import constant_of, has_method
from clipkal.errors import ConfigError
from clipkal.settings import check as check_value
from clipkal.settings import is_plain

NEEDS_PATH = {"folder": "/your/images", "table": "/your/table.csv", "archive": "/your/archive.npz"}
NEEDS_PATH |= {"features": "/your/features.npz", "coop": "/your/folder"}


def check(cfg: DictConfig, places: bool = True) -> None:
    """Raises ConfigError for the first setting that is unknown, missing, out of its range, or contradictory.

    Args:
        cfg: the configuration of one run.
        places: whether a dataset that must lie somewhere is looked for.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(f"{missing[0]} must be given: type {missing[0]}=…")
    _check_keys(cfg)
    for key, value, kind in _settings(cfg):
        try:
            check_value(key, value, kind)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    check_targets(cfg, cfg.plugins)
    _check_names(cfg)
    _check_together(cfg)
    if places:
        _check_place(cfg)


def _nodes(node: DictConfig, name: str = "") -> Iterator[tuple[str, DictConfig]]:
    """The configuration and all its parts that the schema types, by dotted name."""
    if is_dataclass(OmegaConf.get_type(node)):
        yield name, node
    for key in node:
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _nodes(node[key], f"{name}.{key!s}" if name else str(key))


def _check_keys(cfg: DictConfig) -> None:
    for name, node in _nodes(cfg):
        kind = OmegaConf.get_type(node)
        known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
        if added := [key for key in map(str, node) if key not in known]:
            raise ConfigError(no_such_setting(f"{name}.{added[0]}" if name else added[0], kind))


def _settings(cfg: DictConfig) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, plain value, type) of every setting whose type says what it may be."""
    for name, node in _nodes(cfg):
        for one in fields(OmegaConf.get_type(node)):  # type: ignore[arg-type]
            if is_plain(one.type):
                value = node[one.name]
                plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                yield f"{name}.{one.name}" if name else one.name, plain, one.type


def _check_names(cfg: DictConfig) -> None:
    """The name in a group labels the results: it may not be that of another option, which did not run."""
    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    for group in ("backbone", "dataset", "adapter", "optimizer", "predictive"):
        name = cfg[group].name
        if name != chosen.get(group, name) and Path(conf_dir(), group, f"{name}.yaml").exists():
            raise ConfigError(
                f"{group}.name={name} would only label the results of {group}={chosen[group]}: to choose it type {group}={name}"
            )


def has_posterior(cfg: DictConfig) -> bool:
    """Whether the optimiser leaves a posterior, from which logits can be drawn."""
    return cfg.optimizer.name != "none" and has_method(cfg.optimizer._target_, "logit_samples")


def needs_of(cfg: DictConfig) -> tuple[str, ...]:
    """What the predictive asks for beside the logits, as its class declares it."""
    return constant_of(cfg.predictive._target_, "needs") or ()


def _check_predictive(cfg: DictConfig) -> None:
    chosen = cfg.predictive
    if not chosen._target_:
        raise ConfigError(
            f"predictive={chosen.name} names no class: its file needs a line such as _target_: clipkal.uncertainty.Sampled"
        )
    if chosen.name.endswith("_scaled"):
        raise ConfigError(f"predictive.name={chosen.name}: _scaled marks those at a fitted temperature")
    if cfg.optimizer.name != "none" and constant_of(chosen._target_, "zeroshot_only"):
        raise ConfigError(
            f"predictive={chosen.name} reads zero-shot, so what method={cfg.method} learns would not be seen: type "
            f"method=zeroshot predictive={chosen.name}, or predictive=novelty for a mixture of both"
        )
    if {"draws", "covariance"} & set(needs_of(cfg)) and not has_posterior(cfg):
        raise ConfigError(
            f"predictive={chosen.name} needs a posterior, which optimizer={cfg.optimizer.name} has not"
        )


def _check_together(cfg: DictConfig) -> None:
    """What single settings cannot say."""
    adapter, optimizer = cfg.adapter.name, cfg.optimizer
    if (adapter == "none") != (optimizer.name == "none"):
        raise ConfigError(
            f"adapter={adapter} optimizer={optimizer.name}: nothing would be learnt under the method's name; type "
            "method=zeroshot for the zero-shot classifier, or choose both"
        )
    if optimizer.name == "kalman" and adapter == "lora":
        raise ConfigError(
            "optimizer=kalman needs adapter=linear, whose logits are linear in its parameters; the recursive filter for "
            "other adapters is optimizer=kalman_online, and optimizer=kalman_filter to compose one"
        )
    _check_predictive(cfg)


def _check_place(cfg: DictConfig) -> None:
    source = cfg.dataset.source
    if cfg.dataset.path is None and source in NEEDS_PATH:
        place = files.expanded(cfg.data.root) / cfg.dataset.name
        if not place.exists():
            raise ConfigError(
                f"dataset={cfg.dataset.name} needs a place: type dataset.path={NEEDS_PATH[source]} (there is no {place})"
            )
