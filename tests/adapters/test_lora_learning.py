"""LoRA on the embedded mini-CLIP: it learns, with AdamW and with a Kalman filter, and the frozen weights stay the same bits."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from clipkal.adapters.lora import build_lora
from clipkal.backbones import load_backbone, text_features
from clipkal.data.digits import NAMES, scans
from clipkal.errors import DataError
from clipkal.optim import KalmanFilter

PROMPTS = [[f"a photo of the digit {name}", f"the number {name}"] for name in NAMES]


@pytest.fixture(scope="module")
def backbone():
    found = load_backbone(SimpleNamespace(model="mini", name="mini"))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def text(backbone):
    return text_features(backbone, PROMPTS, cache_dir="off", progress=False)


@pytest.fixture(scope="module")
def digits():
    """Three preprocessed scans of each digit [30, 3, 64, 64], mixed, and their labels."""
    ink, labels = scans()
    labels = torch.tensor(labels)
    rows = torch.cat([(labels == digit).nonzero()[:3, 0] for digit in range(10)])
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    gray = (245 - 220 * ink[rows]) / 255
    return ((gray - 0.5) / 0.28)[:, None].expand(-1, 3, -1, -1).contiguous(), labels[rows]


def same_bits(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_hundred_adamw_steps_leave_the_frozen_weights_alone(backbone, text, digits):
    before = copy.deepcopy(backbone.model.state_dict())
    settings = {"targets": ["q", "v", "conv"], "blocks": "last:2"}
    adapter, (images, labels) = build_lora(backbone, PROMPTS, text, **settings), digits
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for step in range(100):
        rows = torch.arange(2) + 2 * step
        loss = F.cross_entropy(adapter(images[rows % 30]), labels[rows % 30])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert same_bits(backbone.model, before)


@pytest.mark.parametrize("observation", ["softmax", "categorical", "probs"])
def test_a_kalman_filter_learns_from_images(backbone, text, digits, observation):
    before = copy.deepcopy(backbone.model.state_dict())
    settings = {"targets": ["v", "out"], "rank": 2}
    adapter, (images, labels) = build_lora(backbone, PROMPTS, text, **settings), digits
    priors = adapter.prior_variances()
    filtered = KalmanFilter(adapter, observation, covariance="diagonal", priors=priors)
    with torch.no_grad():
        start = float(F.cross_entropy(adapter(images), labels))
    for rows in torch.arange(30).split(10):
        filtered.step(images[rows], labels[rows])
    with torch.no_grad():
        assert float(F.cross_entropy(adapter(images), labels)) < start - 0.1
    assert same_bits(backbone.model, before)
    drawn = filtered.logit_samples(images[:2], 3, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 2, 10) and bool(drawn.isfinite().all())


def test_with_b_at_zero_the_first_update_moves_b_alone(backbone, text, digits):
    """A has no Jacobian yet: it stays, and its variances keep their prior value until the second update."""
    images, labels = digits
    adapter = build_lora(backbone, PROMPTS, text, targets=["v"], rank=2)
    name = next(n for n, _ in adapter.named_parameters() if n.endswith(".down.weight"))
    start = adapter.get_parameter(name).detach().clone()
    filtered = KalmanFilter(adapter, "softmax", covariance="diagonal", block=None)
    filtered.step(images[:4], labels[:4])
    assert torch.equal(adapter.get_parameter(name), start)
    variance = filtered.vector.view(filtered.covariance.variance, name)
    assert bool((variance == filtered.prior_variance).all())
    filtered.step(images[4:8], labels[4:8])
    assert not torch.equal(adapter.get_parameter(name), start)


def test_the_prior_of_a_is_the_spread_of_its_start(backbone, text):
    adapter = build_lora(backbone, PROMPTS, text, rank=8)
    priors = adapter.prior_variances()
    assert list(priors) == [name for name, _ in adapter.named_parameters() if name.endswith(".down.weight")]
    for name, variance in priors.items():
        assert float(adapter.get_parameter(name).detach().var()) == pytest.approx(variance, rel=0.05)


def test_the_text_tower_from_prompts(backbone, text):
    adapter = build_lora(backbone, PROMPTS, towers="both")
    torch.testing.assert_close(adapter.class_features(), text, rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match="sentence"):
        build_lora(backbone, [[], ["a one"]], towers="text")
