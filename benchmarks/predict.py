"""What predicting costs beside a bare open_clip loop: 1,000 JPEGs from disk to class probabilities, in turns.

python -m benchmarks.predict                 # the embedded backbone; make bench-predict, about two minutes
python -m benchmarks.predict --model ViT-B-32-quickgelu --images 200

The bare loop is what one writes: open, preprocess and stack 128 images, encode, multiply with the class head, softmax.
`run.stream` does the same and adds draws of the posterior (`sampled`) or not (`plugin`). Both have the same threads for the
model; the stream decodes beside it. Times are the least of three turns, of the wall and of the processor (which other work
on the machine does not change); memory is the largest resident size.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import clipkal
from clipkal.app import run as learn
from clipkal.config import compose

BATCH = 128


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 × 375 pixels with structure at several scales, as photographs have."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(count):
        layers = [generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (4, 16, 64)]
        sized = [np.asarray(Image.fromarray(one).resize((500, 375)), dtype=np.float32) for one in layers]
        paths.append(folder / f"{i:05d}.jpg")
        Image.fromarray((0.6 * sized[0] + 0.3 * sized[1] + 0.1 * sized[2]).astype(np.uint8)).save(
            paths[-1], quality=90
        )
    return paths


@torch.no_grad()
def bare(run: clipkal.Run, paths: list[Path]) -> Iterator[torch.Tensor]:
    """The loop that one writes with open_clip."""
    backbone, head = run.backbone, run.adapter.head()
    assert head is not None
    for start in range(0, len(paths), BATCH):
        batch = [
            backbone.preprocess(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]
        ]
        images = torch.stack(batch).to(backbone.device)
        features = backbone.model.encode_image(images, normalize=True).cpu()  # type: ignore[operator]
        yield (run.logit_scale * features @ head.T).softmax(-1)


def main() -> None:
    """Prints seconds and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument(
        "--model", help="an architecture of open_clip with random weights instead of the embedded one"
    )
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words = ["dataset=digits", "fewshot.shots=1", "dataset.ood=[]", "tracking=disabled", "figures=false"]
        words += ["data.progress=false", f"output_dir={folder / 'runs'}", "predictive=sampled"]
        if options.model:
            words += ["backbone=open_clip", f"backbone.model={options.model}", "backbone.pretrained=random"]
        learn(compose(words))
        run = clipkal.load_run(next((folder / "runs").rglob("finished.json")).parent)
        paths = photographs(folder, options.images)
        ways = {
            "bare open_clip loop": lambda: list(bare(run, paths)),
            "run.stream, plugin": lambda: list(run.stream(paths, "plugin")),
            "run.stream, sampled": lambda: list(run.stream(paths, "sampled")),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(options.turns):
            for name, way in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                way()
                seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
        least = {
            name: [min(column) for column in zip(*times, strict=True)] for name, times in seconds.items()
        }
        first = next(iter(least.values()))
        print(
            f"{options.images} JPEGs, {options.model or 'mini'}, {torch.get_num_threads()} threads for the model"
        )
        for name, (wall, processor) in least.items():
            ratios = f"{wall / first[0]:.2f} × wall, {processor / first[1]:.2f} × processor"
            print(f"{name:<22}{wall:7.2f} s wall {processor:7.2f} s processor   {ratios}")
        print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
