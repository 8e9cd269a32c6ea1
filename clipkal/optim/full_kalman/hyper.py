"""The scale of the prior and the temperature of the draws, from the shots alone.

p₀ is searched as u = log a, a = p₀ · mean_i ‖f_i‖² · ‖A‖²_F / C: the prior variance of a class's (centred) logit, a number that
means the same for every backbone, scale and number of classes. A log-normal hyper-prior on a keeps the choice sane where the
data say little: at one shot it is all there is, and where the shots are separated the held-out likelihood is flat in p₀. Few-shot
validation images tell centres (of √a) from 8 to 16 and widths from 0.25 to 1.5 hardly apart (benchmarks/defaults.py); we took a
small centre, 10, and a narrow width, at which the data move p₀ by a factor of two or three.

* "crossval": the held-out log-likelihood of the MAP (crossval.py). The default.
* "evidence": the Laplace evidence (evidence.py), MacKay's and GPML's choice. On real few-shot features it picks p₀ 2 to 20 times
  too small for the plug-in: it scores the *averaged* prediction, and with an isotropic prior over d² weights, most of which no task
  needs, averaging is right to be timid.
* "ratio": p₀ such that data and prior curvature are in a given ratio at W = 0 (shared with the diagonal filters): no search at all.
"""

import math
from dataclasses import dataclass, replace

import torch

from clipkal.optim.full_kalman.crossval import CrossValidation
from clipkal.optim.full_kalman.evidence import laplace_evidence
from clipkal.optim.full_kalman.likelihood import Sites
from clipkal.optim.full_kalman.newton import Mode, WarmStart
from clipkal.optim.full_kalman.reduced import ReducedModel
from clipkal.optim.full_kalman.search import maximise
from clipkal.optim.full_kalman.settings import Settings

KAPPA_MIN = 0.05
# The search: MAPs to this accuracy (newton.py); log a by steps of log 4, at most four each way, to SEARCH_LOG; it
# walks on for no less than this gain in nats per image (separable shots would walk for ever).
SEARCH_DISTANCE, SEARCH_STEP, SEARCH_STEPS, SEARCH_LOG, SEARCH_GAIN = 0.02, math.log(4.0), 4, 0.75, 0.002
# Accuracy of the final mode (newton.py) in the solves' precision, unless precision="float64" asks for all there is.
FINAL = {torch.float64: 0.005, torch.float32: 0.02}
EXACT = 1e-7


@dataclass(frozen=True)
class Fit:
    """A model at its hyper-parameters, its mode, the temperature of its draws, and numbers for the log."""

    model: ReducedModel
    mode: Mode
    temperature: float
    metrics: dict[str, float]


def fit(model: ReducedModel, settings: Settings) -> Fit:
    """Chooses the hyper-parameters and solves for the mode with all the data."""
    unit = logit_variance(model)
    warm = WarmStart(settings.exact(model.size, searching=True))
    validation = CrossValidation(model, settings)
    log_variance, evaluations = _choose_variance(model, settings, unit, warm, validation)
    model = model.with_amplitude(math.exp(0.5 * log_variance) / math.sqrt(unit))
    if validation:  # most of the data, so a good start for all of it
        warm.found |= validation.folds[0].warm.found
    accuracy = EXACT if settings.precision == "float64" else FINAL[model.offset.dtype]
    model, mode = _final_mode(model, warm, accuracy)
    temperature = _temperature(model, settings, log_variance, validation)
    metrics = {
        "p0": model.amplitude**2,
        "kappa": model.scale(mode.x),
        "prior_logit_sd": math.exp(0.5 * log_variance),
        "temperature": temperature,
        "evaluations": float(evaluations),
        "newton": float(warm.iterations),
        "products": float(warm.products + validation.products),
    }
    return Fit(model, mode, temperature, metrics)


def _choose_variance(
    model: ReducedModel, settings: Settings, unit: float, warm: WarmStart, validation: CrossValidation
) -> tuple[float, int]:
    """log a and the number of evaluations it took."""
    if settings.prior == "ratio":
        return math.log(ratio_prior(model, settings.ratio) * unit), 0
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

    reach = SEARCH_STEPS * SEARCH_STEP
    bounds, gain = (centre - reach, centre + reach), SEARCH_GAIN * len(model.labels)
    return maximise(score, centre, SEARCH_STEP, SEARCH_LOG, bounds, gain)


def _temperature(
    model: ReducedModel, settings: Settings, log_variance: float, validation: CrossValidation
) -> float:
    """T ≤ 1: given, or by rule, or by cross-validation where something can be held out."""
    rule = min(1.0, settings.draw_logit_sd**2 * math.exp(-log_variance))
    if settings.temperature == "unit":
        return rule
    if settings.temperature == "crossval":
        found = validation.temperature(model.amplitude)
        return rule if found is None else found
    return float(settings.temperature)


def _final_mode(model: ReducedModel, warm: WarmStart, tolerance: float) -> tuple[ReducedModel, Mode]:
    """The mode to full accuracy; a κ that would not be positive (the zero-weight logits mislead) is held at KAPPA_MIN."""
    mode = warm.mode(model, tolerance)
    if model.scale(mode.x) >= KAPPA_MIN:
        return model, mode
    model = replace(model, scale_mean=KAPPA_MIN, scale_sd=0.0)
    return model, WarmStart(warm.direct).mode(model, tolerance)


def logit_variance(model: ReducedModel) -> float:
    """Prior variance of a centred logit at p₀ = 1, averaged over images and classes."""
    rows = model.features.double().square().sum() / max(1, len(model.labels))
    columns = model.classes.double().square().sum() / max(1, model.classes.shape[0])
    return max(float(rows * columns), 1e-30)


def ratio_prior(model: ReducedModel, ratio: float) -> float:
    """p₀ such that the average eigenvalue of QᵀH P₀ HᵀQ, over the C − 1 directions of an image, is `ratio` at W = 0."""
    unit = replace(model, amplitude=1.0, scale_sd=0.0)
    trace = float((unit.precision_diagonal(Sites.at(model.offset)) - 1.0).double().sum())
    directions = len(model.labels) * max(1, model.offset.shape[1] - 1)
    return ratio * directions / trace if trace > 0 else 1.0
