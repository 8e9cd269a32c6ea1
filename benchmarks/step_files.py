"""What a reader has to open: the files that one training step of each method executes, and what docstrings say.

    python benchmarks/step_files.py [--files]

The step is the second one (the first also sets up a filter), of the linear adapter, and of LoRA for LoKO; four images. Counted
are files of clipkal with a function that is called, and all lines of these files; optim/: without those of the adapter. With
--files their names too. Also the public classes, functions and methods of clipkal by what their docstrings have, and the
`type: ignore` comments. Works on older versions of clipkal: put their folder first on PYTHONPATH.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import clipkal
from clipkal import optim
from clipkal.adapters import LinearAdapter

PACKAGE = Path(clipkal.__file__).parent
IMAGES, CLASSES, WIDTH = 4, 6, 32
METHODS: dict[str, Callable[[Any], Any]] = {
    "loko": lambda model: optim.LoKO(model, priors=model.prior_variances()),
    "kalman_clip": lambda model: optim.KalmanCLIP(model),
    "rkalman": lambda model: optim.RKalman(model),
    "kalman_online": lambda model: first_of("OnlineKalman", "Kalman")(model),
    "kalman": lambda model: first_of("FunctionSpaceFilter", "Kalman")(model),
    "kfac": lambda model: optim.KFAC(model, lr=1e-3),
    "ring": lambda model: optim.RING(model, lr=1e-3),
    "reng": lambda model: optim.RENG(model, lr=1e-3),
    "adamw": lambda model: optim.FirstOrder(model, torch.optim.AdamW(model.parameters(), lr=1e-3)),
}


def first_of(*names: str) -> Any:
    """The class of clipkal.optim by the first of its names that exists; clipkal 0.1 had other ones."""
    return next(getattr(optim, name) for name in names if hasattr(optim, name))


def linear() -> tuple[nn.Module, torch.Tensor]:
    """A linear adapter and a batch of features."""
    unit = lambda *shape: F.normalize(torch.randn(*shape), dim=-1)
    return LinearAdapter(unit(CLASSES, WIDTH), 100.0), unit(IMAGES, WIDTH)


def lora() -> tuple[nn.Module, torch.Tensor]:
    """LoRA on the embedded CLIP and a batch of images."""
    from clipkal.adapters.lora import LoRAAdapter, LoRASettings
    from clipkal.backbones import load_backbone
    from clipkal.config import compose

    backbone = load_backbone(compose(["backbone=mini"]).backbone, "cpu")
    assert backbone is not None
    side = 64
    text = F.normalize(torch.randn(CLASSES, backbone.embed_dim))
    return LoRAAdapter(backbone.model, text, 100.0, LoRASettings(rank=2)), torch.randn(IMAGES, 3, side, side)


def files_of_a_step(method: str) -> set[Path]:
    """The files of clipkal with a function that the second step calls."""
    torch.manual_seed(0)
    model, inputs = lora() if method == "loko" else linear()
    labels, optimiser = torch.arange(IMAGES) % CLASSES, METHODS[method](model)
    optimiser.step(inputs, labels)
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        optimiser.step(inputs, labels)
    finally:
        sys.setprofile(None)
    return {path for path in map(Path, seen) if path.is_relative_to(PACKAGE)}


def docstrings() -> Iterator[str]:
    """The docstring of every public class, function and method, empty where there is none."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in [*tree.body, *(one for c in tree.body if isinstance(c, ast.ClassDef) for one in c.body)]:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                yield ast.get_docstring(node) or ""


def lines_of(paths: set[Path]) -> int:
    """All lines of these files."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", action="store_true", help="list the files too")
    options = parser.parse_args()
    print(f"{'method':15} {'files':>5} {'lines':>6}   {'optim/':>6} {'lines':>6}")
    for method in METHODS:
        found = files_of_a_step(method)
        own = {path for path in found if path.is_relative_to(PACKAGE / "optim")}
        print(f"{method:15} {len(found):5} {lines_of(found):6}   {len(own):6} {lines_of(own):6}")
        if options.files:
            print("".join(f"    {path.relative_to(PACKAGE)}\n" for path in sorted(found)), end="")
    texts = list(docstrings())
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    counts = {
        "files": len(sources),
        "lines": sum(len(source.splitlines()) for source in sources),
        "public names": len(texts),
        "with a docstring": sum(map(bool, texts)),
        "with a shape in it": sum(
            bool(re.search(r"[\[(][^\])]*\b[A-Zdmnpqrk]\b[^\])]*[\])]", t)) for t in texts
        ),
        "with what it raises": sum(bool(re.search(r"\b[Rr]aises?\b|Error\b", t)) for t in texts),
        "type: ignore": sum(source.count("# type: ignore") for source in sources),
    }
    for what, count in counts.items():
        print(f"{what:20} {count:6}")


if __name__ == "__main__":
    main()
