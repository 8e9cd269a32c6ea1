"""CLIP's own classifier: scaled cosine similarity between the image feature and each class's text feature."""

from torch import Tensor, tensor

from clipkal.adapters.base import Adapter


class ZeroShotAdapter(Adapter):
    """logits[i, c] = scale · f_i · t_c, with nothing to learn.

    Args:
        text_features: unit rows `[C, d]`.
        logit_scale: CLIP's temperature as a factor (about 100 for OpenAI's weights), > 0.
    """

    text: Tensor
    scale: Tensor

    def __init__(self, text_features: Tensor, logit_scale: float):
        super().__init__()
        self.register_buffer("text", text_features.detach().clone())
        self.register_buffer("scale", tensor(float(logit_scale), dtype=text_features.dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        return ZeroShotAdapter.zeroshot_logits(self, inputs)

    def zeroshot_logits(self, features: Tensor) -> Tensor:
        return self.scale * (features @ self.text.T)

    def head(self) -> Tensor:
        return self.text
