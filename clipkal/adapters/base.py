"""What every adapter is: a module from inputs to class logits, with a name for what it is fed."""

from typing import ClassVar, Literal

from torch import Tensor, nn

Inputs = Literal["features", "images"]


class Adapter(nn.Module):
    """Maps inputs to logits `[B, C]`.

    inputs: what `forward` takes: `features` (unit rows `[B, d]` of the frozen backbone) or `images` (`[B,
        3, H, W]`).
    """

    inputs: ClassVar[Inputs] = "features"

    def forward(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError
