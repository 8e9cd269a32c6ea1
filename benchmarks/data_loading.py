"""Times clipkal's image loading against torchvision's, interleaved; prints tables, writes JSON.

    python -m benchmarks.data_loading [--out results.json] [--images 128] [--repeats 11] [--index 1281167]

*Decoding*: JPEG files to preprocessed tensors of CLIP's size, with torchvision's `ImageFolder` + `DataLoader`
and with clipkal's threads, the same files, transform, batch size and number of workers. The two take turns,
so that other load falls on both; a ratio is one of medians, and below 1 clipkal is the faster. Torch has one
thread, which is what `workers=0` stands for.

*Overlap*: the same with a model on a device of its own that takes as long as decoding; 1 is perfect (the model
waits for nothing but the first images), 2 is one after the other.

*Index*: a folder of so many image files, from nothing to 16 drawn shots a class; a thousand links to one folder.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from clipkal.backbones.features import _batches
from clipkal.config import compose
from clipkal.data import ImageSet, draw_task, load_dataset
from clipkal.data.images import FileDecoder

ARCHIVE = Path(__file__).resolve().parents[2] / "shared" / "data" / "caltech101_96.npz"
BATCH = 32


def photographs(folder: Path, n: int, size: tuple[int, int] = (500, 375)) -> None:
    """`n` JPEGs with the spectrum of photographs and about the bytes of ImageNet's (110 kB), in ten classes."""
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = np.full((size[1], size[0], 3), 128.0)
        for octave in range(7):
            small = rng.normal(0, 30 / 1.3**octave, (2 + 2**octave, 3 + 2**octave, 3))
            layers = [
                Image.fromarray(small[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
                for c in range(3)
            ]
            pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1)
        pixels += rng.normal(0, 12, pixels.shape)
        path = folder / f"class{i % 10}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def thumbnails(folder: Path, n: int) -> None:
    """The first `n` JPEGs of an archive, as files in one class."""
    with np.load(ARCHIVE) as arrays:
        blob, offset = arrays["blob"], arrays["offset"]
    (folder / "any").mkdir()
    for i in range(min(n, len(offset) - 1)):
        (folder / "any" / f"{i:05d}.jpg").write_bytes(blob[offset[i] : offset[i + 1]].tobytes())


def theirs(folder: Path, transform: Any, workers: int) -> Iterator[torch.Tensor]:
    loader = DataLoader(ImageFolder(str(folder), transform), batch_size=BATCH, num_workers=workers)
    return (images for images, _ in loader)


def ours(folder: Path, transform: Any, workers: int) -> Iterator[torch.Tensor]:
    found = [str(path.relative_to(folder)) for path in sorted(folder.glob("*/*"))]
    labels = torch.zeros(len(found), dtype=torch.int64)
    images = ImageSet("bench", found, labels, FileDecoder(folder, found), "bench")
    backbone: Any = SimpleNamespace(batch_size=BATCH, preprocess=transform)
    return (batch for batch, _ in _batches(backbone, images, workers) if batch is not None)


def seconds(batches: Callable[[], Iterator[torch.Tensor]], busy: float = 0.0) -> float:
    """Wall time to take every batch, with `busy` seconds of a device's work on each."""
    gc.collect()
    start = time.perf_counter()
    for _ in batches():
        time.sleep(busy)
    return time.perf_counter() - start


def decoding(name: str, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Times both for 0, 1 and 2 workers, and checks that they give the same pixels."""
    from open_clip.transform import image_transform

    transform = image_transform(224, is_train=False)
    n = len(list(folder.glob("*/*")))
    assert torch.equal(
        torch.cat(list(ours(folder, transform, 0))), torch.cat(list(theirs(folder, transform, 0)))
    )
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(repeats):
        for workers in (0, 1, 2):
            for who, load in (("torchvision", theirs), ("clipkal", ours)):
                taken = seconds(lambda load=load, workers=workers: load(folder, transform, workers))
                times.setdefault((who, workers), []).append(taken)
    rows = []
    for workers in (0, 1, 2):
        their, own = (statistics.median(times[who, workers]) for who in ("torchvision", "clipkal"))
        busy = times["clipkal", workers]
        both = statistics.median(
            seconds(lambda workers=workers: ours(folder, transform, workers), own * BATCH / n)
            for _ in busy[:3]
        )
        row = {"set": name, "images": n, "workers": workers, "torchvision_s": their, "clipkal_s": own}
        rows.append(row | {"ratio": own / their, "overlap": both / own})
        print(
            f"{name:24} {workers:7} {n / their:12.0f} {n / own:12.0f} {own / their:8.2f} {both / own:8.2f}",
            flush=True,
        )
    return rows


def index(n: int) -> dict[str, float]:
    """Seconds to list, sign and draw from a folder set of `n` images."""
    classes = 1000
    with tempfile.TemporaryDirectory() as home:
        store, root = Path(home) / "store", Path(home) / "set"
        store.mkdir()
        root.mkdir()
        for i in range(n // classes):
            (store / f"{i:05d}.jpg").touch()
        for i in range(classes):
            (root / f"n{i:04d}").symlink_to(store)
        start = time.perf_counter()
        cfg = compose(["dataset=folder", f"dataset.path={root}", "dataset.name=index"])
        dataset = load_dataset(cfg.dataset, cfg.data.root)
        loaded = time.perf_counter()
        draw_task(dataset, 16, 1, "fewshot")
        drawn = time.perf_counter()
    found = sum(len(one) for one in dataset.sets().values())
    print(
        f"index of {found:,} images: listed in {loaded - start:.1f} s, 16 shots a class drawn in {drawn - loaded:.1f} s"
    )
    return {"images": found, "load_s": loaded - start, "draw_s": drawn - loaded}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/data_loading.json"))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--index", type=int, default=1_281_000, help="images of the index; 0 leaves it out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    record |= {"repeats": args.repeats, "batch": BATCH, "decoding": []}
    print(
        f"{'set':24} {'workers':>7} {'torchvision':>12} {'clipkal':>12} {'ratio':>8} {'overlap':>8}   (images/s)"
    )
    makers = {"500 x 375": photographs} | ({"caltech101_96": thumbnails} if ARCHIVE.exists() else {})
    for name, make in makers.items():
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), args.images if make is photographs else 4 * args.images)
            record["decoding"] += decoding(name, Path(folder), args.repeats)
    if args.index:
        record["index"] = index(args.index)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
