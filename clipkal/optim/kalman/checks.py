"""What a Kalman filter refuses, in one clear line each: settings that cannot be, and batches that do not fit."""

import torch
from torch import Tensor

from clipkal.optim.base import check_finite


def check_settings(
    prior: float | str,
    ratio: float | None,
    process_noise: float,
    fading: float,
    rho: float,
    epochs: int,
    epochs_as: str,
    block: int | str | None,
    temperature: float | str,
) -> None:
    """Raises ValueError naming the first setting of `KalmanFilter` that makes no sense."""
    if isinstance(prior, str) and prior != "ratio":
        raise ValueError(f"prior must be a positive variance or 'ratio', got {prior!r}")
    positive = {"ratio": ratio, "fading": fading, "epochs": epochs, "prior": prior}
    if temperature != "unit" and (isinstance(temperature, str) or temperature < 0):
        raise ValueError(f"temperature must be a number from 0 on, or 'unit'; got {temperature!r}")
    for name, value in positive.items():
        if not (value is None or isinstance(value, str) or float(value) > 0):
            raise ValueError(f"{name} must be positive, got {value}")
    if fading > 1 or process_noise < 0 or rho < 0:
        raise ValueError("fading must be at most 1; process_noise and rho must not be negative")
    if epochs_as not in ("tempered", "optimiser"):
        raise ValueError(f"epochs_as must be tempered or optimiser, got {epochs_as!r}")
    if not (block is None or block == "auto" or (isinstance(block, int) and block >= 1)):
        raise ValueError(f"block must be a positive number, None (all jointly) or 'auto', got {block!r}")


def check_batch(logits: Tensor, targets: Tensor, regression: bool) -> None:
    """logits [B, C] and targets: int64 [B] in 0…C − 1, or real [B, C] for regression; ValueError otherwise.

    FloatingPointError where anything is not finite.
    """
    check_finite(logits, "logits")
    if logits.ndim != 2 or len(logits) != len(targets) or not len(targets):
        raise ValueError(
            f"need logits [B, C] and B targets, got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if regression:
        check_finite(targets, "targets")
    elif targets.dtype != torch.int64 or targets.ndim != 1:
        raise ValueError(f"targets must be int64 [B], got {targets.dtype} {tuple(targets.shape)}")
    else:
        lowest, highest = (int(t) for t in targets.aminmax())
        if lowest < 0 or highest >= logits.shape[1]:
            raise ValueError(f"targets must lie in 0…{logits.shape[1] - 1}")
