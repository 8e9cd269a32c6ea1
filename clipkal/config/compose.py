"""Finds `conf/`, registers the typed schema and composes a configuration."""

import re
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from clipkal.config import schema
from clipkal.config.old_words import renamed
from clipkal.config.options import OPTIONS, find_options


def conf_dir() -> str:
    """The folder of YAML groups: inside the installed package, else at the top of the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside, beside = package / "conf", package.parent / "conf"
    return str(inside if inside.is_dir() else beside)


def register(config_dir: str | Path | None = None) -> None:
    """Makes the schemas available to the YAML files of `conf/` and of a folder of the user's own by name.

    Hydra copies its store for every group that it lists, 150 times for `--help`, and changes no copy: it gets the
    store itself.
    """
    store = ConfigStore.instance()
    setattr(ConfigStore, "__deepcopy__", lambda store, _: store)  # noqa: B010 (mypy knows no such method)
    store.store(name="schema", node=schema.Config)
    for folder in (conf_dir(), *([config_dir] if config_dir else [])):
        for option in find_options(Path(folder)):
            OPTIONS[option.kind.__name__] = option
            store.store(group=f"{option.group}/schema", name=option.name, node=option.kind)


def compose(overrides: list[str], config_dir: str | Path | None = None) -> DictConfig:
    """The configuration that the command line `clipkal --config-dir <config_dir> <overrides>` would run with."""
    register(config_dir)
    more = (
        []
        if config_dir is None
        else [f"hydra.searchpath=[{quoted(f'file://{Path(config_dir).absolute()}')}]"]
    )
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return hydra_compose("config", overrides=[*map(renamed, overrides), *more])


def quoted(value: str) -> str:
    """A text as a value on Hydra's command line, in quotes where its grammar needs them."""
    if re.fullmatch(r"[\w./~-]+", value, re.ASCII):
        return value
    return QuotedString(value, Quote.double).with_quotes()
