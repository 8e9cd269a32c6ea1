"""From the images of each process to the Jacobian of the whole batch: one place, whatever the model and the covariance.

Bilinear models gather their factors, C + q numbers an image; others their whitened rows, m·n an image. shards.py does it.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from clipkal.optim.model.bilinear import BilinearJacobian
from clipkal.optim.model.jacobian import Jacobian, JacobianRoute, sketch
from clipkal.optim.model.measurement import EVERY, Measurement
from clipkal.optim.model.parameters import ParameterVector
from clipkal.optim.parallel.shards import Group, Shards


@dataclass
class GatheredJacobian(Jacobian):
    """J of a slice of the whole batch, each process holding that of its own shard (local; None: it has no image)."""

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

    def squared_rows(self, measurement: Measurement) -> dict[str, Tensor]:
        rows = self._pull_mine(sketch(measurement.cotangents()))
        squares = {name: self.vector.view(rows, name).double().square().sum() for name in self.vector.names}
        return {name: self.shards.sum(square) for name, square in squares.items()}


class DistributedRoute(JacobianRoute):
    """A route whose batches are the whole group's; a process linearises only its own images."""

    def __init__(self, route: JacobianRoute, vector: ParameterVector, group: Group | None = None):
        self.route, self.vector, self.group = route, vector, group

    def gather_targets(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Starts a batch of which this process holds inputs and targets [b, …]; returns the targets of all of it."""
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
        self.shards = Shards.of(len(inputs), self.vector.device, self.group)
        return self.shards.gather(targets)

    def linearise(self, inputs: Tensor) -> Jacobian:
        self.whole = self.route.linearise(inputs)
        return self._gather(self.whole, self.shards.gather(self.whole.logits), EVERY)

    def relinearise(self, whole: Jacobian, inputs: Tensor, images: slice) -> Jacobian:
        """images: of the whole batch; inputs: this process's own, as they were linearised last."""
        mine = self.shards.local_slice(images)
        local = self.route.relinearise(self.whole, inputs, mine) if mine.stop > mine.start else None
        logits = self.shards.gather(self.whole.logits[:0] if local is None else local.logits, images)
        return self._gather(local, logits, images)

    def _gather(self, local: Jacobian | None, logits: Tensor, images: slice) -> Jacobian:
        if not isinstance(self.whole, BilinearJacobian):
            return GatheredJacobian(logits, self.vector, local, self.shards, images)
        part = self.whole if local is None else local
        assert isinstance(part, BilinearJacobian)
        none = slice(0, 0) if local is None else EVERY
        right = self.shards.gather(part.right[none], images)
        extra = logits[..., None][..., : part.extra.shape[-1]]
        return replace(part, logits=logits, right=right, extra=extra)
