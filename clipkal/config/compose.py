"""Finds `conf/`, registers the typed schema and composes a configuration."""

from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from clipkal.config import schema

GROUP_SCHEMAS: dict[str, dict[str, type]] = {
    "adapter": {"linear_schema": schema.LinearConfig, "lora_schema": schema.LoRAConfig},
    "optimizer": {
        "first_order_schema": schema.FirstOrderConfig,
        "natural_gradient_schema": schema.NaturalGradientConfig,
        "function_space_schema": schema.FunctionSpaceConfig,
        "kalman_schema": schema.KalmanConfig,
    },
}
"""What the options of a group add to its own schema, by the name that their YAML files call it."""


def conf_dir() -> str:
    """The folder of YAML groups: inside the installed package, else at the top of the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside, beside = package / "conf", package.parent / "conf"
    return str(inside if inside.is_dir() else beside)


def register() -> None:
    """Makes the schemas available to the YAML files by name."""
    store = ConfigStore.instance()
    store.store(name="schema", node=schema.Config)
    for group, nodes in GROUP_SCHEMAS.items():
        for name, node in nodes.items():
            store.store(group=group, name=name, node=node)


def compose(overrides: list[str] | None = None) -> DictConfig:
    """The configuration that the command line `clipkal <overrides>` would run with."""
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return hydra_compose("config", overrides=overrides or [])
