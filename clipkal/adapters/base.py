"""What every adapter is: a module from inputs to class logits, with a name for what it is fed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from clipkal.errors import ConfigError

Inputs = Literal["features", "images"]


class Adapter(nn.Module):
    """Maps inputs to logits `[B, C]`.

    inputs: what `forward` takes: `features` (unit rows `[B, d]` of the frozen backbone) or `images` (`[B,
        3, H, W]`).
    batch_size: most inputs a forward pass where nothing is learnt from them.
    """

    inputs: ClassVar[Inputs] = "features"
    batch_size: int = 1024

    def forward(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def frozen_features(self, inputs: Tensor) -> Tensor:
        """Unit rows [B, d] of the frozen backbone for inputs as `forward` takes them, whatever was learnt since.

        Raises NotImplementedError where they are not to be had.
        """
        if self.inputs != "features":
            raise NotImplementedError(f"{type(self).__name__} gives no features of its frozen backbone")
        return inputs

    def zeroshot_logits(self, features: Tensor) -> Tensor:
        """The logits [B, C] before anything was learnt, from `frozen_features` [B, d]; for the classes it has now.

        Raises NotImplementedError where they are not to be had.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell its zero-shot logits")

    @contextmanager
    def classes(self, text: Tensor) -> Iterator[None]:
        """Answers for other classes meanwhile, those with the text features `[C', d]`; what is learnt stays.

        Raises ConfigError where the classes are learnt too, or d is not the width that was learnt with.
        """
        own = getattr(self, "text", None)
        if own is None:
            raise ConfigError(
                "an adapted text tower knows its own classes only, so nothing can be transferred to others "
                "(fewshot.transfer, fewshot.subset=base): type adapter.towers=vision, or adapter=linear"
            )
        if text.shape[1] != own.shape[1]:
            raise ConfigError(
                f"a transfer set has features of width {text.shape[1]}, but {own.shape[1]} was learnt with; "
                "give features of the same backbone"
            )
        self.text = text.to(own)
        try:
            yield
        finally:
            self.text = own

    def head(self) -> Tensor | None:
        """H [C, d] with logits = scale · norm(image feature) · Hᵀ at the weights of `merge`; None where it is no such map."""
        return None

    def merge(self) -> dict[str, Tensor]:
        """The weights of the backbone that it changes, with the change added; none where it changes none."""
        return {}

    def prior_variances(self) -> dict[str, float]:
        """Prior variances of single parameters by name, where a Kalman filter's common one does not suit them."""
        return {}

    def describe(self) -> dict[str, Any]:
        """What is trainable, for a run's record: numbers and words by name."""
        return {"trainable": sum(p.numel() for p in self.parameters() if p.requires_grad)}
