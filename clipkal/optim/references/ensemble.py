"""A deep ensemble: the same learning several times, from other seeds, and the mean of the members' probabilities.

Lakshminarayanan, Pritzel and Blundell (2017), arXiv 1612.01474, without their adversarial examples. The training loop learns the
members (training/loop.py says in what they differ): all see the same shots and start at zero-shot, so it is the order of the
batches and the choice of learning rate and epoch that tell them apart, as for anyone who runs a script with five seeds.

Ours: the model is left at the mean of the members' parameters, whose logits are, for a linear adapter, the mean of theirs. So a
plug-in (and `predictive=novelty`) reads the ensemble and not one of its members.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipkal.optim.base import trainable_parameters
from clipkal.optim.first_order import AdamW
from clipkal.optim.posterior import Posterior
from clipkal.settings import Members, checked


class Ensemble(AdamW, Posterior):
    """`AdamW`, several times; a draw of the logits is one member's.

    Args:
        model: any module.
        members: how many. As many draws, or a multiple of them up to 16, are the exact mean.
        adamw: the settings of `AdamW`.
    """

    @checked
    def __init__(self, model: nn.Module, members: Members = 5, **adamw: Any):
        super().__init__(model, **adamw)
        self.members = members
        self.kept: list[dict[str, Tensor]] = []

    def conclude(
        self, shots: Iterable[tuple[Tensor, Tensor]], kept: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, float]:
        """Keeps the members, and leaves the model at their mean; reports how far they lie apart."""
        self.kept = [{name: one.detach().clone() for name, one in member.items()} for member in kept]
        square = 0.0
        with torch.no_grad():
            for name, parameter in trainable_parameters(self.model).items():
                every = torch.stack([member[name] for member in self.kept])
                parameter.copy_(every.mean(0))
                square += float((every - every.mean(0)).square().sum()) / len(self.kept)
        return {"members": float(len(self.kept)), "distance_from_mean": square**0.5}

    @property
    def posterior(self) -> Posterior | None:
        """Itself, once it has been told what was kept."""
        return self if self.kept else None

    @torch.no_grad()
    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Logits [n, B, C] of the first member, the second, …, and again of the first; nothing is random."""
        if not self.kept:
            raise RuntimeError("nothing has been learnt yet: call conclude(shots, kept) first")
        few = self.kept[:n]
        logits = torch.stack([functional_call(self.model, member, (inputs,)) for member in few])
        return logits[torch.arange(n) % len(few)]

    def describe(self) -> dict[str, str]:
        return {**super().describe(), "members": str(self.members)}

    def extra_state(self) -> dict[str, Any]:
        return {"kept": self.kept} if self.kept else {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.kept = list(state.get("kept", []))
