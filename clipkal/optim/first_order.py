"""The first-order and curvature baselines the papers compare with, each from the library that keeps it.

| name    | from              | step                                                   | passes            |
|---------|-------------------|--------------------------------------------------------|-------------------|
| sgd     | torch             | heavy-ball momentum                                    | 1                 |
| adamw   | torch, fused      | arXiv 1711.05101                                       | 1                 |
| adagrad | torch             | Duchi et al. 2011; a baseline of LoKO, 2410.11551      | 1                 |
| sam     | pytorch_optimizer | sharpness-aware minimisation, arXiv 2010.01412         | 2                 |
| sophia  | pytorch_optimizer | SophiaH, arXiv 2305.14342: clipped Hutchinson diagonal | 1, 2 every 10th   |
| kfac    | ours              | `optim/kfac.py`: no kept package on PyPI has one       | 1, and a refresh  |

Everything comes back as a `BatchOptimizer`. Defaults are those of the library unless an option says
otherwise. Weight decay is decoupled in adamw, sophia and kfac, and part of the gradient in sgd, adagrad and
sam (as in torch).

Where several processes share a batch (parallel/shards.py) all take the step of the whole of it, but sophia refuses.
"""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.errors import ConfigError
from clipkal.optim.base import (
    BatchOptimizer,
    StepInfo,
    check_finite,
    check_finite_everywhere,
    trainable_parameters,
)
from clipkal.optim.model.layers import twice_differentiable
from clipkal.optim.natural_gradient.kfac import KFAC
from clipkal.optim.parallel.shards import Group, Shards, broadcast, world_size

Loss = Callable[[Tensor, Tensor], Tensor]

LIBRARY_MISSING = "the baseline {} needs the package pytorch_optimizer: pip install pytorch_optimizer"


class FirstOrder(BatchOptimizer):
    """Gives an optimiser that only wants gradients the `step(inputs, targets)` of this package.

    Args:
        model: the module `optimizer` was built on.
        optimizer: any `torch.optim.Optimizer` over the model's parameters. Its parameter groups and state
            *are* this object's, so learning-rate schedulers may be attached to either.
        loss: mean loss of (logits, targets); cross-entropy unless told.
        closure: hand the optimiser a closure that evaluates the loss and its gradient again (SAM, LBFGS). The
            gradient at the current point is in `.grad` before the call, as SAM wants it. If a later
            evaluation is not finite, the parameters are put back.
        group: the processes that share each batch; None: all. They start from the first one's parameters.

    Cost: one forward and one backward pass, and what the optimiser adds.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss = F.cross_entropy,
        closure: bool = False,
        group: Group | None = None,
    ):
        super().__init__(model)
        self.optimizer, self.loss, self.closure, self.group = optimizer, loss, closure, group
        broadcast(trainable_parameters(model).values(), group)
        self._adopt()

    def _adopt(self) -> None:
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        check_finite_everywhere(inputs, "inputs", self.group)
        value = self._evaluate(inputs, targets)
        if self.closure:
            self._closure_step(inputs, targets)
        else:
            self.optimizer.step()
        return StepInfo(loss=value)

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        """Loss of the whole batch at the current parameters; leaves its gradient in `.grad`."""
        shards = Shards.of(len(inputs), inputs.device, self.group)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self.loss(self.model(inputs), targets)
        value = shards.mean(loss.detach())
        check_finite(value, "loss")
        loss.backward()
        for name, parameter in trainable_parameters(self.model).items():
            if parameter.grad is not None:
                parameter.grad = shards.mean(parameter.grad)
                check_finite(parameter.grad, f"gradient of {name}")
        return float(value)

    def _closure_step(self, inputs: Tensor, targets: Tensor) -> None:
        parameters = list(trainable_parameters(self.model).values())
        before = [p.detach().clone() for p in parameters]
        try:
            self.optimizer.step(lambda: self._evaluate(inputs, targets))
        except FloatingPointError:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            raise

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)
        self._adopt()


def build_baseline(
    name: str, model: nn.Module, lr: float, weight_decay: float = 0.0, **options: Any
) -> BatchOptimizer:
    """The baseline `name` over the trainable parameters of `model`; `options` go to its constructor.

    Raises ConfigError for a name or an option that does not exist, with the nearest name.
    """
    if name not in BASELINES:
        near = difflib.get_close_matches(name, BASELINES, n=1, cutoff=0.0)
        raise ConfigError(
            f"unknown baseline {name!r}: did you mean {near[0]!r}? one of {', '.join(BASELINES)}"
        )
    try:
        return BASELINES[name](model, lr=lr, weight_decay=weight_decay, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"baseline {name!r}: {error}") from error


def sgd(
    model: nn.Module, lr: float, weight_decay: float, momentum: float = 0.9, **options: Any
) -> FirstOrder:
    """torch.optim.SGD with momentum."""
    settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, **options}
    return FirstOrder(model, _fused(torch.optim.SGD, model, settings))


def adamw(model: nn.Module, lr: float, weight_decay: float, **options: Any) -> FirstOrder:
    """torch.optim.AdamW, fused where the device and the types allow it."""
    return FirstOrder(
        model, _fused(torch.optim.AdamW, model, {"lr": lr, "weight_decay": weight_decay, **options})
    )


def adagrad(model: nn.Module, lr: float, weight_decay: float, **options: Any) -> FirstOrder:
    """torch.optim.Adagrad."""
    return FirstOrder(
        model, torch.optim.Adagrad(_trainable(model), lr=lr, weight_decay=weight_decay, **options)
    )


def sam(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    rho: float = 0.05,
    momentum: float = 0.9,
    adaptive: bool = False,
) -> FirstOrder:
    """pytorch_optimizer's SAM around SGD with momentum, as in its paper; `adaptive` is ASAM."""
    try:
        from pytorch_optimizer import SAM
    except ImportError as error:
        raise ConfigError(LIBRARY_MISSING.format("sam")) from error
    base: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
    return FirstOrder(
        model, SAM(_trainable(model), torch.optim.SGD, rho=rho, adaptive=adaptive, **base), closure=True
    )


