"""Zero-shot at a fitted temperature, and learnt logits in the range of zero-shot's."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from clipkal.adapters import LinearAdapter, ZeroShotAdapter
from clipkal.config import check, compose
from clipkal.errors import CheckpointError, ConfigError
from clipkal.uncertainty import Chunk, RangeMatched, Reader, Tempered, View, fit_temperature, plugin


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def labelled(inputs: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(inputs=inputs, labels=labels, ids=[str(i) for i in range(len(labels))])


def test_the_temperature_is_that_of_shots_and_validation_images_together():
    """Labels drawn from softmax(z/2): T₀ is 2, whatever the adapter has learnt meanwhile."""
    text, inputs = unit(5, 12, seed=7), unit(6000, 12)
    z = ZeroShotAdapter(text, 20.0)(inputs)
    torch.manual_seed(0)
    labels = torch.distributions.Categorical(logits=z / 2).sample()
    predictive, adapter = Tempered(), LinearAdapter(text, 20.0)
    adapter.weight.data.normal_()
    predictive.fit(
        Reader(adapter), labelled(inputs[:4000], labels[:4000]), labelled(inputs[4000:], labels[4000:])
    )
    assert predictive.temperature == pytest.approx(2, rel=0.05)
    assert predictive.temperature == pytest.approx(fit_temperature(z, labels, 0.5), rel=1e-5)
    found = predictive.predict(Chunk(torch.randn(6000, 5), zeroshot=z.double()))
    assert torch.allclose(found.probs, (z.double() / predictive.temperature).softmax(1))
    again = Tempered()
    again.load_state(predictive.state())
    assert again.temperature == predictive.temperature
    with pytest.raises(CheckpointError, match="tempered"):
        again.load_state({"other": 1.0})


def test_zero_shot_is_not_reported_under_the_name_of_a_method_that_learns():
    check(compose(["method=zeroshot", "predictive=tempered"]))
    with pytest.raises(ConfigError, match="type method=zeroshot predictive=tempered"):
        check(compose(["method=adamw", "predictive=tempered"]))


def test_the_ranges_are_zero_shots_and_the_decisions_are_not():
    learnt, zeroshot = 30 * torch.randn(50, 7).double(), 4 * torch.randn(50, 7).double()
    found = RangeMatched().predict(Chunk(learnt, zeroshot=zeroshot)).log_probs
    span = lambda z: z.amax(1) - z.amin(1)
    assert torch.allclose(span(found), span(zeroshot))
    assert torch.equal(found.argsort(1), learnt.argsort(1))
    scaled = (learnt - learnt.amin(1, keepdim=True)) / span(learnt)[:, None]
    expected = scaled * span(zeroshot)[:, None] + zeroshot.amin(1, keepdim=True)  # as the paper writes it
    assert torch.allclose(found.exp(), expected.softmax(1))


def test_an_unlearnt_model_and_a_flat_one_stay_as_they_are():
    zeroshot = torch.randn(4, 3).double()
    found = RangeMatched().predict(Chunk(zeroshot, zeroshot=zeroshot))
    assert torch.allclose(found.probs, plugin(zeroshot).probs)
    flat = RangeMatched().predict(Chunk(torch.ones(4, 3).double(), zeroshot=zeroshot))
    assert torch.allclose(flat.probs, torch.full((4, 3), 1 / 3, dtype=torch.float64))


def test_the_range_is_over_the_classes_that_are_scored_and_a_temperature_divides_it():
    chunk = Chunk(torch.randn(6, 5).double(), zeroshot=torch.randn(6, 5).double())
    seen = View("range_matched", 2.0, (0, 2, 3)).of_chunk(chunk)
    found = RangeMatched().predict(seen)
    part = Chunk(chunk.logits[:, [0, 2, 3]], zeroshot=chunk.zeroshot[:, [0, 2, 3]])
    log_probs = RangeMatched().predict(part).log_probs
    assert torch.allclose(found.probs, (log_probs / 2).softmax(1))
