"""What every optimiser of this package looks like: one call, one batch, one honest report.

A first-order optimiser only needs gradients; a Kalman filter or a natural gradient needs the model, the inputs and
the targets. `BatchOptimizer` is the smallest common shape, `step(inputs, targets) -> StepInfo`, on top of
`torch.optim.Optimizer` (so parameter groups, state dicts and step hooks work as everyone expects). `FirstOrder`
(first_order.py) gives any `torch.optim` optimiser that shape. Where `torch.distributed` is initialised each process
gives its own share of the batch (parallel/).
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipkal.optim.eager import EagerOptimizer
from clipkal.optim.parallel.shards import Group, anywhere, world_size
from clipkal.optim.posterior import Posterior


@dataclass(frozen=True)
class StepInfo:
    """What one step saw.

    Attributes:
        loss: mean negative log-likelihood of the batch *before* the step.
        log_evidence: log predictive density of the batch before the step, summed over its images, where there is one.
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
        """Takes one batch in: inputs [B, …] and targets [B].

        Raises FloatingPointError, with parameters and state untouched, if the batch or its loss is not finite.
        """

    def hold_out(self, inputs: Tensor, targets: Tensor) -> None:
        """Is shown images [M, …] and targets [M] by which settings may be judged, and from which nothing else is learnt.

        By default they are not looked at.
        """

    def conclude(
        self, shots: Iterable[tuple[Tensor, Tensor]], kept: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, float]:
        """Is called once, when the learning has ended: for what is made of the parameters that were kept, such as a posterior.

        Args:
            shots: batches (inputs, targets), which can be gone over again and again.
            kept: of every member that was learnt its trainable parameters by name; those of the first are in the model.

        Returns:
            What is worth a line in a run's record, by name.
        """
        return {}

    @property
    def posterior(self) -> Posterior | None:
        """The distribution that it has learnt; None where all it has is a point."""
        return None

    def describe(self) -> dict[str, str]:
        """What it really does, choices by rule and fallbacks included, in a word each; for a run's record."""
        return {"optimizer": type(self).__name__}

    def monitor(self) -> dict[str, float]:
        """Figures of the state that cost a pass over it: for now and then, where `StepInfo.metrics` are of every step."""
        return {}

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


def check_finite_everywhere(value: Tensor, what: str, group: Group | None) -> None:
    """`check_finite` of the value each process has: all of them raise if one does."""
    if world_size(group) == 1:
        check_finite(value, what)
    elif anywhere(not bool(torch.isfinite(value).all()), value.device, group):
        raise FloatingPointError(f"{what} of some process are not finite; step refused")


def check_classes(logits: Tensor) -> None:
    """Raises ValueError where logits [B, C] are of fewer than two classes: there is nothing to tell apart."""
    if logits.ndim == 2 and logits.shape[1] < 2:
        raise ValueError(
            f"the model has {logits.shape[1]} class: a classifier needs at least two "
            "(one output and real targets: observation='gaussian')"
        )


def check_independent(model: nn.Module) -> None:
    """Raises ValueError where the model mixes the images of a batch, so that no image has a Jacobian of its own."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{type(module).__name__} {name!r} normalises by the images of the batch, which a Kalman filter must see "
                "one by one: put it into evaluation mode first, model.eval()"
            )
