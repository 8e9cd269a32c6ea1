"""Nothing random depends on the device: what is drawn comes from a generator of the CPU, and what is estimated says how well."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from full_kalman_models import fixed, shots
from kalman_models import batch, bilinear
from test_gpu import CASES
from torch.utils._python_dispatch import TorchDispatchMode

from clipkal.optim import Kalman
from clipkal.optim.full_kalman import posterior
from clipkal.optim.full_kalman.evidence import log_determinant, rademacher
from clipkal.optim.full_kalman.problem import ReducedModel, Sites
from clipkal.optim.model.jacobian import PROBES, sketch


class Draws(TorchDispatchMode):
    """Records the generator of every random operation: one of the CPU can draw nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.generators: list[torch.Generator | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            given = [*args, *(kwargs or {}).values()]
            self.generators.append(next((each for each in given if isinstance(each, torch.Generator)), None))
        return func(*args, **(kwargs or {}))


MORE = {
    "function space, probes": (
        bilinear,
        lambda m: Kalman(m, prior="evidence", solver="cg", posterior_temperature="crossval"),
    )
}


@pytest.mark.parametrize("name", [name for name in {**CASES, **MORE} if name != "sam"])
def test_every_draw_is_from_a_generator_of_the_cpu(name: str) -> None:
    make_model, make = {**CASES, **MORE}[name]
    model = make_model()
    optimiser, first, generator = make(model), batch(), torch.Generator().manual_seed(1)
    with Draws() as seen:
        optimiser.step(*first)
        if optimiser.posterior is not None:
            optimiser.posterior.logit_samples(first[0], 2, generator)
    assert all(each is not None and each.device.type == "cpu" for each in seen.generators)
    assert bool(seen.generators) == (name not in ("adamw", "ring"))


def test_probes_are_the_same_for_any_device() -> None:
    """The meta device stands for one that is not the CPU: what is drawn is known before it is moved there."""
    for make in (
        lambda like: rademacher(3, 7, 5, like),
        lambda like: sketch(like.expand(2, 4, PROBES + 1)),
    ):
        with Draws() as seen:
            assert make(torch.zeros(1, device="meta")).is_meta
        assert [each.device.type for each in seen.generators if each is not None] == ["cpu"]


def perturbed(size: float, precision: str) -> dict[str, float]:
    """What is chosen for features off by rounding of that relative size, as another device's are."""
    torch.manual_seed(0)
    model, (x, y) = bilinear(), batch(B=24)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    info = Kalman(model, precision=precision).step(x * (1 + size * noise), y)
    assert info.log_evidence is not None
    return {"p0": info.metrics["p0"], "evidence": info.log_evidence}


@pytest.mark.parametrize(
    ("precision", "rounding", "tolerance"), [("float64", 1e-15, 1e-9), ("auto", 1e-7, 2e-3)]
)
def test_the_choice_of_the_prior_is_as_exact_as_its_precision(
    precision: str, rounding: float, tolerance: float
) -> None:
    assert perturbed(rounding, precision) == pytest.approx(perturbed(0.0, precision), rel=tolerance)


def test_a_log_determinant_from_probes_bears_other_signs_of_the_coordinates() -> None:
    """Eigenvectors are found up to their signs, which are the device's: the estimate moves by no more than its accuracy."""
    N, C, r, t = 60, 8, 40, 7
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    model = ReducedModel(draw(N, r) / r**0.5, draw(C, t), draw(N, C), torch.zeros(N, dtype=torch.long), 2.0)
    sites, probes = Sites.at(model.offset), rademacher(8, model.size, 0, model.offset)
    exact = float(torch.logdet(model.hessian_matrix(sites)))
    for _ in range(4):
        assert log_determinant(model, sites, probes) == pytest.approx(exact, rel=0.03)
        signs = draw(r).sign(), draw(t).sign()
        model = replace(model, features=model.features * signs[0], classes=model.classes * signs[1])


@pytest.mark.parametrize("n", [6, 7])
def test_draws_come_in_mirrored_pairs_around_the_map(n: int) -> None:
    model, x, y, test, _ = shots(5, 4)
    f = fixed(model)
    f.step(x, y)
    deviations = f.logit_samples(test, n, torch.Generator().manual_seed(0)) - model(test).detach()
    assert len(deviations) == n
    torch.testing.assert_close(deviations[0:6:2], -deviations[1:6:2], rtol=1e-3, atol=1e-4)
    assert deviations[0].std() > 0.1 and not torch.allclose(deviations[0], deviations[2])


def test_coordinates_drawn_independently_have_nearly_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many unknowns one system is solved in all. Its variances: to some percent those of the closed form, image by image."""
    monkeypatch.setattr(posterior, "MANY", 0)
    model, x, y, test, _ = shots(40, 8)
    f = fixed(model, p0=3.0, precision="float32", solver="cg")
    f.step(x, y)
    test = test[::20]
    draws = f.logit_samples(test, 2000, torch.Generator().manual_seed(0)).double()
    exact = f.logit_covariance(test).double()
    draws, centring = draws - draws.mean(-1, keepdim=True), torch.eye(40, dtype=torch.float64) - 1 / 40
    ours, theirs = draws.var(0).sum(-1), (centring @ exact @ centring).diagonal(dim1=1, dim2=2).sum(-1)
    assert float(ours.sum() / theirs.sum()) == pytest.approx(1, abs=0.15)
    assert float((ours / theirs).std()) < 0.1
    few = f.logit_samples(test, 100, torch.Generator().manual_seed(0), tolerance=1e-6)
    assert not torch.allclose(few.double(), draws[:100])  # to ask for a tolerance is to ask for the solves


def test_one_system_is_solved_however_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "MANY", 0)
    solved: list[int] = []
    solve = posterior.solve

    def counted(model: Any, sites: Any, rhs: torch.Tensor, *rest: Any) -> Any:
        solved.append(len(rhs))
        return solve(model, sites, rhs, *rest)

    monkeypatch.setattr(posterior, "solve", counted)
    model, x, y, test, _ = shots(6, 4)
    f = fixed(model, precision="float32", solver="cg")
    f.step(x, y)
    for seed in range(3):
        f.logit_samples(test, 64, torch.Generator().manual_seed(seed))
    assert solved == [1]
