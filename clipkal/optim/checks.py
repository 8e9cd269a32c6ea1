"""What the optimisers refuse, in one clear line each: settings that cannot be, models and batches that do not fit."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipkal.optim.base import check_finite

# Variances and the like: beyond, float32 has no room left for products with a Jacobian.
SMALLEST, LARGEST = 1e-30, 1e12


def check_number(name: str, value: object, low: float, high: float, words: tuple[object, ...] = ()) -> None:
    """ValueError unless the value is one of the words, or a number from low to high; NaN is none."""
    if value in words:
        return
    try:
        fits = not isinstance(value, str) and low <= float(value) <= high  # type: ignore[arg-type]
    except (TypeError, ValueError):
        fits = False
    if not fits:
        others = "".join(f" or {word!r}" for word in words if word is not None)
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}{others}, got {value!r}")


def check_settings(
    prior: float | str,
    ratio: float | None,
    priors: Mapping[str, float] | None,
    process_noise: float,
    fading: float,
    rho: float,
    warmup: int,
    epochs: int,
    epochs_as: str,
    block: int | str | None,
    temperature: float | str,
) -> None:
    """Raises ValueError naming the first setting of `KalmanFilter` that makes no sense."""
    check_number("prior", prior, SMALLEST, LARGEST, ("ratio",))
    check_number("ratio", ratio, SMALLEST, LARGEST, (None,))
    for name, variance in (priors or {}).items():
        check_number(f"the prior of {name}", variance, SMALLEST, LARGEST)
    check_number("process_noise", process_noise, 0, LARGEST)
    check_number("fading", fading, SMALLEST, 1)
    check_number("rho", rho, 0, LARGEST)
    check_number("warmup", warmup, 0, LARGEST)
    check_number("epochs", epochs, 1, LARGEST)
    check_number("temperature", temperature, 0, LARGEST, ("unit",))
    if epochs_as not in ("tempered", "optimiser"):
        raise ValueError(f"epochs_as must be tempered or optimiser, got {epochs_as!r}")
    if not (block is None or block == "auto" or (isinstance(block, int) and block >= 1)):
        raise ValueError(f"block must be a positive number, None (all jointly) or 'auto', got {block!r}")


def check_batch(logits: Tensor, targets: Tensor, regression: bool) -> None:
    """logits [B, C] and targets: int64 [B] in 0…C − 1, or real [B, C] for regression; ValueError otherwise.

    FloatingPointError where anything is not finite.
    """
    check_finite(logits, "logits")
    if not regression:
        check_classes(logits)
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


def check_classes(logits: Tensor) -> None:
    """ValueError where logits [B, C] are of fewer than two classes: there is nothing to tell apart."""
    if logits.ndim == 2 and logits.shape[1] < 2:
        raise ValueError(
            f"the model has {logits.shape[1]} class: a classifier needs at least two "
            "(one output and real targets: observation='gaussian')"
        )


def check_independent(model: nn.Module) -> None:
    """ValueError where the model mixes the images of a batch, so that no image has a Jacobian of its own."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{type(module).__name__} {name!r} normalises by the images of the batch, which a Kalman filter must see "
                "one by one: put it into evaluation mode first, model.eval()"
            )
