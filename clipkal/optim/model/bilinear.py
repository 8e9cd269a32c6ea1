"""Models whose logits are affine in one weight matrix, and their Jacobian: two small factors, never formed."""

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

from torch import Tensor, nn

from clipkal.optim.model.jacobian import Jacobian, JacobianRoute
from clipkal.optim.model.measurement import Measurement
from clipkal.optim.model.parameters import ParameterVector

FEW_CLASSES = 24  # up to here all products of two rows of `left` are kept


class BilinearModel(Protocol):
    """A module whose logits are affine in a weight matrix, with a Jacobian of rank one per (image, class).

    weight: Parameter [p, q].
    jacobian_factors(inputs) -> (left [C, p], right [B, q]):
        ∂logits[i, c]/∂weight[a, b] = left[c, a] · right[i, b]; `left` already contains any logit scale.
    log_scale (optional): 0-dim Parameter with logits ∝ exp(log_scale), so ∂logits/∂log_scale = logits.
    """

    weight: nn.Parameter

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]: ...


def is_bilinear(model: nn.Module) -> TypeGuard[BilinearModel]:
    """Whether the module has what `BilinearModel` names.

    Asked of the object, attribute by attribute: an `isinstance` check on a protocol with data members depends
    on the version of Python (from 3.12 on it does not see parameters, which a module holds in a dictionary).
    """
    weight = getattr(model, "weight", None)
    return isinstance(weight, nn.Parameter) and callable(getattr(model, "jacobian_factors", None))


@dataclass
class BilinearJacobian(Jacobian):
    """J of a bilinear model: left [C, p], right [b, q], and extra columns [b, C, e] of parameters outside the matrix.

    vector: where `weight` (and `log_scale`, whose column is the logits) live in θ.
    """

    logits: Tensor
    left: Tensor
    right: Tensor
    extra: Tensor
    vector: ParameterVector
    _products: Tensor | None = field(default=None, repr=False)

    def left_products(self) -> Tensor:
        """left[c] ∘ left[c'] [C², p], kept."""
        if self._products is None:
            self._products = (self.left[:, None, :] * self.left[None, :, :]).flatten(0, 1)
        return self._products

    def at(self, images: slice, logits: Tensor) -> "BilinearJacobian":
        """The images of a slice, at a new θ that has left the factors as they are."""
        part = BilinearJacobian(logits, self.left, self.right[images], self.extra[images], self.vector)
        part._products = self.left_products() if self._products is not None else None
        return part

    def double(self) -> "BilinearJacobian":
        """The same in float64."""
        factors = self.left.double(), self.right.double(), self.extra.double()
        return BilinearJacobian(self.logits, *factors, self.vector)

    def pull(self, cotangents: Tensor) -> Tensor:
        c = cotangents.to(self.right.dtype)
        weight = (c.mT @ self.left.to(c.dtype))[..., None] * self.right[:, None, None, :]
        parts = {"weight": weight}
        if self.extra.shape[-1]:
            parts["log_scale"] = (c.mT @ self.extra.to(c.dtype))[..., 0]
        return self.vector.flatten(parts, leading=2)

    def squared_rows(self, measurement: Measurement) -> dict[str, Tensor]:
        left = measurement.pull(self.left).square().sum((1, 2))
        return {
            "weight": left.dot(self.right.double().square().sum(1)),
            "log_scale": measurement.pull(self.extra).square().sum(),
        }

    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        c = cotangents.double()
        left, right = c @ self.left.double(), self.right.double()
        outer = (left @ left.mT) * (right @ right.mT)
        extra = (c[..., None] * self.extra.double()).sum((0, 1))
        return outer.sum() + extra.square().sum()


class BilinearRoute(JacobianRoute):
    """The analytic route: the factors, plus the logits as the column of a trainable log_scale."""

    def __init__(self, model: nn.Module, vector: ParameterVector):
        self.model: Any = model
        self.vector = vector
        self.scale_is_trainable = "log_scale" in vector.names

    @staticmethod
    def fits(model: nn.Module, vector: ParameterVector) -> bool:
        """Whether the model is bilinear and trains its `weight`, and at most its `log_scale`, besides."""
        names = set(vector.names)
        return is_bilinear(model) and "weight" in names and names <= {"weight", "log_scale"}

    def linearise(self, inputs: Tensor) -> BilinearJacobian:
        logits = self.model(inputs)
        left, right = self.model.jacobian_factors(inputs)
        extra = logits[..., None] if self.scale_is_trainable else logits.new_empty((*logits.shape, 0))
        dtype = self.vector.dtype
        factors = left.detach().to(dtype), right.detach().to(dtype), extra.detach()
        return BilinearJacobian(logits, *factors, self.vector)

    def relinearise(self, whole: Jacobian, inputs: Tensor, images: slice) -> Jacobian:
        if self.scale_is_trainable or not isinstance(whole, BilinearJacobian):
            return self.linearise(inputs[images])
        if len(whole.left) <= FEW_CLASSES:
            whole.left_products()
        return whole.at(images, self.model(inputs[images]))
