"""Data-parallel runs: every process sees its own images, and all of them take the step of the whole batch.

Losses, gradients and products with the Hessian are means over images: averaged, weighted by how many images each
process has (deal.py). Kronecker factors and diagonals are summed over samples of labels that all processes draw alike
(kronecker_factors.py). What a Kalman update needs of an image, its logits and whitened rows, is gathered (gathering.py).
Every process computes the same update of its own copy of θ and of the curvature or P. All of it is exact: the step is
that of one process that holds the whole batch, up to the order of summation (dropout draws other units).

The order of the whole batch is that of torch's `DistributedSampler`: image i of process r is image i·world + r. No
effect where `torch.distributed` is not initialised. Every process must take every step, with at least one image.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup


def world_size(group: Group | None = None) -> int:
    """How many processes share a batch; 1 where `torch.distributed` is not initialised. None: all of them."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor], group: Group | None = None) -> None:
    """The values of the group's first process everywhere, in place: copies of one state start equal."""
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
