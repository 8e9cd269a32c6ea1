"""Data-parallel runs: every process sees its own shard of a batch, and all of them take the step of the whole batch.

Losses, gradients and products with the Hessian are means over images: `Shards.mean` averages them, weighted by how many
images each process has. Kronecker factors and diagonals are sums over samples (`Shards.sum`) of labels that all processes
sample alike. What a Kalman update needs of an image, its logits and whitened rows, is gathered (`Shards.gather`). Every
process then computes the same update of its own copy of θ and of the curvature or P. All of it is exact: the step is that
of one process that holds the whole batch, up to the order of summation (dropout zeroes other units).

The order of the whole batch is that of torch's `DistributedSampler`: image i of process r is image i·world + r. Where
`torch.distributed` is not initialised nothing is communicated and values are handed back as they are. Every process must
take every step, with at least one image.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup
Key = TypeVar("Key")
EVERY = slice(None)


def world_size(group: Group | None = None) -> int:
    """How many processes share a batch; 1 where `torch.distributed` is not initialised. None: all of them."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], group: Group | None) -> None:
    """Copies the values of the group's first process to all others, in place, so that all start equal."""
    if world_size(group) > 1:
        for tensor in tensors:
            dist.broadcast(tensor, group=group, group_src=0)


def anywhere(fails: bool, device: torch.device, group: Group | None = None) -> bool:
    """Whether the condition holds in any process: what one refuses, all refuse, and none waits for the others."""
    if world_size(group) == 1:
        return fails
    flag = torch.tensor(float(fails), device=device)
    dist.all_reduce(flag, group=group)
    return bool(flag)


@dataclass(frozen=True)
class Shards:
    """Which process holds which image of the whole batch, and with that: gathers, sums and means over all images.

    Attributes:
        owners: rank of each image, [B].
        rank: that of this process.
        fraction: this process's part of the B images, in (0, 1].
        group: the processes that share the batch; None: all of them.
    """

    owners: Tensor
    rank: int = 0
    fraction: float = 1.0
    group: Group | None = None

    @classmethod
    def of(cls, images: int, device: torch.device, group: Group | None = None) -> "Shards":
        """The shards of a batch of which this process holds `images`.

        Raises ValueError, in all processes, if one of several has no image.
        """
        if world_size(group) == 1:
            return cls(torch.zeros(images, dtype=torch.long, device=device))
        local = torch.tensor([images], device=device)
        held = [torch.empty_like(local) for _ in range(world_size(group))]
        dist.all_gather(held, local, group=group)
        counts = torch.cat(held)
        if not counts.all():
            raise ValueError(f"every process needs an image of each batch, they have {counts.tolist()}")
        position = torch.arange(int(counts.max()), device=device)
        owners = (position[:, None] < counts).nonzero()[:, 1]
        return cls(owners, dist.get_rank(group), images / len(owners), group)

    def __len__(self) -> int:
        """B, the images of the whole batch."""
        return len(self.owners)

    @property
    def alone(self) -> bool:
        """Whether this process holds the whole batch."""
        return world_size(self.group) == 1

    def local_slice(self, images: slice) -> slice:
        """Where, among this process's own images, those of a slice of the whole batch are."""
        before = int((self.owners[: images.start or 0] == self.rank).sum())
        return slice(before, before + int((self.owners[images] == self.rank).sum()))

    def local(self, whole: Tensor, images: slice = EVERY) -> Tensor:
        """This process's own values [b, …] of those of all images of a slice; the inverse of `gather`."""
        return whole if self.alone else whole[self.owners[images] == self.rank]

    def gather(self, part: Tensor, images: slice = EVERY) -> Tensor:
        """The values [b, …] of all images of a slice, from each process's own [b_r, …]."""
        if self.alone:
            return part
        owners = self.owners[images]
        counts = torch.bincount(owners, minlength=world_size(self.group))
        padded = part.new_zeros(int(counts.max()), *part.shape[1:])
        padded[: len(part)] = part.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.group)
        whole = part.new_empty(len(owners), *part.shape[1:])
        for rank, (count, values) in enumerate(zip(counts.tolist(), parts, strict=True)):
            whole[owners == rank] = values[:count]
        return whole

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all processes of a tensor of any layout, which is left as it is.

        What is not finite in one process is so in all of them afterwards.
        """
        if self.alone:
            return part
        whole = part.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, group=self.group)
        return whole

    def sum_int(self, part: int) -> int:
        """The sum over all processes of a whole number."""
        return part if self.alone else int(self.sum(torch.tensor(part, device=self.owners.device)))

    def mean(self, part: Tensor) -> Tensor:
        """The mean over all images, from each process's mean over its own."""
        return part if self.alone else self.sum(part.detach() * self.fraction)

    def means(self, parts: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The `mean` of every value."""
        return {key: self.mean(part) for key, part in parts.items()}
