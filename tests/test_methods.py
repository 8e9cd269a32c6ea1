"""What a method cannot do is said before anything is learnt."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from clipkal.adapters.lora import LoRASettings, build_lora
from clipkal.backbones import load_backbone
from clipkal.config import compose
from clipkal.errors import ConfigError
from clipkal.methods import make_build


@pytest.fixture(scope="module")
def many_classes():
    """LoRA in the mini-CLIP, over 300 made-up classes."""
    backbone = load_backbone(SimpleNamespace(model="mini", name="mini"))
    text = F.normalize(torch.randn(300, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    return build_lora(backbone, [["a thing"]] * 300, text, LoRASettings())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "optimizer.observation=probs with 300 classes needs 300 backward passes"),
        (
            ["optimizer.observation=softmax", "optimizer.noise=residual"],
            "predictive=probit with 300 classes needs 300 backward passes an image; type predictive=sampled",
        ),
    ],
)
def test_lora_of_very_many_classes_is_refused_with_the_way_out(many_classes, more, said):
    with pytest.raises(ConfigError, match=said):
        make_build(compose(["method=loko", *more]))(many_classes, None)


def test_the_way_out_learns(many_classes):
    words = ["method=loko", "optimizer.observation=softmax", "optimizer.noise=residual", "predictive=sampled"]
    filtered = make_build(compose(words))(many_classes, None)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 200])
    first = filtered.step(images, labels).loss
    assert filtered.step(images, labels).loss < first
    assert filtered.logit_samples(images, 2, torch.Generator().manual_seed(2)).shape == (2, 2, 300)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["method=kfac", "optimizer.damping=-1.0"], "optimizer.name=kfac: damping should be greater than 0, not -1.0"),
        (["method=adamw", "optimizer.weight_decay=-1.0"], "optimizer.name=adamw: weight_decay should be greater"),
        (["method=adamw", "optimizer.momentum=0.9"], "optimizer.name=adamw: .*'momentum'"),
    ],
)  # fmt: skip
def test_a_setting_that_an_optimiser_refuses_is_one_line(many_classes, more, said):
    with pytest.raises(ConfigError, match=said):
        make_build(compose(more))(many_classes, 0.1)
