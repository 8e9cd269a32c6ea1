"""Kronecker factors against per-image gradients and `torch.func` Jacobians."""

import pytest
import torch
from kalman_models import bilinear, ggn
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from clipkal.optim.model.layers import capture, find_layers
from clipkal.optim.natural_gradient.curvature import LayerCurvature
from clipkal.optim.natural_gradient.fisher import Factors, FisherEstimator, bilinear_factors, cotangents
from clipkal.optim.parallel.shards import Shards

DOUBLE = torch.float64


def draw(B: int = 6, q: int = 5, C: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(B, q, dtype=DOUBLE), torch.randint(0, C, (B,))


def whole(logits: Tensor) -> Shards:
    """One process holds the whole batch."""
    return Shards.of(len(logits), logits.device)


def estimate(model, inputs, targets, fisher, seed=0, repeat=1):
    """Estimates from one forward pass after another draw of the labels: factors and diagonals by name; and the logits."""
    layers, names = find_layers(model), {p: name for name, p in model.named_parameters() if p.requires_grad}
    estimator = FisherEstimator(model, layers, names, fisher, seed)
    with capture(model, layers) as seen:
        logits = model(inputs)
    found = [estimator.estimate(inputs, targets, logits, seen, whole(logits)) for _ in range(repeat)]
    return [({layer.name: f for layer, f in each.factors.items()}, each.diagonals) for each in found], logits


def statistics(model, inputs, targets, fisher, seed=0):
    ((factors, diagonals),), logits = estimate(model, inputs, targets, fisher, seed)
    return factors, diagonals, logits


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).norm() <= tolerance * (1 + b.norm()))


def test_one_image_the_ggn_is_exactly_the_kronecker_product():
    inputs, targets = draw(B=1)
    model = nn.Sequential(nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 4, bias=False)).double()
    factors, _, _ = statistics(model, inputs, targets, "ggn")
    for name, f in factors.items():  # row-major W: the row index varies slowest, so Γ comes first
        assert close(torch.kron(f.output, f.input), ggn(model, inputs, name))


def test_a_linear_model_whose_images_share_their_output_curvature_is_exact():
    inputs, targets = draw(B=8)
    model = nn.Linear(5, 4, bias=False).double()
    nn.init.zeros_(model.weight)  # uniform π for every image: Γ constant
    factors, _, _ = statistics(model, inputs, targets, "ggn")
    assert close(torch.kron(factors["weight"].output, factors["weight"].input), ggn(model, inputs, "weight"))


@pytest.mark.parametrize("fisher", ["true", "ggn", "empirical"])
def test_factors_are_the_means_of_outer_products(fisher):
    inputs, targets = draw()
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    factors, diagonals, logits = statistics(model, inputs, targets, fisher, seed=3)
    vs = list(cotangents(fisher, logits.detach(), targets, torch.Generator().manual_seed(3)))
    hidden = model[1](model[0](inputs)).detach()
    ones = torch.ones(6, 1, dtype=DOUBLE)
    Gamma = (
        sum((v @ model[2].weight * (1 - hidden**2)).T @ (v @ model[2].weight * (1 - hidden**2)) for v in vs)
        / 6
    )
    x0, x1 = torch.cat([inputs, ones], 1), torch.cat([hidden, ones], 1)
    assert not diagonals
    assert close(factors["0.weight"].input, x0.T @ x0 / 6)
    assert close(factors["2.weight"].input, x1.T @ x1 / 6)
    assert close(factors["0.weight"].output, Gamma)
    assert close(factors["2.weight"].output, sum(v.T @ v for v in vs) / 6)


def test_ggn_cotangents_square_to_the_covariance_of_the_labels():
    logits = torch.randn(3, 5, dtype=DOUBLE)
    vs = torch.stack(list(cotangents("ggn", logits, torch.zeros(3, dtype=torch.long), torch.Generator())))
    pi = logits.softmax(-1)
    expected = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]
    assert close(torch.einsum("kbc,kbd->bcd", vs, vs), expected)


def test_the_expectation_of_the_true_fisher_is_the_ggn():
    inputs, targets = draw(B=2)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 4)).double()
    exact, _, _ = statistics(model, inputs, targets, "ggn")
    name = "2.weight"
    h = ggn(model, inputs, name).diagonal()
    draws, _ = estimate(model, inputs, targets, "true", repeat=1000)
    for layer, factors in exact.items():
        mean = torch.stack([f[layer].output for f, _ in draws]).mean(0)
        assert close(mean, factors.output, 0.08)
    assert close(torch.stack([d[name] for _, d in draws]).mean(0), h, 0.08)
    signed, _ = estimate(model, inputs, targets, "ggn", repeat=300)
    assert close(torch.stack([d[name] for _, d in signed]).mean(0), h, 0.08)


