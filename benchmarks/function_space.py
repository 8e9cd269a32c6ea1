"""How dear is a whole fit in function space, in AdamW fits of the same adapter? Hyper-parameters, MAP and log evidence included.

    python -m benchmarks.function_space [--classes 10 100 1000] [--shots 16] [--repeats 5] [--threads 1] [--json FILE]

For each number of classes: cached synthetic features of width 512 with a fair zero-shot model; AdamW (fused, batches of 32, 20
epochs, one learning rate of the five searched; the search is not counted) and the filter take turns, and the ratio of the
medians of their process times is printed (CPU seconds: on a shared machine the wall clock measures the neighbours). The last
columns are the cost of 100 draws, and the held-out negative log-likelihoods of the zero-shot model, AdamW at its best learning
rate, the filter, and the filter's draws.
"""

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.function_space import FunctionSpaceFilter

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
        for batch in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


def timed(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(classes: int, shots: int, repeats: int, search: bool) -> dict[str, float]:
    text, (train, test) = features(classes, shots)

    def nll(logits: Tensor) -> float:
        return float(F.cross_entropy(logits, test[1]))

    result: dict[str, float] = {"classes": classes, "shots": shots}
    ours, theirs = [], []
    for _ in range(repeats):
        baseline, model = Adapter(text, 15.0), Adapter(text, 15.0)
        theirs.append(timed(lambda m=baseline: adamw(m, *train, rate=1e-3)))  # type: ignore[misc]
        optimizer = FunctionSpaceFilter(model)
        ours.append(timed(lambda o=optimizer: o.step(*train)))  # type: ignore[misc]
    result["adamw_s"], result["filter_s"] = statistics.median(theirs), statistics.median(ours)
    result["ratio"] = result["filter_s"] / result["adamw_s"]
    result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    generator = torch.Generator().manual_seed(0)
    result["draws_s"] = timed(lambda: optimizer.draw(100, generator)) if classes <= 100 else math.nan
    with torch.no_grad():
        result["nll_zero_shot"], result["nll_filter"] = nll(Adapter(text, 15.0)(test[0])), nll(model(test[0]))
        result["nll_adamw"] = nll(baseline(test[0]))
    if search:
        result["nll_adamw"] = min(_fitted(text, train, test, rate) for rate in RATES)
    return result


def _fitted(text: Tensor, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], rate: float) -> float:
    model = Adapter(text, 15.0)
    adamw(model, *train, rate=rate)
    with torch.no_grad():
        return float(F.cross_entropy(model(test[0]), test[1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure(4, 4, 1, search=False)
    rows = []
    for classes in options.classes:
        repeats = options.repeats if classes <= 100 else 1
        rows.append(measure(classes, options.shots, repeats, search=classes <= 100))
        print("  ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
