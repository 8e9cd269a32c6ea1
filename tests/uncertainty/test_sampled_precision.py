"""Draws in float32 are averaged in float32: to 1e-6, whatever their size, chunks and underflow."""

import pytest
import torch

from clipkal.uncertainty import sampled
from clipkal.uncertainty.predictives.sampled import CACHE, sums


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 37, 1500])
def test_float32_draws_give_what_float64_gives(scale: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = scale * torch.randn(8, 40, classes, generator=generator)
    assert draws.numel() > CACHE or classes < 1500  # the largest case is taken in several parts
    one, exact = sampled([draws]), sampled([draws.double()])
    assert one.probs.dtype == one.entropy.dtype == torch.float64
    torch.testing.assert_close(one.probs, exact.probs, rtol=0, atol=1e-6)
    for part in ("entropy", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(one, part), getattr(exact, part), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(one.log_probs, exact.log_probs, rtol=1e-5, atol=1e-5)


def test_sums_are_the_textbooks() -> None:
    draws = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_sum, entropy = sums(draws)
    probs = draws.softmax(-1)
    torch.testing.assert_close(log_sum.exp(), probs.sum(0))
    torch.testing.assert_close(entropy, -(probs * probs.log()).sum((0, 2)))


def test_half_precision_is_widened() -> None:
    draws = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    torch.testing.assert_close(sums(draws)[1], sums(draws.double())[1], rtol=1e-5, atol=1e-5)