def sophia(model: nn.Module, lr: float, weight_decay: float, **options: Any) -> FirstOrder:
    """pytorch_optimizer's SophiaH; options `betas`, `p` (the clip), `update_period`, `num_samples`."""
    try:
        from pytorch_optimizer import SophiaH
    except ImportError as error:
        raise ConfigError(LIBRARY_MISSING.format("sophia")) from error
    return HutchinsonFirstOrder(
        model, SophiaH(_trainable(model), lr=lr, weight_decay=weight_decay, **options)
    )


def kfac(model: nn.Module, lr: float, weight_decay: float, **options: Any) -> KFAC:
    """Our K-FAC natural gradient, data-parallel as the first-order ones are; options as for `KFAC`."""
    return KFAC(model, lr=lr, weight_decay=weight_decay, **options)


class HutchinsonFirstOrder(FirstOrder):
    """A first-order optimiser that every `update_period` steps differentiates the gradient it is given.

    On those steps `.grad` carries its graph; pytorch_optimizer then forms z ∘ ∇²ℓ z itself. z comes from
    torch's global random generator, which a checkpoint has to keep. On all other steps it is `FirstOrder`.
    The library does not average z ∘ ∇²ℓ z over processes: data-parallel runs are refused (ValueError).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss = F.cross_entropy):
        if world_size() > 1:
            raise ValueError("Hutchinson's estimate is not averaged over processes: use one process")
        super().__init__(model, optimizer, loss)

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        taken = self.optimizer.param_groups[0].get("step", 0)
        if taken % self.optimizer.update_period:  # type: ignore[attr-defined]
            return super()._evaluate(inputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        named = trainable_parameters(self.model)
        with torch.enable_grad():
            with twice_differentiable(self.model):
                loss = self.loss(self.model(inputs), targets)
            check_finite(loss.detach(), "loss")
            grads = torch.autograd.grad(loss, list(named.values()), create_graph=True, allow_unused=True)
        for (name, parameter), grad in zip(named.items(), grads, strict=True):
            if grad is not None:
                check_finite(grad.detach(), f"gradient of {name}")
                parameter.grad = grad
        return float(loss.detach())

    def step(self, inputs: Tensor, targets: Tensor) -> Any:  # type: ignore[override]
        info = super().step(inputs, targets)
        self.optimizer.zero_grad(set_to_none=True)  # a gradient with a graph would keep the whole pass alive
        return info


def _fused(kind: Callable[..., torch.optim.Optimizer], model: nn.Module, settings: dict[str, Any]) -> Any:
    """The optimiser with its fused kernel, or without where torch has none for these parameters."""
    try:
        return kind(_trainable(model), **{"fused": True, **settings})
    except RuntimeError:
        return kind(_trainable(model), **settings)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return list(trainable_parameters(model).values())


BASELINES: dict[str, Callable[..., BatchOptimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "adagrad": adagrad,
    "sam": sam,
    "sophia": sophia,
    "kfac": kfac,
}
