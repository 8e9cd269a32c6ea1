"""The configuration of a run: `schema.py` types every key, `conf/` picks values, Hydra composes them.

`register()` makes the schema known to Hydra, `conf_dir()` finds `conf/` (in the wheel or in a checkout), `check()`
holds a configuration against the schema's rules, and `explain()` turns Hydra's messages into one line with the
nearest right key. Nothing here imports torch.
"""

from clipkal.config.check import check
from clipkal.config.compose import compose, conf_dir, quoted, register
from clipkal.config.explain import explain

__all__ = ["check", "compose", "conf_dir", "explain", "quoted", "register"]
