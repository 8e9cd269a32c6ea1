"""Who holds which image of a batch, and with that: the values of all images, and sums and means over them.

distributed.py says in which order. In a single process, which holds everything, values are handed back as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from clipkal.optim.parallel.processes import Group, world_size

Key = TypeVar("Key")
EVERY = slice(None)


@dataclass(frozen=True)
class Deal:
    """Which process holds which image of the whole batch.

    owners: [B] rank of each image. share: this process's part of the B images, in (0, 1].
    """

    owners: Tensor
    rank: int = 0
    share: float = 1.0
    group: Group | None = None

    @classmethod
    def of(cls, images: int, device: torch.device, group: Group | None = None) -> "Deal":
        """The deal of a batch of which this process holds `images`; ValueError in all if one of several has none."""
        if world_size(group) == 1:
            return cls(torch.zeros(images, dtype=torch.long, device=device))
        mine = torch.tensor([images], device=device)
        held = [torch.empty_like(mine) for _ in range(world_size(group))]
        dist.all_gather(held, mine, group=group)
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

    def mine(self, images: slice = EVERY) -> slice:
        """This process's own part of a slice of the whole batch."""
        before = int((self.owners[: images.start or 0] == self.rank).sum())
        return slice(before, before + int((self.owners[images] == self.rank).sum()))

    def own(self, whole: Tensor, images: slice = EVERY) -> Tensor:
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

    def total(self, part: Tensor) -> Tensor:
        """The sum over all processes of a tensor of any layout, which is left as it is.

        What is not finite in one process is so in all of them afterwards.
        """
        if self.alone:
            return part
        whole = part.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, group=self.group)
        return whole

    def mean(self, part: Tensor) -> Tensor:
        """The mean over all images, from each process's mean over its own."""
        return part if self.alone else self.total(part.detach() * self.share)

    def means(self, parts: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The `mean` of every value."""
        return {key: self.mean(part) for key, part in parts.items()}

    def count(self, mine: int) -> int:
        """The sum over all processes of a whole number."""
        return mine if self.alone else int(self.total(torch.tensor(mine, device=self.owners.device)))
