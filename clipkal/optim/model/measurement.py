"""Whitened linear measurements of the logits: the one form in which an observation reaches a covariance.

    r = R^-½ (y − ŷ)  [b, m]        H̃ = Qᵀ J  [b, m, n],  Q = (R^-½ ∂ŷ/∂logits)ᵀ  [b, C, m]
Products with Q are all that is ever needed; the categorical ones take O(C) a column without forming Q.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EVERY = slice(None)


@dataclass
class Measurement:
    """A block of b images as whitened measurements with Q [b, C, m] stored.

    residual: r [b, m]. log_likelihood: log p(y | θ) [b]. dof: degrees of freedom of r. columns: Q.
    """

    residual: Tensor
    log_likelihood: Tensor
    dof: int
    columns: Tensor

    def pull(self, x: Tensor, images: Tensor | slice = EVERY) -> Tensor:
        """Qᵀ x [k, m, l], float64, of x [C, l], common to the images, or [k, C, l]; of all images or some."""
        return self.columns[images].mT @ x.double()

    def push(self, x: Tensor, images: Tensor | slice = EVERY) -> Tensor:
        """Q x [k, C, l] of x [k, m, l]."""
        return self.columns[images] @ x

    def cotangents(self) -> Tensor:
        """Q [b, C, m]."""
        return self.columns

    def score(self) -> Tensor:
        """Q r [b, C]: the gradient of the log-likelihood with respect to the logits."""
        return (self.columns @ self.residual[..., None])[..., 0]


@dataclass
class CategoricalMeasurement(Measurement):
    """The same with Q = diag(√π) − π√πᵀ, whose products need no matrix: O(Ck) instead of O(C²k) an image.

    columns holds √π [b, C].
    """

    def pull(self, x: Tensor, images: Tensor | slice = EVERY) -> Tensor:
        root, x = self.columns[images][..., None], x.double()
        return root * (x - root.square().mT @ x)

    def push(self, x: Tensor, images: Tensor | slice = EVERY) -> Tensor:
        root = self.columns[images][..., None]
        return root * (x - root * (root.mT @ x))

    def cotangents(self) -> Tensor:
        root = self.columns
        return torch.diag_embed(root) - root.square()[:, :, None] * root[:, None, :]

    def score(self) -> Tensor:
        """y − π, from Q r = √π r − π Σ√π r = √π r."""
        return self.columns * self.residual


@dataclass
class MergedMeasurement(CategoricalMeasurement):
    """A categorical measurement in which the unlikely classes of each image are observed as one.

    With M [m, C] the map from logits to coarse logits, whose rows pick the likely classes and average the
    others by their probabilities, Q = Mᵀ Q' where Q' belongs to the coarse probabilities; columns holds
    their roots [b, m].
    kept: classes [b, m − 1]. tail: π_c / Σ_tail π [b, C], zero on the kept ones.
    """

    kept: Tensor
    tail: Tensor

    def _coarse(self, x: Tensor, images: Tensor | slice) -> Tensor:
        """M x [k, m, l]."""
        kept, tail = self.kept[images], self.tail[images]
        if x.ndim == 2:
            return torch.cat([x[kept].double(), (tail.to(x.dtype) @ x)[:, None, :].double()], dim=1)
        picked = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat([picked, tail[:, None, :].to(x.dtype) @ x], dim=1).double()

    def pull(self, x: Tensor, images: Tensor | slice = EVERY) -> Tensor:
        return super().pull(self._coarse(x, images), images)

    def push(self, x: Tensor, images: Tensor | slice = EVERY) -> Tensor:
        coarse, kept = super().push(x, images), self.kept[images]
        fine = self.tail[images][..., None] * coarse[:, -1:]
        return fine.scatter_add(1, kept[..., None].expand(-1, -1, x.shape[-1]), coarse[:, :-1])

    def cotangents(self) -> Tensor:
        return self.push(torch.eye(self.columns.shape[1]).to(self.columns).expand(len(self.columns), -1, -1))

    def score(self) -> Tensor:
        """Still exactly y − π: a tail class has −π_tail · π_c / π_tail."""
        return self.push(self.residual[..., None])[..., 0]


def centred_logits(logits: Tensor) -> Measurement:
    """z_c − mean z [b, C] with unit noise: what `ratio` and its bound are measured on; no residual."""
    b, C = logits.shape
    centring = torch.eye(C, dtype=torch.float64, device=logits.device) - 1 / C
    nothing = torch.zeros(b, C, dtype=torch.float64, device=logits.device)
    return Measurement(nothing, nothing[:, 0], max(C - 1, 1), centring.expand(b, C, C))
