"""P diagonal in the basis of the data: the diagonal filter in projected coordinates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from clipkal.optim.base import check_finite
from clipkal.optim.draws import normal
from clipkal.optim.kalman.covariance.diagonal import Diagonal
from clipkal.optim.model.bilinear import BilinearJacobian
from clipkal.optim.model.jacobian import Jacobian, ParameterVector
from clipkal.settings import Count, checked

NEW = 1e-6
"""A batch widens a basis if it holds more than this share of a squared row outside it."""


@dataclass
class ProjectedJacobian(BilinearJacobian):
    """J in the coordinates of two bases: left [C, t], right [b, r]; they are the parameters, and `change` [t, r] their move."""

    change: Tensor | None = None

    def move(self, variance: Tensor, gain: Tensor) -> None:
        assert self.change is not None
        self.change.addcmul_(variance, gain)

    def relinearised(self, images: slice) -> BilinearJacobian:
        """Without the model: the logits are affine in W."""
        assert self.change is not None
        part = self.part(images, self.logits[images])
        with torch.autocast(part.logits.device.type, enabled=False):
            part.logits = part.logits + (part.right @ self.change.mT @ part.left.mT).to(part.logits.dtype)
        return part


class Subspace(Diagonal):
    """P diagonal in an orthonormal basis of what classes and images have shown, and p₀ I outside it.

    The matrix W [p, q] of a bilinear model is only ever seen through left W right: through the span U [p, t] of the class
    factors (t ≤ C) and the span V [q, r] of the images so far (r ≤ N). Everywhere else the posterior is the prior, which
    is isotropic, so any orthonormal basis will do: P[a, b] belongs to u_a ⊗ v_b. U and V are eigenbases: of the class
    factors, and of what each batch adds to the span. There P is nearer to diagonal than in W's own axes, as for SOAP
    against Adam (arXiv 2409.11321), and it has t·r entries instead of p·q. One block is the diagonal filter's in these
    coordinates; that it may be iterated costs nothing of size p·q either.

    Within a step the logits of later blocks follow from the change so far, C·r an image, and W is written once, at
    its end: t·q·(p + r) flop. A batch of B costs B·q·r for its coordinates. Memory: p·t + q·r + t·r.

    State: Uᵀ [t, p], Vᵀ [r, q], P [t, r] and p₀ outside.
    """

    names = ("left", "right", "variance", "outside", "floor")

    @checked
    def __init__(self, iterations: Count = 20):
        super().__init__(iterations)

    def allocate(self, vector: ParameterVector, prior: Tensor) -> None:
        if vector.names != ["weight"] or len(vector.shapes["weight"]) != 2:
            raise ValueError("covariance 'subspace' is for bilinear models; use diagonal or lowrank")
        super().allocate(vector, prior[:1])
        p, q = vector.shapes["weight"]
        self.outside = self.variance[0]
        self.left, self.right = self.variance.new_zeros(0, p), self.variance.new_zeros(0, q)
        self.variance = self.variance.new_zeros(0, 0)
        self.known: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def transaction(self, jacobian: Jacobian, atomic: bool = True) -> Iterator[Jacobian]:
        with super().transaction(jacobian):
            projected = self._project(jacobian)
            change = projected.change = torch.zeros_like(self.variance)
            yield projected
            check_finite(change, "the change of the parameters")
        weight, moved = self.vector.parameters["weight"].data, change @ self.right
        if weight.dtype == moved.dtype:
            weight.addmm_(self.left.mT, moved)
        else:
            weight.add_((self.left.mT @ moved).to(weight.dtype))

    def _project(self, jacobian: Jacobian) -> ProjectedJacobian:
        """The Jacobian in coordinates of U and V, which grow by what it has outside."""
        left, right = jacobian.factors()
        left = self._left_coordinates(left)
        self.right, right = grow(self.right, right)
        t, r = self.variance.shape
        wider = (0, len(self.right) - r, 0, len(self.left) - t)
        if any(wider):
            self.variance = pad(self.variance, wider, value=float(self.outside))
        return ProjectedJacobian(jacobian.logits, left, right, jacobian.vector)

    def _left_coordinates(self, rows: Tensor) -> Tensor:
        """Those of the class factors [C, t], which seldom change from one batch to the next."""
        if self.known is None or not torch.equal(self.known[0], rows):
            if not len(self.left):
                self.left, _ = grow(self.left, rows - rows.mean(0))
            self.left, _ = grow(self.left, rows)
            self.known = rows.clone(), rows @ self.left.mT
        return self.known[1]

    def predict(self, fading: float, process_noise: float) -> None:
        super().predict(fading, process_noise)
        self.outside = torch.clamp(self.outside / fading + process_noise, min=self.floor)

    def shrink(self, strength: float) -> None:
        super().shrink(strength)
        self.outside_before = self.outside
        self.outside = self.outside / (1 + strength * self.outside)

    def unshrink(self, strength: float) -> None:
        super().unshrink(strength)
        self.outside = self.outside_before

    def _anywhere(self, jacobian: Jacobian) -> tuple[Jacobian, Tensor]:
        """Coordinates and variances with what images and other classes have outside V and U, where P is p₀ I."""
        left, whole = jacobian.factors()
        _, left = grow(self.left, left)
        right = whole @ self.right.mT
        rest = (whole.square().sum(1) - right.square().sum(1)).clamp(min=0).sqrt()
        wider = (0, 1, 0, left.shape[1] - len(self.left))
        variance = pad(self.variance, wider, value=float(self.outside))
        right = torch.cat((right, rest[:, None]), 1)
        return ProjectedJacobian(jacobian.logits, left, right, jacobian.vector), variance

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """√p₀ ε with its part in the span of U and V replaced by U (√P ∘ ε') Vᵀ."""
        noise = normal((n, *self.vector.shapes["weight"]), self.variance, generator) * self.outside.sqrt()
        inside = normal((n, *self.variance.shape), self.variance, generator) * self.variance.sqrt()
        weight = noise + self.left.mT @ (inside - self.left @ noise @ self.right.mT) @ self.right
        return weight.flatten(1)

    def trace(self) -> float:
        inside = float(self.variance.sum(dtype=torch.float64))
        return inside + float(self.outside) * (self.vector.size - self.variance.numel())

    def logit_covariance(self, jacobian: Jacobian) -> Tensor:
        projected, variance = self._anywhere(jacobian)
        return projected.logit_covariance(variance)

    def logit_noise(self, jacobian: Jacobian, n: int, generator: torch.Generator | None) -> Tensor | None:
        projected, variance = self._anywhere(jacobian)
        return projected.logit_noise(variance, n, generator)

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.names}

    def snapshot(self) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Without θ, which only moves at the end of a step; bases are never changed in place."""
        return None, {**self.tensors(), "variance": self.variance.clone()}

    def assign(self, tensors: dict[str, Tensor]) -> None:
        for name in self.names:
            setattr(self, name, tensors[name])
        self.known = None


def grow(basis: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis [r', q] of the span of basis [r, q] and rows [b, q], and the rows' coordinates [b, r'].

    New directions come in the order of how much of the rows they hold. Orthogonal twice: to rounding.
    """
    inside = rows @ basis.mT
    if len(basis) == basis.shape[1]:
        return basis, inside
    outside = torch.addmm(rows, inside, basis, alpha=-1)
    largest, most = torch.stack((rows, outside)).double().square_().sum(2).amax(1).tolist()
    if most <= NEW * largest:
        return basis, inside
    new = _directions(outside, NEW * largest)
    new = _symmetric(torch.addmm(new, new @ basis.mT, basis, alpha=-1))
    return torch.cat((basis, new)), torch.cat((inside, rows @ new.mT), 1)


def _directions(rows: Tensor, enough: float) -> Tensor:
    """Unit eigenvectors [k, q] of rowsᵀ rows with eigenvalues above `enough`, the largest first."""
    x = rows.double()
    wide = len(x) < x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)
    few = sum(value <= enough for value in values.tolist())  # in ascending order
    new = vectors[:, few:]
    if wide:
        new = x.mT @ (new * values[few:].rsqrt())
    return new.mT.flip(0).to(rows.dtype)


def _symmetric(rows: Tensor) -> Tensor:
    """The orthonormal rows [k, q] nearest to rows that nearly are, which turns none of them.

    One step of Newton's iteration for the polar factor: an error ε of the rows' products becomes ε².
    """
    x = rows.double()
    return torch.addmm(x, x @ x.mT, x, beta=1.5, alpha=-0.5).to(rows.dtype)
