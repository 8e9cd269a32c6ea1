"""The diagonal filter in the basis of the data: exact where a diagonal can be, and iterated to the mode of a block."""

import pytest
import torch
from kalman_models import batch, bilinear, theta
from torch import nn

from clipkal.optim import Kalman, KalmanFilter
from clipkal.optim.kalman.categorical import Categorical
from clipkal.optim.kalman.covariance.dense import Dense
from clipkal.optim.kalman.covariance.diagonal import Diagonal
from clipkal.optim.kalman.covariance.subspace import Subspace, grow

PRIOR = 0.3


def subspace(model: nn.Module, iterations: int = 1, **settings) -> KalmanFilter:
    return KalmanFilter(model, covariance=Subspace(iterations), prior=PRIOR, **settings)


@pytest.mark.parametrize("observation", ["categorical", "softmax", "probs"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 3, 12), (9, 5, 6)])
def test_the_first_block_is_the_dense_filters_cut_to_the_diagonal_of_its_basis(
    observation: str, shape: tuple[int, int, int]
) -> None:
    C, p, q = shape
    x, y = batch(B=5, q=q, C=C)
    found = []
    for covariance in (Dense(), Subspace(iterations=1)):
        torch.manual_seed(1)
        model = bilinear(C, p, q)
        filtered = KalmanFilter(model, observation, covariance=covariance, prior=PRIOR, block=None)
        found.append((theta(model), filtered.step(x, y).log_evidence, filtered.covariance))
        found[-1] = (theta(model), *found[-1][1:])
    (dense, dense_evidence, P), (mine, evidence, S) = found
    torch.testing.assert_close(mine, dense, rtol=1e-8, atol=1e-10)
    assert evidence == pytest.approx(dense_evidence, rel=1e-9)
    basis = torch.einsum("ta,rb->trab", S.left, S.right).flatten(2)
    expected = torch.einsum("trn,nk,trk->tr", basis, P.P, basis)
    torch.testing.assert_close(S.variance, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("gate", ["none", "imq"])
def test_in_a_full_basis_it_is_the_diagonal_filter_of_the_turned_model(gate: str) -> None:
    """Several blocks and batches, once the bases are complete: relinearised without the model, W written at the end."""
    model = bilinear(C=6, p=5, q=6)
    filtered = subspace(model, block=3, gate=gate)
    filtered.step(*batch(B=8, C=6))
    S = filtered.covariance
    assert len(S.left) == 5
    assert len(S.right) == 6
    turned = bilinear(C=6, p=5, q=6)
    turned.text.copy_(model.text @ S.left.mT)
    turned.base.copy_(S.left @ model.base @ S.right.mT)
    turned.weight.data.copy_(S.left @ model.weight @ S.right.mT)
    other = KalmanFilter(turned, covariance=Diagonal(), prior=PRIOR, block=3, gate=gate)
    other.step(*batch(B=8, C=6))
    turned.weight.data.copy_(S.left @ model.weight @ S.right.mT)
    other.covariance.variance = S.variance.flatten().clone()
    for _ in range(2):
        x, y = batch(B=8, C=6)
        one, two = filtered.step(x, y), other.step(x @ S.right.mT, y)
        assert one.log_evidence == pytest.approx(two.log_evidence, rel=1e-9)
    torch.testing.assert_close(S.left @ model.weight @ S.right.mT, turned.weight, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(S.variance, other.covariance.variance.view(5, 6), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("iterated", [Subspace(50), Diagonal(iterations=50)])
@pytest.mark.parametrize("scale", [2.0, 40.0])
def test_an_iterated_block_ends_at_the_map_with_the_laplace_evidence(
    iterated: Subspace | Diagonal, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkal.optim.kalman.categorical.GAIN", 1e-14)
    x, y = batch(B=8)
    found = []
    for make in (
        lambda m: KalmanFilter(m, covariance=iterated, prior=PRIOR, block=None),
        lambda m: Kalman(m, prior=PRIOR, precision="float64", posterior_temperature=1.0),
    ):
        torch.manual_seed(2)
        model = bilinear(scale=scale)
        found.append((make(model).step(x, y).log_evidence, theta(model)))
    (evidence, mine), (laplace, theirs) = found
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert evidence == pytest.approx(laplace, rel=1e-6)


@pytest.mark.parametrize(("prior", "merge"), [(0.1, 0.0), (10.0, 0.0), (1e4, 0.0), (0.1, 0.3), (10.0, 0.3)])
def test_iterated_evidence_is_a_probability_and_the_step_never_overshoots(prior: float, merge: float) -> None:
    """A single linearisation can report positive log evidence of discrete labels, and make the loss worse."""
    x, y = batch(B=12, C=20)
    model = bilinear(C=20)
    filtered = KalmanFilter(model, Categorical(merge=merge), covariance=Subspace(), prior=prior, block=None)
    before = filtered.step(x, y)
    assert before.log_evidence < 0
    after = nn.functional.cross_entropy(model(x), y)
    assert after < before.loss


def test_an_image_outside_the_span_keeps_the_prior_variance() -> None:
    model = bilinear(C=4, p=5, q=9)
    filtered = subspace(model)
    x = torch.randn(3, 9).double()
    filtered.step(x[:2], torch.tensor([0, 1]))
    outside = torch.linalg.qr(x.mT)[0][:, 2:].mT
    left, _ = model.jacobian_factors(outside)
    torch.testing.assert_close(filtered.logit_covariance(outside)[0], PRIOR * left @ left.mT)


def test_fading_noise_and_shrinkage_reach_what_is_outside() -> None:
    found = []
    for covariance in (Subspace(1), Diagonal()):
        torch.manual_seed(3)
        model = bilinear(C=4, p=5, q=9)
        settings = {"fading": 0.8, "process_noise": 0.05, "rho": 0.3, "rho_as": "relative", "prior": PRIOR}
        filtered = KalmanFilter(model, covariance=covariance, store_regularisation=True, **settings)
        filtered.step(*batch(B=1, q=9))
        found.append(filtered.covariance)
    mine, diagonal = found
    untouched = diagonal.variance.max()  # Diagonal has axes the image hardly sees
    assert float(mine.outside) == pytest.approx(
        float((PRIOR / 0.8 + 0.05) / (1 + 0.3 / PRIOR * (PRIOR / 0.8 + 0.05)))
    )
    assert float(mine.outside) >= float(untouched)


def test_growing_keeps_a_basis_orthonormal_and_spans_the_rows() -> None:
    basis = torch.zeros(0, 30)
    seen = []
    for scale in (1.0, 1.0, 1e-2):
        rows = torch.randn(8, 30) * scale + 1
        seen.append(rows)
        basis, coordinates = grow(basis, rows)
        torch.testing.assert_close(coordinates @ basis, rows, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)), rtol=1e-5, atol=1e-5)
    again, _ = grow(basis, torch.cat(seen))
    assert again is basis


def test_other_models_are_refused() -> None:
    model = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="bilinear"):
        subspace(model).step(*batch(dtype=torch.float32))
