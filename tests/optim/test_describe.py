"""What an optimiser says it does is what it does, and a slow way is never taken without a word."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipkal.adapters.linear import LinearAdapter
from clipkal.adapters.lora import build_lora
from clipkal.backbones import load_backbone
from clipkal.config import compose, conf_dir
from clipkal.methods import make_build
from clipkal.optim import Kalman, KalmanFilter

KALMAN = {"optimizer": "OnlineKalman", "observation": "Categorical", "noise": "ModelNoise", "gate": "NoGate"}
SUBSPACE = {**KALMAN, "route": "bilinear", "covariance": "Subspace"}
NATURAL = {"curvature": "bilinear", "fisher": "true", "solver": "cholesky"}
LINEAR = {
    "adagrad": {"optimizer": "Adagrad", "kernel": "plain"},
    "adamw": {"optimizer": "AdamW", "kernel": "fused"},
    "ensemble": {"optimizer": "AdamW", "kernel": "fused", "members": "5"},
    "laplace": {
        "optimizer": "AdamW",
        "kernel": "fused",
        "covariance": "Kronecker-factored, laplace-torch",
    },
    "kalman": {
        "optimizer": "Kalman",
        "route": "bilinear",
        "covariance": "full, in function space",
        "solver": "direct",
        "precision": "float64",
    },
    "kalman_clip": {
        "optimizer": "KalmanCLIP",
        "route": "bilinear",
        "covariance": "Diagonal",
        "observation": "Softmax",
        "noise": "ResidualNoise",
        "gate": "MahalanobisSoft",
    },
    "kalman_online": SUBSPACE,
    "kfac": {"optimizer": "KFAC", **NATURAL},
    "reng": {"optimizer": "RENG", **NATURAL},
    "ring": {"optimizer": "RING", **NATURAL},
    "rkalman": {**SUBSPACE, "optimizer": "RKalman"},
    "sam": {"optimizer": "SAM", "kernel": "plain"},
    "sgd": {"optimizer": "SGD", "kernel": "fused"},
    "sophia": {"optimizer": "SophiaH", "kernel": "plain"},
}
HOOKS = {**KALMAN, "route": "hooks", "covariance": "Diagonal"}
LORA = {
    "adamw": LINEAR["adamw"],
    "kalman_clip": {**LINEAR["kalman_clip"], "route": "hooks"},
    "kalman_online": HOOKS,
    "kfac": {**LINEAR["kfac"], "curvature": "hooks"},
    "loko": {**HOOKS, "optimizer": "LoKO", "observation": "Probs", "noise": "ResidualNoise"},
    "reng": {**LINEAR["reng"], "curvature": "hooks"},
    "ring": {**LINEAR["ring"], "curvature": "hooks"},
    "rkalman": {**HOOKS, "optimizer": "RKalman"},
    "tfb": {"optimizer": "AdamW", "kernel": "fused", "covariance": "isotropic in the columns of B"},
}


def test_every_method_that_trains_has_its_route_held() -> None:
    known = {path.stem for path in (Path(conf_dir()) / "method").glob("*.yaml")}
    assert known == LINEAR.keys() | LORA.keys() | {"zeroshot"}


@pytest.mark.parametrize("method", LINEAR)
def test_the_linear_adapter_takes_the_analytic_route(method: str, caplog: pytest.LogCaptureFixture) -> None:
    if method in ("sam", "sophia"):
        pytest.importorskip("pytorch_optimizer")
    if method == "laplace":
        pytest.importorskip("laplace")
    adapter = LinearAdapter(F.normalize(torch.randn(5, 8), dim=-1), 20.0)
    optimiser = make_build(compose([f"method={method}"]))(adapter, None)
    optimiser.step(F.normalize(torch.randn(10, 8), dim=-1), torch.arange(10) % 5)
    assert optimiser.describe() == LINEAR[method]
    assert not caplog.records


@pytest.fixture(scope="module")
def lora():
    """LoRA in the mini-CLIP, over four made-up classes."""
    backbone = load_backbone(SimpleNamespace(model="mini", name="mini"))
    text = F.normalize(torch.randn(4, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    return lambda: build_lora(backbone, [["a thing"]] * 4, text, rank=2, blocks="last:1")


@pytest.mark.parametrize("method", LORA)
def test_lora_takes_the_route_by_hooks(method: str, lora, caplog: pytest.LogCaptureFixture) -> None:
    optimiser = make_build(compose([f"method={method}", "adapter=lora"]))(lora(), None)
    optimiser.step(torch.randn(2, 3, 64, 64), torch.tensor([1, 3]))
    assert optimiser.describe() == LORA[method]
    assert not caplog.records


class PerClass(nn.Module):
    """Learns in a layer that sees the classes, not the images."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Parameter(torch.randn(4, 6), requires_grad=False)
        self.layer = nn.Linear(6, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.layer(self.text).mT


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 4)), PerClass]
)
def test_the_slow_route_is_warned_of_and_recorded(make, caplog: pytest.LogCaptureFixture) -> None:
    optimiser = KalmanFilter(make())
    optimiser.step(torch.randn(3, 5), torch.tensor([0, 1, 2]))
    optimiser.step(torch.randn(3, 5), torch.tensor([0, 1, 2]))
    assert optimiser.describe()["route"] == "func"
    (said,) = caplog.records
    assert said.levelno == logging.WARNING and said.name == "clipkal"
    assert "taken by torch.func" in said.message and "LoRA" in said.message


def test_a_large_problem_says_that_it_is_solved_by_conjugate_gradients() -> None:
    adapter = LinearAdapter(F.normalize(torch.randn(5, 8), dim=-1), 20.0)
    optimiser = Kalman(adapter, max_direct=10, precision="float32")
    assert optimiser.describe()["solver"] == "auto"
    optimiser.step(torch.randn(10, 8), torch.arange(10) % 5)
    said = optimiser.describe()
    assert (said["solver"], said["precision"]) == ("cg", "float32")
