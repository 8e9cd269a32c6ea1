"""Normal draws that a seed makes the same everywhere."""

import torch
from torch import Tensor


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """White noise, drawn on the generator's device (the CPU for None) so that a seed means the same everywhere."""
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
