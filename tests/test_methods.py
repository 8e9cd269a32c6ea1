"""What a method cannot do is said before anything is learnt."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from clipkal.adapters.lora import build_lora
from clipkal.backbones import load_backbone
from clipkal.config import compose
from clipkal.errors import ConfigError
from clipkal.methods import make_build


@pytest.fixture(scope="module")
def many_classes():
    """LoRA in the mini-CLIP, over 300 made-up classes."""
    backbone = load_backbone(SimpleNamespace(model="mini", name="mini"))
    text = F.normalize(torch.randn(300, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    return build_lora(backbone, [["a thing"]] * 300, text)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            [],
            "optimizer=loko with 300 classes needs 300 backward passes an image.*type optimizer.observation=softmax",
        ),
        (
            ["optimizer.observation=softmax"],
            "predictive=probit with 300 classes needs 300 backward passes an image; type predictive=sampled",
        ),
    ],
)
def test_lora_of_very_many_classes_is_refused_with_the_way_out(many_classes, more, said):
    with pytest.raises(ConfigError, match=said):
        make_build(compose(["method=loko", *more]))(many_classes, None)


def test_the_way_out_learns(many_classes):
    words = ["method=loko", "optimizer.observation=softmax", "predictive=sampled"]
    filtered = make_build(compose(words))(many_classes, None)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 200])
    first = filtered.step(images, labels).loss
    assert filtered.step(images, labels).loss < first
    assert filtered.logit_samples(images, 2, torch.Generator().manual_seed(2)).shape == (2, 2, 300)


def test_a_setting_that_an_optimiser_refuses_is_one_line(many_classes):
    with pytest.raises(ConfigError, match=r"optimizer=kfac: damping should be greater than 0, not -1\.0"):
        make_build(compose(["method=kfac", "optimizer.damping=-1.0"]))(many_classes, 0.1)


@pytest.mark.parametrize(
    ("optimizer", "way"),
    [
        ("kalman_online", "type optimizer=kalman_clip"),
        ("kalman_filter", "type optimizer/observation=softmax optimizer/noise=residual"),
    ],
)
def test_every_recursive_filter_has_a_way_out(many_classes, optimizer, way):
    with pytest.raises(ConfigError, match=way):
        make_build(compose([f"optimizer={optimizer}", "adapter=lora"]))(many_classes, None)
    fits = compose([*way.removeprefix("type ").split(), "adapter=lora"]) if "=k" in way else None
    fits = fits or compose([f"optimizer={optimizer}", *way.removeprefix("type ").split(), "adapter=lora"])
    assert make_build(fits)(many_classes, None).observation.scalar
