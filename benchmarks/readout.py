"""How dear is a prediction with its uncertainty, in plain inferences? All of the read-out: the model, the draws, their averages.

    python -m benchmarks.readout [--classes 10 100 1000] [--images 512] [--draws 100] [--repeats 5] [--threads 1]
    python -m benchmarks.readout --full --threads 2      # 1000 classes × 50,000 images: seconds, peak memory

From images: the embedded mini-CLIP on scikit-learn's digits, after a fit to 4 shots. From cached features: synthetic ones of
width 512, after a fit to 16 shots (function_space.py). Plain inference is logits and their softmax by the same model; it and the
read-outs take turns, and the ratio is that of the medians of their times (clock.py). What is done once, however many images
follow, is not in the ratio but stands beside it (`once`): drawing the functions, or reading the kept shots.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.clock import clock_of, peak_mib
from benchmarks.function_space import Adapter, features
from clipkal.adapters import LinearAdapter
from clipkal.optim import Kalman, LoKO, OnlineKalman
from clipkal.optim.posterior import Posterior
from clipkal.uncertainty import Novelty, Prediction, Reader, plugin, sampled

BOUNDS = {"images": 1.3, "features": 3.0}
BLOCK = 16
"""Draws at a time; a generator's seed stands for a block, as in a run."""
Model = Callable[[Tensor], Tensor]
Row = tuple[str, str, float, float, float]


@torch.no_grad()
def plain(model: Model, inputs: Tensor) -> Prediction:
    return plugin(model(inputs))


@torch.no_grad()
def read(posterior: Posterior, inputs: Tensor, draws: int, before: Model | None = None) -> Prediction:
    """The predictive of one batch, by blocks of draws; `before` makes features of images."""
    seen = inputs if before is None else before(inputs)
    size = BLOCK if posterior.joint_over_images() else draws
    starts = range(0, draws, size)
    generators = (torch.Generator().manual_seed(start) for start in starts)
    counts = (min(size, draws - start) for start in starts)
    return sampled(posterior.logit_samples(seen, n, g) for n, g in zip(counts, generators, strict=True))


def mixed(predictive: Novelty, model: LinearAdapter, inputs: Tensor) -> Prediction:
    """The mixture of one batch: logits, zero-shot's logits, and the distance to the nearest shot."""
    return predictive.predict(Reader(model).whole(inputs, len(inputs), predictive.needs, "test"))


