"""Plug-in and sampled predictives against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkal.metrics import nll
from clipkal.uncertainty import Prediction, SampleAverage, plugin, sampled


def draws(s: int = 40, n: int = 6, c: int = 5, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(s, n, c, generator=generator, dtype=torch.float64)


def reference(z: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean probabilities, total entropy, mean entropy) by the textbook."""
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum(-1, keepdims=True)
    mean = p.mean(0)
    return mean, -(mean * np.log(mean)).sum(-1), -(p * np.log(p)).sum(-1).mean(0)


def test_plugin_is_softmax_and_entropy() -> None:
    z = draws(1)
    one = plugin(z[0].float())
    mean, total, _ = reference(z.float().double())
    np.testing.assert_allclose(one.probs, mean, atol=1e-12)
    np.testing.assert_allclose(one.entropy, total, atol=1e-12)
    assert one.probs.dtype == torch.float64
    assert (one.aleatoric == one.entropy).all() and (one.epistemic == 0).all()
    assert len(one) == 6
    np.testing.assert_array_equal(one.predicted, mean.argmax(1))
    np.testing.assert_allclose(one.confidence, mean.max(1))
    assert one.without_logs().log_probs is None


def test_underflow_keeps_the_log_likelihood_finite() -> None:
    z = torch.tensor([[0.0, 2000.0]])
    label = torch.tensor([0])
    for one in (plugin(z), sampled([z[None], z[None]])):
        assert one.probs[0, 0] == 0 and nll(one.probs, label) == math.inf
        assert nll(one.probs, label, one.log_probs) == pytest.approx(2000)
        assert one.entropy.item() == 0


def test_sampled_matches_the_definition() -> None:
    z = draws()
    one = sampled([z])
    mean, total, aleatoric = reference(z)
    np.testing.assert_allclose(one.probs, mean, atol=1e-12)
    np.testing.assert_allclose(one.entropy, total, atol=1e-12)
    np.testing.assert_allclose(one.aleatoric, aleatoric, atol=1e-12)
    np.testing.assert_allclose(one.epistemic, total - aleatoric, atol=1e-12)
    np.testing.assert_allclose(one.log_probs, np.log(mean), atol=1e-12)


def test_chunks_of_draws_and_of_images_change_nothing() -> None:
    z = draws()
    whole = sampled([z])
    by_draws = sampled(iter(z.split(7)))
    by_images = SampleAverage(6, 5)
    for start in (0, 2, 4):
        for chunk in z[:, start : start + 2].split(11):
            by_images.add_draws(slice(start, start + 2), chunk)
    for other in (by_draws, by_images.prediction()):
        for field in ("probs", "entropy", "aleatoric", "epistemic", "log_probs"):
            torch.testing.assert_close(getattr(other, field), getattr(whole, field), rtol=0, atol=1e-12)


def test_one_draw_is_the_plugin() -> None:
    z = draws(1)
    first, second = sampled([z]), plugin(z[0])
    torch.testing.assert_close(first.probs, second.probs)
    assert (first.epistemic <= 1e-12).all()


def test_variance_common_to_all_classes_changes_nothing() -> None:
    z = draws()
    shift = 50 * torch.randn(40, 6, 1, dtype=torch.float64)
    torch.testing.assert_close(sampled([z + shift]).probs, sampled([z]).probs)


def test_disagreement_is_epistemic_and_agreement_is_aleatoric() -> None:
    sure = torch.tensor([[[60.0, 0.0]], [[0.0, 60.0]]], dtype=torch.float64)  # two certain, opposite draws
    one = sampled([sure])
    assert one.epistemic.item() == pytest.approx(math.log(2)) and one.aleatoric.item() < 1e-12
    even = sampled([torch.zeros(2, 1, 2)])
    assert even.aleatoric.item() == pytest.approx(math.log(2)) and even.epistemic.item() == 0


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([0.01, 1, 30, 1e4]),
    st.integers(0, 9999),
)
def test_properties(s: int, n: int, c: int, scale: float, seed: int) -> None:
    one = sampled([draws(s, n, c, scale, seed)])
    torch.testing.assert_close(one.probs.sum(1), torch.ones(n, dtype=torch.float64))
    assert (one.epistemic >= 0).all() and (one.aleatoric >= -1e-9).all()
    assert (one.entropy <= math.log(c) + 1e-9).all()
    torch.testing.assert_close(one.entropy, one.aleatoric + one.epistemic)
    assert one.log_probs is not None and torch.isfinite(one.log_probs).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    z = torch.zeros(2, 3, 4)
    z[1, 2, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        plugin(z[1])
    with pytest.raises(ValueError, match="not finite"):
        sampled([z])


def test_wrong_shapes_are_refused() -> None:
    for logits in (torch.zeros(3), torch.zeros(3, 0), torch.zeros(2, 3, 4)):
        with pytest.raises(ValueError):
            plugin(logits)
    with pytest.raises(ValueError, match="no logit samples"):
        sampled([])
    with pytest.raises(ValueError):
        sampled([torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)])
    with pytest.raises(ValueError, match="at least one draw"):
        SampleAverage(3, 2).prediction()


def test_prediction_is_frozen() -> None:
    one = plugin(torch.zeros(1, 2))
    assert isinstance(one, Prediction)
    with pytest.raises(AttributeError):
        one.probs = one.entropy  # type: ignore[misc]
