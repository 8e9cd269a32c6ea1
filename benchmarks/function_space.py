"""How dear is a whole fit in function space, in AdamW fits of the same adapter? Hyper-parameters, MAP and log evidence included.

    python -m benchmarks.function_space [--classes 10 100 1000] [--shots 16] [--repeats 5] [--threads 1] [--device cpu]

For each number of classes: cached synthetic features of width 512 with a fair zero-shot model; AdamW (fused, batches of 32, 20
epochs, one learning rate of the five searched) and the filter take turns, and the ratio of the medians of their times (clock.py)
is printed, once with the search of five rates not counted and once counted. One pass of the recursive filter and, where
laplace-torch is installed, its Kronecker fit of a posterior to a given MAP stand beside it. nll_…: held-out negative
log-likelihoods of the zero-shot model, AdamW at its best learning rate, the filter, and the recursive filter.
"""

import argparse
import math
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.clock import clock_of, peak_mib
from benchmarks.optim_step import Row, show
from clipkal.optim import Kalman, OnlineKalman

# Bounds on the ratio to one AdamW fit, by classes, and on the memory of the process.
BOUNDS, GIB = {10: 0.5, 100: 1.0, 1000: 2.0}, 4.0
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


class Adapter(nn.Module):
    """logits = exp(log_scale) · f (I + W)ᵀ Tᵀ."""

    def __init__(self, text: Tensor, scale: float):
        super().__init__()
        self.register_buffer("text", text)
        self.weight = nn.Parameter(torch.zeros(text.shape[1], text.shape[1]))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.log_scale.exp() * (inputs + inputs @ self.weight.T) @ self.text.T

    def jacobian_factors(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.log_scale.exp() * self.text, inputs


def features(
    classes: int, shots: int, width: int = 512, seed: int = 0
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Text features, and (images, labels) to fit and to test: power-law spectrum, common mean, images between classes."""
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, width + 1).float() ** -0.8
    spectrum *= math.sqrt(width) / spectrum.norm()

    turn = torch.linalg.qr(torch.randn(width, width, generator=g))[0]  # no axis is special

    def unit(n: int) -> Tensor:
        return F.normalize(torch.randn(n, width, generator=g) * spectrum @ turn, dim=-1)

    text = F.normalize(0.5 * F.normalize(torch.randn(1, width, generator=g), dim=-1) + unit(classes), dim=-1)
    means = F.normalize(text - text.mean(0) + 0.3 * unit(classes), dim=-1)
    common = 0.8 * F.normalize(torch.randn(1, width, generator=g), dim=-1)

    def images(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(classes).repeat_interleave(count)
        share = 0.6 * torch.rand(len(labels), 1, generator=g)
        other = means[torch.randint(0, classes, (len(labels),), generator=g)]
        mixed = (1 - share) * means[labels] + share * other
        return F.normalize(common + mixed + 0.8 * unit(len(labels)), dim=-1), labels

    return text, [images(shots), images(max(2, 2000 // classes))]


def adamw(model: Adapter, inputs: Tensor, labels: Tensor, rate: float, epochs: int = 20) -> None:
    optimizer = torch.optim.AdamW([model.weight], lr=rate, weight_decay=0.01, fused=True)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), device=inputs.device).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


def timed(action: Callable[[], object], device: str = "cpu") -> float:
    clock = clock_of(device)
    start = clock()
    action()
    return clock() - start


def measure(classes: int, shots: int, repeats: int, search: bool, device: str = "cpu") -> dict[str, float]:
    text, (train, test) = features(classes, shots)
    text, train, test = text.to(device), *(tuple(x.to(device) for x in part) for part in (train, test))

    def nll(logits: Tensor) -> float:
        return float(F.cross_entropy(logits, test[1]))

    result: dict[str, float] = {"classes": classes, "shots": shots}
    seconds: dict[str, list[float]] = {"adamw": [], "filter": [], "one_pass": []}
    for _ in range(repeats):
        baseline, model, recursive = (Adapter(text, 15.0).to(device) for _ in range(3))
        fits: dict[str, Callable[[], object]] = {
            "adamw": partial(adamw, baseline, *train, rate=1e-3),
            "filter": partial(Kalman(model).step, *train),
            "one_pass": partial(one_pass, recursive, *train),
        }
        for name, fit in fits.items():
            seconds[name].append(timed(fit, device))
    result |= {f"{name}_s": statistics.median(values) for name, values in seconds.items()}
    result["peak_gib"] = peak_mib(device) / 2**10
    laplace = laplace_seconds(text, *train) if device == "cpu" else None
    if laplace is not None:
        result["laplace_s"] = laplace
    with torch.no_grad():
        result["nll_zero_shot"] = nll(Adapter(text, 15.0).to(device)(test[0]))
        result["nll_filter"], result["nll_one_pass"] = nll(model(test[0])), nll(recursive(test[0]))
        result["nll_adamw"] = nll(baseline(test[0]))
    if search:
        result["nll_adamw"] = min(_fitted(text, train, test, rate) for rate in RATES)
    return result


def one_pass(model: Adapter, inputs: Tensor, labels: Tensor) -> None:
    """The recursive filter over the shots in random order, batches of 32."""
    optimizer = OnlineKalman(model)
    for batch in torch.randperm(len(inputs), device=inputs.device).split(32):
        optimizer.step(inputs[batch], labels[batch])


def laplace_seconds(text: Tensor, inputs: Tensor, labels: Tensor) -> float | None:
    """laplace-torch's Kronecker posterior of the adapter at a given mode; None where it is not installed or C > 100."""
    if len(text) > 100:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from laplace import KronLaplace
        except ImportError:
            return None
        net = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Linear(512, len(text), bias=False))
        net[0].weight.data.copy_(torch.eye(512))
        net[1].weight.data.copy_(15.0 * text)
        net[1].requires_grad_(False)
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=32)
        return timed(lambda: KronLaplace(net, "classification").fit(data))


def _fitted(text: Tensor, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], rate: float) -> float:
    model = Adapter(text, 15.0).to(text.device)
    adamw(model, *train, rate=rate)
    with torch.no_grad():
        return float(F.cross_entropy(model(test[0]), test[1]))


def rows(classes: list[int], shots: int = 16, repeats: int = 5, device: str = "cpu") -> Iterator[Row]:
    """Rows of the table; each carries everything that was measured in its case."""
    measure(4, 4, 1, search=False, device=device)  # warming up
    for C in classes:
        found = measure(C, shots, repeats if C <= 100 else 1, search=C <= 100, device=device)
        case, theirs, bound = f"a fit, {shots} shots × {C}", found["adamw_s"], BOUNDS.get(C)
        lines: list[tuple[str, float, float, float | None]] = [
            ("function space", found["filter_s"], theirs, bound),
            ("function space, search counted", found["filter_s"], len(RATES) * theirs, bound and bound / 5),
            ("kalman, one pass", found["one_pass_s"], theirs, None),
        ]
        if "laplace_s" in found:
            lines.append(("laplace-torch, posterior only", found["laplace_s"], theirs, None))
        for name, ours, reference, limit in lines:
            times = {"seconds": ours, "adamw_seconds": reference, "ratio": ours / reference, "bound": limit}
            yield {"case": case, "method": name, **times, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, float] = {}
    for row in rows(options.classes, options.shots, options.repeats, options.device):
        show(row)
        if row["found"] is not found:
            found = row["found"]
            print("    " + "  ".join(f"{key} {found[key]:.3g}" for key in found if key[:3] in ("nll", "pea")))


if __name__ == "__main__":
    main()
