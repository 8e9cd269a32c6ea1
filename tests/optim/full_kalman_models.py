"""Problems for the tests of `Kalman`, and its mathematics written out densely."""

import math

import torch
from kalman_models import Bilinear
from torch import Tensor
from torch.nn import functional as F

from clipkal.optim import Kalman
from clipkal.optim.full_kalman.problem import ReducedModel, reduce


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def problem(
    n: int = 12, classes: int = 3, d: int = 6, scale: float = 3.0, seed: int = 0
) -> tuple[Bilinear, Tensor, Tensor]:
    """A model, images and labels in float64."""
    g = torch.Generator().manual_seed(seed)
    text = unit(torch.randn(classes, d, dtype=torch.float64, generator=g) + 0.5)
    inputs = unit(torch.randn(n, d, dtype=torch.float64, generator=g) + 0.3)
    return Bilinear(text, d, scale), inputs, torch.arange(n) % classes


def shots(
    classes: int, per_class: int, d: int = 32, seed: int = 0, test: int = 20
) -> tuple[Bilinear, Tensor, Tensor, Tensor, Tensor]:
    """A model of scale 8, shots and test images (float32) around class means that the text only half knows."""
    g = torch.Generator().manual_seed(seed)
    text = unit(torch.randn(classes, d, generator=g))
    means = unit(text + 0.8 * unit(torch.randn(classes, d, generator=g)))

    def images(k: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(classes).repeat_interleave(k)
        noise = 1.3 * torch.randn(len(y), d, generator=g) / math.sqrt(d)
        return unit(means[y] + noise), y

    return Bilinear(text, d, 8.0), *images(per_class), *images(test)


def reduced(
    model: Bilinear, x: Tensor, y: Tensor, p0: float = 1.0, precision: str = "float64"
) -> ReducedModel:
    left = model.log_scale.detach().exp() * model.text
    found, _, _ = reduce(left, x, x @ left.T, y, precision)  # type: ignore[arg-type]
    return found.with_amplitude(math.sqrt(p0))


def fixed(model: Bilinear, p0: float = 0.7, **options: object) -> Kalman:
    """The filter with nothing to choose."""
    options = {"prior": p0, "posterior_temperature": 1.0, "precision": "float64", **options}
    return Kalman(model, **options)  # type: ignore[arg-type]


def full_jacobian(text: Tensor, scale: float, inputs: Tensor) -> Tensor:
    """∂logits/∂W [N, C, d²]."""
    return scale * torch.einsum("ca,nb->ncab", text, inputs).flatten(2)


def curvature(logits: Tensor) -> tuple[Tensor, Tensor]:
    """π [N, C] and diag π − π πᵀ [N, C, C]."""
    probs = logits.softmax(-1)
    return probs, torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]


def dense(
    text: Tensor, scale: float, inputs: Tensor, labels: Tensor, p0: float
) -> tuple[Tensor, Tensor, float, Tensor]:
    """MAP [pq], posterior covariance, log evidence and offset by Newton on the full parameter vector."""
    offset, jacobian = scale * inputs @ text.T, full_jacobian(text, scale, inputs)
    onehot = F.one_hot(labels, len(text)).double()
    theta = torch.zeros_like(jacobian[0, 0])

    def objective(at: Tensor) -> Tensor:
        return ((offset + jacobian @ at).log_softmax(-1) * onehot).sum() - at.square().sum() / (2 * p0)

    for _ in range(60):
        probs, middle = curvature(offset + jacobian @ theta)
        precision = torch.eye(len(theta), dtype=theta.dtype) / p0 + torch.einsum(
            "ncx,ncd,ndy->xy", jacobian, middle, jacobian
        )
        gradient = torch.einsum("ncx,nc->x", jacobian, onehot - probs) - theta / p0
        step = torch.linalg.solve(precision, gradient)
        while objective(theta + step) < objective(theta) - 1e-9:
            step = 0.5 * step
        theta = theta + step
    evidence = objective(theta) - 0.5 * (torch.logdet(precision) + len(theta) * math.log(p0))
    return theta, torch.linalg.inv(precision), float(evidence), offset
