"""A distribution of class prototypes: the posterior of `Kalman` over them against its own definition."""

import pytest
import torch
from torch.nn import functional as F

from clipkal.adapters import PrototypeAdapter, ZeroShotAdapter
from clipkal.errors import ConfigError
from clipkal.optim import Kalman

C, D, N, SCALE, PRIOR = 3, 4, 10, 5.0, 0.2


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: F.normalize(torch.randn(n, D, generator=generator, dtype=torch.float64), dim=1)
    return draw(C), draw(N), torch.randint(C, (N,), generator=generator), draw(5)


def test_it_is_zero_shot_at_the_start_and_its_jacobian_is_that_of_its_factors(problem):
    text, x, _, _ = problem
    adapter = PrototypeAdapter(text, SCALE)
    assert torch.allclose(adapter(x), ZeroShotAdapter(text, SCALE)(x))
    adapter.weight.data.normal_()
    assert torch.allclose(adapter.zeroshot_logits(x), ZeroShotAdapter(text, SCALE)(x))
    left, right = adapter.jacobian_factors(x)
    moved = torch.einsum("ca,ib,ab->ic", left, right, adapter.weight.detach())
    assert torch.allclose(adapter(x), adapter.zeroshot_logits(x) + moved)


def test_kalman_gives_the_laplace_posterior_of_the_prototypes(problem):
    """W* = p₀ s Σ (y − π) fᵀ; P⁻¹ = I/p₀ + s² Σ (diag π − π πᵀ) ⊗ f fᵀ, formed here."""
    text, x, y, new = problem
    adapter = PrototypeAdapter(text, SCALE)
    filtered = Kalman(adapter, prior=PRIOR, posterior_temperature=1.0, precision="float64", solver="direct")
    filtered.step(x, y)
    pi = adapter(x).detach().softmax(1)
    gradient = SCALE * (F.one_hot(y, C) - pi).T @ x
    assert torch.allclose(adapter.weight, PRIOR * gradient, atol=1e-7)
    precision = torch.eye(C * D, dtype=torch.float64) / PRIOR
    for f, p in zip(x, pi, strict=True):
        precision += SCALE**2 * torch.kron(p.diag() - torch.outer(p, p), torch.outer(f, f))
    J = SCALE * torch.stack([torch.kron(torch.eye(C, dtype=torch.float64), f[None]) for f in new])
    assert torch.allclose(filtered.logit_covariance(new), J @ precision.inverse() @ J.mT, atol=1e-7)


def test_prototypes_are_of_their_own_classes(problem):
    text, *_ = problem
    with (
        pytest.raises(ConfigError, match="adapter=linear"),
        PrototypeAdapter(text, SCALE).classes(text),
    ):
        pass