@pytest.mark.parametrize(("classes", "p"), [(3, 7), (7, 3), (4, 4)])
@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_bilinear_factors_against_the_jacobian(classes, p, fisher):
    torch.manual_seed(0)
    model, (inputs, targets) = bilinear(classes, p, 5), draw(C=classes)
    logits = model(inputs)
    f = bilinear_factors(fisher, model, inputs, logits, targets, whole(logits))
    U = torch.eye(p, dtype=DOUBLE) if f.basis is None else f.basis
    Gamma = U.T @ f.output @ U
    # ∂logits/∂W from torch.func is left ⊗ right, and Γ is the mean of leftᵀ R left
    J = jacrev(lambda W, x: functional_call(model, {"weight": W}, (x[None],))[0])(
        model.weight.detach(), inputs[0]
    )
    left, right = model.jacobian_factors(inputs)
    assert close(J, torch.einsum("ca,b->cab", left, right[0]))
    pi = logits.detach().softmax(-1)
    R = torch.diag(pi.mean(0)) - pi.T @ pi / 6
    if fisher == "empirical":
        v = pi - nn.functional.one_hot(targets, classes)
        R = v.T @ v / 6
    assert close(Gamma, left.T @ R @ left)
    assert close(f.input, right.T @ right / 6)
    one = bilinear_factors("ggn", model, inputs[:1], logits[:1], targets[:1], whole(logits[:1]))
    U = torch.eye(p, dtype=DOUBLE) if one.basis is None else one.basis
    assert close(torch.kron(U.T @ one.output @ U, one.input), ggn(model, inputs[:1], "weight"))


def test_tokens_are_samples_of_the_input_and_their_output_moments_are_summed():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4, bias=False)

        def forward(self, tokens):
            return self.inner(tokens).sum(1)

    tokens, targets = torch.randn(3, 7, 5, dtype=DOUBLE), torch.tensor([0, 1, 2])
    model = Pooled().double()
    factors, _, logits = statistics(model, tokens, targets, "empirical")
    v = next(cotangents("empirical", logits.detach(), targets, torch.Generator()))
    rows = tokens.reshape(-1, 5)
    assert close(factors["inner.weight"].input, rows.T @ rows / 21)
    assert close(factors["inner.weight"].output, 7 * v.T @ v / 3)


def test_layers_with_one_input_share_its_factor():
    class Projections(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(5, 4, bias=bias) for bias in (False, False, True))

        def forward(self, x):
            return self.q(x) * self.k(x) + self.v(x)

    inputs, targets = draw()
    first, _, _ = statistics(Projections().double(), inputs, targets, "true")
    assert first["q.weight"].input is first["k.weight"].input
    assert first["v.weight"].input.shape == (6, 6)
    shared: dict = {}
    a, b = (LayerCurvature(first[n]).averaged(first[n], 0.5, shared) for n in ("q.weight", "k.weight"))
    assert a.factors.input is b.factors.input


def test_a_module_in_place_after_the_layer_does_not_change_its_factors():
    inputs, targets = draw()
    torch.manual_seed(1)
    safe = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4)).double()
    inplace = nn.Sequential(safe[0], nn.ReLU(inplace=True), safe[2])
    a, b = (statistics(m, inputs, targets, "empirical")[0]["0.weight"] for m in (safe, inplace))
    assert torch.equal(a.output, b.output)
    assert torch.equal(a.input, b.input)


def test_no_hook_stays_behind_even_after_an_error():
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4))
    with pytest.raises(RuntimeError, match="mat1"), capture(model, find_layers(model)):
        model(torch.zeros(2, 6))
    assert all(not m._forward_hooks for m in model.modules())


def test_which_layers_are_found():
    tied = nn.Linear(4, 4)
    model = nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4), tied, tied, nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    )
    model[0].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    found = {layer.name: layer for layer in find_layers(model)}
    assert list(found) == ["2.weight", "4.weight", "5.weight"]
    assert found["4.weight"].bias is None
    other = nn.Linear(4, 4)
    other.weight = model[4].weight  # one weight, two different trainable biases: no common block
    assert [x.name for x in find_layers(nn.Sequential(model[4], other))] == []
    assert [x.weight for x in find_layers(bilinear(3, 4, 5))]


def test_a_layer_that_bypasses_its_forward_falls_to_the_diagonal():
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = attention, nn.Linear(4, 3).double()

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    factors, _, _ = statistics(Model(), torch.randn(2, 5, 4, dtype=DOUBLE), torch.tensor([0, 1]), "true")
    assert list(factors) == ["head.weight"]


def test_running_averages_carry_a_factor_into_a_new_basis():
    torch.manual_seed(0)
    old_basis = torch.linalg.qr(torch.randn(6, 2, dtype=DOUBLE)).Q.T
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=DOUBLE)).Q
    Gamma = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=DOUBLE)
    old = Factors(torch.eye(3, dtype=DOUBLE), Gamma, old_basis)
    new = Factors(torch.eye(3, dtype=DOUBLE), turn @ Gamma @ turn.T, turn @ old_basis)
    after = LayerCurvature(old).averaged(new, 0.3, {}).factors
    assert close(after.basis.T @ after.output @ after.basis, old_basis.T @ Gamma @ old_basis)


def test_half_precision_statistics_are_float32():
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        factors, _, logits = statistics(model, torch.randn(6, 5), torch.zeros(6, dtype=torch.long), "true")
    assert logits.dtype == torch.bfloat16
    assert all(f.input.dtype == f.output.dtype == torch.float32 for f in factors.values())
