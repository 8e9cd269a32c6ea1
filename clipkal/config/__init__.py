"""The configuration of a run: `schema.py` types every key, `conf/` picks values, Hydra composes them.

`register()` makes the schema known to Hydra, `conf_dir()` finds `conf/` (in the wheel or in a checkout) and
`explain()` turns Hydra's messages into one line with the nearest right key.
"""

from clipkal.config.compose import compose, conf_dir, quoted, register
from clipkal.config.explain import explain

__all__ = ["compose", "conf_dir", "explain", "quoted", "register"]
