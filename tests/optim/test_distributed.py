"""Two gloo processes that hold half of each batch against one process that holds it all; float64, rtol 1e-9."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from kalman_models import bilinear, theta
from torch import Tensor, nn

from clipkal.optim import (
    KFAC,
    RENG,
    RING,
    SAM,
    SGD,
    AdamW,
    Kalman,
    KalmanCLIP,
    KalmanFilter,
    LoKO,
    OnlineKalman,
    RKalman,
    Sophia,
)
from clipkal.optim.natural_gradient.fisher import Fisher
from clipkal.optim.parallel.shards import Shards, anywhere, world_size

WORLD = 2
Make = Callable[[nn.Module], Any]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4)).double()


def scaled() -> nn.Module:
    return bilinear(train_scale=True)


class Tokens(nn.Module):
    """Three tokens an image through a linear layer used twice, a norm (outside every layer) and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(2, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 4, bias=False)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs.view(len(inputs), 3, 2))
        for _ in range(2):
            tokens = tokens + self.mix(tokens).tanh()
        return self.head(self.norm(tokens).mean(1))


class Prompted(nn.Module):
    """Two towers, a layer each: one sees images, the other class prompts, which all images share."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prompts", torch.linspace(-2, 2, 4 * 2 * 5).sin().view(4, 2, 5))
        self.vision, self.language = nn.Linear(6, 3), nn.Linear(5, 3)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return 3 * self.vision(inputs).tanh() @ self.language(self.prompts).tanh().mean(1).mT


CASES: dict[str, tuple[Callable[[], nn.Module], Make]] = {
    "diagonal": (bilinear, KalmanFilter),
    "subspace": (bilinear, lambda m: KalmanFilter(m, covariance="subspace", block=3)),
    "dense": (bilinear, lambda m: KalmanFilter(m, covariance="dense", block=3)),
    "one image at a time": (bilinear, LoKO),
    "gates, EMA noise": (bilinear, lambda m: KalmanCLIP(m, block=3)),
    "rho, fading": (bilinear, lambda m: RKalman(m, rho_as="relative", fading=0.9, process_noise=1e-3)),
    "net, diagonal": (net, lambda m: KalmanFilter(m, block=3)),
    "net, lowrank": (net, lambda m: KalmanFilter(m, covariance="lowrank", rho=0.01)),
    "net, scalar observation": (net, lambda m: KalmanFilter(m, "softmax", "residual", gate="imq")),
    "net, one image at a time": (net, lambda m: OnlineKalman(m, block=1)),
    "function space": (bilinear, lambda m: Kalman(m, precision="float64")),
    "adamw": (net, lambda m: AdamW(m, lr=0.01)),
    "sam": (net, lambda m: SAM(m, lr=0.01)),
    "kfac, bilinear": (bilinear, lambda m: KFAC(m, lr=1.0)),
    "kfac, bilinear, empirical": (bilinear, lambda m: KFAC(m, fisher="empirical")),
    "kfac, bilinear and a scale": (scaled, KFAC),
    "kfac, net": (net, lambda m: KFAC(m, momentum=0.9, weight_decay=0.01)),
    "kfac, net, newton": (net, lambda m: KFAC(m, solver="newton")),
    "ring": (scaled, lambda m: RING(m, rho_warmup=1)),
    "ring, eigen": (net, lambda m: RING(m, rho_warmup=1, solver="eigen", update_interval=1)),
    "reng, bilinear": (scaled, lambda m: RENG(m, rho_warmup=1)),
    "reng, net": (net, lambda m: RENG(m, rho_warmup=1)),
    "reng, tokens": (Tokens, lambda m: RENG(m, rho_warmup=1)),
    **{
        f"kfac, {model.__name__}, {fisher}": (model, partial(KFAC, fisher=fisher))
        for model in (net, Tokens, Prompted)
        for fisher in get_args(Fisher)
    },
}


def batches() -> list[tuple[Tensor, Tensor]]:
    """Three batches of 8, 7 and 8 images: the processes need not have equally many."""
    generator = torch.Generator().manual_seed(3)
    sizes = (8, 7, 8)
    return [
        (torch.randn(b, 6, generator=generator).double(), torch.randint(4, (b,), generator=generator))
        for b in sizes
    ]


def fitted(name: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """What is left after three steps on this process's shard, in the order of `DistributedSampler`."""
    # Other processes start elsewhere: the first one's start counts
    torch.manual_seed(rank if world > 1 else 0)
    make_model, make = CASES[name]
    model = make_model()
    if isinstance(getattr(model, "text", None), Tensor):
        model.text.copy_(torch.linspace(-1, 1, 20).double().sin().view(4, 5) * 3)
    optimiser = make(model)
    infos = [optimiser.step(x[rank::world], y[rank::world]) for x, y in batches()]
    result = {"theta": theta(model), "loss": torch.tensor([i.loss for i in infos])}
    if infos[0].log_evidence is not None:
        result["evidence"] = torch.tensor([i.log_evidence for i in infos])
    if isinstance(optimiser, KalmanFilter):
        result |= optimiser.noise.state_dict()
        result["covariance"] = optimiser.logit_covariance(batches()[0][0])  # each process's own inputs
    if isinstance(optimiser, KFAC):
        result |= {
            name: torch.tensor([i.metrics[name] for i in infos], dtype=torch.float64)
            for name in infos[0].metrics
        }
        result["generator"] = optimiser.extra_state()["generator"]
    return result