def interleaved(actions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Of each: the median of the seconds, and how many more the first took."""
    clock, times = clock_of("cpu"), {name: [] for name in actions}  # type: dict[str, list[float]]
    for _ in range(repeats + 1):
        for name, action in actions.items():
            start = clock()
            action()
            times[name].append(clock() - start)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    return {name: (medians[name], max(0.0, times[name][0] - medians[name])) for name in actions}


def from_features(classes: int, images: int, draws: int, repeats: int) -> Iterator[Row]:
    text, (train, test) = features(classes, 16)
    inputs = test[0][torch.arange(images) % len(test[0])]
    models = {"kalman": Adapter(text, 15.0), "kalman_online": Adapter(text, 15.0)}
    kalman, online = Kalman(models["kalman"]), OnlineKalman(models["kalman_online"])
    kalman.step(*train)
    for rows in torch.randperm(len(train[0])).split(32):
        online.step(train[0][rows], train[1][rows])
    linear, mixture = LinearAdapter(text, 15.0), Novelty()
    mixture.fit(Reader(linear), SimpleNamespace(inputs=train[0], labels=train[1]), None)  # type: ignore[arg-type]
    actions = {
        "plug-in": partial(plain, models["kalman"], inputs),
        "novelty": partial(mixed, mixture, linear, inputs),
    } | {
        name: partial(read, posterior, inputs, draws)
        for name, posterior in {"kalman": kalman, "kalman_online": online}.items()
    }
    yield from _rows(f"features, {classes} classes", interleaved(actions, repeats), images)


def from_images(images: int, draws: int, repeats: int) -> Iterator[Row]:
    from clipkal.adapters.lora import build_lora
    from clipkal.backbones import load_backbone, text_features
    from clipkal.data.digits import NAMES, scans

    backbone = load_backbone(SimpleNamespace(model="mini", name="mini"))  # type: ignore[arg-type]
    assert backbone is not None
    prompts = [[f"a photo of the digit {name}"] for name in NAMES]
    text = text_features(backbone, prompts, cache_dir="off", progress=False)
    ink, found = scans()
    labels = torch.as_tensor(found)
    pixels = (((245 - 220 * torch.as_tensor(ink)) / 255 - 0.5) / 0.28).float()[:, None].expand(-1, 3, -1, -1)
    shots = torch.cat([(labels == digit).nonzero()[:4, 0] for digit in range(10)])
    shots = shots[torch.randperm(len(shots), generator=torch.Generator().manual_seed(0))]
    inputs = pixels[-images:].contiguous()

    def tower(x: Tensor) -> Tensor:
        return F.normalize(backbone.model.encode_image(x), dim=-1)

    with torch.no_grad():
        seen = tower(pixels[shots])
    linear = {name: LinearAdapter(text, backbone.logit_scale) for name in ("kalman", "kalman_online")}
    kalman, online = Kalman(linear["kalman"]), OnlineKalman(linear["kalman_online"])
    kalman.step(seen, labels[shots])
    online.step(seen, labels[shots])
    lora = build_lora(backbone, prompts, text)
    loko, exact = (LoKO(lora, priors=lora.prior_variances(), readout=how) for how in ("shots", "exact"))  # type: ignore[arg-type]
    for optimiser in (loko, exact):
        for row in shots.split(1):
            optimiser.step(pixels[row], labels[row])
    lora.eval()
    frozen = interleaved(
        {
            "plug-in": lambda: plain(lambda x: linear["kalman"](tower(x)), inputs),
            "kalman": partial(read, kalman, inputs, draws, tower),
            "kalman_online": partial(read, online, inputs, draws, tower),
        },
        repeats,
    )
    yield from _rows("images, linear adapter", frozen, images)
    adapted = interleaved(
        {
            "plug-in": partial(plain, lora, inputs),
            "loko": partial(read, loko, inputs, draws),
            "loko, exact": partial(read, exact, inputs, draws),
        },
        repeats,
    )
    yield from _rows("images, LoRA", adapted, images)


def _rows(case: str, times: dict[str, tuple[float, float]], images: int) -> Iterator[Row]:
    for name, (seconds, once) in times.items():
        yield case, name, 1e3 * seconds / images, seconds / times["plug-in"][0], once


def full(draws: int, classes: int = 1000, images: int = 50_000, batch: int = 1024) -> None:
    """The whole set in batches, each prediction kept as a run keeps it (probabilities in float64)."""
    text, (train, test) = features(classes, 16)
    kalman = Kalman(Adapter(text, 15.0))
    start = time.perf_counter()
    kalman.step(*train)
    print(f"fit of {len(train[0])} shots: {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    read(kalman, test[0][:1], draws)
    print(f"{draws} functions drawn: {time.perf_counter() - start:.1f} s", flush=True)
    inputs = test[0][torch.arange(images) % len(test[0])]
    probs, before = torch.empty(images, classes, dtype=torch.float64), 0.0
    start, work = time.perf_counter(), time.process_time()
    for rows in torch.arange(images).split(batch):
        probs[rows] = read(kalman, inputs[rows], draws).probs
        before = before or peak_mib("cpu")
    seconds, work = time.perf_counter() - start, time.process_time() - work
    print(
        f"{images} images: {seconds:.1f} s (bound 120), {work:.1f} s of processor time; peak memory {peak_mib('cpu'):.0f} MiB,"
    )
    print(f"of which {probs.nbytes / 2**20:.0f} are the results, {before:.0f} MiB after the first batch")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="1000 classes × 50,000 images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.full:
        full(options.draws)
        return
    parts = [from_images(options.images, options.draws, options.repeats)]
    parts += [from_features(C, options.images, options.draws, options.repeats) for C in options.classes]
    for part in parts:
        for case, name, each, ratio, once in part:
            bound = "" if name in ("plug-in", "loko, exact") else f" (bound {BOUNDS[case.split(',')[0]]})"
            print(
                f"{case:24} {name:14} {each:9.3f} ms an image   {ratio:7.2f} × plain{bound}   once {once:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
