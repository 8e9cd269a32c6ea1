"""The parts of a `KalmanFilter` by their names."""

from collections.abc import Callable
from functools import partial
from typing import Any

from clipkal.optim.kalman.categorical import Categorical
from clipkal.optim.kalman.covariance.dense import Dense
from clipkal.optim.kalman.covariance.diagonal import Diagonal
from clipkal.optim.kalman.covariance.lowrank import DiagonalPlusLowRank
from clipkal.optim.kalman.covariance.subspace import Subspace
from clipkal.optim.kalman.observation import (
    Cosine,
    FixedNoise,
    Gaussian,
    InverseMultiQuadric,
    MahalanobisHard,
    MahalanobisSoft,
    ModelNoise,
    NoGate,
    Probs,
    ResidualNoise,
    Softmax,
)

PARTS: dict[str, dict[str, Callable[[], Any]]] = {
    "observation": {
        "categorical": Categorical,
        "categorical_merged": partial(Categorical, merge=0.1),
        "softmax": Softmax,
        "cosine": Cosine,
        "probs": Probs,
        "gaussian": Gaussian,
    },
    "noise": {
        "model": ModelNoise,
        "fixed": FixedNoise,
        "residual": ResidualNoise,
        "residual_full": partial(ResidualNoise, shape="full"),
    },
    "covariance": {
        "diagonal": Diagonal,
        "subspace": Subspace,
        "lowrank": DiagonalPlusLowRank,
        "dense": Dense,
    },
    "gate": {
        "none": NoGate,
        "mahalanobis_hard": MahalanobisHard,
        "mahalanobis_soft": MahalanobisSoft,
        "imq": InverseMultiQuadric,
    },
}


def named(kind: str, part: Any) -> Any:
    """A part of this kind from its name in `PARTS`, or the part itself; ValueError for a name that is not there."""
    if not isinstance(part, str):
        return part
    if part not in PARTS[kind]:
        raise ValueError(f"unknown {kind} {part!r}; one of {', '.join(PARTS[kind])}")
    return PARTS[kind][part]()
