"""Covariances P of the parameters behind one interface (base.py): diagonal (also in a subspace), low rank, Kronecker, dense."""

from clipkal.optim.kalman.covariance.base import Covariance
from clipkal.optim.kalman.covariance.dense import Dense
from clipkal.optim.kalman.covariance.diagonal import Diagonal
from clipkal.optim.kalman.covariance.kronecker import Kronecker
from clipkal.optim.kalman.covariance.lowrank import LowRank
from clipkal.optim.kalman.covariance.subspace import Subspace
from clipkal.optim.naming import named

COVARIANCES: dict[str, type[Covariance]] = {
    "diagonal": Diagonal,
    "subspace": Subspace,
    "lowrank": LowRank,
    "kronecker": Kronecker,
    "dense": Dense,
}


def make_covariance(covariance: str | Covariance) -> Covariance:
    """A covariance from its name in `COVARIANCES`, or the covariance itself."""
    return named(covariance, "covariance", COVARIANCES)


__all__ = [
    "COVARIANCES",
    "Covariance",
    "Dense",
    "Diagonal",
    "Kronecker",
    "LowRank",
    "Subspace",
    "make_covariance",
]
