"""The first-order baselines that the papers compare with, each from the library that keeps it.

| class     | from              | step                                                   | passes          |
|-----------|-------------------|--------------------------------------------------------|-----------------|
| `SGD`     | torch, fused      | heavy-ball momentum                                    | 1               |
| `AdamW`   | torch, fused      | arXiv 1711.05101                                       | 1               |
| `Adagrad` | torch             | Duchi et al. 2011; a baseline of LoKO, 2410.11551      | 1               |
| `SAM`     | pytorch_optimizer | sharpness-aware minimisation, arXiv 2010.01412         | 2               |
| `Sophia`  | pytorch_optimizer | SophiaH, arXiv 2305.14342: clipped Hutchinson diagonal | 1, 2 every 10th |

`FirstOrder` gives any other `torch.optim` optimiser the same `step(inputs, targets)`. Weight decay is decoupled in `AdamW`
and `Sophia`, and part of the gradient in `SGD`, `Adagrad` and `SAM`, as in the libraries. Where several processes share a
batch (parallel/shards.py) all take the step of the whole of it, but `Sophia` refuses.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.base import (
    BatchOptimizer,
    StepInfo,
    check_finite,
    check_finite_everywhere,
    trainable_parameters,
)
from clipkal.optim.model.layers import twice_differentiable
from clipkal.optim.parallel.shards import Group, Shards, broadcast, world_size
from clipkal.settings import Count, Fraction, NonNegative, Pair, Positive, checked

Loss = Callable[[Tensor, Tensor], Tensor]


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

    @checked
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
        """One step of the wrapped optimiser on the gradient of the whole batch; refusals as in `BatchOptimizer`."""
        check_finite_everywhere(inputs, "inputs", self.group)
        value = self._evaluate(inputs, targets)
        gradients = [p.grad for p in _trainable(self.model) if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        self._move(inputs, targets)
        return StepInfo(loss=value, metrics={"gradient_norm": norm})

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

    def _move(self, inputs: Tensor, targets: Tensor) -> None:
        """Lets the optimiser take its step from the gradient in `.grad`."""
        if not self.closure:
            self.optimizer.step()
            return
        parameters = _trainable(self.model)
        before = [p.detach().clone() for p in parameters]
        try:
            self.optimizer.step(lambda: self._evaluate(inputs, targets))
        except FloatingPointError:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            raise

    def describe(self) -> dict[str, str]:
        fused = any(group.get("fused") for group in self.param_groups)
        return {"optimizer": type(self.optimizer).__name__, "kernel": "fused" if fused else "plain"}

    def state_dict(self) -> dict[str, Any]:
        extra = self.extra_state()
        return {**self.optimizer.state_dict(), **({"extra": extra} if extra else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict({key: one for key, one in state_dict.items() if key != "extra"})
        self._adopt()
        self.load_extra_state(state_dict.get("extra", {}))


class SGD(FirstOrder):
    """torch.optim.SGD with momentum; fused where the device and the types allow it.

    Args:
        weight_decay: added to the gradient, times the parameters.
        momentum: weight of the past in the running gradient.
        nesterov: looks ahead along it.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        lr: NonNegative = 0.01,
        weight_decay: NonNegative = 0.0,
        momentum: Fraction = 0.9,
        nesterov: bool = False,
    ):
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(model, _fused(torch.optim.SGD, model, settings))


class AdamW(FirstOrder):
    """torch.optim.AdamW; fused where the device and the types allow it.

    Args:
        weight_decay: decoupled: each step shrinks the parameters by lr times this.
        betas: weights of the past in the running gradient and in the running squared gradient.
        eps: added to the root of the running squared gradient.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        lr: NonNegative = 1e-3,
        weight_decay: NonNegative = 0.01,
        betas: Pair = (0.9, 0.999),
        eps: NonNegative = 1e-8,
    ):
        settings = {"lr": lr, "weight_decay": weight_decay, "betas": tuple(betas), "eps": eps}
        super().__init__(model, _fused(torch.optim.AdamW, model, settings))


class Adagrad(FirstOrder):
    """torch.optim.Adagrad.

    Args:
        weight_decay: added to the gradient, times the parameters.
        eps: added to the root of the summed squared gradients.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        lr: NonNegative = 0.01,
        weight_decay: NonNegative = 0.0,
        eps: NonNegative = 1e-10,
    ):
        optimizer = torch.optim.Adagrad(_trainable(model), lr=lr, weight_decay=weight_decay, eps=eps)
        super().__init__(model, optimizer)


