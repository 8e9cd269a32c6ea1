"""How unlike the shots an image is, from its distance to the nearest of them in the space of the frozen features.

    d(x) = min_i ‖f(x) − f_i‖,   t = (d(x) − m) / s        m, s: mean and deviation of d over images of the shots' own world

m and s are those of the shots, each measured against the others, and of the validation images. A shot that is the only one of
its class is left out of them, as its neighbours are of other classes, unless there is nothing else.

Ours: an image has a hidden state, "of the world of the shots" or "from elsewhere", and its standardised distance is normal in
both, δ further away in the second. Bayes' rule gives the probability of the second,

    u(x) = σ(log π/(1 − π) + δ t − δ²/2)

with π the share of images that are expected from elsewhere. It is counted from the shots, where it is made exactly 0:
(u − u₀) / (1 − u₀), u₀ at d = 0.

The nearest shot was compared with the mean of the 3 and of the 10 nearest (docs/study): they are alike, and this one needs no
choice of k. Distances do not change under rotations of the features or another order of the shots.
"""

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from clipkal.metrics import NearestShot

LEAST_SPREAD = 1e-3
"""Of the distances, which lie in 0…2: below, equal images would make every other one novel."""


@dataclass(frozen=True)
class World:
    """The shots' features and how far images of their world lie from the nearest of them.

    Attributes:
        features: unit rows [n, d].
        mean: m.
        spread: s.
    """

    features: Tensor
    mean: float
    spread: float

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, others: Tensor | None) -> "World":
        """Of shots [n, d] with labels [n], and of images [m, d] that were not learnt from.

        Raises ValueError where there is a single image in all: it has no distance to anything.
        """
        shots = NearestShot(features)
        known = torch.empty(0, dtype=torch.float64) if others is None else shots.distance(others)
        repeated = (torch.bincount(labels) > 1)[labels]
        own = shots.distance(features, to_others=True)
        if bool(repeated.any()):
            known = torch.cat((known, own[repeated]))
        elif not len(known):
            known = own[own.isfinite()]
        if not len(known):
            raise ValueError(
                "novelty needs more than one image: nothing is known of how far images lie apart"
            )
        spread = float(known.std()) if len(known) > 1 else 0.0
        return cls(features.float(), float(known.mean()), max(spread, LEAST_SPREAD))

    @cached_property
    def shots(self) -> NearestShot:
        """What tells an image's distance to the nearest shot."""
        return NearestShot(self.features)

    def state(self) -> dict[str, Any]:
        """What it is made of."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def novelty(self, distance: Tensor, shift: float, separation: float) -> Tensor:
        """u of images [B], float64 in 0…1: 0 at a shot and rising with the distance.

        Args:
            distance: of each image to the nearest shot, float64 [B].
            shift: π, in (0, 1).
            separation: δ > 0.
        """
        prior = math.log(shift / (1 - shift)) - 0.5 * separation**2
        distance = torch.cat((distance, distance.new_zeros(1)))
        u = torch.sigmoid(prior + separation * (distance - self.mean) / self.spread)
        return ((u[:-1] - u[-1]) / (1 - u[-1])).clamp(0, 1)
