"""The dense filter against Bayesian linear regression and the information form."""

import pytest
import torch
from kalman_models import Bilinear, batch, bilinear, full_jacobian, theta
from torch import Tensor
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from clipkal.optim.kalman.covariance.dense import Dense
from clipkal.optim.kalman.filter import KalmanFilter
from clipkal.optim.kalman.observation import FixedNoise

NOISE, PRIOR = 0.3, 0.7


def regression(C: int = 2, q: int = 4, B: int = 12) -> tuple[Bilinear, Tensor, Tensor]:
    model = bilinear(C=C, p=3, q=q, scale=1.0)
    x = torch.randn(B, q).double()
    return model, x, torch.randn(B, C).double()


def closed_form(model: Bilinear, x: Tensor, y: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean and covariance, and the log marginal likelihood, of y = J θ + ε from the textbook."""
    J = full_jacobian(model, x).flatten(0, 1)
    e = (y - model(x).detach()).flatten()
    P = torch.linalg.inv(torch.eye(J.shape[1]).double() / PRIOR + power / NOISE * J.mT @ J)
    S = PRIOR * J @ J.mT + NOISE * torch.eye(len(e)).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(e), S).log_prob(e)
    return theta(model) + power / NOISE * P @ J.mT @ e, P, evidence


def run(model: Bilinear, x: Tensor, y: Tensor, **settings) -> tuple[KalmanFilter, float]:
    filtered = KalmanFilter(model, "gaussian", FixedNoise(NOISE), "dense", prior=PRIOR, **settings)
    return filtered, filtered.step(x, y).log_evidence or 0.0


@pytest.mark.parametrize("block", [1, 5, None])
def test_any_blocks_give_the_posterior_and_the_evidence(block: int | None) -> None:
    """Gain = the closed form by information, and sequential = batch: the model is linear."""
    model, x, y = regression()
    mean, P, evidence = closed_form(model, x, y)
    filtered, found = run(model, x, y, block=block)
    torch.testing.assert_close(theta(model), mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(filtered.covariance.P, P, rtol=1e-10, atol=1e-10)
    assert found == pytest.approx(float(evidence), rel=1e-10)


@pytest.mark.parametrize("C", [2, 4, 9])
def test_a_categorical_step_is_a_natural_gradient_step(C: int) -> None:
    """Ollivier: θ⁺ = θ − P⁺ ∇NLL with P⁺⁻¹ = P⁻¹ + GGN, both by torch.func."""
    model = bilinear(C=C)
    torch.nn.init.normal_(model.weight, std=0.3)
    x, y = batch(C=C)
    before = theta(model)
    parameters = {"weight": model.weight.detach().clone()}
    J = full_jacobian(model, x)
    W = torch.stack([jacrev(lambda z: z.softmax(-1))(z) for z in model(x).detach()])
    ggn = torch.einsum("bci,bcd,bdj->ij", J, W, J)
    loss = lambda theta: F.cross_entropy(functional_call(model, theta, (x,)), y, reduction="sum")
    gradient = torch.func.grad(loss)(parameters)["weight"].flatten()
    P = torch.linalg.inv(torch.eye(len(before)).double() / PRIOR + ggn)
    filtered = KalmanFilter(model, covariance="dense", prior=PRIOR, block=None)
    evidence = filtered.step(x, y).log_evidence
    torch.testing.assert_close(theta(model), before - P @ gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(filtered.covariance.P, P, rtol=1e-10, atol=1e-10)
    laplace = (
        -loss(parameters)
        + gradient @ P @ gradient / 2
        - torch.logdet(torch.eye(len(before)) + PRIOR * ggn) / 2
    )
    assert evidence == pytest.approx(float(laplace), rel=1e-10)


@pytest.mark.parametrize("store", [True, False])
def test_rkalman_is_an_augmented_pseudo_observation(store: bool) -> None:
    """Stacking θ_k = θ_{k−1} + N(0, I/λ_k) under H; λ_k = ρ‖∇NLL‖²; not stored, P forgets it."""
    rho = 0.02
    model = bilinear()
    torch.nn.init.normal_(model.weight, std=0.3)
    x, y = batch()
    J, logits, before = full_jacobian(model, x), model(x).detach(), theta(model)
    gradient = torch.einsum("bc,bcn->n", logits.softmax(-1) - F.one_hot(y, 4), J)
    strength = rho * gradient @ gradient
    n, Q = len(before), torch.diag_embed(logits.softmax(-1).sqrt())
    Q = Q - logits.softmax(-1)[:, :, None] * logits.softmax(-1).sqrt()[:, None, :]
    r = (F.one_hot(y, 4) - logits.softmax(-1)) / logits.softmax(-1).sqrt()
    H = torch.cat([(Q.mT @ J).flatten(0, 1), strength.sqrt() * torch.eye(n).double()])
    e = torch.cat([r.flatten(), torch.zeros(n).double()])
    K = PRIOR * H.mT @ torch.linalg.inv(PRIOR * H @ H.mT + torch.eye(len(H)).double())
    settings = {"covariance": "dense", "prior": PRIOR, "block": None}
    filtered = KalmanFilter(model, rho=rho, store_regularisation=store, **settings)
    info = filtered.step(x, y)
    assert info.metrics["regularisation"] == pytest.approx(float(strength))
    torch.testing.assert_close(theta(model), before + K @ e, rtol=1e-9, atol=1e-10)
    stored = PRIOR * (torch.eye(n).double() - K @ H)
    plain = torch.linalg.inv(torch.linalg.inv(stored) - strength * torch.eye(n).double())
    torch.testing.assert_close(filtered.covariance.P, stored if store else plain, rtol=1e-8, atol=1e-9)


def test_e_tempered_epochs_equal_one_epoch_on_a_linear_model() -> None:
    model, x, y = regression()
    mean, P, _ = closed_form(model, x, y)
    filtered = KalmanFilter(model, "gaussian", FixedNoise(NOISE), "dense", prior=PRIOR, epochs=5, block=3)
    for _ in range(5):
        filtered.step(x, y)
    torch.testing.assert_close(theta(model), mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(filtered.covariance.P, P, rtol=1e-9, atol=1e-9)
    other, x, y = regression()
    counting = KalmanFilter(
        other, "gaussian", FixedNoise(NOISE), "dense", prior=PRIOR, epochs=5, epochs_as="optimiser"
    )
    doubled = closed_form(other, x, y, power=5.0)[1]
    for _ in range(5):
        counting.step(x, y)
    torch.testing.assert_close(counting.covariance.P, doubled, rtol=1e-9, atol=1e-9)


def test_fading_and_process_noise_come_before_the_batch() -> None:
    model, x, y = regression(C=1, q=3, B=4)
    filtered = KalmanFilter(
        model, "gaussian", FixedNoise(NOISE), "dense", prior=PRIOR, fading=0.8, process_noise=0.05, block=None
    )
    J = full_jacobian(model, x).flatten(0, 1)
    filtered.step(x, y)
    widened = (PRIOR / 0.8 + 0.05) * torch.eye(J.shape[1]).double()
    expected = torch.linalg.inv(torch.linalg.inv(widened) + J.mT @ J / NOISE)
    torch.testing.assert_close(filtered.covariance.P, expected)


def test_too_many_parameters_are_refused_with_the_memory_they_would_take() -> None:
    filtered = KalmanFilter(bilinear(), covariance=Dense(largest=10), prior=1.0)
    with pytest.raises(ValueError, match="30 parameters takes"):
        filtered.step(*batch())