class SAM(FirstOrder):
    """pytorch_optimizer's SAM around SGD with momentum, as in its paper.

    Args:
        weight_decay, momentum: as for `SGD`.
        rho: radius of the neighbourhood whose worst loss is minimised.
        adaptive: measures the radius relative to the parameters (ASAM, arXiv 2102.11600).

    Raises ImportError where pytorch_optimizer is not installed.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        lr: NonNegative = 0.01,
        weight_decay: NonNegative = 0.0,
        rho: NonNegative = 0.05,
        momentum: Fraction = 0.9,
        adaptive: bool = False,
    ):
        kind, inner = _library("SAM"), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        optimizer = kind(_trainable(model), torch.optim.SGD, rho=rho, adaptive=adaptive, **inner)
        super().__init__(model, optimizer, closure=True)


class Sophia(FirstOrder):
    """pytorch_optimizer's SophiaH, which every `update_period` steps differentiates the gradient it is given.

    On those steps `.grad` carries its graph; the library then forms z ∘ ∇²ℓ z itself. z comes from torch's global
    random generator, which a checkpoint has to keep. On all other steps it is `FirstOrder`.

    Args:
        weight_decay: as for `AdamW`.
        betas: weights of the past in the running gradient and in the running Hessian diagonal.
        p: the clip, the largest change of a parameter in units of lr.
        update_period: steps between estimates of the Hessian diagonal.
        num_samples: draws of z an estimate.
        hessian_distribution: of z.

    Raises ImportError where pytorch_optimizer is not installed, and ValueError where several processes share a batch: the
    library does not average z ∘ ∇²ℓ z over them.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        lr: NonNegative = 0.06,
        weight_decay: NonNegative = 0.0,
        betas: Pair = (0.96, 0.99),
        p: Positive = 0.01,
        update_period: Count = 10,
        num_samples: Count = 1,
        hessian_distribution: Literal["gaussian", "rademacher"] = "gaussian",
    ):
        if world_size() > 1:
            raise ValueError("Hutchinson's estimate is not averaged over processes: use one process")
        optimizer = _library("SophiaH")(
            _trainable(model),
            lr=lr,
            weight_decay=weight_decay,
            betas=tuple(betas),
            p=p,
            update_period=update_period,
            num_samples=num_samples,
            hessian_distribution=hessian_distribution,
        )
        super().__init__(model, optimizer)
        self.update_period = update_period

    def _evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        taken = self.optimizer.param_groups[0].get("step", 0)
        if taken % self.update_period:
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

    def _move(self, inputs: Tensor, targets: Tensor) -> None:
        super()._move(inputs, targets)
        self.optimizer.zero_grad(set_to_none=True)  # a gradient with a graph would keep the whole pass alive


def _fused(kind: Callable[..., torch.optim.Optimizer], model: nn.Module, settings: dict[str, Any]) -> Any:
    """The optimiser with its fused kernel, or without where torch has none for these parameters."""
    try:
        return kind(_trainable(model), fused=True, **settings)
    except RuntimeError:
        return kind(_trainable(model), **settings)


def _library(name: str) -> Any:
    """A class of pytorch_optimizer."""
    try:
        import pytorch_optimizer
    except ImportError as error:
        message = f"{name} needs the package pytorch_optimizer: pip install pytorch_optimizer"
        raise ImportError(message) from error
    return getattr(pytorch_optimizer, name)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return list(trainable_parameters(model).values())
