"""The linearised categorical block (categorical.py) against dense algebra."""

import pytest
import torch

from clipkal.optim.kalman.categorical import Linearised


def block(b: int, m: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K [bm, bm], v [bm] and π [b, m]."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(b * m, b * m, generator=generator, dtype=torch.float64)
    pi = (2 * torch.randn(b, m, generator=generator, dtype=torch.float64)).softmax(1)
    return root @ root.mT, torch.randn(b * m, generator=generator, dtype=torch.float64), pi


@pytest.mark.parametrize("b, m", [(1, 1), (1, 7), (4, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_score_curvature_and_determinant_are_those_of_the_dense_matrices(
    b: int, m: int, weighted: bool
) -> None:
    K, v, pi = block(b, m)
    weights = (
        torch.linspace(0.3, 1.0, b, dtype=torch.float64) if weighted else torch.ones(b, dtype=torch.float64)
    )
    R = torch.block_diag(*(w * (p.diag() - p.outer(p)) for w, p in zip(weights, pi, strict=True)))
    system = torch.eye(b * m, dtype=torch.float64) + R @ K
    linear = Linearised(K, pi.sqrt(), weights.sqrt()[:, None] if weighted else None)
    N = torch.linalg.solve(system, R)
    assert torch.allclose(linear.curvature(), N, atol=1e-12)
    assert torch.allclose(linear.times(v), N @ v, atol=1e-12)
    assert torch.allclose(2 * linear.half_log_det(), torch.linalg.slogdet(system)[1], atol=1e-10)


def test_an_impossible_label_costs_no_accuracy() -> None:
    """v = y/π_y for π_y = e⁻⁶⁰⁰: the score without a prior variance is y − π."""
    log_pi = torch.tensor([[-600.0, 0.0, -40.0]], dtype=torch.float64)
    v = torch.tensor([600.0, -torch.inf, -torch.inf], dtype=torch.float64).exp()
    linear = Linearised(1e-12 * torch.ones(3, 3, dtype=torch.float64), (log_pi / 2).exp())
    expected = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    assert torch.allclose(linear.times(v), expected, atol=1e-10)
    assert torch.allclose(linear.curvature() @ v, expected, atol=1e-10)
