"""What a second differentiation needs of the forward pass: explicit attention and no compiled graph.

The fused attention kernels have no second derivative (`_scaled_dot_product_flash_attention_for_cpu_backward
is not implemented`) and neither have graphs of `torch.compile`. Only the forward pass has to run inside
these guards, which put everything back: the graph it records is then made of products and softmaxes,
differentiable as often as one likes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipkal.optim.model.layers import eager


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Runs forward passes of `model` so that their gradients can be differentiated again.

    Attention uses the math kernel (the whole attention matrix is formed: memory grows with the square of
    the tokens) and compiled modules run eagerly. Whatever was allowed before is allowed again afterwards.
    """
    with sdpa_kernel(SDPBackend.MATH), eager(model):
        yield
