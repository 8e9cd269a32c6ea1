"""From the images of each process to the Jacobian of the whole batch, whatever the model and the covariance.

A Jacobian that needs little sent for it says so (`Jacobian.gathered`): bilinear models gather their factors, C + q numbers an
image. Of others the whitened rows are gathered, m·n numbers an image.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from clipkal.optim.base import check_finite_everywhere
from clipkal.optim.model.jacobian import Jacobian, JacobianRoute, ParameterVector, sketch
from clipkal.optim.parallel.shards import EVERY, Group, Shards

if TYPE_CHECKING:
    from clipkal.optim.kalman.update import Measurement


@dataclass
class GatheredJacobian(Jacobian):
    """J of some images of the whole batch, each process holding its own of them.

    local: J of this process's own; None if it has none of them.
    shards: which process holds which image of the whole batch.
    images: which of the whole batch these are.
    """

    logits: Tensor
    vector: ParameterVector
    local: Jacobian | None
    shards: Shards
    images: slice

    def _pull_mine(self, cotangents: Tensor) -> Tensor:
        mine = self.shards.local(cotangents, self.images)
        if self.local is None:
            return mine.new_zeros(0, cotangents.shape[-1], self.vector.size, dtype=self.vector.dtype)
        return self.local.pull(mine)

    def pull(self, cotangents: Tensor) -> Tensor:
        return self.shards.gather(self._pull_mine(cotangents), self.images)

    def gradient_norm2(self, cotangents: Tensor) -> Tensor:
        gradient = self._pull_mine(cotangents[..., None]).double().sum((0, 1))
        return self.shards.sum(gradient).square().sum()

    def squared_rows(self, measurement: "Measurement") -> dict[str, Tensor]:
        rows = self._pull_mine(sketch(measurement.cotangents()))
        squares = {name: self.vector.view(rows, name).double().square().sum() for name in self.vector.names}
        return {name: self.shards.sum(square) for name, square in squares.items()}

    def relinearised(self, images: slice) -> Jacobian:
        """Of the whole batch's Jacobian only."""
        assert self.local is not None and self.images == EVERY
        mine = self.shards.local_slice(images)
        local = self.local.relinearised(mine) if mine.stop > mine.start else None
        logits = self.shards.gather(self.local.logits[:0] if local is None else local.logits, images)
        return GatheredJacobian(logits, self.vector, local, self.shards, images)


class DistributedRoute(JacobianRoute):
    """A route whose batches are the whole group's; a process linearises only its own images."""

    def __init__(self, route: JacobianRoute, group: Group | None):
        super().__init__(route.model, route.vector, route.memory)
        self.route, self.group = route, group

    def receive(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The targets of the whole next batch, of which this process holds inputs and targets [b, …].

        FloatingPointError in all processes if an input of one is not finite, ValueError if they do not match.
        """
        check_finite_everywhere(inputs, "inputs", self.group)
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
        self.shards = Shards.of(len(inputs), self.vector.device, self.group)
        return self.shards.gather(targets)

    def linearise(self, inputs: Tensor) -> Jacobian:
        local = self.route.linearise(inputs)
        whole = local.gathered(self.shards)
        if whole is None:
            whole = GatheredJacobian(self.shards.gather(local.logits), self.vector, local, self.shards, EVERY)
        return whole
