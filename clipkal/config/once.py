"""A sweep composes its configuration once for each choice of options, not twice for every job.

Hydra reads all YAML files again, and merges them, when it checks the list of jobs and when it begins one, 0.15 s each time.
Which files these are depends on the options alone (`method=adamw`), never on the values (`seed=2`), which it sets on the
merged configuration afterwards. So within a block of `once()` the merged configuration is kept, and each job gets a copy.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from typing import Any

from hydra._internal import config_loader_impl as hydra_loader
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

MOST = 64
"""Merged configurations that are kept, 0.3 MB each."""
SEARCHPATH = "hydra.searchpath"

_list_of = hydra_loader.create_defaults_list
_Loader = hydra_loader.ConfigLoaderImpl
_compose, _search = _Loader._compose_config_from_defaults_list, _Loader._process_config_searchpath


@contextmanager
def once() -> Iterator[None]:
    """Within the block, files of configurations that Hydra has merged are taken not to change."""
    keep()
    try:
        yield
    finally:
        hydra_loader.create_defaults_list = _list_of
        _Loader._compose_config_from_defaults_list = _compose  # type: ignore[method-assign]
        _Loader._process_config_searchpath = _search  # type: ignore[method-assign]


def keep() -> None:
    """As `once`, for the rest of this process: a worker of a sweep has nothing else to do. Once is enough."""
    if hydra_loader.create_defaults_list is not _list_of:
        return
    lists: dict[Any, DefaultsList] = {}
    merged: dict[Any, DictConfig] = {}
    silent: set[Any] = set()

    def list_of(
        repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **how: bool
    ) -> DefaultsList:
        asked = Overrides(repo=repo, overrides_list=overrides_list)
        options = [one.input_line for one in overrides_list if one not in asked.config_overrides]
        make = lambda: _list_of(repo, config_name, overrides_list, **how)
        found = _kept(lists, (_sources(repo), config_name, *options, *sorted(how.items())), make)
        return replace(found, config_overrides=asked.config_overrides)

    def compose(
        loader: hydra_loader.ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        key = (_sources(repo), *map(astuple, defaults))
        return copy.deepcopy(_kept(merged, key, lambda: _compose(loader, defaults, repo)))

    def search(
        loader: hydra_loader.ConfigLoaderImpl,
        config_name: str | None,
        parsed_overrides: list[Override],
        repo: CachingConfigRepository,
    ) -> None:
        """Reads the main file only where it could ask for more places to search, which ours does not."""
        asks = any(one.get_key_element() == SEARCHPATH for one in parsed_overrides)
        if asks or _sources(repo) not in silent:
            _search(loader, config_name, parsed_overrides, repo)
            main = config_name and repo.load_config(config_name)
            if not asks and main and OmegaConf.select(main.config, SEARCHPATH) is None:
                silent.add(_sources(repo))

    hydra_loader.create_defaults_list = list_of  # type: ignore[assignment]
    _Loader._compose_config_from_defaults_list = compose  # type: ignore[method-assign, assignment]
    _Loader._process_config_searchpath = search  # type: ignore[method-assign, assignment]


def _sources(repo: IConfigRepository) -> tuple[tuple[str, str], ...]:
    return tuple((one.provider, one.path) for one in repo.get_sources())


def _kept(memory: dict[Any, Any], key: Any, make: Any) -> Any:
    if key not in memory:
        if len(memory) >= MOST:
            memory.pop(next(iter(memory)))
        memory[key] = make()
    return memory[key]
