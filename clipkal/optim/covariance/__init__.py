"""Covariances P of the parameters behind one interface (base.py): diagonal (also in a subspace), low rank, Kronecker, dense."""

from clipkal.optim.covariance.base import Covariance
from clipkal.optim.covariance.dense import Dense
from clipkal.optim.covariance.diagonal import Diagonal
from clipkal.optim.covariance.kronecker import Kronecker
from clipkal.optim.covariance.lowrank import LowRank
from clipkal.optim.covariance.subspace import Subspace

COVARIANCES: dict[str, type[Covariance]] = {
    "diagonal": Diagonal,
    "subspace": Subspace,
    "lowrank": LowRank,
    "kronecker": Kronecker,
    "dense": Dense,
}


def make_covariance(covariance: str | Covariance) -> Covariance:
    """A covariance from its name in `COVARIANCES`, or the covariance itself."""
    if isinstance(covariance, Covariance):
        return covariance
    if covariance not in COVARIANCES:
        raise ValueError(f"unknown covariance {covariance!r}; one of {', '.join(COVARIANCES)}")
    return COVARIANCES[covariance]()


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
