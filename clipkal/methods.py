"""From the words of the configuration, which `config.check` has passed, to a training plan and an optimiser."""

from collections.abc import Callable

from omegaconf import DictConfig

from clipkal.adapters import Adapter
from clipkal.adapters.lora import LoRAAdapter
from clipkal.errors import ConfigError
from clipkal.optim import KFAC, RENG, RING, SAM, SGD, Adagrad, AdamW, Sophia
from clipkal.optim.base import BatchOptimizer
from clipkal.optim.kalman.parts import named
from clipkal.optim.model.jacobian import MOST_ROWS
from clipkal.training import Build, Plan

GRADIENT_METHODS: dict[str, Callable[..., BatchOptimizer]] = {
    "adamw": AdamW,
    "sgd": SGD,
    "adagrad": Adagrad,
    "sam": SAM,
    "sophia": Sophia,
    "kfac": KFAC,
    "ring": RING,
    "reng": RENG,
}
"""What takes a learning rate, which is searched on few-shot validation images."""
MAX_DIRECT = 4096
"""Most unknowns that the full-covariance filter factorises at once (134 MB); 100 draws cost far less so than by CG."""
LOOP = ("name", "lr", "lr_grid", "default_lr", "schedule", "epochs", "keep", "batch_size")
"""Keys of `optimizer` that say how the loop goes round; the others are the optimiser's own."""


def make_plan(cfg: DictConfig, has_validation: bool) -> Plan:
    """How long to learn and which learning rates to try, from `optimizer`, `seed` and whether there are validation images."""
    optimizer = cfg.optimizer
    if optimizer.name in GRADIENT_METHODS:
        return _first_order_plan(optimizer, cfg.seed, has_validation)
    if optimizer.name == "function_space":
        return Plan(seed=cfg.seed)
    if optimizer.name == "kalman":
        return Plan(epochs=optimizer.epochs, batch_size=optimizer.batch_size, seed=cfg.seed)
    raise ConfigError(f"unknown optimizer.name={optimizer.name}")


def _first_order_plan(optimizer: DictConfig, seed: int, has_validation: bool) -> Plan:
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
    )


def make_build(cfg: DictConfig) -> Build:
    """A function from (adapter, learning rate) to the optimiser that `optimizer` describes."""
    optimizer = cfg.optimizer
    makers: dict[str, Callable[[Adapter, float | None], BatchOptimizer]] = {
        "function_space": lambda adapter, _: _function_space(adapter, optimizer),
        "kalman": lambda adapter, _: _kalman(adapter, optimizer, cfg.predictive.name),
    }
    if optimizer.name in GRADIENT_METHODS:
        return lambda adapter, rate: _first_order(adapter, optimizer, rate or optimizer.default_lr)
    return makers[optimizer.name]


def _first_order(adapter: Adapter, cfg: DictConfig, rate: float) -> BatchOptimizer:
    options = {str(key): value for key, value in cfg.items() if key not in LOOP and value is not None}
    try:
        return GRADIENT_METHODS[cfg.name](adapter, lr=rate, **options)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"optimizer.name={cfg.name}: {error}") from error


def _function_space(adapter: Adapter, cfg: DictConfig) -> BatchOptimizer:
    from clipkal.optim.full_kalman import Kalman

    return Kalman(
        adapter,
        prior=cfg.prior,
        temperature=cfg.temperature,
        solver=cfg.solver,
        max_direct=MAX_DIRECT,
    )


def _kalman(adapter: Adapter, cfg: DictConfig, predictive: str) -> BatchOptimizer:
    from clipkal.optim.kalman.filter import KalmanFilter

    options = {str(key): value for key, value in cfg.items() if key not in ("name", "batch_size")}
    if isinstance(adapter, LoRAAdapter):
        _check_lora(adapter, cfg, predictive)
        options["priors"] = adapter.prior_variances()
    return KalmanFilter(adapter, **options)


def _check_lora(adapter: LoRAAdapter, cfg: DictConfig, predictive: str) -> None:
    """Raises ConfigError for what a filter over LoRA factors cannot do, or not in reasonable time."""
    if adapter.settings.dropout:
        raise ConfigError(
            f"adapter.dropout={adapter.settings.dropout}: a Kalman filter linearises one function; type adapter.dropout=0"
        )
    classes = adapter.class_count
    if not named("observation", cfg.observation).scalar and classes > MOST_ROWS:
        raise ConfigError(
            f"optimizer.observation={cfg.observation} with {classes} classes needs {classes} backward passes an image, a "
            f"pass over the shots about {classes // 2} times AdamW's; type optimizer.observation=softmax "
            "optimizer.noise=residual (one an image)"
        )
    if predictive == "probit" and classes > MOST_ROWS:
        raise ConfigError(
            f"predictive=probit with {classes} classes needs {classes} backward passes an image; type predictive=sampled"
        )
