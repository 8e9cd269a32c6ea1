"""The datasets that `conf/dataset/` and a folder of your own describe: what each is, and where to get it.

The comment at the top of a YAML file is its description: the first line says what it is, a paragraph that
starts with "Get:" where to get it, one that starts with "Terms:" on which terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from clipkal import files
from clipkal.config import conf_dir
from clipkal.data.names import choose
from clipkal.errors import ConfigError

EMBEDDED = ("rendered", "digits")
# forms of data that you bring, whose place you give
OWN = ("archive", "features", "folder", "huggingface", "table", "torchvision")


@dataclass(frozen=True)
class Entry:
    """One file of `conf/dataset/`.

    Attributes:
        name: what to write after `dataset=`.
        about: what it is, one line.
        get: where to get it, empty where nothing needs to be fetched.
        terms: its licence or terms of use, empty where there is nothing to say.
        config: the keys of the file (those of the schema that it sets).
    """

    name: str
    about: str
    get: str
    terms: str
    config: DictConfig

    @property
    def brief(self) -> str:
        """The first clause of `about` without what is in brackets, for a table."""
        return re.split(r"[;:]|\. ", re.sub(r" \([^)]*\)", "", self.about))[0].strip(" .")

    def path(self, root: str | Path) -> Path:
        """Where its folder or file is, as the loader sees it."""
        return files.expanded(root).absolute() / files.expanded(self.config.get("path") or self.name)


def names(config_dir: Path | None = None) -> list[str]:
    """Every name that `dataset=` takes, sorted; those below `config_dir`, as of `clipkal --config-dir`, included."""
    return sorted(_paths(config_dir))


def entry(name: str, config_dir: Path | None = None) -> Entry:
    """Reads one file.

    Raises:
        ConfigError: there is no such dataset, the nearest is named; or the file is no description of one.
    """
    found = _paths(config_dir)
    choose("dataset", name, sorted(found), ConfigError)
    paragraphs = list(_paragraphs(files.read_text(found[name], "dataset", "mend the file")))
    fields = {key: rest for key, rest in paragraphs if key}
    about = next((rest for key, rest in paragraphs if not key), "")
    return Entry(name, about, fields.get("Get", ""), fields.get("Terms", ""), _config(name, found))


def entries(config_dir: Path | None = None) -> list[Entry]:
    """All of them, by name."""
    return [entry(name, config_dir) for name in names(config_dir)]


def _paths(config_dir: Path | None) -> dict[str, Path]:
    """Name -> file. In a run Hydra knows the folders; a name that comes twice is the first one's, as in Hydra."""
    folders = [Path(conf_dir())]
    if HydraConfig.initialized():
        folders = [Path(at.path) for at in HydraConfig.get().runtime.config_sources if at.schema == "file"]
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: no such folder")
        folders.append(config_dir)
    return {path.stem: path for folder in reversed(folders) for path in (folder / "dataset").glob("*.yaml")}


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """(key, text) of the comment at the top; a line "Key: …" starts a paragraph, an indented one goes on."""
    key, words = "", ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# @package"):
            continue
        body = line[1:]
        if body.startswith("   ") and words:
            words += " " + body.strip()
            continue
        if words:
            yield key, words
        found = re.match(r" (Get|Terms): (.*)", body)
        key, words = (found[1], found[2].strip()) if found else ("", body.strip())
    if words:
        yield key, words


def _config(name: str, paths: Mapping[str, Path]) -> DictConfig:
    """The keys that a file sets, those of the files it builds on included.

    Hydra gives the same, but takes a fifth of a second for each.
    """
    try:
        content: Any = OmegaConf.load(paths[name])
        bases = [base for base in content.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
        own = content.get("dataset", content)
        for base in bases:
            choose(f"{paths[name]}: defaults: dataset", base, sorted(paths), ConfigError)
        return OmegaConf.merge(*(_config(base, paths) for base in bases), own)  # type: ignore[return-value]
    except (
        YAMLError,
        OmegaConfBaseException,
        AttributeError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{paths[name]}: does not describe a dataset ({reason})") from error