def _worker(rank: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    results: dict[str, Any] = {name: fitted(name, rank, WORLD) for name in CASES}
    results["refused"] = _refusals(rank)
    mean, images = torch.tensor([1.0, 4.0]) + rank, 3 - 2 * rank
    results["mean"] = Shards.of(images, mean.device).mean(mean)
    torch.save(results, f"{out}.{rank}")
    dist.destroy_process_group()


def _refusals(rank: int) -> list[bool]:
    """Every process refuses what one refuses, and goes on with the next batch."""
    refused = []
    x, y = batches()[0]
    for make, fault in (
        (KalmanFilter, torch.nan),
        (SGD, torch.nan),
        (KFAC, torch.nan),
        (KFAC, 1e200),  # a finite loss, but a factor that is not
    ):
        optimiser = make(bilinear())
        bad = x.clone()
        bad[1] = fault  # in the share of process 1
        try:
            optimiser.step(bad[rank::WORLD], y[rank::WORLD])
        except FloatingPointError:
            refused.append(True)
        optimiser.step(x[rank::WORLD], y[rank::WORLD])
    for make in (KalmanFilter, KFAC):
        try:
            make(bilinear()).step(x[: 1 - rank], y[: 1 - rank])
        except ValueError:
            refused.append(True)
    try:
        Sophia(net(), lr=0.1)
    except Exception as error:
        refused.append("one process" in str(error))
    return refused


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    folder: Path = tmp_path_factory.mktemp("distributed")
    mp.spawn(_worker, args=(str(folder / "store"), str(folder / "out")), nprocs=WORLD)
    return [torch.load(folder / f"out.{rank}") for rank in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_step_of_one(name: str, two: list[dict[str, Any]]) -> None:
    alone = fitted(name)
    for rank in range(WORLD):
        found = two[rank][name]
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-9, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}"
            )


@pytest.mark.parametrize("name", CASES)
def test_the_copies_stay_bit_identical(name: str, two: list[dict[str, Any]]) -> None:
    assert torch.equal(two[0][name]["theta"], two[1][name]["theta"])


def test_what_one_process_refuses_all_refuse(two: list[dict[str, Any]]) -> None:
    assert [found["refused"] for found in two] == [[True] * 7] * 2


def test_the_mean_is_weighted_by_the_images_of_each_process(two: list[dict[str, Any]]) -> None:
    for found in two:  # 3 images at [1, 4], 1 at [2, 5]
        torch.testing.assert_close(found["mean"], torch.tensor([1.25, 4.25]))


def test_one_process_by_itself_is_left_alone() -> None:
    mean = torch.ones(2)
    assert world_size() == 1
    assert Shards.of(5, mean.device).mean(mean) is mean
    assert anywhere(True, torch.device("cpu"))
    assert not anywhere(False, torch.device("cpu"))
