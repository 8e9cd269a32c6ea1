"""One temperature, fitted on validation images: softmax(z / T). Guo et al. (2017), arXiv 1706.04599."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from clipkal.uncertainty.prediction import log_softmax

BOUNDS = (0.01, 100.0)
"""Range of the search for the temperature."""


def fit_temperature(logits: Tensor, labels: Tensor, prior_sd: float = 1.0) -> float:
    """The temperature T that minimises the negative log-likelihood of the labels, in [0.01, 100].

    Args:
        logits: (N, C) for a plug-in, or draws (S, N, C): one T divides every draw, and the likelihood is
            that of the mean of the softmaxes.
        labels: (N,), integers in [0, C).
        prior_sd: standard deviation of a normal prior on log T around 0, a choice of this project. A
            handful of validation images is often classified without error, and then the likelihood alone
            asks for T = 0; one nat of prior keeps T finite and moves it little otherwise. `math.inf` is the
            plain fit.

    Raises:
        ValueError: no images, wrong shapes, labels out of range, logits that are not finite, prior_sd not
            positive.
    """
    draws = logits if logits.ndim == 3 else logits[None]
    draws = log_softmax(draws, 3)
    labels = torch.as_tensor(labels).cpu().to(torch.int64)
    _, images, classes = draws.shape
    if not images or not len(draws) or labels.shape != (images,):
        raise ValueError(
            f"{images} images with {len(draws)} draws need as many labels, got {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels must lie in [0, {classes})")

    def nll(temperature: float) -> float:
        log_probs = (draws / temperature).log_softmax(-1)[:, torch.arange(images), labels]
        return -(log_probs.logsumexp(0) - math.log(len(draws))).sum().item()

    return minimise_nll(nll, prior_sd)


def minimise_nll(total_nll: Callable[[float], float], prior_sd: float = 1.0) -> float:
    """The T in [0.01, 100] with the least total_nll(T) + (log T)²/(2·prior_sd²), to about 1e-6.

    A coarse scan of log T, then a bounded Brent search around its best point: for draws the function need
    not be convex. `total_nll` is the sum over images, in nats.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    if not prior_sd > 0:
        raise ValueError(f"prior_sd must be positive, got {prior_sd}")

    def objective(log_t: float) -> float:
        return total_nll(math.exp(log_t)) + 0.5 * (log_t / prior_sd) ** 2

    low, high = (math.log(bound) for bound in BOUNDS)
    grid = torch.linspace(low, high, 15, dtype=torch.float64).tolist()
    values = [objective(point) for point in grid]
    best = min(range(len(grid)), key=values.__getitem__)
    bracket = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(objective, bounds=bracket, method="bounded", options={"xatol": 1e-7})
    best_log = found.x if found.fun <= values[best] else grid[best]
    return min(max(math.exp(best_log), BOUNDS[0]), BOUNDS[1])
