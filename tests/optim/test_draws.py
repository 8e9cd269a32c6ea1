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
from clipkal.uncertainty import sampled


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


def test_coordinates_drawn_independently_predict_as_exact_draws_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where products are dear no system is solved. At unit temperature the mean probabilities hardly change, and neither does
    which images are uncertain; the mutual information is some too small."""
    model, x, y, test, _ = shots(30, 8)
    f = Kalman(model, precision="float32", solver="cg")
    f.step(x, y)
    generator = torch.Generator().manual_seed(0)
    exact = sampled([f.logit_samples(test, 1000, generator)])
    monkeypatch.setattr(posterior, "DEAR", 0)
    monkeypatch.setattr(posterior, "perturb", None)  # not called
    f._samples = {}
    ours = sampled([f.logit_samples(test, 1000, generator)])
    assert float((ours.probs - exact.probs).abs().amax(1).mean()) < 0.01
    assert 0.6 < float(ours.epistemic.mean() / exact.epistemic.mean()) < 1.1
    assert float(torch.corrcoef(torch.stack((ours.epistemic, exact.epistemic)))[0, 1]) > 0.97
    with pytest.raises(TypeError):  # a tolerance asks for the solves, at any size
        f.logit_samples(test, 4, torch.Generator().manual_seed(1), tolerance=1e-2)
