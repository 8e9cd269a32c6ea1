"""The configuration of a finished run with another dataset typed in; no torch is imported."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from clipkal.config import check, compose
from clipkal.errors import ConfigError

ALLOWED = ("dataset", "data", "fewshot.transfer")


def merged(cfg: DictConfig, settings: Sequence[str], config_dir: Path | None) -> DictConfig:
    """`cfg` with the settings of `dataset`, `data` and `fewshot.transfer` put in, checked as those of a run.

    fewshot.transfer is empty where it is not among them. Raises ConfigError for any other setting.
    """
    for word in settings:
        key = word.partition("=")[0].lstrip("+~")
        if "=" not in word or not any(key == one or key.startswith(f"{one}.") for one in ALLOWED):
            raise ConfigError(
                f"{word!r}: a finished run is evaluated as it is; what can be typed here is {', '.join(ALLOWED)}, such as "
                "'dataset.ood=[gaussian_noise@3]'"
            )
    typed = compose(list(settings), config_dir)
    check(typed)
    found = cfg.copy()
    found.fewshot.transfer = []
    keys = [one.key_or_group for one in OverridesParser.create().parse_overrides(list(settings))]
    for key in sorted(keys, key=lambda key: key != "dataset"):  # the whole group first
        OmegaConf.update(found, key, OmegaConf.select(typed, key), merge=False, force_add=True)
    return found


def same_images(cfg: DictConfig, other: DictConfig) -> bool:
    """Whether two configurations describe the same dataset, whatever OOD sets they list."""
    without = ("ood", "shifts", "download", "templates")
    one, two = (
        {key: value for key, value in each.dataset.items() if key not in without} for each in (cfg, other)
    )
    return one == two
