"""Cross-validation of warm-started MAPs: what p₀, and how warm the draws, by the log-likelihood of shots held out.

Folds are balanced within classes and ordered by content, not by position: the images of a class are ranked by the margin of
their own logit at W = 0 and dealt out in turn, so the choice does not depend on the order of images or classes. A class with a
single image is never held out: what a filter knows of a class it has not seen says nothing of how to learn from its shots. With
one shot everywhere nothing can be held out and the caller falls back on its prior.

A fold keeps the coordinates of the whole problem: directions only its held-out images span simply stay at their prior there.
Enough folds are solved to hold out `ENOUGH` images, and of very many shots only about `SHOWN` take part (never fewer than `folds` a
class): the difference between two p₀ on the same images needs no more.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkal.optim.full_kalman.newton import Mode, WarmStart
from clipkal.optim.full_kalman.reduced import ReducedModel
from clipkal.optim.full_kalman.sampling import perturb, solve
from clipkal.optim.full_kalman.settings import Settings
from clipkal.optim.full_kalman.solve import Direct

# Images to hold out; images to look at in all; accuracy of the modes (newton.py).
ENOUGH = 80
SHOWN = 8192
DISTANCE = 0.1
LEFT_OUT = -2
TEMPERATURES = (0.0, 1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass
class Fold:
    """Model of the images kept, model of the images held out, and the solver that remembers its last mode."""

    kept: ReducedModel
    held: ReducedModel
    warm: WarmStart


class CrossValidation:
    """Held-out log-likelihoods of one reduced model; false where no image can be held out."""

    def __init__(self, model: ReducedModel, settings: Settings):
        self.settings, self.total = settings, len(model.labels)
        if settings.precision != "float64":
            model = model.to(torch.float32)
        fold = deal(model, settings.folds, max(settings.folds, SHOWN // max(1, model.offset.shape[1])))
        self.folds: list[Fold] = []
        self.held = 0
        for index in range(settings.folds):
            out = fold == index
            kept = ~out & (fold != LEFT_OUT)
            if self.held < ENOUGH and bool(out.any()) and bool(kept.any()):
                warm = WarmStart(settings.exact(model.size, searching=True))
                self.folds.append(Fold(model.rows(kept), model.rows(out), warm))
                self.held += int(out.sum())

    def __bool__(self) -> bool:
        return bool(self.folds)

    @property
    def products(self) -> int:
        return sum(fold.warm.products for fold in self.folds)

    def score(self, amplitude: float) -> float:
        """Held-out log-likelihood of the MAP at √p₀ = amplitude, scaled up to all the images."""
        total = 0.0
        for fold in self.folds:
            mode = fold.warm.mode(fold.kept.with_amplitude(amplitude), DISTANCE)
            held = fold.held.with_amplitude(amplitude)
            total += _log_score(held.logits(mode.x)[None], held.labels)
        return total * self.total / self.held

    def temperature(self, amplitude: float, pairs: int = 16) -> float | None:
        """The T in TEMPERATURES whose averaged prediction, MAP + √T (posterior draw − MAP), does best on the shots held out."""
        scores = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
        for fold in self.folds:
            kept, held = fold.kept.with_amplitude(amplitude), fold.held.with_amplitude(amplitude)
            mode = fold.warm.mode(kept, DISTANCE)
            centre, change = held.logits(mode.x), self._changes(kept, held, mode, pairs)
            for k, temperature in enumerate(TEMPERATURES):
                step = math.sqrt(temperature) * change
                scores[k] += _log_score(torch.cat((centre + step, centre - step)), held.labels)
        return TEMPERATURES[int(scores.argmax())] if self.folds else None

    def _changes(self, kept: ReducedModel, held: ReducedModel, mode: Mode, pairs: int) -> Tensor:
        """Posterior deviations of the held-out logits [pairs, N_held, C]; each is used with both signs."""
        if not kept.size:
            return held.offset.new_zeros(1, *held.offset.shape)
        generator = torch.Generator().manual_seed(self.settings.seed)
        factor = Direct.at(kept, mode.sites) if self.settings.exact(kept.size) else None
        pairs = max(2, min(pairs, 2**24 // kept.offset.numel()))
        deviations = [
            solve(kept, mode.sites, factor, perturb(kept, mode.sites, count, generator)[1], 0.03)
            for count in _chunks(pairs, max(1, 2**25 // kept.offset.numel()))
        ]
        return held.forward(torch.cat(deviations))


def deal(model: ReducedModel, folds: int, most: int) -> Tensor:
    """Fold of every image [N]; −1 for the only image of a class, LEFT_OUT beyond `most` images of a class. N log N."""
    n, labels = len(model.labels), model.labels
    fold = labels.new_full((n,), -1)
    if not n:
        return fold
    counts = torch.bincount(labels, minlength=model.offset.shape[1])
    margin = model.offset.double().log_softmax(-1)[torch.arange(n, device=labels.device), labels]
    by_margin = torch.argsort(margin, stable=True)
    order = by_margin[torch.argsort(labels[by_margin], stable=True)]
    starts = counts.cumsum(0) - counts
    rank = torch.arange(n, device=labels.device) - starts[labels[order]]
    stride = (counts[labels[order]] + most - 1) // most  # every stride-th by margin: easy and hard ones alike
    used = torch.where(rank % stride == stride // 2, (rank // stride) % folds, LEFT_OUT)
    fold[order] = torch.where(counts[labels[order]] > 1, used, -1)
    return fold


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _log_score(logits: Tensor, labels: Tensor) -> float:
    """Σ_i log mean_s softmax(z_s,i)[y_i] of logits [S, N, C]."""
    chosen = logits.gather(-1, labels[None, :, None].expand(len(logits), -1, 1))[..., 0]
    log_probs = (chosen - logits.logsumexp(-1)).double()
    return float((log_probs.logsumexp(0) - math.log(len(logits))).sum())
