"""The scale of the prior and the temperature of the samples, from the shots and what images are held out (ours).

p₀ is known as u = log a, a = p₀ · mean_i ‖f_i‖² · ‖A‖²_F / C: the prior variance of a class's (centred) logit, a number
that means the same for every backbone, scale and number of classes. A score s(u) of the data and a log-normal hyper-prior on
a give weights on an even grid of u, and p₀ is where their mean lies (`posterior_mean`):

    w(u) ∝ exp(s(u) − (u − centre)² / (2 · spread²)),   log a = Σ w(u) u

A mean, not a maximum: at few shots the score is flat and its maximum is noise. (Averaging the *predictions* over p₀ gains no
more, docs/study.) The score is one of

* "crossval": the log-likelihood of held-out images at the MAP, `CrossValidation.score`: the shots' own folds, and the
  images of `BatchOptimizer.hold_out` where there are some.
* "evidence": the Laplace evidence (evidence.py), MacKay's and GPML's choice. It scores the *averaged* prediction, and with
  an isotropic prior over d² weights, most of which no task needs, averaging is right to be timid: its p₀ is too small for
  the plug-in.
* "ratio": p₀ such that data and prior curvature are in a given ratio at W = 0, `p0_of_ratio`: no search at all.

Folds are balanced within classes and ordered by content, not by position: the images of a class are ranked by the margin of
their own logit at W = 0 and assigned in turn, so the choice does not depend on the order of images or classes. A class with
a single image is never held out: what a filter knows of a class it has not seen says nothing of how to learn from its
shots. With one shot everywhere, and no other images, the hyper-prior decides. A fold keeps the coordinates of the
whole problem: directions only its held-out images span simply stay at their prior there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clipkal.optim.full_kalman.evidence import laplace_evidence, rademacher
from clipkal.optim.full_kalman.mode import PosteriorMode, WarmStart, hessian_factor, solve
from clipkal.optim.full_kalman.posterior import perturb
from clipkal.optim.full_kalman.problem import Precision, ReducedModel, Sites

# Up to this many unknowns a Cholesky factor is cheaper than a dozen products.
SMALL = 400
# A log-determinant that is only reported is estimated from about this many random signs (a search uses all its probes).
SIGNS = 3000
# The grid of log a around its centre: how far apart, and how many steps at most below and above.
SEARCH_STEP, STEPS_DOWN, STEPS_UP = math.log(4.0), 5, 2
# A side is left where the weight falls by this many nats below the best.
NEGLIGIBLE = 4.0
# Accuracy of the MAPs for the evidence in a search (mode.py).
SEARCH_DISTANCE = 0.02
# Accuracy of the final mode in the solves' precision, unless precision="float64" asks for all there is.
FINAL, TIGHT = {torch.float64: 0.005, torch.float32: 0.02}, 1e-7
# Cross-validation: images to hold out, and about how many to look at in all, but never fewer than `folds` a class: the
# difference between two p₀ on the same images needs no more.
ENOUGH, SHOWN = 80, 8192
# The fold of images beyond these.
LEFT_OUT = -2
# Accuracy of the modes in cross-validation.
DISTANCE = 0.1
# The temperatures that are compared.
TEMPERATURES = (0.0, 1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class Settings:
    """The arguments of `Kalman`, documented there, and the rules that follow from them."""

    prior: float | Literal["crossval", "evidence", "ratio"]
    posterior_temperature: float | Literal["unit", "crossval"]
    solver: Literal["auto", "direct", "cg"]
    precision: Precision
    ratio: float
    prior_logit_sd: float
    prior_spread: float
    folds: int
    draw_logit_sd: float
    probes: int
    seed: int
    max_direct: int

    def direct(self, size: int, searching: bool = False) -> bool:
        """Whether a problem of `size` unknowns is solved by a Cholesky factor."""
        limit = SMALL if searching else self.max_direct
        return size > 0 and (self.solver == "direct" or (self.solver == "auto" and size <= limit))

    def probe_vectors(self, model: ReducedModel) -> Tensor | None:
        """Probes [S, D] for the log-determinant, None where a Cholesky factor is to be used; fewer where D itself averages."""
        if model.size == 0 or self.direct(model.size, searching=True):
            return None
        enough = self.probes if self.prior == "evidence" else SIGNS // model.size
        count = max(1, min(self.probes, enough))
        return rademacher(count, model.size, self.seed, model.offset)


@dataclass(frozen=True)
class Fit:
    """A model at its hyper-parameters, its mode, the temperature of its samples, and numbers for the log."""

    model: ReducedModel
    mode: PosteriorMode
    temperature: float
    metrics: dict[str, float]


def fit(model: ReducedModel, settings: Settings, held_out: ReducedModel | None = None) -> Fit:
    """Chooses the hyper-parameters and solves for the mode with all the data.

    held_out: images in the same coordinates, from which nothing is learnt but p₀.
    """
    unit = model.logit_variance()
    warm = WarmStart(settings.direct(model.size, searching=True))
    validation = CrossValidation(model, settings, held_out)
    log_variance, evaluations = _choose_variance(model, settings, unit, warm, validation)
    model = model.with_amplitude(math.exp(0.5 * log_variance) / math.sqrt(unit))
    if validation:  # most of the data, so a good start for all of it
        warm.found |= validation.folds[-1].warm.found
    mode = warm.mode(model, TIGHT if settings.precision == "float64" else FINAL[model.offset.dtype])
    temperature = _choose_temperature(model, settings, log_variance, validation)
    metrics = {
        "p0": model.amplitude**2,
        "prior_logit_sd": math.exp(0.5 * log_variance),
        "temperature": temperature,
        "evaluations": float(evaluations),
        "newton": float(warm.iterations),
        "products": float(warm.products + validation.products),
    }
    return Fit(model, mode, temperature, metrics)


def _choose_variance(
    model: ReducedModel, settings: Settings, unit: float, warm: WarmStart, validation: "CrossValidation"
) -> tuple[float, int]:
    """log a and the number of evaluations it took."""
    if settings.prior == "ratio":
        return math.log(p0_of_ratio(model, settings.ratio) * unit), 0
    if not isinstance(settings.prior, str):
        return math.log(settings.prior * unit), 0
    centre = 2.0 * math.log(settings.prior_logit_sd)
    if model.size == 0 or (settings.prior == "crossval" and not validation):
        return centre, 0
    probes = settings.probe_vectors(model)

    def score(u: float) -> float:
        amplitude = math.exp(0.5 * u) / math.sqrt(unit)
        penalty = 0.5 * ((u - centre) / settings.prior_spread) ** 2
        if settings.prior == "crossval":
            return validation.score(amplitude) - penalty
        at = model.with_amplitude(amplitude)
        return laplace_evidence(at, warm.mode(at, SEARCH_DISTANCE), probes) - penalty

    return posterior_mean(score, centre)


def _choose_temperature(
    model: ReducedModel, settings: Settings, log_variance: float, validation: "CrossValidation"
) -> float:
    """T: given, or at most 1 by rule, or by cross-validation where something can be held out."""
    if not isinstance(settings.posterior_temperature, str):
        return float(settings.posterior_temperature)
    found = (
        validation.best_temperature(model.amplitude) if settings.posterior_temperature == "crossval" else None
    )
    return min(1.0, settings.draw_logit_sd**2 * math.exp(-log_variance)) if found is None else found


def p0_of_ratio(model: ReducedModel, ratio: float) -> float:
    """p₀ such that the average eigenvalue of QᵀΦΦᵀQ, over the C − 1 directions of an image, is `ratio` at W = 0."""
    diagonal = model.with_amplitude(1.0).hessian_diagonal(Sites.at(model.offset))
    trace = float((diagonal - 1.0).double().sum())
    directions = len(model.labels) * max(1, model.offset.shape[1] - 1)
    return ratio * directions / trace if trace > 0 else 1.0


@dataclass
class Fold:
    """One part of the images held out.

    Attributes:
        kept: model of the other images.
        held: model of the images held out.
        weight: how much one of these counts.
        warm: a solver that remembers its last mode.
    """

    kept: ReducedModel
    held: ReducedModel
    weight: float
    warm: WarmStart


class CrossValidation:
    """Held-out log-likelihoods of one reduced model by warm-started MAPs; false where there is no image to hold out.

    Args:
        model: of all the shots.
        settings: how many folds.
        held_out: images that are no shots: one more fold, in which all the shots are kept.
    """

    def __init__(self, model: ReducedModel, settings: Settings, held_out: ReducedModel | None):
        self.settings = settings
        if settings.precision != "float64":
            model = model.to(torch.float32)
        fold = assign_folds(
            model, settings.folds, max(settings.folds, SHOWN // max(1, model.offset.shape[1]))
        )
        parts: list[tuple[ReducedModel, ReducedModel]] = []
        held = 0
        for index in range(settings.folds):
            out = fold == index
            kept = ~out & (fold != LEFT_OUT)
            if held < ENOUGH and bool(out.any()) and bool(kept.any()):
                parts.append((model.rows(kept), model.rows(out)))
                held += int(out.sum())
        weights = [len(model.labels) / max(1, held)] * len(parts)
        if held_out is not None and len(held_out.labels):
            parts.append((model, held_out.to(model.offset.dtype)))
            weights.append(1.0)
        direct = settings.direct(model.size, searching=True)
        self.folds = [
            Fold(*part, weight, WarmStart(direct)) for part, weight in zip(parts, weights, strict=True)
        ]

    def __bool__(self) -> bool:
        return bool(self.folds)

    @property
    def products(self) -> int:
        """Products with Φ or Φᵀ so far."""
        return sum(fold.warm.products for fold in self.folds)

    def score(self, amplitude: float) -> float:
        """Held-out log-likelihood of the MAP at √p₀ = amplitude: that of the shots scaled up to all of them, and the others'."""
        total = 0.0
        for fold in self.folds:
            mode = fold.warm.mode(fold.kept.with_amplitude(amplitude), DISTANCE)
            held = fold.held.with_amplitude(amplitude)
            total += fold.weight * _log_score(held.logits(mode.x)[None], held.labels)
        return total

    def best_temperature(self, amplitude: float, pairs: int = 16) -> float | None:
        """The T in TEMPERATURES whose averaged prediction, MAP + √T (posterior sample − MAP), does best on held-out shots."""
        scores = torch.zeros(len(TEMPERATURES), dtype=torch.float64)
        for fold in self.folds:
            kept, held = fold.kept.with_amplitude(amplitude), fold.held.with_amplitude(amplitude)
            mode = fold.warm.mode(kept, DISTANCE)
            centre, change = held.logits(mode.x), self._changes(kept, held, mode, pairs)
            for k, temperature in enumerate(TEMPERATURES):
                step = math.sqrt(temperature) * change
                both = torch.cat((centre + step, centre - step))
                scores[k] += fold.weight * _log_score(both, held.labels)
        return TEMPERATURES[int(scores.argmax())] if self.folds else None

    def _changes(self, kept: ReducedModel, held: ReducedModel, mode: PosteriorMode, pairs: int) -> Tensor:
        """Posterior deviations of the held-out logits [pairs, N_held, C]; each is used with both signs."""
        if not kept.size:
            return held.offset.new_zeros(1, *held.offset.shape)
        generator = torch.Generator().manual_seed(self.settings.seed)
        factor = hessian_factor(kept, mode.sites) if self.settings.direct(kept.size) else None
        pairs = max(2, min(pairs, 2**24 // kept.offset.numel()))
        _, rhs = perturb(kept, mode.sites, pairs, generator)
        return held.forward(solve(kept, mode.sites, rhs, factor, 0.03)[0])


def assign_folds(model: ReducedModel, folds: int, most: int) -> Tensor:
    """Fold of every image [N]; −1 for the only image of a class, LEFT_OUT beyond `most` images of a class. N log N."""
    n, labels = len(model.labels), model.labels
    fold = labels.new_full((n,), -1)
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


def _log_score(logits: Tensor, labels: Tensor) -> float:
    """Σ_i log mean_s softmax(z_s,i)[y_i] of logits [S, N, C]."""
    chosen = logits.gather(-1, labels[None, :, None].expand(len(logits), -1, 1))[..., 0]
    log_probs = (chosen - logits.logsumexp(-1)).double()
    return float((log_probs.logsumexp(0) - math.log(len(logits))).sum())


def posterior_mean(score: Callable[[float], float], centre: float) -> tuple[float, int]:
    """Σ w(u) u with w(u) ∝ exp(score(u)) on the grid around `centre`, and the number of evaluations.

    The grid is walked from the centre to both sides, each until the score is NEGLIGIBLE below the best.
    """
    values = {centre: score(centre)}
    for direction, steps in ((-1, STEPS_DOWN), (1, STEPS_UP)):
        for k in range(1, steps + 1):
            u = centre + direction * k * SEARCH_STEP
            values[u] = score(u)
            if values[u] < max(values.values()) - NEGLIGIBLE:
                break
    best = max(values.values())
    weights = {u: math.exp(value - best) for u, value in values.items()}
    return sum(w * u for u, w in weights.items()) / sum(weights.values()), len(values)
