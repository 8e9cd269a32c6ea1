"""Observation models: outputs against autograd, and the whitened categorical identities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clipkal.optim.kalman.categorical import Categorical, MergedMeasurement
from clipkal.optim.kalman.observation import Cosine, FixedNoise, ModelNoise
from clipkal.optim.kalman.parts import PARTS, named


@pytest.mark.parametrize("name", ["softmax", "cosine", "probs", "gaussian"])
def test_outputs_are_differentiated_rightly(name: str) -> None:
    observation = Cosine(7.0) if name == "cosine" else named("observation", name)
    logits = torch.randn(3, 4).double()
    targets = torch.randn(3, 4).double() if name == "gaussian" else torch.tensor([2, 0, 3])
    error, columns, _ = observation.outputs(logits, targets)
    for i in range(3):
        part = targets[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda z, part=part: observation.outputs(z[None], part)[0][0], logits[i]
        )
        torch.testing.assert_close(columns[i], -jacobian.mT)
    torch.testing.assert_close(error, EXPECTED[name](logits, targets))


EXPECTED = {
    "softmax": lambda z, y: 1 - z.softmax(-1).gather(1, y[:, None]),
    "cosine": lambda z, y: 1 - z.gather(1, y[:, None]) / 7,
    "probs": lambda z, y: F.one_hot(y, 4) - z.softmax(-1),
    "gaussian": lambda z, y: y - z,
}


@pytest.mark.parametrize("C", [2, 5, 30])
def test_whitened_categorical(C: int) -> None:
    """Q Qᵀ = diag(π) − ππᵀ, Q r = y − π = −∂NLL/∂logits, and products without the matrix equal those with."""
    logits, targets = torch.randn(6, C).double(), torch.randint(C, (6,))
    measurement = Categorical().measure(logits, targets, ModelNoise())
    pi, Q = logits.softmax(-1), measurement.cotangents()
    torch.testing.assert_close(Q @ Q.mT, torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :])
    leaf = logits.clone().requires_grad_()
    (negative,) = torch.autograd.grad(-F.cross_entropy(leaf, targets, reduction="sum"), leaf)
    torch.testing.assert_close((Q @ measurement.residual[..., None])[..., 0], negative)
    torch.testing.assert_close(measurement.score(), negative)
    torch.testing.assert_close(
        measurement.log_likelihood, -F.cross_entropy(logits, targets, reduction="none")
    )
    torch.testing.assert_close(measurement.residual, (F.one_hot(targets, C) - pi) / pi.sqrt())
    x = torch.randn(6, C, 3).double()
    torch.testing.assert_close(measurement.pull(x), Q.mT @ x)
    torch.testing.assert_close(measurement.push(x), Q @ x)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 1000), st.floats(-6, 6), st.integers(0, 10**6))
def test_a_categorical_measurement_is_finite_however_sure(C: int, power: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 10**power * torch.randn(2, C, generator=generator).double()
    targets = torch.randint(C, (2,), generator=generator)
    measurement = Categorical().measure(logits, targets, ModelNoise())
    assert torch.isfinite(measurement.residual).all()
    assert torch.isfinite(measurement.residual.square().sum())
    gradient = F.one_hot(targets, C) - logits.softmax(-1)
    torch.testing.assert_close(measurement.score(), gradient, rtol=1e-9, atol=1e-12)


def test_merged_classes_keep_the_gradient_and_lose_only_the_curvature_inside_the_tail() -> None:
    logits, targets = 4 * torch.randn(5, 40).double(), torch.randint(40, (5,))
    measurement = Categorical(merge=0.05).measure(logits, targets, ModelNoise())
    assert isinstance(measurement, MergedMeasurement)
    pi = logits.softmax(-1)
    torch.testing.assert_close(measurement.score(), F.one_hot(targets, 40) - pi)
    Q = measurement.cotangents()
    lost = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :] - Q @ Q.mT
    assert torch.linalg.eigvalsh(lost).min() > -1e-12
    assert lost.diagonal(dim1=1, dim2=2).sum(-1).max() <= 0.05
    x = torch.randn(5, 40, 3).double()
    torch.testing.assert_close(measurement.pull(x), Q.mT @ x)
    torch.testing.assert_close(measurement.pull(x[0]), Q.mT @ x[0])
    small = torch.randn(5, Q.shape[-1], 2).double()
    torch.testing.assert_close(measurement.push(small), Q @ small)
    torch.testing.assert_close((Q @ measurement.residual[..., None])[..., 0], measurement.score())


def test_merging_keeps_the_true_class_even_when_it_is_the_least_likely() -> None:
    logits = torch.linspace(0, 30, 40).double()[None]
    measurement = Categorical(merge=0.5).measure(logits, torch.tensor([0]), ModelNoise())
    assert isinstance(measurement, MergedMeasurement)
    assert measurement.kept[0, 0] == 0
    torch.testing.assert_close(measurement.score(), F.one_hot(torch.tensor([0]), 40) - logits.softmax(-1))


def test_losses() -> None:
    logits, targets = torch.randn(5, 4), torch.randint(4, (5,))
    for name in PARTS["observation"]:
        if name != "gaussian":
            observation = named("observation", name)
            noise = ModelNoise() if name == "categorical" else FixedNoise(0.7)
            loss = observation.loss(logits, targets, observation.measure(logits, targets, noise))
            torch.testing.assert_close(loss, F.cross_entropy(logits.double(), targets))
    outputs, real = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    expected = -torch.distributions.Normal(outputs, 0.5).log_prob(real).sum(-1).mean()
    gaussian = named("observation", "gaussian")
    measurement = gaussian.measure(outputs, real, FixedNoise(0.25))
    torch.testing.assert_close(gaussian.loss(outputs, real, measurement), expected)
