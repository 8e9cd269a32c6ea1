"""Synthetic runs with the shape of real ones: logits are made up, everything after them is the real code."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkal.evaluation import Evaluation, evaluate
from clipkal.files import digest, write_json
from clipkal.optim import Posterior
from clipkal.uncertainty import Plugin, Reader, Sampled

SHIFTS = {"test": 1.0, "sketch": 0.55, "photo": 0.75, "new": 0.9, "pets": 0.8, "cars": 0.5}
ROLES = {"test": "id", "new": "transfer", "pets": "transfer", "cars": "transfer"}
SKILL = {"zeroshot": 1.4, "adamw": 1.9, "kalman": 2.1, "kalman_online": 1.95}
SHARPNESS = {"zeroshot": 1.0, "adamw": 2.2, "kalman": 1.3, "kalman_online": 1.5}


@dataclass
class Logits:
    ids: list[str]
    labels: Tensor
    inputs: Tensor


class Noise(Posterior):
    """A posterior over logits that shifts all images alike."""

    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return inputs + 0.8 * torch.randn(n, 1, inputs.shape[1], generator=generator)


def evaluation(
    method: str = "kalman",
    shots: int = 4,
    seed: int = 1,
    n: int = 150,
    sets: Sequence[str] = ("test", "sketch", "photo"),
    classes: int = 6,
) -> Evaluation:
    """Logits that get better with shots and worse with shift, and over-confident as the method is."""
    skill = SKILL.get(method, 1.7) + (
        0 if method == "zeroshot" else 0.22 * torch.tensor(float(shots)).log2().item()
    )
    made = {}
    for name in sets:
        generator = torch.Generator().manual_seed(
            int(digest(name)[:8], 16) + (0 if method == "zeroshot" else seed * 7 + shots)
        )
        labels = torch.randint(0, classes, (n,), generator=generator)
        z = torch.randn(n, classes, generator=generator)
        z[torch.arange(n), labels] += skill * SHIFTS.get(name, 0.6)
        made[name] = (
            ROLES.get(name, "ood"),
            Logits([f"{name}/{i}.png" for i in range(n)], labels, SHARPNESS.get(method, 1.5) * z),
        )
    bayesian = method.startswith("kalman")
    posterior, temperature = (Noise(), None) if bayesian else (None, 1.8 if method == "adamw" else None)
    predictives = {"plugin": Plugin()} | ({"sampled": Sampled(16)} if bayesian else {})
    return evaluate(Reader(lambda x: x, posterior, seed), made, predictives, temperature)


def write_run(
    root: Path, finished: bool = True, folder: str = "", version: int = 1, whole: bool = False, **choices: Any
) -> Path:
    """A run directory as the tracking room writes it; `choices` are dataset, method, shots, seed, …

    whole=True adds what only some figures and tables need: predictions, learning curves and the record of the training.
    """
    run = {
        "dataset": "digits",
        "backbone": "mini",
        "method": "kalman",
        "adapter": "linear",
        "optimizer": "kalman",
    }
    run |= {
        "predictive": "sampled",
        "shots": 4,
        "seed": 1,
        "validation": "fewshot",
        "protocol": "coop",
    } | choices
    options = {key: run.pop(key) for key in ("n", "sets") if key in run}
    if run["method"] == "zeroshot":
        run |= {"adapter": "none", "optimizer": "none", "predictive": "plugin"}
    if run["method"] == "adamw":
        run |= {"optimizer": "adamw", "predictive": "plugin"}
    name = folder or f"{run['shots']}shot-seed{run['seed']}"
    words = (str(run[key])[:40] for key in ("dataset", "backbone", "method"))
    path = root.joinpath(*(word.replace("/", "-").encode(errors="replace").decode() for word in words), name)
    identity = digest(json.dumps(run, sort_keys=True), name)[:16]
    result = evaluation(
        str(run["method"]), run["shots"] if isinstance(run["shots"], int) else 64, run["seed"], **options
    )
    extra = _whole(path, run, result) if whole else {}
    about = {"schema_version": version, "run_id": identity, "run": run}
    write_json(path / "results.json", {**about, **result.to_dict(), **extra})
    (path / "config.yaml").write_text(f"# clipkal run {identity}\nseed: {run['seed']}\n")
    if finished:
        write_json(path / "finished.json", {"schema_version": version, "run_id": identity})
    return path


def _whole(path: Path, run: dict[str, Any], result: Evaluation) -> dict[str, Any]:
    """Writes predictions.parquet and metrics.csv; returns the parts `training` and `environment` of results.json."""
    from pyarrow import parquet

    from clipkal.recording.predictions import table
    from clipkal.tracking.metrics_file import MetricsFile

    path.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(result), path / "predictions.parquet")
    run["train_images"] = 24
    run["shots_sha256"] = digest(str(run["shots"]), str(run["seed"]))
    environment = {"packages": {"clipkal": "0.2.0"}, "cpu": "some processor", "threads": 1, "gpu": None}
    if run["method"] == "zeroshot":
        return {"training": {"seconds": 0.0, "trials": []}, "environment": environment}
    epochs = 1 if run["method"].startswith("kalman") else 8
    trials = [
        {"rate": rate, "epoch": epochs // 2 + 1, "val_nll": 1 / (rate + epochs), "curve": curve(epochs, rate)}
        for rate in ((0.5,) if epochs == 1 else (0.1, 1.0))
    ]
    log = MetricsFile(path / "metrics.csv")
    for index, trial in enumerate(trials):
        for point in trial["curve"]:
            step = 100_000 * index + int(point["epoch"])
            named = [(name, value) for name, value in point.items() if name != "epoch"]
            log.append([(step, f"trial{index}", "digits", name, value) for name, value in named])
    log.close()
    kept = trials[-1]
    record = {
        "rate": kept["rate"],
        "epoch": kept["epoch"],
        "val_nll": kept["val_nll"],
        "seconds": 0.1 * epochs,
    }
    return {
        "training": record | {"parameters": 384, "peak_memory_mib": 900.4, "trials": trials},
        "environment": environment,
    }


def curve(epochs: int, rate: float) -> list[dict[str, float]]:
    """A trial's points: epoch 0 has no training loss."""
    points = [{"epoch": 0.0, "val_nll": 2.0}]
    for epoch in range(1, epochs + 1):
        nll = 2.0 / (1 + rate * epoch)
        points.append({"epoch": float(epoch), "train_loss": 1.2 * nll, "val_nll": nll})
    return points
