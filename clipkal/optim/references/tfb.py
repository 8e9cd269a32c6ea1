"""TFB-style width for a trained LoRA: the widest low-rank noise that the shots hardly notice.

Shi et al. (2024), "Training-free Bayesianization for low-rank adapters", arXiv 2412.05723. A change W + s B A of a weight is made
random in the directions that B spans. With B = U diag(d) Vᵀ (thin),

    A ~ A* + σ V diag(1/d) E,   E ~ N(0, 1) [r, in],   so that   B A ~ B A* + σ U E

is isotropic noise of deviation σ on the columns of B, and the one σ of all changes is the largest for which the mean loss of
anchor images stays within a tolerance of what it was. Nothing is trained again.

Ours: the anchor images are the shots; the loss is the mean over a few draws, with the same E at every σ, bisected in log σ.
Directions of B below 1e-6 of its first are left out, and a LoRA that is still at zero (zero-shot was kept) gets no width.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from clipkal.optim.draws import normal
from clipkal.optim.first_order import AdamW
from clipkal.optim.posterior import Posterior
from clipkal.settings import Count, Positive, checked

NEGLIGIBLE = 1e-6
WIDEST, STEPS = 1e3, 14
"""The search for σ goes from 1/WIDEST to WIDEST times the mean size of the changes, in STEPS halvings of that range."""


class TFB(AdamW, Posterior):
    """`AdamW` on LoRA, and noise on the factors A that were kept.

    Args:
        model: a module with low-rank paths: submodules with two linear layers, `down` (A) and `up` (B).
        tolerance: nats by which the mean loss of the shots may rise.
        anchor_draws: draws by which it is judged.
        adamw: the settings of `AdamW`.

    Cost beside AdamW's: STEPS · anchor_draws passes over the shots without gradients; a draw is a pass.

    Raises TypeError where nothing in the model is low-rank.
    """

    @checked
    def __init__(self, model: nn.Module, tolerance: Positive = 0.05, anchor_draws: Count = 4, **adamw: Any):
        super().__init__(model, **adamw)
        if not _paths(model):
            raise TypeError("there are no low-rank factors to widen: type adapter=lora")
        self.tolerance, self.anchor_draws = tolerance, anchor_draws
        self.width: float | None = None

    def conclude(
        self, shots: Iterable[tuple[Tensor, Tensor]], kept: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, float]:
        """Finds σ, and reports it with the loss of the shots without and with noise."""
        mode = self.model.training
        self.model.eval()
        loss = partial(self._loss, shots)
        self.width, start = 0.0, loss(0.0)
        if (size := self._size()) > 0:
            self.width = widest(loss, size, start + self.tolerance)
        found = {"width": self.width, "anchor_loss": start, "anchor_loss_widened": loss(self.width)}
        self.model.train(mode)
        return found

    def _loss(self, shots: Iterable[tuple[Tensor, Tensor]], width: float) -> float:
        """Mean loss of the shots, over the same draws of E for every σ."""
        total, images = 0.0, 0
        for inputs, targets in shots:
            draws = self._draws(
                inputs, self.anchor_draws if width else 1, torch.Generator().manual_seed(0), width
            )
            total += float(
                F.cross_entropy(draws.flatten(0, 1), targets.repeat(len(draws)), reduction="sum")
            ) / len(draws)
            images += len(targets)
        return total / images

    def _size(self) -> float:
        """Root mean square of the entries of all B A."""
        changes = [(path.up.weight @ path.down.weight).detach() for path in _paths(self.model).values()]
        return math.sqrt(
            sum(float(one.square().sum()) for one in changes) / sum(one.numel() for one in changes)
        )

    @property
    def posterior(self) -> Posterior | None:
        """Itself, once it has been told what was kept."""
        return None if self.width is None else self

    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Logits [n, B, C] of n draws of the factors, by which all images are seen; n forward passes."""
        if self.width is None:
            raise RuntimeError("nothing has been learnt yet: call conclude(shots, kept) first")
        return self._draws(inputs, n, generator, self.width)

    @torch.no_grad()
    def _draws(self, inputs: Tensor, n: int, generator: torch.Generator | None, width: float) -> Tensor:
        roots = {name: (path.down.weight, _root(path.up.weight)) for name, path in _paths(self.model).items()}
        draws = []
        for _ in range(n):
            noisy = {}
            for name, (down, root) in roots.items():
                noise = normal((root.shape[1], down.shape[1]), down, generator)
                noisy[f"{name}.down.weight"] = down + width * root @ noise
            draws.append(functional_call(self.model, noisy, (inputs,)))
        return torch.stack(draws)

    def describe(self) -> dict[str, str]:
        return {**super().describe(), "covariance": "isotropic in the columns of B"}

    def extra_state(self) -> dict[str, Any]:
        return {} if self.width is None else {"width": self.width}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.width = state.get("width")


def widest(loss: Callable[[float], float], size: float, most: float) -> float:
    """The largest σ, between `size` / WIDEST and `size` · WIDEST, with loss(σ) ≤ `most`; 0 where the smallest is too wide."""
    low, high = math.log(size / WIDEST), math.log(size * WIDEST)
    if loss(math.exp(low)) > most:
        return 0.0
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if loss(math.exp(middle)) <= most else (low, middle)
    return math.exp(low)


def _root(up: Tensor) -> Tensor:
    """V diag(1/d) [r, k] of B = U diag(d) Vᵀ [out, r], for its k directions that are not negligible."""
    _, d, vt = torch.linalg.svd(up, full_matrices=False)
    used = d > NEGLIGIBLE * d[0].clamp(min=1e-30)
    return vt[used].T / d[used]


def _paths(model: nn.Module) -> dict[str, Any]:
    """The low-rank paths of a model, by name."""
    both = ("down", "up")
    return {
        name: module
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in both)
    }
