"""The Fisher matrix of one batch: Kronecker factors of every linear layer, and diagonals of what is in none.

A linear layer s = W x̄ (W [p, q]; x̄ = [x, 1] where it has a bias) with the output gradient
e = ∂(−log p(y | input)) / ∂s has the gradient e x̄ᵀ, and its block of the Fisher matrix is approximated by

    F ≈ Λ ⊗ Γ          Λ = E[x̄ x̄ᵀ]  [q, q]          Γ = E[e eᵀ]  [p, p]

The paper is Martens & Grosse 2015, arXiv 1503.05671, which writes A for Λ and G for Γ; Λ and Γ are arXiv 2601.18420's,
with expectations under p(y | x, θ). It is exact for one sample, for Γ or Λ constant over the samples, and where x̄ and e
are independent. Tokens count as samples of x̄, and their e eᵀ are summed (K-FAC-expand, Eschenhagen et al. 2023, arXiv
2311.00636). The labels y in e are, by `fisher`:

* "true": sampled from the model; one backward pass. Unbiased for the Fisher matrix.
* "ggn": all of them, by the C columns of Q; C backward passes. Exact: for the softmax the Fisher matrix is the
  generalised Gauss-Newton matrix.

      Q = diag(√π) − π √πᵀ          Q Qᵀ = diag(π) − π πᵀ

* "empirical": those of the batch; one backward pass. Not the Fisher matrix: it vanishes where the fit is perfect.

A bilinear model (model/bilinear.py) needs no backward pass, and both "true" and "ggn" are exact:

    ∂logits[i, c] = left[c]ᵀ ∂W right[i]          Λ = E[right rightᵀ]          Γ = leftᵀ E[diag(π) − π πᵀ] left

Ours: with fewer classes than rows of W, Γ is kept in an orthonormal basis U [C, p] of the rows of `left`, as [C, C].

A parameter that is in no such layer (norms, scales, convolutions, fused attention projections) has the diagonal E[g²],
from the same passes. With sampled labels (Σ_i g_i)² / B is unbiased for it (the Gauss-Newton-Bartlett estimator of
Sophia, arXiv 2305.14342); "ggn" gives each image a random sign to the same end; "empirical" is biased upwards.

Where several processes share a batch the estimates are those of the whole of it. All processes sample the labels and
signs of all images alike. Sums over samples are added up; but the g of a parameter outside every layer, and the e of a
layer whose inputs all images share, are sums over images already: they are added up before they are squared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from clipkal.optim.base import check_finite
from clipkal.optim.model.bilinear import BilinearModel
from clipkal.optim.model.layers import Capture, Layer, shapes_of_one_and_two
from clipkal.optim.parallel.shards import Shards

Fisher = Literal["true", "ggn", "empirical"]


@dataclass(frozen=True)
class Factors:
    """The Kronecker factors of one layer.

    Attributes:
        input: Λ [q, q].
        output: Γ [r, r].
        basis: the orthonormal rows U [r, p] in whose coordinates Γ is; None: those of the layer, r = p.
    """

    input: Tensor
    output: Tensor
    basis: Tensor | None = None

    @property
    def rows(self) -> int:
        """p, the rows of the weight."""
        return len(self.output) if self.basis is None else self.basis.shape[1]


class FisherEstimate(NamedTuple):
    """What one batch says: factors by layer, and diagonals by parameter name."""

    factors: dict[Layer, Factors]
    diagonals: dict[str, Tensor]


class FisherEstimator:
    """Estimates the Fisher matrix of one batch after another.

    Args:
        model: maps inputs to logits [B, C].
        layers: those of `find_layers(model)`.
        names: of all trainable parameters.
        fisher: "true" | "ggn" | "empirical", see above.
        seed: of `generator`, which samples labels and signs; it is in the same state in all processes.
    """

    def __init__(
        self, model: nn.Module, layers: list[Layer], names: dict[nn.Parameter, str], fisher: Fisher, seed: int
    ):
        self.model, self.layers, self.names, self.fisher = model, layers, names, fisher
        self.generator = torch.Generator().manual_seed(seed)
        self._without_images: set[Layer] | None = None

    def estimate(
        self, inputs: Tensor, targets: Tensor, logits: Tensor, seen: Capture, shards: Shards
    ) -> FisherEstimate:
        """The estimate from the whole batch; inputs [b, …], targets [b] and logits [b, C] are this process's own.

        seen: the forward pass that gave the logits, whose graph is kept.

        Cost: the backward passes of `fisher` (without the weight gradients of the captured layers), and
        n q² + n p² a layer for n tokens. Several processes exchange B C numbers, p² + q² a layer, and in every
        backward pass n p a layer whose inputs all images share, and the gradient of what is in no layer.

        Raises FloatingPointError, in all processes, where a factor is not finite.
        """
        bilinear = [layer for layer in self.layers if not layer.modules]
        covered = {p for layer in [*seen.edges, *bilinear] for p in layer.parameters}
        others = [p for p in self.names if p not in covered]
        shared = set() if shards.alone else self._layers_without_images(inputs)
        outputs, diagonals = self._by_backward(targets, logits, seen, others, shards, shared)
        inner = _input_factors(seen, list(outputs), shards)
        factors = {layer: Factors(inner[layer], output) for layer, output in outputs.items()}
        for layer in bilinear:
            model = cast(BilinearModel, self.model)
            factors[layer] = bilinear_factors(self.fisher, model, inputs, logits, targets, shards)
        for layer, each in factors.items():
            check_finite(each.input, f"input factor of {layer.name}")
            check_finite(each.output, f"output factor of {layer.name}")
        return FisherEstimate(factors, {self.names[p]: h for p, h in diagonals.items()})

    def _by_backward(
        self,
        targets: Tensor,
        logits: Tensor,
        seen: Capture,
        others: list[nn.Parameter],
        shards: Shards,
        shared: set[Layer],
    ) -> tuple[dict[Layer, Tensor], dict[nn.Parameter, Tensor]]:
        """Γ of the captured layers and E[g²] of the other parameters.

        shared: layers whose inputs are the same for all images.
        """
        calls = seen.calls()
        if not calls and not others:
            return {}, {}
        outputs, diagonals = dict[Layer, Tensor](), dict[nn.Parameter, Tensor]()
        wanted: list[Any] = [*(edge for _, _, edge in calls), *others]
        whole = shards.gather(_wide(logits.detach()))
        for v in cotangents(self.fisher, whole, shards.gather(targets), self.generator):
            local = shards.local(v).to(logits.dtype)
            with torch.autocast(logits.device.type, enabled=False):
                grads = torch.autograd.grad(logits, wanted, local, retain_graph=True, allow_unused=True)
            for (layer, _, _), e in zip(calls, grads, strict=False):
                if e is not None:
                    e = shards.sum(_wide(e)) if layer in shared else e
                    outputs[layer] = outputs.get(layer, 0) + _second_moment(e) / len(shards)
            for parameter, g in zip(others, grads[len(calls) :], strict=True):
                if g is not None:
                    square = shards.sum(_wide(g)).square()
                    diagonals[parameter] = diagonals.get(parameter, 0) + square / len(shards)
        outputs = {layer: e if layer in shared else shards.sum(e) for layer, e in outputs.items()}
        return outputs, diagonals

    def _layers_without_images(self, inputs: Tensor) -> set[Layer]:
        """The layers whose inputs all images share, class prompts for one; looked for once.

        A layer that sees images too is none of them; its factors are then not quite those of one process.
        """
        if self._without_images is None:
            shapes = shapes_of_one_and_two(self.model, self.layers, inputs)
            grow = {layer for layer, one, two in shapes if one != two}
            self._without_images = {layer for layer, _, _ in shapes} - grow
        return self._without_images


def cotangents(
    fisher: Fisher, logits: Tensor, targets: Tensor, generator: torch.Generator
) -> Iterator[Tensor]:
    """Cotangents v [B, C] of the logits, whose second moments are those of the gradient of −log p(y).

    Σ E[v_i v_iᵀ] = diag(π_i) − π_i π_iᵀ          "true", "ggn"
    v_i v_iᵀ = (π_i − y_i) (π_i − y_i)ᵀ           "empirical"
    """
    pi = logits.softmax(-1)
    if fisher == "ggn":
        sign = torch.randint(0, 2, (len(pi), 1), generator=generator).to(pi) * 2 - 1
        for c in range(pi.shape[1]):
            column = -pi
            column[:, c] += 1
            yield sign * pi[:, c : c + 1].sqrt() * column
        return
    if fisher == "true":
        targets = torch.multinomial(pi.cpu(), 1, generator=generator)[:, 0].to(pi.device)
    residual = pi.clone()
    residual[torch.arange(len(pi), device=pi.device), targets] -= 1
    yield residual


def bilinear_factors(
    fisher: Fisher, model: BilinearModel, inputs: Tensor, logits: Tensor, targets: Tensor, shards: Shards
) -> Factors:
    """Λ and Γ of a bilinear model, exactly: O(B q² + C p min(C, p) + B C min(C, p)) flop."""
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        left, right = (_wide(factor) for factor in model.jacobian_factors(inputs))
        pi, basis = _wide(logits.detach()).softmax(-1).to(left), None
        if left.shape[0] < left.shape[1]:
            basis = torch.linalg.qr(left.mT).Q.mT  # [C, p], orthonormal rows
            left = left @ basis.mT  # [C, C]
        if fisher == "empirical":
            residual = pi - nn.functional.one_hot(targets, pi.shape[1])
            output = _second_moment(residual @ left) / len(pi)
        else:
            output = (left.mT * pi.mean(0)) @ left - _second_moment(pi @ left) / len(pi)
        return Factors(_mean_second_moment([right], False, shards), shards.mean(output), basis)


def _input_factors(seen: Capture, layers: list[Layer], shards: Shards) -> dict[Layer, Tensor]:
    """Λ by layer; layers with one input (queries, keys, values) share one, the same tensor."""
    moments: dict[Any, Tensor] = {}
    factors = {}
    for layer in layers:
        key = (*map(id, seen.inputs[layer]), layer.bias is None)
        if key not in moments:
            moments[key] = _mean_second_moment(seen.inputs[layer], layer.bias is not None, shards)
        factors[layer] = moments[key]
    return factors


def _mean_second_moment(xs: list[Tensor], append_one: bool, shards: Shards) -> Tensor:
    """E[x̄ x̄ᵀ] over the rows of all processes."""
    rows = sum(x.numel() // x.shape[-1] for x in xs)
    moment = torch.stack([_second_moment(x, append_one) for x in xs]).sum(0)
    return shards.sum(moment) / shards.sum_int(rows)


def _second_moment(x: Tensor, append_one: bool = False) -> Tensor:
    """Σ x̄ x̄ᵀ over all rows, in float32 or wider, whatever autocast says."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        rows = _wide(x.detach()).reshape(-1, x.shape[-1])
        if append_one:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
        return rows.mT @ rows


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
