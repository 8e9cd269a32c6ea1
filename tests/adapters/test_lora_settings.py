"""What a LoRA configuration may say, and which weights it then names."""

import pytest
import torch

from clipkal.adapters.lora.settings import LoRASettings
from clipkal.adapters.lora.targets import find_targets
from clipkal.errors import ConfigError, DataError


def parameters(*names, rows=12, width=4):
    return {name: torch.zeros(rows, width) for name in names}


def block_of(prefix):
    return [f"{prefix}.attn.in_proj_weight", f"{prefix}.attn.in_proj_bias", f"{prefix}.mlp.c_fc.weight"]


MODEL = parameters(
    "visual.conv1.weight",
    *(name for i in range(12) for name in block_of(f"visual.transformer.resblocks.{i}")),
    *(name for i in range(3) for name in block_of(f"transformer.resblocks.{i}")),
    "text_projection",
)


def blocks(settings):
    return [t.block.rsplit(".", 1)[-1] for t in find_targets(MODEL, settings)]


@pytest.mark.parametrize(
    ("word", "places"),
    [
        ("all", range(12)),
        ("last:2", [10, 11]),
        ("first:3", [0, 1, 2]),
        ("last:99", range(12)),
        ([0, -1], [0, 11]),
        ([5], [5]),
    ],
)
def test_blocks(word, places):
    assert blocks(LoRASettings(targets=["q"], blocks=word)) == [str(i) for i in places]


def test_q_k_v_are_rows_of_the_fused_weight_and_towers_are_kept_apart():
    found = find_targets(MODEL, LoRASettings(targets=["v", "q", "fc1"], blocks="last:1", towers="both"))
    assert [(t.name, t.kind, t.start, t.stop) for t in found] == [
        ("visual.transformer.resblocks.11.attn.in_proj_weight", "q", 0, 4),
        ("visual.transformer.resblocks.11.attn.in_proj_weight", "v", 8, 12),
        ("visual.transformer.resblocks.11.mlp.c_fc.weight", "fc1", 0, 12),
        ("transformer.resblocks.2.attn.in_proj_weight", "q", 0, 4),
        ("transformer.resblocks.2.attn.in_proj_weight", "v", 8, 12),
        ("transformer.resblocks.2.mlp.c_fc.weight", "fc1", 0, 12),
    ]
    assert len({t.label for t in found}) == len(found)


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["visual.trunk.blocks.0.attn.qkv.weight"], ["q", "k", "v"]),
        (["visual.trunk.blocks.0.attn.proj.weight"], ["out"]),
        (["visual.trunk.blocks.0.mlp.fc1.weight", "visual.trunk.blocks.0.mlp.fc2.weight"], ["fc1", "fc2"]),
        (["visual.layer3.0.conv2.weight", "visual.layer3.0.downsample.0.weight"], ["conv", "conv"]),
        (["visual.attnpool.q_proj.weight", "visual.attnpool.c_proj.weight"], ["q", "out"]),
        (["visual.layer3.0.conv2.weight", "visual.layer3.0.bn2.weight", "visual.conv2.weight"], ["conv"]),
    ],
)
def test_the_names_of_every_architecture(names, kinds):
    everything = LoRASettings(rank=1, targets=["q", "k", "v", "out", "fc1", "fc2", "conv"])
    assert [t.kind for t in find_targets(parameters(*names), everything)] == kinds


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"rank": 0}, "adapter.rank=0"),
        ({"alpha": 0.0}, "adapter.alpha=0.0"),
        ({"dropout": 1.0}, "adapter.dropout=1.0"),
        ({"targets": ["query"]}, "'query'"),
        ({"targets": "q"}, "adapter.targets=q"),
        ({"targets": []}, "adapter.targets"),
        ({"towers": "image"}, "'image'"),
        ({"blocks": "last"}, "adapter.blocks=last"),
        ({"blocks": "last:0"}, "adapter.blocks=last:0"),
    ],
)
def test_what_does_not_exist_is_refused(wrong, line):
    with pytest.raises(ConfigError, match=line):
        LoRASettings(**wrong)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"blocks": [12]}, "12 is not among 0…11"),
        ({"targets": ["conv"]}, r"\(fc1, k, q, v\)"),
        ({"rank": 5}, "adapter.rank=5 is more than .* has: 4"),
    ],
)
def test_what_the_backbone_has_not_is_refused(settings, line):
    with pytest.raises(ConfigError, match=line):
        find_targets(MODEL, LoRASettings(**settings))


def test_a_tower_without_known_weights_is_refused():
    with pytest.raises(ConfigError, match="text tower has other weights"):
        find_targets(parameters("visual.trunk.stem.weight"), LoRASettings(towers="text"))


def test_an_adapted_text_tower_refuses_classes_that_its_context_makes_the_same():
    from types import SimpleNamespace

    from open_clip import SimpleTokenizer

    from clipkal.adapters.lora import build_lora

    backbone = SimpleNamespace(name="tiny", tokenizer=SimpleTokenizer(context_length=8))
    prompts = [["a photo of a very long car 2011"], ["a photo of a very long car 2012"]]
    with pytest.raises(DataError, match="context of 8 tokens"):
        build_lora(backbone, prompts, towers="text")
