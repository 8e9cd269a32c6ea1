"""Models whose logits are affine in one weight matrix W [p, q]: their Jacobian is two small factors, and H̃ is never formed.

With variances P[a, b] of W, J_i = left ⊗ f_i, and rows h_i of what is solved in (below), for the pairs i ≤ j of a block:

    u_ij[a] = Σ_b P[a, b] f_i[b] f_j[b]          one GEMM, P times the products f_i ∘ f_j
    K_ij    = h_i diag(u_ij) h_jᵀ                what the measurement solves, in float64
    d_i     = h_iᵀ a_i                           K e      = P ∘ Σ_i d_i f_iᵀ
    v_ij    = diag(h_iᵀ M_ij h_j)                diag(KH) = P ∘ Σ_ij v_ij (f_i ∘ f_j)ᵀ, a GEMM again

So b images cost 2 b (b + 1) p q flop in two GEMMs and a handful of passes over P, where one image at a time takes that
handful for each. What is solved in is the measurement's choice: h = left, the logits of all images alike, where K and v
of few classes are GEMMs too, with all C² products of two rows of `left`; or rows of each image, such as Q_iᵀ left [m, p].

Rounding: float32 state is multiplied in float32 and solved in float64; above WIDE everything is float64, since the
rounding of K, some 1e-7 ‖K‖, is to be small against the unit noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from clipkal.optim.base import check_finite
from clipkal.optim.draws import normal
from clipkal.optim.model.jacobian import DiagonalUpdate, Jacobian, JacobianRoute, ParameterVector

if TYPE_CHECKING:
    from clipkal.optim.kalman.update import Innovation, Measurement, Weigher
    from clipkal.optim.parallel.shards import Shards

FEW_CLASSES = 24
"""Up to so many classes all products of two rows of `left` are kept."""
WIDE = 1e3
"""The largest variance of an output for which float32 products serve."""
Solved = tuple[Tensor, Tensor, Tensor, "Innovation"]


class BilinearModel(Protocol):
    """A module whose logits are affine in a weight matrix, with a Jacobian of rank one per (image, class).

    weight: Parameter [p, q].
    jacobian_factors(inputs) -> (left [C, p], right [B, q]):
        ∂logits[i, c]/∂weight[a, b] = left[c, a] · right[i, b]; `left` already contains any logit scale.
    """

    weight: nn.Parameter

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Left [C, p] and right [B, q] factors for inputs [B, …]."""
        ...


def is_bilinear(model: nn.Module) -> TypeGuard[BilinearModel]:
    """Whether the module has what `BilinearModel` names.

    Asked of the object, attribute by attribute: an `isinstance` check on a protocol with data members depends
    on the version of Python (from 3.12 on it does not see parameters, which a module holds in a dictionary).
    """
    weight = getattr(model, "weight", None)
    return isinstance(weight, nn.Parameter) and callable(getattr(model, "jacobian_factors", None))


