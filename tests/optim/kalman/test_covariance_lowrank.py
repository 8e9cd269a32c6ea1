"""Low rank plus diagonal: dense where nothing is dropped, conservative marginals where something is."""

import pytest
import torch
from kalman_models import batch, bilinear, full_jacobian, theta

from clipkal.optim.kalman.covariance.dense import Dense
from clipkal.optim.kalman.covariance.lowrank import DiagonalPlusLowRank
from clipkal.optim.kalman.filter import KalmanFilter

SETTINGS = {"prior": 0.4, "block": 3}


def _precision(covariance: DiagonalPlusLowRank) -> torch.Tensor:
    return torch.diag(covariance.diagonal) + covariance.rows.mT @ covariance.rows


@pytest.mark.parametrize(
    "extra", [{}, {"fading": 0.9, "process_noise": 0.01}, {"rho": 0.01}, {"gate": "imq"}]
)
@pytest.mark.parametrize("store", [True, False])
def test_with_l_equal_n_it_is_the_dense_filter(extra: dict, store: bool) -> None:
    models = bilinear(), bilinear()
    models[1].load_state_dict(models[0].state_dict())
    filters = [
        KalmanFilter(model, covariance=covariance, store_regularisation=store, **SETTINGS, **extra)
        for model, covariance in zip(models, (Dense(), DiagonalPlusLowRank(30)), strict=True)
    ]
    for _ in range(4):  # 4 × 8 × 4 rows: far more than 30, so the compression is at work
        x, y = batch()
        dense, low = (filtered.step(x, y) for filtered in filters)
        assert low.log_evidence == pytest.approx(dense.log_evidence, rel=1e-8)
    torch.testing.assert_close(theta(models[1]), theta(models[0]), rtol=1e-8, atol=1e-9)
    P = torch.linalg.inv(_precision(filters[1].covariance))
    torch.testing.assert_close(P, filters[0].covariance.P, rtol=1e-7, atol=1e-9)


def test_what_is_dropped_goes_to_the_diagonal() -> None:
    """Every diagonal entry of the precision is that of the exact information, whatever the rank."""
    model, (x, y) = bilinear(), batch()
    logits = model(x).detach()
    pi = logits.softmax(-1)
    W = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]
    J = full_jacobian(model, x)
    information = torch.einsum("bci,bcd,bdi->i", J, W, J)
    for rank in (0, 2, 7):
        fresh = bilinear()
        fresh.load_state_dict(model.state_dict())
        filtered = KalmanFilter(fresh, covariance=DiagonalPlusLowRank(rank), prior=0.4, block=None)
        filtered.step(x, y)
        assert len(filtered.covariance.rows) == rank
        torch.testing.assert_close(_precision(filtered.covariance).diagonal(), 1 / 0.4 + information)
