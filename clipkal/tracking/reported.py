"""Which of the predictives of a run is its result: the one rule, for whoever writes or reads results.json."""

from collections.abc import Iterable

SCALED = "_scaled"
"""Suffix of a predictive whose logits were divided by a fitted temperature."""


def reported(predictives: Iterable[str]) -> str:
    """The first that is neither the plug-in nor a scaled one, which is the one that `predictive` chose; else the first."""
    names = list(predictives)
    chosen = (name for name in names if name != "plugin" and not name.endswith(SCALED))
    return next(chosen, names[0])
