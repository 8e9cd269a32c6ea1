"""What every covariance promises: algebra that is the dense one's, draws from what it says, and all of a step or none."""

import copy
from collections.abc import Callable

import pytest
import torch
from kalman_models import assert_resumes, batch, bilinear, dense_of, full_jacobian, theta

from clipkal.optim import KalmanFilter
from clipkal.optim.kalman.covariance.dense import Dense
from clipkal.optim.kalman.covariance.diagonal import Covariance, Diagonal
from clipkal.optim.kalman.covariance.lowrank import DiagonalPlusLowRank
from clipkal.optim.kalman.covariance.subspace import Subspace
from clipkal.optim.kalman.parts import PARTS

COVARIANCES: dict[str, Callable[[], Covariance]] = {
    "diagonal": Diagonal,
    "diagonal, iterated": lambda: Diagonal(10),
    "subspace": Subspace,
    "subspace, once": lambda: Subspace(1),
    "lowrank": DiagonalPlusLowRank,
    "rank 5": lambda: DiagonalPlusLowRank(5),
    "rank 0": lambda: DiagonalPlusLowRank(0),
    "dense": Dense,
}
every = pytest.mark.parametrize("name", COVARIANCES)


def filter_of(name: str, q: int = 6, dtype: torch.dtype = torch.float64, **settings) -> KalmanFilter:
    return KalmanFilter(bilinear(q=q, dtype=dtype), covariance=COVARIANCES[name](), prior=0.1, **settings)


def started(name: str, **settings) -> KalmanFilter:
    """After a batch that does not span all nine dimensions."""
    filtered = filter_of(name, q=9, **settings)
    filtered.step(*batch(B=4, q=9))
    return filtered


def test_the_contract_is_asked_of_every_covariance() -> None:
    kinds = {type(make()) for make in PARTS["covariance"].values()}
    assert kinds == {type(make()) for make in COVARIANCES.values()}


@every
def test_time_update_and_shrinkage_are_those_of_the_dense_matrix(name: str) -> None:
    covariance = started(name).covariance
    P, eye = dense_of(covariance), torch.eye(45).double()
    covariance.predict(0.8, 0.03)
    widened = P / 0.8 + 0.03 * eye
    torch.testing.assert_close(dense_of(covariance), widened)
    covariance.shrink(2.5)
    shrunk = torch.linalg.inv(torch.linalg.inv(widened) + 2.5 * eye)
    torch.testing.assert_close(dense_of(covariance), shrunk)
    covariance.unshrink(2.5)
    torch.testing.assert_close(dense_of(covariance), widened)


@pytest.mark.parametrize("name", [name for name, make in COVARIANCES.items() if make().iterations == 1])
@pytest.mark.parametrize("observation", ["categorical", "softmax", "probs"])
@pytest.mark.parametrize("power", [1, 3])
def test_the_first_joint_update_moves_the_mean_as_the_dense_one_does(
    name: str, observation: str, power: int
) -> None:
    """From P₀ = p₀ I, whatever is kept of P afterwards; and never more is kept than the prior."""
    x, y = batch()
    settings = {"observation": observation, "block": None, "epochs": power}
    one, dense = filter_of(name, **settings), filter_of("dense", **settings)
    dense.model.load_state_dict(one.model.state_dict())
    assert one.step(x, y).log_evidence == pytest.approx(dense.step(x, y).log_evidence, rel=1e-9)
    torch.testing.assert_close(theta(one.model), theta(dense.model), rtol=1e-8, atol=1e-10)
    values = torch.linalg.eigvalsh(dense_of(one.covariance))
    assert values.min() > 0
    assert values.max() <= 0.1 * (1 + 1e-9)


