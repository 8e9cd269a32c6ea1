"""Where the weights of attention, MLPs and convolutions are in a CLIP, by the names of its parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from clipkal.adapters.lora.settings import LoRASettings
from clipkal.errors import ConfigError

# Attention and MLP of open_clip's and timm's transformer blocks; attention pool and bottlenecks of ModifiedResNet.
_PATTERNS = (
    (r"(?P<block>.+)\.attn\.(in_proj_weight|qkv\.weight)", "qkv"),
    (r"(?P<block>.+)\.attn\.(?P<kind>[qkv])_proj\.weight", None),
    (r"(?P<block>.+)\.attn\.(out_proj|proj)\.weight", "out"),
    (r"(?P<block>.+)\.mlp\.(c_fc|fc1)\.weight", "fc1"),
    (r"(?P<block>.+)\.mlp\.(c_proj|fc2)\.weight", "fc2"),
    (r"(?P<block>.+\.attnpool)\.(?P<kind>[qkv])_proj\.weight", None),
    (r"(?P<block>.+\.attnpool)\.c_proj\.weight", "out"),
    (r"(?P<block>.+\.layer\d+\.\d+)\.(conv\d|downsample\.0)\.weight", "conv"),
)
PATTERNS = [(re.compile(pattern), kind) for pattern, kind in _PATTERNS]


@dataclass(frozen=True)
class Target:
    """One low-rank change: rows `start` to `stop` of the weight called `name`, seen as a matrix [out, in].

    kind: one of `settings.TARGETS`. block: the name of its block. A convolution's kernel [out, in, h, w] counts
    as [out, in · h · w]; q, k and v are a third each of a fused weight [3d, d].
    """

    name: str
    kind: str
    block: str
    start: int
    stop: int
    width: int

    @property
    def label(self) -> str:
        """A name for the factors: the weight's, and which part of it."""
        fused = self.name.endswith(("in_proj_weight", "qkv.weight"))
        return f"{self.name.removesuffix('.weight')}{':' + self.kind if fused else ''}".replace(".", "/")

    @property
    def size(self) -> tuple[int, int]:
        """[out, in]."""
        return self.stop - self.start, self.width


def find_targets(parameters: Mapping[str, Tensor], settings: LoRASettings) -> list[Target]:
    """The targets that the settings name, in the order of `parameters` (all of a CLIP, by name).

    Raises ConfigError where a tower that is to be adapted has no such weight, or one smaller than the rank.
    """
    chosen: list[Target] = []
    for tower in ("vision", "text"):
        if not settings.adapts(tower):
            continue
        found = [t for name, p in parameters.items() if _tower_of(name) == tower for t in _match(name, p)]
        blocks = set(settings.pick_blocks(list(dict.fromkeys(t.block for t in found))))
        wanted = [t for t in found if t.block in blocks and t.kind in settings.targets]
        if not wanted:
            known = ", ".join(sorted({t.kind for t in found if t.block in blocks})) or "none that LoRA knows"
            raise ConfigError(
                f"adapter.targets={list(settings.targets)}: adapter.blocks={settings.blocks} of this backbone's "
                f"{tower} tower has other weights ({known})"
            )
        chosen += wanted
    for target in chosen:
        if settings.rank > min(target.size):
            raise ConfigError(
                f"adapter.rank={settings.rank} is more than {target.name} has: {min(target.size)}"
            )
    return chosen


def _tower_of(name: str) -> str:
    return "vision" if name.startswith("visual.") else "text"


def _match(name: str, weight: Tensor) -> list[Target]:
    """The targets in a weight: three in a fused one, one in another, none in what is no target."""
    for pattern, kind in PATTERNS:
        found = pattern.fullmatch(name)
        if found is None:
            continue
        block, rows, width = found["block"], weight.shape[0], weight[0].numel()
        if kind == "qkv":
            third = rows // 3
            return [Target(name, q, block, i * third, (i + 1) * third, width) for i, q in enumerate("qkv")]
        return [Target(name, kind or found["kind"], block, 0, rows, width)]
    return []
