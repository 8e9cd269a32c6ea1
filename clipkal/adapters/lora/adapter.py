"""LoRA on the towers of a CLIP: low-rank paths beside frozen weights."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkal.adapters.base import Adapter, Inputs
from clipkal.adapters.lora.factors import LowRank
from clipkal.adapters.lora.paths import Path
from clipkal.adapters.lora.settings import LoRASettings
from clipkal.adapters.lora.targets import Target, find_targets
from clipkal.adapters.lora.towers import FrozenClip, Paths
from clipkal.errors import ConfigError


class LoRAAdapter(Adapter):
    """logits[i, c] = exp(log_scale) · norm(vision(image i)) · norm(text(class c)), with low-rank changes in the towers.

    The method is LoRA's (arXiv 2106.09685); it is the state that LoKO filters (arXiv 2410.11551). The weights
    W₀ of the model are only read: they are the same bits after training, and unmerging is to drop the changes.
    No module is replaced, and `torch.func` (vmap, vjp, jacrev) goes through. Double backward needs the unfused
    attention kernel (`sdpa_kernel(SDPBackend.MATH)`).

    `state_dict` holds A and B of every target and log_scale. `deepcopy` shares the frozen model, and `.to` leaves
    it where it is: the factors start on its device, in float32 at least. Dropout needs training mode, which a
    new module is in.

    What a Kalman filter does with B = 0 at the start: logits depend on A only through B A, so ∂logits/∂A = 0 in
    the first update. Rows of H that are zero give a zero gain: A stays, and its variances keep their prior
    value, while B is conditioned on the data. From the second update on B ≠ 0 and A is filtered too.

    A filter needs `priors=adapter.prior_variances()`. One p₀ for A and B, found by the ratio rule from the
    Jacobian of B, would let A roam over many times its own size: the logits are then far from linear in (A, B)
    jointly, and the filter diverges (measured on digits). With Var(A) as the prior of A the rule sets p₀ of B
    alone, in which the logits of a linear tower are linear, and its default ratios hold. It also needs dropout = 0.

    Args:
        model: open_clip's CLIP or CustomTextCLIP, frozen and in evaluation mode. Attention, MLP and
            convolution weights are known by name: open_clip's ViT (both kinds of block) and text tower, timm's
            ViT, ModifiedResNet.
        text_features: unit rows [C, d], used where the text tower is not adapted; else may be None.
        logit_scale: CLIP's temperature as a factor, > 0; kept as its logarithm in `log_scale`.
        settings: see `LoRASettings`.
        tokens: for each class the token ids [n, context] of its sentences, where the text tower is adapted: the
            class feature is the normalised mean of its sentences' normalised features, made in every forward.

    Raises ConfigError for what the model has not, or what is missing.
    """

    inputs: ClassVar[Inputs] = "images"
    log_scale: Tensor
    text: Tensor
    tokens: Tensor
    averaging: Tensor

    def __init__(
        self,
        model: nn.Module,
        text_features: Tensor | None,
        logit_scale: float,
        settings: LoRASettings | None = None,
        tokens: Sequence[Tensor] | None = None,
    ):
        super().__init__()
        self.settings = settings or LoRASettings()
        self.frozen = FrozenClip(model)
        self.targets = find_targets(self.frozen.parameters, self.settings)
        first = self.frozen.parameters[self.targets[0].name]
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        scale = torch.tensor(math.log(logit_scale), dtype=self.dtype, device=first.device)
        self.register_buffer("log_scale", scale)
        generator = torch.Generator().manual_seed(self.settings.seed)
        self._zeroshot_text: Tensor | None = None
        self.factors = nn.ModuleDict({t.label: self._factors(t, generator) for t in self.targets})
        if self.settings.adapts("text"):
            self._keep_tokens(tokens, first.device)
        elif text_features is None:
            raise ConfigError("adapter.towers=vision needs the text features of the classes")
        else:
            text = text_features.detach().to(first.device, self.dtype, copy=True)
            self.register_buffer("text", text, persistent=False)

    def _factors(self, target: Target, generator: torch.Generator) -> LowRank:
        s, device = self.settings, self.frozen.parameters[target.name].device
        return LowRank(target.size, s.rank, s.scale, s.dropout, generator, self.dtype, device)

    def _keep_tokens(self, tokens: Sequence[Tensor] | None, device: torch.device) -> None:
        """Tokens [P, context] of all sentences, and the matrix [C, P] that averages them class by class."""
        if not tokens or not all(t.ndim == 2 and len(t) for t in tokens):
            raise ConfigError(
                f"adapter.towers={self.settings.towers} needs the token ids of every class's sentences"
            )
        rows = [torch.full((1, len(t)), 1 / len(t), dtype=self.dtype) for t in tokens]
        self.register_buffer("tokens", torch.cat(list(tokens)).to(device), persistent=False)
        self.register_buffer("averaging", torch.block_diag(*rows).to(device), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images [B, 3, H, W], preprocessed for the model, to logits [B, C]."""
        images = self._unit(self.frozen.image_features(inputs, self._paths(vision=True)))
        return self.log_scale.exp() * (images @ self.class_features().mT)

    def class_features(self) -> Tensor:
        """Unit rows [C, d] of the classes, at the present θ."""
        return self._class_features(self._paths(vision=False)) if self.settings.adapts("text") else self.text

    def _class_features(self, paths: Paths) -> Tensor:
        sentences = self.frozen.text_features(self.tokens, paths)
        return F.normalize(self.averaging @ self._unit(sentences), dim=-1)

    def frozen_features(self, inputs: Tensor) -> Tensor:
        """Unit rows [B, d] of images [B, 3, H, W], through the image tower without its changes."""
        return self._unit(self.frozen.image_features(inputs, {}))

    def zeroshot_logits(self, features: Tensor) -> Tensor:
        return self.log_scale.exp() * (features @ self._frozen_classes().mT)

    @torch.no_grad()
    def _frozen_classes(self) -> Tensor:
        """Unit rows [C, d] of the classes through the text tower without its changes, made once."""
        if not self.settings.adapts("text"):
            return self.text
        if self._zeroshot_text is None:
            self._zeroshot_text = self._class_features({})
        return self._zeroshot_text

    def _paths(self, vision: bool) -> Paths:
        """The low-rank paths of one tower, by the names of their weights."""
        paths: dict[str, list[Path]] = {}
        for target, factors in zip(self.targets, self.factors.values(), strict=True):
            if target.name.startswith("visual.") == vision:
                paths.setdefault(target.name, []).append(Path(target.start, target.stop, factors))
        return paths

    def _unit(self, features: Tensor) -> Tensor:
        return F.normalize(features.to(self.dtype), dim=-1)

    @torch.no_grad()
    def head(self) -> Tensor:
        return self.class_features()

    @torch.no_grad()
    def merge(self) -> dict[str, Tensor]:
        """The model's state dict with the changes added, for the plain model; other tensors are shared, not copied.

        The output of the model with it equals the adapter's up to rounding. To unmerge, load the model's own
        state dict, which never changed.
        """
        merged = {name: self.frozen.parameters[name].clone() for name in {t.name for t in self.targets}}
        for target, factors in zip(self.targets, self.factors.values(), strict=True):
            rows = merged[target.name][target.start : target.stop]
            rows += factors.change().view(rows.shape).to(rows.dtype)  # type: ignore[operator]
        return {**self.frozen.clip.state_dict(), **merged}

    def prior_variances(self) -> dict[str, float]:
        """The prior variance of every A, by parameter name: that of its entries at the start. See the class."""
        named = ((f"factors.{label}", factors) for label, factors in self.factors.items())
        return {f"{name}.down.weight": float(factors.start_variance) for name, factors in named}  # type: ignore[arg-type]

    @property
    def class_count(self) -> int:
        """C, without a pass through the text tower."""
        return len(self.averaging if self.settings.adapts("text") else self.text)

    def describe(self) -> dict[str, Any]:
        """What is adapted: rank, scale, number of changes and of trainable numbers; for a run's record."""
        s = self.settings
        return {"rank": s.rank, "scale": s.scale, "changes": len(self.targets), **super().describe()}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.describe().items())
