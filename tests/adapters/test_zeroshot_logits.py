"""What an adapter says of the time before it learnt: zero-shot logits and the features of the frozen backbone."""

import pytest
import torch
from test_lora import adapter_of, class_features, clip_of, disturb, images_of, tokens_of_classes, zero_shot
from torch import nn
from torch.nn import functional as F

from clipkal.adapters import Adapter, LinearAdapter, ZeroShotAdapter


@pytest.mark.parametrize("make", [ZeroShotAdapter, LinearAdapter, lambda *a: LinearAdapter(*a, "classes")])
def test_what_was_learnt_from_features_does_not_count(make):
    text, inputs = (
        F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)), dim=1) for n in (4, 9)
    )
    adapter = make(text, 20.0)
    before = adapter(inputs).detach()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    features = adapter.frozen_features(inputs)
    assert torch.equal(features, inputs)
    torch.testing.assert_close(adapter.zeroshot_logits(features), before)
    if isinstance(adapter, LinearAdapter):
        assert (adapter(inputs) - before).abs().max() > 1
    with adapter.classes(text[:2]):
        torch.testing.assert_close(adapter.zeroshot_logits(features), before[:, :2])


@pytest.mark.parametrize("towers", ["vision", "text", "both"])
def test_a_lora_switched_off_is_the_frozen_model(towers):
    model, tokens, images = clip_of("vit"), tokens_of_classes(), images_of("vit")
    adapter = adapter_of(model, towers=towers)
    disturb(adapter)
    features = adapter.frozen_features(images)
    torch.testing.assert_close(features, F.normalize(model.encode_image(images), dim=-1))
    expected = zero_shot(model, images, tokens)
    for _ in range(2):  # the text features are made once
        torch.testing.assert_close(adapter.zeroshot_logits(features), expected, rtol=1e-5, atol=1e-4)
    assert (adapter(images) - expected).abs().max() > 0.01
    assert torch.equal(adapter.frozen_features(images), features)
    assert not adapter.zeroshot_logits(features).requires_grad
    if towers == "vision":
        with adapter.classes(class_features(model, tokens)[1:]):
            torch.testing.assert_close(
                adapter.zeroshot_logits(features), expected[:, 1:], rtol=1e-5, atol=1e-4
            )


def test_an_adapter_that_cannot_tell_says_so():
    class Images(Adapter):
        inputs = "images"

    with pytest.raises(NotImplementedError, match="Images gives no features"):
        Images().frozen_features(torch.zeros(1, 3, 8, 8))
    with pytest.raises(NotImplementedError, match="Images does not tell its zero-shot logits"):
        Images().zeroshot_logits(torch.zeros(1, 4))
