"""Adapters: zero-shot at the start, linear in what is learnt, Jacobian factors as torch.func sees them."""

import pytest
import torch
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from clipkal.adapters import LinearAdapter, ZeroShotAdapter
from clipkal.adapters.linear import MOST_STRETCH, class_metric
from clipkal.config import compose
from clipkal.errors import ConfigError
from clipkal.methods import build_adapter


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


def test_only_the_weight_is_trainable(problem):
    text, _ = problem
    names = lambda adapter: [name for name, p in adapter.named_parameters() if p.requires_grad]
    assert names(LinearAdapter(text, 10.0)) == ["weight"]
    assert names(ZeroShotAdapter(text, 10.0)) == []


@pytest.mark.parametrize("kind", [LinearAdapter, ZeroShotAdapter])
def test_an_adapter_answers_for_other_classes_and_goes_back(problem, kind):
    text, features = problem
    adapter, other = kind(text, 10.0), torch.nn.functional.normalize(text[:3] + 1, dim=-1)
    weight = torch.zeros(7, 7, dtype=torch.float64)
    if kind is LinearAdapter:
        weight = torch.randn(7, 7, dtype=torch.float64)
        adapter.weight.data.copy_(weight)
    before = adapter(features).detach()
    with pytest.raises(ZeroDivisionError), adapter.classes(other), torch.no_grad():
        torch.testing.assert_close(adapter(features), 10 * (features + features @ weight.T) @ other.T)
        raise ZeroDivisionError
    assert torch.equal(adapter(features), before)
    with pytest.raises(ConfigError, match="width 4, but 7"), adapter.classes(other[:, :4]):
        pass


def test_an_adapter_that_learns_from_images_needs_a_backbone(problem):
    with pytest.raises(ConfigError, match="adapter=lora needs a backbone that reads images"):
        build_adapter(compose(["method=loko"]), problem[0], 10.0)


def test_in_class_coordinates_all_class_logits_move_equally_and_apart():
    generator = torch.Generator().manual_seed(0)
    similar = (
        torch.randn(1, 12, generator=generator).double()
        + 0.5 * torch.randn(6, 12, generator=generator).double()
    )
    text = F.normalize(similar, dim=1)
    adapter = LinearAdapter(text, 10.0, coordinates="classes")
    left = adapter.jacobian_factors(text)[0]
    centred = left - left.mean(0)
    moves = centred @ centred.T
    expected = torch.eye(6).double() - 1 / 6
    torch.testing.assert_close(moves, expected * moves.trace() / 5)
    torch.testing.assert_close(moves.trace(), (100 * (text - text.mean(0)).square().sum()))


def test_class_coordinates_are_other_coordinates_of_the_same_functions(problem):
    text, features = problem
    plain, turned = LinearAdapter(text, 10.0), LinearAdapter(text, 10.0, coordinates="classes")
    torch.testing.assert_close(turned(features), plain(features))
    with torch.no_grad():
        turned.weight.normal_(generator=torch.Generator().manual_seed(0))
        plain.weight.copy_(turned.metric @ turned.weight)
    torch.testing.assert_close(turned(features), plain(features))
    other = F.normalize(torch.randn(3, text.shape[1], dtype=text.dtype), dim=1)
    with turned.classes(other), plain.classes(other):
        torch.testing.assert_close(turned(features), plain(features))
    torch.testing.assert_close(turned(features), plain(features))
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(turned, {"weight": w}, (features,)))
    left, right = turned.jacobian_factors(features)
    expected = torch.einsum("ca,ib->icab", left, right)
    torch.testing.assert_close(jacobian(turned.weight.detach()), expected)


def test_a_nearly_empty_direction_is_stretched_no_further_than_the_limit():
    text = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-3, 0.0], [0.0, 1.0, 0.0]]), dim=1)
    assert float(torch.linalg.eigvalsh(class_metric(text)).max()) <= MOST_STRETCH**0.5 + 1e-5
    same = class_metric(text[:1].repeat(4, 1))
    torch.testing.assert_close(same, torch.eye(3))
    with pytest.raises(ConfigError, match=r"adapter\.coordinates=names"):
        LinearAdapter(text, 1.0, coordinates="names")
