"""Kronecker factors of the Fisher matrix, layer by layer, collected from one forward pass.

A linear layer s = W x̄ (W [p, q], x̄ = [x, 1] when it has a bias) with output gradient
e = ∂(−log p(y | input))/∂s has the gradient e x̄ᵀ, and its block of the Fisher matrix is approximated by
(Martens & Grosse 2015, arXiv 1503.05671; arXiv 2601.18420 uses the same factors, expectations under p(y | x, θ)):

    F ≈ Λ ⊗ Γ          Λ = E[x̄ x̄ᵀ]  [q, q]          Γ = E[e eᵀ]  [p, p]

Exact for one sample, for Γ or Λ constant over the samples, and when x̄ and e are independent. Tokens count
as samples of x̄ and their e eᵀ are summed (K-FAC-expand, Eschenhagen et al. 2023, arXiv 2311.00636). The
labels y in e are, by `fisher`:

* "true": drawn from the model; one backward pass. Unbiased for the Fisher matrix.
* "ggn": all of them, through the C columns of Q = diag(√π) − π √πᵀ, Q Qᵀ = diag(π) − π πᵀ; C backward
  passes. Exact: for the softmax the Fisher matrix and the generalised Gauss-Newton matrix are one.
* "empirical": those of the batch; one backward pass. Not the Fisher matrix: it vanishes where the fit is
  perfect.

A *bilinear model* (`optim/jacobian.py`; ∂logits[i, c] = left[c]ᵀ ∂W right[i]) needs no backward pass at
all: Λ = E[right rightᵀ] and Γ = leftᵀ E[diag(π) − π πᵀ] left, exact for both "true" and "ggn". Its
gradients lie in the row space of `left`, so with fewer classes than rows of W the output factor lives in
the coordinates U of that space ([C, C], not [p, p]; our choice, an identity).

A parameter that is in no such layer (norms, scales, convolutions, fused attention projections that bypass
`forward`) has the diagonal E[g²] instead, from the same passes: with labels from the model, (Σ_i g_i)² / B
is unbiased for the mean of g_i² (the Gauss-Newton-Bartlett estimator of Sophia, arXiv 2305.14342); "ggn"
gives each image a random sign to the same end; "empirical" is biased upwards.

Where several processes share a batch the statistics are those of the whole of it. Labels and signs are drawn for all
images from all logits, by every process alike. The sums of x̄ x̄ᵀ and e eᵀ over samples are added up; but the g of a
parameter outside every layer, and the e of a layer whose inputs all images share, are sums over images themselves:
they are added up before they are squared.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipkal.optim.model.bilinear import BilinearModel
from clipkal.optim.model.layers import Capture, Layer
from clipkal.optim.parallel.shards import Shards

Fisher = Literal["true", "ggn", "empirical"]


@dataclass(frozen=True)
class Factors:
    """Statistics of one layer: Λ [q, q], Γ [r, r], and the basis U [r, p] of Γ (None: r = p, no basis)."""

    input: Tensor
    output: Tensor
    basis: Tensor | None = None

    @property
    def rows(self) -> int:
        """p, the rows of the weight."""
        return len(self.output) if self.basis is None else self.basis.shape[1]


def averaged(old: Factors, new: Factors, weight: float, shared: dict[Any, Tensor]) -> Factors:
    """old + weight (new − old); an old Γ in another basis is carried over first.

    shared: the Λ already averaged in this refresh; layers that shared theirs go on sharing it.
    """
    key = (id(old.input), id(new.input), weight)
    if key not in shared:
        shared[key] = old.input.lerp(new.input, weight)
    output = old.output
    if old.basis is not None and new.basis is not None and not torch.equal(old.basis, new.basis):
        turn = new.basis @ old.basis.mT
        output = turn @ output @ turn.mT
    return replace(new, input=shared[key], output=output.lerp(new.output, weight))


def cotangents(
    fisher: Fisher, logits: Tensor, targets: Tensor, generator: torch.Generator
) -> Iterator[Tensor]:
    """Cotangents v [B, C] of the logits with Σ E[v_i v_iᵀ] = diag(π_i) − π_i π_iᵀ (or the empirical (π −
    y)(π − y)ᵀ)."""
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


def observe(
    fisher: Fisher,
    seen: Capture,
    logits: Tensor,
    targets: Tensor,
    others: list[nn.Parameter],
    generator: torch.Generator,
    shards: Shards,
    shared: Collection[Layer] = (),
) -> tuple[dict[Layer, Factors], dict[nn.Parameter, Tensor]]:
    """Factors of the captured layers and the diagonal of the other parameters, over the whole batch; the
    graph is kept.

    shards: of the batch, of which inputs, logits and targets are this process's own. shared: layers whose
    inputs are the same for all images, class prompts for one; read only where there are several processes.

    Cost: the backward passes of `fisher` (without the weight gradients of the captured layers), and n q² +
    n p² a layer for n tokens. Several processes exchange B C numbers, p² + q² a layer, and in every
    backward pass n p a shared layer and the others' gradient.
    """
    calls = seen.calls()
    if not calls and not others:
        return {}, {}
    outputs, diagonals = dict[Layer, Tensor](), dict[nn.Parameter, Tensor]()
    wanted: list[Any] = [*(edge for _, _, edge in calls), *others]
    wide = shards.gather(_wide(logits.detach()))
    for v in cotangents(fisher, wide, shards.gather(targets), generator):
        with torch.autocast(logits.device.type, enabled=False):
            grads = torch.autograd.grad(
                logits, wanted, shards.local(v).to(logits.dtype), retain_graph=True, allow_unused=True
            )
        for (layer, _, _), e in zip(calls, grads, strict=False):
            if e is not None:
                whole = shards.sum(_wide(e)) if layer in shared else e
                outputs[layer] = outputs.get(layer, 0) + _second_moment(whole, None) / len(shards)
        for parameter, g in zip(others, grads[len(calls) :], strict=True):
            if g is not None:
                whole = shards.sum(_wide(g))
                diagonals[parameter] = diagonals.get(parameter, 0) + whole.square() / len(shards)
    outputs = {layer: each if layer in shared else shards.sum(each) for layer, each in outputs.items()}
    inputs = _input_factors(seen, list(outputs), shards)
    return {layer: Factors(inputs[layer], output) for layer, output in outputs.items()}, diagonals


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


def bilinear_factors(
    fisher: Fisher, model: BilinearModel, inputs: Tensor, logits: Tensor, targets: Tensor, shards: Shards
) -> Factors:
    """Λ and Γ of a bilinear model, exactly: O(B q² + C p min(C, p) + B C min(C, p)) flop and no backward
    pass. Several processes exchange the factors."""
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        left, right = (_wide(factor) for factor in model.jacobian_factors(inputs))
        pi, basis = _wide(logits.detach()).softmax(-1).to(left), None
        if left.shape[0] < left.shape[1]:
            basis = torch.linalg.qr(left.mT).Q.mT  # [C, p], orthonormal rows
            left = left @ basis.mT  # [C, C]
        if fisher == "empirical":
            residual = pi - nn.functional.one_hot(targets, pi.shape[1])
            output = _second_moment(residual @ left, None) / len(pi)
        else:
            output = (left.mT * pi.mean(0)) @ left - _second_moment(pi @ left, None) / len(pi)
        return Factors(_mean_second_moment([right], False, shards), shards.mean(output), basis)


def _mean_second_moment(xs: list[Tensor], append_one: bool, shards: Shards) -> Tensor:
    """E[x xᵀ] over the rows of all processes."""
    rows = sum(x.numel() // x.shape[-1] for x in xs)
    moment = torch.stack([_second_moment(x, 1.0 if append_one else None) for x in xs]).sum(0)
    return shards.sum(moment) / shards.sum_int(rows)


def _second_moment(x: Tensor, append: float | None) -> Tensor:
    """Σ over all rows of x xᵀ, in float32 or wider, whatever autocast says."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        rows = _wide(x.detach()).reshape(-1, x.shape[-1])
        if append is not None:
            rows = torch.cat([rows, rows.new_full((len(rows), 1), append)], dim=1)
        return rows.mT @ rows


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
