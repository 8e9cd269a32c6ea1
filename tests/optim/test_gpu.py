"""Every optimiser on a CUDA device takes the steps that it takes on the CPU (float64), what they know of the logits included.

SophiaH is left out: its random signs are the device's own.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kalman_models import batch, bilinear, theta
from torch import nn

from clipkal.optim import (
    KFAC,
    RENG,
    RING,
    SAM,
    AdamW,
    Kalman,
    KalmanCLIP,
    KalmanFilter,
    LoKO,
    OnlineKalman,
)

pytestmark = pytest.mark.gpu


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any]]] = {
    "kalman": (bilinear, OnlineKalman),
    "one image at a time": (bilinear, LoKO),
    "gate": (bilinear, KalmanCLIP),
    **{
        name: (bilinear, lambda m, name=name: KalmanFilter(m, covariance=name))
        for name in ("diagonal", "lowrank", "dense")
    },
    "net": (net, lambda m: KalmanFilter(m, covariance="lowrank", rho=0.01, fading=0.9, process_noise=1e-3)),
    "function space": (bilinear, lambda m: Kalman(m, precision="float64")),
    "kfac": (net, KFAC),
    "kfac, newton": (net, lambda m: KFAC(m, solver="newton")),
    "ring": (bilinear, lambda m: RING(m, rho_warmup=0)),
    "reng": (net, lambda m: RENG(m, rho_warmup=0)),
    "adamw": (net, AdamW),
    "sam": (net, lambda m: SAM(m, lr=0.01)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_takes_the_steps_of_the_cpu(name: str) -> None:
    if name == "sam":
        pytest.importorskip("pytorch_optimizer")
    make_model, make = CASES[name]
    there, here = make_model().cuda(), make_model()
    here.load_state_dict({key: value.cpu() for key, value in there.state_dict().items()})
    optimisers = make(there), make(here)
    for _ in range(3):
        x, y = batch()
        infos = optimisers[0].step(x.cuda(), y.cuda()), optimisers[1].step(x, y)
        assert infos[0].loss == pytest.approx(infos[1].loss, rel=1e-8)
        if infos[1].log_evidence is not None:
            assert infos[0].log_evidence == pytest.approx(infos[1].log_evidence, rel=1e-6)
    torch.testing.assert_close(theta(there).cpu(), theta(here), rtol=1e-6, atol=1e-8)
    if optimisers[0].posterior is not None:
        new = batch(B=3)[0]
        covariances = optimisers[0].logit_covariance(new.cuda()).cpu(), optimisers[1].logit_covariance(new)
        torch.testing.assert_close(*covariances, rtol=1e-6, atol=1e-8)
        draws = optimisers[0].logit_samples(new.cuda(), 5, torch.Generator().manual_seed(1))
        assert draws.is_cuda and draws.isfinite().all() and draws.std(0).min() > 0
