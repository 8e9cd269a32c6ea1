"""The parts of a finished run, built again from its files: classes, backbone, adapter, posterior, predictives."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor

from clipkal.adapters import Adapter
from clipkal.backbones.openclip import PRECOMPUTED, Backbone, load_backbone
from clipkal.errors import CheckpointError, ConfigError
from clipkal.inference.record import ADAPTER, ANEW, CLASSES, POSTERIOR, PREDICTIVE, Record
from clipkal.methods import build_adapter, build_predictive, make_build
from clipkal.optim.posterior import Posterior
from clipkal.recording.checkpoint import load_predictive
from clipkal.tracking.tensors import read_tensors, unpacked
from clipkal.uncertainty import Plugin, Predictive

IDENTITY = {"weights": "weights", "config": "configuration", "transform": "image transform"}
"""What tells a backbone, as classes.safetensors has it, and how it is called in messages."""


@dataclass(frozen=True)
class Classes:
    """What classes.safetensors says.

    Attributes:
        text_features: [C, d], unit rows.
        logit_scale: the factor on the cosine.
        prompts: for each class the sentences of its ensemble; none of runs that did not keep them.
        backbone: by the keys of `IDENTITY` digests of the backbone that the run learnt on, where it kept them.
    """

    text_features: Tensor
    logit_scale: float
    prompts: list[list[str]] = field(default_factory=list)
    backbone: dict[str, str] = field(default_factory=dict)


def classes(record: Record) -> Classes:
    """The run's classes; of a run that wrote no classes.safetensors those in its adapter, CheckpointError where it has none."""
    if record.has(CLASSES):
        found, about = read_tensors(record.whole(CLASSES))
        scale, backbone = float(about["logit_scale"]), about["backbone"] or {}
        return Classes(found["text_features"], scale, about["prompts"], backbone)
    state, _ = read_tensors(record.whole(ADAPTER))
    factor = state.get("scale", state["log_scale"].exp() if "log_scale" in state else None)
    if "text" not in state or factor is None:
        record.whole(CLASSES)  # raises
    assert factor is not None
    return Classes(state["text"], float(factor))


def move_weights(cfg: DictConfig, place: Path) -> None:
    """Puts the place where the weights are now into the configuration."""
    if str(cfg.backbone.model).startswith("local-dir:"):
        cfg.backbone.model = f"local-dir:{place}"
    elif cfg.backbone.model in ("mini", PRECOMPUTED):
        raise ConfigError(f"backbone={cfg.backbone.name} has no weights that could lie elsewhere")
    else:
        cfg.backbone.pretrained = str(place)


def known_backbone(record: Record, cfg: DictConfig, known: Classes) -> Backbone:
    """The frozen CLIP, compared with the one that the run learnt on.

    Raises BackboneError where its weights are gone, CheckpointError where they are others, ConfigError for a run on features.
    """
    backbone = load_backbone(cfg.backbone, cfg.device)
    if backbone is None:
        raise ConfigError(
            f"{record.path} learnt from features that were computed elsewhere, so it cannot read images; "
            "run.predict_features(rows) takes features of the same kind"
        )
    here = {**backbone.identity, "transform": backbone.transform}
    for key, there in known.backbone.items():
        if here[key] != there:
            raise CheckpointError(
                f"{record.path} learnt on other {IDENTITY[key]} of backbone={cfg.backbone.name} than are here "
                f"({there[:60]} there, {here[key][:60]} here); put the right ones in their place, or give weights=…"
            )
    return backbone


def adapter(record: Record, cfg: DictConfig, known: Classes, backbone: Backbone | None) -> Adapter:
    """What was learnt, in evaluation mode; CheckpointError where the file does not fit the configuration."""
    state, _ = read_tensors(record.whole(ADAPTER))
    try:
        made = build_adapter(cfg, known.text_features, known.logit_scale, backbone, known.prompts)
        made.load_state_dict(state)
    except RuntimeError as error:  # of load_state_dict
        raise CheckpointError(
            f"{record.path / ADAPTER} does not fit adapter={cfg.adapter.name}; {ANEW}"
        ) from error
    return made.eval()


def posterior(record: Record, cfg: DictConfig, made: Adapter) -> Posterior | None:
    """How sure the optimiser is of what the adapter has learnt; None where it is not Bayesian, or its state is not whole."""
    if not record.has(POSTERIOR):
        return None
    tensors, about = read_tensors(record.whole(POSTERIOR))
    if "state" not in about:  # of a run before states were kept whole
        return None
    optimizer = make_build(cfg)(made, None)
    optimizer.load_extra_state(unpacked(tensors, about["state"]))
    return optimizer.posterior


def readouts(record: Record, cfg: DictConfig) -> dict[str, Predictive]:
    """The predictives of the run by name, with what they have learnt."""
    chosen = build_predictive(cfg)
    if record.has(PREDICTIVE):
        load_predictive(record.whole(PREDICTIVE), chosen)
    return {"plugin": Plugin(), cfg.predictive.name: chosen}
