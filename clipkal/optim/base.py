"""What every optimiser of this package looks like: one call, one batch, one honest report.

A first-order optimiser only needs gradients; a Kalman filter or a natural gradient needs the model, the inputs and
the targets. `BatchOptimizer` is the smallest common shape, `step(inputs, targets) -> StepInfo`, on top of
`torch.optim.Optimizer` (so parameter groups, state dicts and step hooks work as everyone expects). `FirstOrder` gives
any `torch.optim` optimiser that shape. Where `torch.distributed` is initialised each process gives its own share of
the batch (distributed.py).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.optim.deal import Deal
from clipkal.optim.distributed import Group, anywhere, broadcast, world_size
from clipkal.optim.eager import EagerOptimizer

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepInfo:
    """What one step saw.

    loss: mean negative log-likelihood of the batch *before* the step.
    log_evidence: log predictive density of the batch before the step (summed over its images), where there
    is one.
    metrics: anything else worth a line in the log, by name.
    """

    loss: float
    log_evidence: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class BatchOptimizer(EagerOptimizer):
    """An optimiser that is given the model at construction and a batch at each step.

    Args:
        model: any module; its parameters with `requires_grad` are the state, in `model.parameters()` order.
        defaults: hyper-parameters stored in the parameter groups (schedulers and checkpoints see them there).

    Raises TypeError if it is not given the model, ValueError if nothing is trainable. Subclasses implement `step`;
    those with state that is not per parameter implement `extra_state` and `load_extra_state`, and `state_dict` carries
    it. Without an `lr` among the defaults there is no learning rate: a scheduler is refused with TypeError.
    """

    def __init__(self, model: nn.Module, defaults: dict[str, Any] | None = None):
        trainable = trainable_parameters(model)
        if not trainable:
            raise ValueError("no parameter of the model has requires_grad=True: there is nothing to optimise")
        super().__init__(list(trainable.values()), defaults or {})
        self.model = model
        self._refuse_schedulers()

    def _refuse_schedulers(self) -> None:
        if "lr" not in self.defaults:
            self.param_groups = [_WithoutRate(group) for group in self.param_groups]

    @abstractmethod
    def step(self, inputs: Tensor, targets: Tensor) -> StepInfo:  # type: ignore[override]
        """Takes one batch in; FloatingPointError, with the state untouched, if it or its loss is not
        finite."""

    def describe(self) -> dict[str, str]:
        """What it really does, choices by rule and fallbacks included, in a word each; for a run's record."""
        return {"optimizer": type(self).__name__}

    def extra_state(self) -> dict[str, Any]:
        """State that belongs to no single parameter: tensors, numbers and strings, in dicts and lists."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Takes back what `extra_state` gave."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "extra": self.extra_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rest = {key: value for key, value in state_dict.items() if key != "extra"}
        super().load_state_dict(rest)
        self._refuse_schedulers()
        self.load_extra_state(state_dict.get("extra", {}))


class _WithoutRate(dict[str, Any]):
    """The parameter group of an optimiser that has no learning rate."""

    def __missing__(self, key: str) -> Any:
        if key in ("lr", "initial_lr"):
            raise TypeError("this optimiser has no learning rate to schedule: leave the scheduler out")
        raise KeyError(key)


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
        deal = Deal.of(len(inputs), inputs.device, self.group)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self.loss(self.model(inputs), targets)
        value = deal.mean(loss.detach())
        check_finite(value, "loss")
        loss.backward()
        for name, parameter in trainable_parameters(self.model).items():
            if parameter.grad is not None:
                parameter.grad = deal.mean(parameter.grad)
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

    def describe(self) -> dict[str, str]:
        fused = any(group.get("fused") for group in self.param_groups)
        return {"optimizer": type(self.optimizer).__name__, "kernel": "fused" if fused else "plain"}

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)
        self._adopt()


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad`, by name, in the order of `model.named_parameters()`.

    TypeError for anything but a module, such as `model.parameters()`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"give the optimiser the model itself, a torch.nn.Module, not a {type(model).__name__}: "
            "KalmanFilter(model), not KalmanFilter(model.parameters())"
        )
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_finite(value: Tensor, what: str) -> None:
    """Raises FloatingPointError naming `what` if any entry is NaN or infinite. Integers always pass."""
    value = value.detach()
    if value.is_floating_point() and not math.isfinite(value.sum()) and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise FloatingPointError(f"{what}: {bad} of {value.numel()} values are not finite; step refused")


def check_finite_everywhere(value: Tensor, what: str, group: Group | None = None) -> None:
    """`check_finite` of the value each process has: all of them raise if one does."""
    if world_size(group) == 1:
        check_finite(value, what)
    elif anywhere(not bool(torch.isfinite(value).all()), value.device, group):
        raise FloatingPointError(f"{what} of some process are not finite; step refused")
