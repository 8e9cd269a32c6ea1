"""From a configuration, which `config.check` has passed, to an adapter, a training plan, an optimiser and a predictive."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig
from torch import Tensor

from clipkal.adapters import Adapter
from clipkal.adapters.lora import LoRAAdapter
from clipkal.config.check import needs_of
from clipkal.config.options import make
from clipkal.config.schema import PassesConfig, RatesConfig
from clipkal.config.signatures import arguments_of
from clipkal.errors import ConfigError
from clipkal.optim import FirstOrder, KalmanFilter
from clipkal.optim.base import BatchOptimizer, trainable_parameters
from clipkal.optim.model.jacobian import MOST_ROWS
from clipkal.training import Build, Plan
from clipkal.uncertainty import Predictive

if TYPE_CHECKING:
    from clipkal.backbones import Backbone


def learns_from_images(cfg: DictConfig) -> bool:
    """Whether the adapter asks for the backbone itself, not only for the features of a frozen one."""
    return "backbone" in arguments_of(cfg.adapter._target_)


def build_adapter(
    cfg: DictConfig,
    text_features: Tensor,
    logit_scale: float,
    backbone: "Backbone | None" = None,
    prompts: list[list[str]] | None = None,
) -> Adapter:
    """The adapter that `adapter` describes, given what its class asks for by name.

    Args:
        text_features: [C, d] with unit rows.
        logit_scale: factor on the cosine.
        backbone: for adapters that learn from images.
        prompts: for each class the sentences of its ensemble.
    """
    if backbone is None and learns_from_images(cfg):
        raise ConfigError(
            f"adapter={cfg.adapter.name} needs a backbone that reads images: type backbone=mini"
        )
    given = {"text_features": text_features, "logit_scale": logit_scale, "seed": cfg.seed}
    given |= {"backbone": backbone, "prompts": prompts or []}
    wanted = arguments_of(cfg.adapter._target_)
    made = make(cfg.adapter, "adapter", cfg.plugins)
    adapter: Adapter = made(**{name: value for name, value in given.items() if name in wanted})
    return adapter


def build_predictive(cfg: DictConfig) -> Predictive:
    """The predictive that `predictive` describes."""
    try:
        predictive: Predictive = make(cfg.predictive, "predictive", cfg.plugins)()
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"predictive={cfg.predictive.name}: {error}") from error
    return predictive


def make_plan(cfg: DictConfig, has_validation: bool) -> Plan:
    """How long to learn and which learning rates to try, from `optimizer`, `seed`, `validate_every` and the validation images."""
    optimizer, kind = cfg.optimizer, cfg.optimizer._metadata.object_type
    if issubclass(kind, RatesConfig):
        return _search(optimizer, cfg.seed, cfg.validate_every, has_validation)
    if issubclass(kind, PassesConfig):
        passes = {"epochs": optimizer.epochs, "batch_size": optimizer.batch_size}
        return Plan(**passes, seed=cfg.seed, validate_every=cfg.validate_every)
    return Plan(seed=cfg.seed)


def _search(optimizer: DictConfig, seed: int, validate_every: float, has_validation: bool) -> Plan:
    rates = tuple(optimizer.lr_grid) if optimizer.lr == "auto" else (float(optimizer.lr),)
    if not has_validation:
        rates = (optimizer.default_lr,) if optimizer.lr == "auto" else rates
    return Plan(
        rates=rates,
        epochs=optimizer.epochs,
        batch_size=optimizer.batch_size,
        schedule=optimizer.schedule,
        keep=optimizer.keep if has_validation else "last",
        seed=seed,
        members=optimizer.get("members", 1),
        validate_every=validate_every,
    )


def make_build(cfg: DictConfig) -> Build:
    """A function from (adapter, learning rate) to the optimiser that `optimizer` describes."""

    def build(adapter: Adapter, rate: float | None) -> BatchOptimizer:
        node = cfg.optimizer
        made, arguments = make(node, "optimizer", cfg.plugins), arguments_of(node._target_)
        given = {"lr": rate or node.get("default_lr"), "priors": adapter.prior_variances()}
        given = {name: value for name, value in given.items() if name in arguments}
        try:
            if "params" in arguments:  # an optimiser of torch's kind
                parameters = list(trainable_parameters(adapter).values())
                return FirstOrder(adapter, made(parameters, **given))
            optimizer: BatchOptimizer = made(adapter, **given)
        except (TypeError, ValueError, ImportError) as error:
            raise ConfigError(f"optimizer={node.name}: {error}") from error
        if isinstance(optimizer, KalmanFilter) and isinstance(adapter, LoRAAdapter):
            _check_lora(optimizer, adapter, cfg)
        return optimizer

    return build


def _check_lora(optimizer: KalmanFilter, adapter: LoRAAdapter, cfg: DictConfig) -> None:
    """Raises ConfigError for what a filter over LoRA factors cannot do, or not in reasonable time."""
    if adapter.settings.dropout:
        raise ConfigError(
            f"adapter.dropout={adapter.settings.dropout}: a Kalman filter linearises one function; type adapter.dropout=0"
        )
    classes = adapter.class_count
    if not optimizer.observation.scalar and classes > MOST_ROWS:
        own = cfg.optimizer.get("observation")
        way = "optimizer=kalman_clip" if own is None else "optimizer.observation=softmax"
        way = (
            way
            if own is None or isinstance(own, str)
            else "optimizer/observation=softmax optimizer/noise=residual"
        )
        raise ConfigError(
            f"optimizer={cfg.optimizer.name} with {classes} classes needs {classes} backward passes an image, a "
            f"pass over the shots about {classes // 2} times AdamW's; type {way} (one an image)"
        )
    if "covariance" in needs_of(cfg) and classes > MOST_ROWS:
        raise ConfigError(
            f"predictive={cfg.predictive.name} with {classes} classes needs {classes} backward passes an image; "
            "type predictive=sampled"
        )
