"""Adapters by their config name."""

from torch import Tensor

from clipkal.adapters.base import Adapter
from clipkal.adapters.linear import LinearAdapter
from clipkal.adapters.zeroshot import ZeroShotAdapter
from clipkal.errors import ConfigError


def build_adapter(name: str, text_features: Tensor, logit_scale: float, learn_scale: bool = False) -> Adapter:
    """The adapter called `name` over text features `[C, d]`; raises ConfigError for a name that does not
    exist.
    """
    if name == "none":
        return ZeroShotAdapter(text_features, logit_scale)
    if name == "linear":
        return LinearAdapter(text_features, logit_scale, learn_scale)
    raise ConfigError(f"unknown adapter.name={name}; it can be: none, linear")