@every
def test_draws_and_logit_covariances_are_of_p_also_outside_the_span(name: str) -> None:
    filtered = started(name)
    P, draws = dense_of(filtered.covariance), 40_000
    generator = torch.Generator().manual_seed(0)
    deviations = filtered.covariance.sample(draws, generator)
    assert (deviations.mT @ deviations / draws - P).abs().max() < 0.03 * P.abs().max()
    new = torch.randn(3, 9).double()
    J = full_jacobian(filtered.model, new)
    expected = J @ P @ J.mT
    torch.testing.assert_close(filtered.logit_covariance(new), expected)
    logits = filtered.logit_samples(new, draws, generator) - filtered.model(new).detach()
    assert logits.shape == (draws, 3, 4)
    assert (
        torch.einsum("nbc,nbd->bcd", logits, logits) / draws - expected
    ).abs().max() < 0.05 * expected.max()
    assert logits.mean(0).abs().max() < 0.02 * expected.max().sqrt()


def test_logits_drawn_directly_have_the_distribution_of_parameters_that_are_drawn() -> None:
    filtered = started("diagonal")
    filtered.covariance.logit_noise = lambda *_: None  # the general way
    x = batch(B=3, q=9)[0]
    draws = filtered.logit_samples(x, 8000, torch.Generator().manual_seed(0)) - filtered.model(x).detach()
    expected = filtered.logit_covariance(x)
    assert (torch.einsum("nbc,nbd->bcd", draws, draws) / 8000 - expected).abs().max() < 0.08 * expected.max()


@every
@pytest.mark.parametrize("error", [FloatingPointError, ValueError])
@pytest.mark.parametrize("settings", [{}, {"fading": 0.9, "rho": 0.01, "store_regularisation": False}])
def test_a_failure_in_a_late_block_puts_everything_back(
    name: str, error: type[Exception], settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered = filter_of(name, block=2, **settings)
    filtered.step(*batch())
    before = copy.deepcopy((filtered.model.state_dict(), filtered.state_dict()))
    calls, update = [], filtered.covariance.update

    def fails_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise error("third block")
        return update(*args)

    monkeypatch.setattr(filtered.covariance, "update", fails_third)
    with pytest.raises(error, match="third block"):
        filtered.step(*batch())
    torch.testing.assert_close((filtered.model.state_dict(), filtered.state_dict()), before, rtol=0, atol=0)


@every
@pytest.mark.parametrize("block", [None, 3])
def test_an_update_that_is_refused_leaves_the_state_untouched(name: str, block: int | None) -> None:
    """Finite logits without a residual, whose covariance is not finite."""
    filtered = filter_of(name, observation="gaussian", block=block)
    filtered.step(batch()[0], torch.randn(8, 4).double())
    before = copy.deepcopy((filtered.model.state_dict(), filtered.state_dict()))
    x, _ = batch()
    x[5] *= 1e160
    with pytest.raises(FloatingPointError, match="covariance"):
        filtered.step(x, filtered.model(x).detach())
    torch.testing.assert_close((filtered.model.state_dict(), filtered.state_dict()), before, rtol=0, atol=0)
    filtered.step(batch()[0], torch.randn(8, 4).double())


@every
def test_a_snapshot_is_put_back_bit_for_bit_and_does_not_follow(name: str) -> None:
    filtered = started(name)
    mean, state = theta(filtered.model), copy.deepcopy(filtered.covariance.state_dict())
    snapshot, saved = filtered.covariance.snapshot(), filtered.covariance.state_dict()
    if snapshot[0] is None:  # θ moves at the end of a step only
        filtered.covariance.update = lambda *_: (_ for _ in ()).throw(FloatingPointError)
        with pytest.raises(FloatingPointError):
            filtered.step(*batch(q=9))
    else:
        filtered.step(*batch(q=9))
    filtered.covariance.predict(0.5, 0.1)
    torch.testing.assert_close(saved, state, rtol=0, atol=0)
    filtered.covariance.restore(snapshot)
    torch.testing.assert_close(filtered.covariance.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(theta(filtered.model), mean, rtol=0, atol=0)


@every
def test_a_restored_filter_goes_on_bit_for_bit(name: str) -> None:
    data = [batch(dtype=torch.float32) for _ in range(4)]
    make = lambda model: KalmanFilter(model, covariance=COVARIANCES[name](), prior=0.1)
    filters = assert_resumes(lambda: bilinear(dtype=torch.float32), make, data, split=2)
    one, other = (f.logit_samples(data[3][0], 3, torch.Generator().manual_seed(1)) for f in filters)
    assert torch.equal(one, other)
