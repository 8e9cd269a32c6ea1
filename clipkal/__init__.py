"""clipkal: few-shot fine-tuning of CLIP with Bayesian Kalman natural gradients, and honest uncertainty about it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipkal.inference.run import Run, load_run

__version__ = "0.2.0"
__all__ = ["Run", "__version__", "load_run"]


def __getattr__(name: str) -> Any:
    """`clipkal.load_run` and `clipkal.Run`, on first use: they import torch."""
    if name not in ("Run", "load_run"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("clipkal.inference.run"), name)
