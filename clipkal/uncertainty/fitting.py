"""A temperature for every predictive, from validation images."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from clipkal.uncertainty.chunk import Chunk, View
from clipkal.uncertainty.predictive import Predictive
from clipkal.uncertainty.reader import MEMORY_BUDGET, Reader
from clipkal.uncertainty.temperature import minimise_nll

MOST_COVARIANCE = 4 * MEMORY_BUDGET
"""Bytes of covariances that are kept for the fit."""


def temperatures(
    reader: Reader,
    inputs: Tensor,
    labels: Tensor,
    predictives: Mapping[str, Predictive],
    prior_sd: float = 1.0,
) -> dict[str, float]:
    """One temperature per predictive, over all classes; see `fit_temperature`.

    A predictive is asked again at every temperature that is tried, for images that are read once. Draws beyond the
    memory budget are left out of the fit: the first of them serve. Where the covariances are too many, every second
    image serves, or every third, and so on.

    Raises:
        ValueError: no images, or a label that the model does not know.
    """
    found: dict[str, float] = {}
    for name, predictive in predictives.items():
        chunk, used = _known(reader, inputs, labels, predictive)
        draws = _draws(reader, inputs, chunk, predictive) if "draws" in predictive.needs else None
        found[name] = minimise_nll(partial(_nll, predictive, chunk, draws, used), prior_sd)
    return found


def _nll(
    predictive: Predictive, chunk: Chunk, draws: Tensor | None, labels: Tensor, temperature: float
) -> float:
    """The negative log-likelihood of the labels, summed over images, in nats."""
    every, view = slice(0, len(chunk)), View("", temperature)
    accumulator = predictive.begin(len(chunk), chunk.logits.shape[1])
    accumulator.add(every, view.of_chunk(chunk))
    if draws is not None:
        accumulator.add_draws(every, view.of(draws))
    log_probs = accumulator.prediction().log_probs
    assert log_probs is not None
    return -log_probs.gather(1, labels[:, None]).sum().item()


def _known(reader: Reader, inputs: Tensor, labels: Tensor, predictive: Predictive) -> tuple[Chunk, Tensor]:
    """What the predictive needs of the images that serve, and their labels."""
    chunks, used, step = [], [], 1
    for rows, chunk in reader.chunks(inputs, len(labels), predictive.needs, "validation"):
        classes = chunk.logits.shape[1]
        if "covariance" in predictive.needs:
            step = math.ceil(8 * len(labels) * classes**2 / MOST_COVARIANCE)
        every = slice(-rows.start % step, None, step)
        chunks.append(chunk.rows(every))
        used.append(labels[rows][every])
        if int(labels[rows].min()) < 0 or int(labels[rows].max()) >= classes:
            raise ValueError(f"labels must lie in [0, {classes})")
    if not chunks:
        raise ValueError("a temperature needs validation images")
    whole = Chunk.joined(chunks)
    if whole.features is not None:
        whole = replace(whole, novelty=predictive.novelty(whole))
    return whole, torch.cat(used)


def _draws(reader: Reader, inputs: Tensor, chunk: Chunk, predictive: Predictive) -> Tensor:
    """Draws [S, N, C] of all images."""
    images, classes = chunk.logits.shape
    count = min(predictive.samples, max(1, MEMORY_BUDGET // (16 * chunk.logits.numel())))
    draws = torch.zeros(count, images, classes, dtype=torch.float64)
    filled = torch.zeros(images, dtype=torch.int64)
    for _, rows, block in reader.draws({"validation": (inputs, images)}, count, classes):
        start = int(filled[rows.start])
        draws[start : start + len(block), rows] = block
        filled[rows] += len(block)
    return draws
