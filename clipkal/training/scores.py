"""What is known of a model while it learns: how it does on the validation images, and what its optimiser reports."""

import math

import torch
from torch.nn import functional as F

from clipkal.adapters import Adapter
from clipkal.data.sets import LabelledSet
from clipkal.optim.base import BatchOptimizer, StepInfo
from clipkal.uncertainty.reader import Reader


def step_figures(info: StepInfo) -> dict[str, float]:
    """The log evidence of a step, where there is one, and its metrics."""
    evidence = {} if info.log_evidence is None else {"log_evidence": info.log_evidence}
    return {**evidence, **info.metrics}


def curve_values(optimizer: BatchOptimizer, last_step: dict[str, float]) -> dict[str, float]:
    """What a step is shown by, beside loss and evidence: `posterior/*` of a Bayesian optimiser, else `train/*`.

    last_step: as `step_figures`.
    """
    place = "posterior" if "log_evidence" in last_step else "train"
    found = {name: value for name, value in last_step.items() if name != "log_evidence"} | optimizer.monitor()
    return {f"{place}/{name}": value for name, value in found.items()}


def validation_scores(adapter: Adapter, val: LabelledSet | None, draw: int = 0) -> dict[str, float]:
    """Of the validation images `val_nll`, the mean negative log-likelihood (nats), and `val_accuracy` (0…1); none without any.

    Where a logit is not finite `val_nll` is infinity, and there is no accuracy.

    draw: 0 for all of them; else the number of a drawing of as many from them, with replacement.
    """
    if val is None or len(val.labels) == 0:
        return {}
    try:
        reader = Reader(adapter, batch_size=adapter.batch_size)
        logits = reader.logits(val.inputs, len(val.labels), "validation")
    except FloatingPointError:
        return {"val_nll": math.inf}
    labels = val.labels
    if draw:
        generator = torch.Generator().manual_seed(draw)
        rows = torch.randint(len(logits), (len(logits),), generator=generator)
        logits, labels = logits[rows], labels[rows]
    right = (logits.argmax(1) == labels).double().mean()
    return {"val_nll": float(F.cross_entropy(logits, labels)), "val_accuracy": float(right)}
