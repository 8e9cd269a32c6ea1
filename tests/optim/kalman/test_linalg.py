"""The float64 solves."""

import pytest
import torch

from clipkal.optim.kalman.update import log_det, psd_root, unit_cholesky
from clipkal.optim.model.bilinear import Pairs
from clipkal.optim.model.jacobian import gram_matrix


def test_unit_cholesky_factors_one_plus_gram_even_where_rounding_has_eaten_the_one() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    gram = x @ x.mT
    factor = unit_cholesky(gram)
    torch.testing.assert_close(factor @ factor.mT, torch.eye(5).double() + gram)
    torch.testing.assert_close(log_det(factor), torch.logdet(torch.eye(5).double() + gram))
    huge = (1e20 * x) @ (1e20 * x).mT
    assert torch.isfinite(unit_cholesky(huge)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unit_cholesky_refuses_what_is_not_finite(bad: float) -> None:
    gram = torch.eye(3).double()
    gram[1, 0] = gram[0, 1] = bad
    with pytest.raises(FloatingPointError):
        unit_cholesky(gram)


def test_gram_matrix_is_the_weighted_product_whatever_the_chunk() -> None:
    rows, weights = torch.randn(4, 33), torch.rand(33)
    expected = (rows.double() * weights.double()) @ rows.double().mT
    for chunk in (1, 7, 100):
        torch.testing.assert_close(gram_matrix(rows, weights, chunk), expected)


def test_pairs_come_apart_and_together_and_count_a_symmetric_sum() -> None:
    x = torch.randn(8, 8, dtype=torch.float64)
    x = x + x.mT
    for b in (1, 4):
        pairs = Pairs(b, x.device)
        parts = pairs.split(x)
        torch.testing.assert_close(parts.diagonal(dim1=1, dim2=2).sum(), _trace_of_blocks(x, b))
        single = parts if b == 1 else parts / pairs.count
        torch.testing.assert_close(pairs.assemble(single), x)


def _trace_of_blocks(x: torch.Tensor, b: int) -> torch.Tensor:
    """Σ_ij trace of block (i, j)."""
    return x.view(b, 8 // b, b, 8 // b).diagonal(dim1=1, dim2=3).sum()


def test_psd_root() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    root = psd_root(x @ x.mT)
    torch.testing.assert_close(root @ root.mT, x @ x.mT)
