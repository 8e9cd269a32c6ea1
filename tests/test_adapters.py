"""Adapters: zero-shot at the start, linear in what is learnt, Jacobian factors as torch.func sees them."""

import pytest
import torch
from torch.func import functional_call, jacrev

from clipkal.adapters import LinearAdapter, ZeroShotAdapter, build_adapter
from clipkal.errors import ConfigError


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    unit = lambda *shape: torch.nn.functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )
    return unit(5, 7), unit(11, 7)


def test_the_linear_adapter_starts_exactly_at_zero_shot(problem):
    text, features = problem
    torch.testing.assert_close(LinearAdapter(text, 50.0)(features), ZeroShotAdapter(text, 50.0)(features))


def test_logits_are_linear_in_the_weight(problem):
    text, features = problem
    adapter = LinearAdapter(text, 10.0)
    at = lambda weight: functional_call(adapter, {"weight": weight}, (features,))
    a, b = torch.randn(2, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(at(a + 2 * b) - at(0 * a), (at(a) - at(0 * a)) + 2 * (at(b) - at(0 * a)))


def test_jacobian_factors_are_the_jacobian(problem):
    text, features = problem
    adapter = LinearAdapter(text, 10.0)
    with torch.no_grad():
        adapter.weight.normal_()
    full = jacrev(lambda w: functional_call(adapter, {"weight": w}, (features,)))(adapter.weight.detach())
    left, right = adapter.jacobian_factors(features)
    torch.testing.assert_close(full, torch.einsum("ca,ib->icab", left, right).detach())


def test_only_the_weight_is_trainable_unless_the_scale_is_asked_for(problem):
    text, _ = problem
    names = lambda adapter: [name for name, p in adapter.named_parameters() if p.requires_grad]
    assert names(LinearAdapter(text, 10.0)) == ["weight"]
    assert names(LinearAdapter(text, 10.0, learn_scale=True)) == ["weight", "log_scale"]
    assert names(ZeroShotAdapter(text, 10.0)) == []


def test_an_unknown_adapter_is_a_config_error(problem):
    with pytest.raises(ConfigError, match="unknown adapter"):
        build_adapter("mlp", problem[0], 10.0)
