"""What K-FAC learns of the curvature from one batch: Kronecker factors of every layer, diagonals of what is in none."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from clipkal.optim.base import check_finite
from clipkal.optim.model.bilinear import is_bilinear
from clipkal.optim.model.layers import Capture, Layer, shapes_of_one_and_two
from clipkal.optim.natural_gradient.factors import Factors, Fisher, bilinear_factors, observe
from clipkal.optim.parallel.shards import Shards


class Statistics(NamedTuple):
    """Factors by layer, and diagonals by parameter name; empty between refreshes."""

    factors: dict[Layer, Factors]
    diagonals: dict[str, Tensor]


class FisherStatistics:
    """Takes the statistics of one batch after another.

    Args:
        model: maps inputs to logits [B, C].
        layers: those of `find_layers(model)`.
        names: of all trainable parameters.
        fisher: "true" | "ggn" | "empirical", see `optim/kronecker_factors.py`.
        seed: of `generator`, which draws the labels; it is in the same state in all processes.
    """

    def __init__(
        self, model: nn.Module, layers: list[Layer], names: dict[nn.Parameter, str], fisher: Fisher, seed: int
    ):
        self.model, self.layers, self.names, self.fisher = model, layers, names, fisher
        self.generator = torch.Generator().manual_seed(seed)
        self._shared: set[Layer] | None = None

    def of(
        self, inputs: Tensor, targets: Tensor, logits: Tensor, seen: Capture, shards: Shards
    ) -> Statistics:
        """Statistics of the whole batch, of which inputs, targets and logits are this process's own.

        FloatingPointError, in all processes, where a factor is not finite.
        """
        bilinear = [layer for layer in self.layers if not layer.modules]
        covered = {p for layer in [*seen.edges, *bilinear] for p in layer.parameters}
        others = [p for p in self.names if p not in covered]
        shared = self._layers_without_images(inputs, shards)
        factors, diagonals = observe(
            self.fisher, seen, logits, targets, others, self.generator, shards, shared
        )
        for layer in bilinear:
            assert is_bilinear(self.model)
            factors[layer] = bilinear_factors(self.fisher, self.model, inputs, logits, targets, shards)
        for layer, each in factors.items():
            check_finite(each.input, f"input factor of {layer.name}")
            check_finite(each.output, f"output factor of {layer.name}")
        return Statistics(factors, {self.names[p]: h for p, h in diagonals.items()})

    def _layers_without_images(self, inputs: Tensor, shards: Shards) -> set[Layer]:
        """The layers whose inputs all images share; looked for once, and only where processes share a batch.

        A layer that sees images too is none of them; its factors are then not quite those of one process.
        """
        if shards.alone:
            return set()
        if self._shared is None:
            shapes = shapes_of_one_and_two(self.model, self.layers, inputs)
            grow = {layer for layer, one, two in shapes if one != two}
            self._shared = {layer for layer, _, _ in shapes} - grow
        return self._shared