@dataclass
class BilinearJacobian(Jacobian):
    """J of a bilinear model.

    left: [C, p], with any logit scale.
    right: [b, q].
    forward: the logits of some of the images at the θ of now.
    """

    logits: Tensor
    left: Tensor
    right: Tensor
    vector: ParameterVector
    forward: Callable[[slice], Tensor] | None = None
    _products: Tensor | None = field(default=None, repr=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.left, self.right

    def relinearised(self, images: slice) -> "BilinearJacobian":
        assert self.forward is not None
        return self.part(images, self.forward(images))

    def part(self, images: slice, logits: Tensor) -> "BilinearJacobian":
        """That of some of the images, which have these logits now; the factors do not depend on θ."""
        if len(self.left) <= FEW_CLASSES:
            self._left_products()
        return replace(self, logits=logits, right=self.right[images])

    def gathered(self, shards: "Shards") -> "BilinearJacobian":
        def forward(images: slice) -> Tensor:
            mine = shards.local_slice(images)
            some = mine.stop > mine.start
            return shards.gather(self.relinearised(mine).logits if some else self.logits[:0], images)

        right = shards.gather(self.right)
        return replace(self, logits=shards.gather(self.logits), right=right, forward=forward)

    def pull(self, cotangents: Tensor) -> Tensor:
        c = cotangents.to(self.right.dtype)
        return ((c.mT @ self.left.to(c.dtype))[..., None] * self.right[:, None, None, :]).flatten(2)

    def squared_rows(self, measurement: "Measurement") -> dict[str, Tensor]:
        left = measurement.pull(self.left).square().sum((1, 2))
        return {"weight": left.dot(self.right.double().square().sum(1))}

    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        left, right = cotangents.double() @ self.left.double(), self.right.double()
        return ((left @ left.mT) * (right @ right.mT)).sum()

    # The joint update of a block

    def diagonal_update(
        self, variance: Tensor, measurement: "Measurement", weigher: "Weigher", iterations: int
    ) -> DiagonalUpdate:
        P = variance.view(self.left.shape[1], self.right.shape[1])
        solved = self._solve(P, measurement, weigher, iterations)
        if solved is None:
            wide = replace(self, left=self.left.double(), right=self.right.double(), _products=None)
            solved = wide._solve(P.double(), measurement, weigher, iterations)
        assert solved is not None
        direction, curvature, products, innovation = solved
        if not math.isfinite(direction.sum() + curvature.sum()):
            check_finite(direction, "the gain")
            check_finite(curvature, "the gain")
        gain = direction.mT.to(P.dtype) @ self.right
        fall = (curvature.to(products.dtype).mT @ products).to(P.dtype)
        return DiagonalUpdate(gain.view_as(variance), fall.view_as(variance), innovation)

    def move(self, variance: Tensor, gain: Tensor) -> None:
        """In one pass over W; `diagonal_update` has seen to it that the gain is finite."""
        weight = self.vector.parameters["weight"].data
        variance, gain = variance.view_as(weight), gain.view_as(weight)
        if weight.dtype == variance.dtype:
            weight.addcmul_(variance, gain)
        else:
            weight.add_((variance * gain).to(weight.dtype))

    def _solve(
        self, P: Tensor, measurement: "Measurement", weigher: "Weigher", iterations: int
    ) -> Solved | None:
        """d [b, p], v [pairs, p] counted twice for i < j, f_i ∘ f_j [pairs, q] and a, M; None if it needs float64."""
        pairs = Pairs(len(self.right), self.right.device)
        products = torch.mul(*pairs.sides(self.right))
        U = products @ P.mT
        h = measurement.rows_of(self.left)
        if h is None:
            K = self._weighted_gram(U)
        else:
            h_i, h_j = pairs.sides(h)
            K = (h_i * U[:, None].to(h.dtype)) @ h_j.mT
        if self._is_too_wide(K):
            return None
        innovation = measurement.condition_rows(pairs.assemble(K.double()), weigher, iterations)
        a, M = innovation.vector, pairs.split(innovation.matrix)
        if h is None:
            return a.to(U.dtype) @ self.left, self._diagonal_form(M.to(U.dtype)), products, innovation
        direction = (a[:, None].to(h.dtype) @ h)[:, 0]
        return direction, (M.to(h.dtype) @ h_j).mul_(h_i).sum(1), products, innovation

    def _is_too_wide(self, K: Tensor) -> bool:
        """Whether float32 factors will not do for these blocks; FloatingPointError if not finite."""
        largest, single = float(K.amax()), self.right.dtype != torch.float64  # it is on the diagonal
        if not single and not math.isfinite(largest):
            raise FloatingPointError("the innovation covariance is not finite; step refused")
        return single and not largest <= WIDE

    def _weighted_gram(self, U: Tensor) -> Tensor:
        """left diag(u) leftᵀ [k, C, C] for every row u of U [k, p]."""
        left, C = self.left, len(self.left)
        if len(U) == 1:
            return ((left * U) @ left.mT)[None]
        if C > FEW_CLASSES:
            return (left * U[:, None, :]) @ left.mT
        return (U @ self._left_products().mT).view(-1, C, C)

    def _diagonal_form(self, N: Tensor) -> Tensor:
        """diag(leftᵀ N left) [k, p] for every N of [k, C, C]."""
        if len(self.left) > FEW_CLASSES or len(N) == 1:
            return ((N @ self.left) * self.left).sum(1)
        return N.flatten(1) @ self._left_products()

    def _left_products(self) -> Tensor:
        """left[c] ∘ left[c'] [C², p], kept."""
        if self._products is None:
            self._products = (self.left[:, None, :] * self.left[None, :, :]).flatten(0, 1)
        return self._products

    # The posterior

    def logit_covariance(self, variance: Tensor) -> Tensor:
        """left diag(u) leftᵀ with u = P f²."""
        left, u = self.left.double(), self._variances(variance).double()
        return (left * u[:, None, :]) @ left.mT

    def logit_noise(self, variance: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """left (√u ∘ ε) with u = P f²: the local reparameterisation (Kingma et al. 2015), exact for each image.

        n·b·p draws and n·b·p·C flop, instead of n draws of θ and n·b·p·q.
        """
        std = self._variances(variance).sqrt()
        noise = normal((n, *std.shape), std, generator).mul_(std)
        return (noise @ self.left.to(std.dtype).mT).to(self.logits.dtype)

    def _variances(self, variance: Tensor) -> Tensor:
        """u = P f² [b, p]."""
        return self.right.square() @ variance.view(self.left.shape[1], self.right.shape[1]).mT


class Pairs:
    """The pairs i ≤ j of b images. first, second: i and j [b(b+1)/2]; slices where there is but one image."""

    def __init__(self, b: int, device: torch.device):
        self.b = b
        if b > 1:
            self.first, self.second, self.count, self.place = _pair_indices(b, device)

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_i and x_j of every pair [pairs, …], for x [b, …]."""
        return (x, x) if self.b == 1 else (x[self.first], x[self.second])

    def assemble(self, blocks: Tensor) -> Tensor:
        """The symmetric matrix [bm, bm] of its blocks [pairs, m, m]."""
        if self.b == 1:
            return blocks[0]
        m = blocks.shape[-1]
        return torch.cat((blocks, blocks.mT))[self.place].transpose(1, 2).reshape(self.b * m, self.b * m)

    def split(self, matrix: Tensor) -> Tensor:
        """The blocks [pairs, m, m] of a symmetric [bm, bm], each times how often it counts in a symmetric sum."""
        if self.b == 1:
            return matrix[None]
        m = len(matrix) // self.b
        return matrix.reshape(self.b, m, self.b, m)[self.first, :, self.second].mul_(self.count)


@lru_cache(maxsize=64)
def _pair_indices(b: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """i, j, their counts [pairs, 1, 1] (1, or 2 for i < j), and where block (i, j) [b, b] is among pairs and transposes."""
    i, j = torch.triu_indices(b, b, device=device)
    count = torch.where(i == j, 1.0, 2.0).double()
    place = torch.empty(b, b, dtype=torch.int64, device=device)
    place[j, i] = torch.arange(len(i), 2 * len(i), device=device)
    place[i, j] = torch.arange(len(i), device=device)
    return i, j, count[:, None, None], place


class BilinearRoute(JacobianRoute):
    """The analytic route: the factors."""

    covariance = "subspace"
    name = "bilinear"
    needs = "a BilinearModel that trains only weight"

    @staticmethod
    def fits(model: nn.Module, vector: ParameterVector) -> bool:
        return is_bilinear(model) and vector.names == ["weight"]

    def linearise(self, inputs: Tensor) -> BilinearJacobian:
        model: Any = self.model
        logits = model(inputs)
        left, right = (factor.detach().to(self.vector.dtype) for factor in model.jacobian_factors(inputs))
        return BilinearJacobian(logits, left, right, self.vector, lambda images: model(inputs[images]))

    def images_that_fit(self, memory: int, outputs: int) -> None:
        return None
