"""A finished run in use: load it, predict, evaluate it on more sets, export it, and look a backbone over.

record.py       what a run directory says, checked against its digests; without torch
loading.py      backbone, adapter, posterior and predictives, built again from these files
run.py          `load_run(path) -> Run`, which predicts
images.py       what people give for images: paths, folders, patterns, PIL images, arrays, tensors
results.py      `Predictions`: what a run says about images, as rows
writers.py      rows to a terminal, CSV, JSON lines or parquet, while they come in
sheet.py        a contact sheet of the least and the most certain images
predict.py      `clipkal-predict`
evaluate.py     `clipkal-evaluate`: settings.py (which sets), evaluation.py (what the run says of them)
export.py       `clipkal-export`: checkpoint.py (a plain CLIP with its class head), card.py (its model card), onnx.py
doctor.py       `clipkal-doctor`: checkup.py (what it looks at)
command.py      what these commands share

Names load on first use: the commands answer `--help` without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipkal.inference.results import Predictions
    from clipkal.inference.run import Run, load_run

_HOMES = {"Predictions": "results", "Run": "run", "load_run": "run"}
__all__ = ["Predictions", "Run", "load_run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
