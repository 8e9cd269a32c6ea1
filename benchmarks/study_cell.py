"""One cell of the study: a data set, shots, seed and entry, learnt and evaluated by the pieces that the app is made of."""

import time
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.study_plan import FACTORS, LONG, PASSES, RECURSIVE, WIDE_FACTORS, Data, Entry
from clipkal.adapters import Adapter
from clipkal.backbones import featurise, load_backbone
from clipkal.config.compose import compose
from clipkal.data import FeatureSet
from clipkal.data.drawing import draw
from clipkal.evaluation import SetEvaluation, evaluate
from clipkal.methods import build_adapter, make_build, make_plan
from clipkal.optim import BatchOptimizer, KalmanFilter
from clipkal.training import Build, Plan, Training, train
from clipkal.uncertainty import Plugin, Reader, Sampled

SAMPLES = 100
ZEROSHOT = Entry("zeroshot", "zeroshot", LONG)
METRICS = ("accuracy", "nll", "ece")


@lru_cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    return compose([*words, "tracking=disabled", "data.progress=false"])


def configuration(data: Data, entry: Entry, shots: int, seed: int) -> DictConfig:
    """What the command line would run; every method learns the linear adapter."""
    linear = (
        () if entry.method == "zeroshot" else ("adapter=linear", f"adapter.coordinates={data.coordinates}")
    )
    cfg = _composed((*data.words, f"method={entry.method}", *linear, *entry.words)).copy()
    cfg.fewshot.shots, cfg.seed = shots, seed
    return cfg


@lru_cache(maxsize=1)
def task_of(data: Data, shots: int, seed: int) -> Any:
    """The few-shot task through the frozen backbone: the same for every entry, so the last one is kept."""
    cfg = configuration(data, ZEROSHOT, shots, seed)
    backbone = load_backbone(cfg.backbone, cfg.device)
    return featurise(backbone, draw(cfg), cache_dir=cfg.data.cache, progress=False)[0]


def run_cell(data: Data, entry: Entry, shots: int, seed: int) -> list[dict[str, Any]]:
    """One row for every predictive (draws from a posterior only where nothing was searched); no metrics where it diverged."""
    cfg = configuration(data, entry, shots, seed)
    task = task_of(data, shots, seed)
    if entry.with_val:
        task = replace(task, shots=joined(task.shots, task.val), val=None)
    torch.manual_seed(seed)
    adapter = build_adapter(cfg, task.text_features, task.logit_scale)
    row = {"dataset": data.name, "shots": shots, "seed": seed, "entry": entry.key, "predictive": "plugin"}
    started = time.process_time()
    try:
        training = learn(cfg, entry, adapter, task)
    except FloatingPointError:
        return [row | {"diverged": True}]
    row |= {"seconds": round(time.process_time() - started, 3), "diverged": False}
    if training:
        row |= {"value": training.kept.rate, "epoch": training.kept.epoch, "val_nll": training.kept.val_nll}
    posterior = training.posterior if training and not entry.search else None
    id_set, ood_sets = {"test": ("id", task.test)}, {name: ("ood", one) for name, one in task.ood.items()}
    reader = Reader(adapter, posterior, seed)
    predictives = {"plugin": Plugin()} | ({} if posterior is None else {"sampled": Sampled(SAMPLES)})
    found = [  # apart, so that no time goes into OOD detection, which the study does not report
        evaluate(reader, sets, predictives).sets for sets in (id_set, ood_sets) if sets
    ]
    return [row | {"predictive": name} | scores(found, name) for name in predictives]


def learn(cfg: DictConfig, entry: Entry, adapter: Adapter, task: Any) -> Training | None:
    """Fine-tunes `adapter` as the entry says."""
    if entry.method == "zeroshot":
        return None
    if entry.search == "prior":
        return _search_prior(cfg, entry, adapter, task)
    if entry.search:
        return train(adapter, make_build(cfg), task, make_plan(cfg, has_validation=True))
    return train(adapter, _kalman(cfg, entry), task, _passes(cfg, entry))


def _search_prior(cfg: DictConfig, entry: Entry, adapter: Adapter, task: Any) -> Training:
    """Five prior variances by validation NLL; the best is learnt once more, so that the posterior is its own."""
    start = {name: value.clone() for name, value in adapter.state_dict().items()}
    plan = _passes(cfg, entry)
    factors: tuple[float, ...] = FACTORS
    if entry.method not in RECURSIVE:
        factors = WIDE_FACTORS
        cfg = _with(cfg, prior=train(adapter, _kalman(cfg, entry), task, plan).last_step["p0"])
        adapter.load_state_dict(start)
    best = train(adapter, _kalman(cfg, entry), task, replace(plan, rates=factors)).kept
    adapter.load_state_dict(start)
    return train(adapter, _kalman(cfg, entry), task, replace(plan, rates=(best.rate,)))


def _passes(cfg: DictConfig, entry: Entry) -> Plan:
    """One pass, or PASSES that count in full; the last is kept."""
    if entry.method not in RECURSIVE:
        return Plan(seed=cfg.seed)
    return Plan(epochs=PASSES if entry.regime == LONG else 1, batch_size=32, seed=cfg.seed)


def _kalman(cfg: DictConfig, entry: Entry) -> Build:
    """Makes the filter of the entry with its prior multiplied by the "rate" that the training loop hands out."""

    def build(adapter: Adapter, factor: float | None) -> BatchOptimizer:
        factor = 1.0 if factor is None else factor
        if entry.method in RECURSIVE:
            filtered = make_build(cfg)(adapter, None)
            assert isinstance(filtered, KalmanFilter)
            filtered.ratio *= factor
            return filtered
        if isinstance(cfg.optimizer.prior, str):
            return make_build(cfg)(adapter, None)
        return make_build(_with(cfg, prior=cfg.optimizer.prior * factor))(adapter, None)

    return build


def _with(cfg: DictConfig, **values: Any) -> DictConfig:
    """The configuration with keys of `optimizer` changed."""
    changed = cfg.copy()
    OmegaConf.update(changed, "optimizer", values, merge=True)
    return changed


def joined(first: FeatureSet, second: FeatureSet) -> FeatureSet:
    """Both sets as one."""
    return FeatureSet(
        first.name,
        [*first.ids, *second.ids],
        torch.cat((first.labels, second.labels)),
        torch.cat((first.inputs, second.inputs)),
    )


def scores(found: list[dict[str, SetEvaluation]], predictive: str) -> dict[str, float]:
    """Metrics on the ID test set (`id_…`) and their mean over the OOD sets (`ood_…`, absent where there are none)."""
    row: dict[str, float] = {}
    for role, sets in zip(("id", "ood"), found, strict=False):
        values = [one.metrics[predictive] for one in sets.values()]
        row |= {f"{role}_{m}": sum(one[m] for one in values) / len(values) for m in METRICS}
    return row
