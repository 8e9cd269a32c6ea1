"""The novelty of an image, and the mixture with zero-shot that it weighs."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clipkal.adapters import LinearAdapter
from clipkal.errors import CheckpointError, ConfigError
from clipkal.metrics import nearest_shot
from clipkal.uncertainty import Chunk, Novelty, Reader
from clipkal.uncertainty.novelty import World


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def labelled(inputs: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(inputs=inputs, labels=labels, ids=[str(i) for i in range(len(labels))])


LABELS = torch.arange(5).repeat_interleave(4)
SHOTS, OTHERS = unit(20, 12), unit(15, 12, seed=1)


# -- the distance ----------------------------------------------------------------------------------------------------


def test_the_nearest_shot_is_found():
    every = torch.cdist(OTHERS.double(), SHOTS.double())
    assert torch.allclose(nearest_shot(OTHERS, SHOTS), every.amin(1), atol=1e-7)
    own = torch.cdist(SHOTS.double(), SHOTS.double()).fill_diagonal_(math.inf)
    assert torch.allclose(nearest_shot(SHOTS, SHOTS, to_others=True), own.amin(1), atol=1e-7)


def test_chunks_of_images_give_the_same_distances(monkeypatch):
    whole = nearest_shot(OTHERS, SHOTS), nearest_shot(SHOTS, SHOTS, to_others=True)
    monkeypatch.setattr("clipkal.metrics.distance.CHUNK", 60)
    assert torch.allclose(nearest_shot(OTHERS, SHOTS), whole[0], atol=1e-6)
    assert torch.allclose(nearest_shot(SHOTS, SHOTS, to_others=True), whole[1], atol=1e-6)


def test_a_shot_is_not_novel_and_novelty_rises_with_the_distance():
    world = World.of(SHOTS, LABELS, OTHERS)
    assert world.novelty(world.shots.distance(SHOTS), 0.1, 2.0).abs().max() == 0
    to, angles = SHOTS[0], torch.linspace(0, math.pi / 2, 50)
    beside = F.normalize(OTHERS[0] - (OTHERS[0] @ to) * to, dim=0)
    path = angles.cos()[:, None] * to + angles.sin()[:, None] * beside
    alone = World(to[None], world.mean, world.spread)
    found = alone.novelty(alone.shots.distance(path), 0.1, 2.0)
    assert (found.diff() >= 0).all() and found[-1] > 0.9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_neither_the_order_of_shots_nor_a_rotation_matters(seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(SHOTS), generator=generator)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    world, turned = (
        World.of(SHOTS, LABELS, OTHERS),
        World.of(SHOTS[order] @ turn, LABELS[order], OTHERS @ turn),
    )
    query = unit(9, 12, seed=2)
    found, again = (one.shots.distance(images) for one, images in ((world, query), (turned, query @ turn)))
    assert torch.allclose(world.novelty(found, 0.1, 2.0), turned.novelty(again, 0.1, 2.0), atol=1e-4)


def test_what_the_shots_own_world_is():
    own = nearest_shot(SHOTS, SHOTS, to_others=True)
    both = torch.cat((nearest_shot(OTHERS, SHOTS), own))
    assert World.of(SHOTS, LABELS, OTHERS).mean == pytest.approx(float(both.mean()))
    alone = torch.arange(20)  # one shot a class: its neighbours are of other classes
    assert World.of(SHOTS, alone, OTHERS).mean == pytest.approx(float(nearest_shot(OTHERS, SHOTS).mean()))
    assert World.of(SHOTS, alone, None).mean == pytest.approx(float(own.mean()))
    with pytest.raises(ValueError, match="more than one image"):
        World.of(SHOTS[:1], LABELS[:1], None)


def test_bayes_rule_gives_the_novelty():
    """Up to the part at the shots themselves: π N(t; δ, 1) against (1 − π) N(t; 0, 1)."""
    world = World.of(SHOTS, LABELS, OTHERS)
    query = unit(30, 12, seed=3)
    distance = nearest_shot(query, SHOTS)
    t = (distance - world.mean) / world.spread
    normal = torch.distributions.Normal
    there, here = normal(1.5, 1.0).log_prob(t).exp() * 0.2, normal(0.0, 1.0).log_prob(t).exp() * 0.8
    assert torch.allclose(world.novelty(distance, 0.2, 1.5), there / (there + here), atol=1e-2)


# -- the mixture -----------------------------------------------------------------------------------------------------


def adapted(seed: int = 0) -> LinearAdapter:
    adapter = LinearAdapter(unit(5, 12, seed=7), 20.0)
    adapter.weight.data = 0.4 * torch.randn(12, 12, generator=torch.Generator().manual_seed(seed))
    return adapter


def fitted(**words: float) -> tuple[Novelty, Reader]:
    predictive, reader = Novelty(**words), Reader(adapted())
    predictive.fit(reader, labelled(SHOTS, LABELS), labelled(OTHERS, torch.arange(5).repeat(3)))
    return predictive, reader


def read(predictive: Novelty, reader: Reader, inputs: torch.Tensor) -> Chunk:
    chunk = reader.whole(inputs, len(inputs), predictive.needs, "test")
    return replace(chunk, novelty=predictive.novelty(chunk))


def test_it_is_the_mean_over_the_hidden_state():
    predictive, reader = fitted()
    chunk = read(predictive, reader, unit(6, 12, seed=5))
    found = predictive.predict(chunk)
    v = predictive.doubt + (1 - predictive.doubt) * 0.5 * chunk.novelty
    reset = torch.rand(200_000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < v
    parts = ((chunk.logits / predictive.learnt).softmax(1), (chunk.zeroshot / predictive.zeroshot).softmax(1))
    share = reset.double().mean(0)[:, None]
    assert torch.allclose(found.probs, (1 - share) * parts[0] + share * parts[1], atol=5e-3)
    entropies = [torch.distributions.Categorical(p).entropy() for p in parts]
    assert torch.allclose(found.aleatoric, (1 - v) * entropies[0] + v * entropies[1])
    assert torch.allclose(found.entropy, torch.distributions.Categorical(found.probs).entropy())
    assert (found.epistemic >= 0).all() and torch.equal(found.novelty, chunk.novelty)


def test_temperatures_of_a_calibrated_model_are_found():
    """Labels drawn from softmax(z/2): zero-shot's T₀ is 2, and with enough images the prior says nothing."""
    adapter, inputs = adapted(), unit(4000, 12, seed=9)
    with torch.no_grad():
        z, z0 = adapter(inputs), adapter.zeroshot_logits(inputs)
    draw = lambda logits: torch.distributions.Categorical(logits=logits).sample()
    torch.manual_seed(0)
    predictive = Novelty()
    predictive.fit(
        Reader(adapter), labelled(inputs, draw(z0 / 2)), labelled(inputs[:2000], draw(z0[:2000] / 2))
    )
    assert predictive.zeroshot == pytest.approx(2, rel=0.05)
    predictive.fit(Reader(adapter), labelled(inputs, draw(z)), labelled(inputs[:2000], draw(z[:2000] / 2)))
    assert predictive.learnt == pytest.approx(2, rel=0.05) and predictive.doubt < 0.01


def test_doubt_is_a_beta_distributions_mean_where_every_image_decides():
    predictive = Novelty()
    logits = torch.zeros(6, 2, dtype=torch.float64)
    logits[:, 0] = 60.0
    zeroshot = logits.flip(1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])  # the learnt model explains four, zero-shot two
    found = predictive._doubt(Chunk(logits, zeroshot=zeroshot), labels)
    assert found == pytest.approx((0.1 + 2) / (2 + 6), abs=2e-3)


def test_without_an_expected_shift_nothing_is_novel():
    predictive, reader = fitted(shift=0.0)
    chunk = read(predictive, reader, unit(6, 12, seed=5))
    assert not chunk.novelty.any()
    v = predictive.doubt
    expected = (1 - v) * (chunk.logits / predictive.learnt).softmax(1)
    expected += v * (chunk.zeroshot / predictive.zeroshot).softmax(1)
    assert torch.allclose(predictive.predict(chunk).probs, expected)


def test_more_expected_shift_is_more_zero_shot():
    query = unit(40, 12, seed=5)
    weights = []
    for shift in (0.01, 0.1, 0.5):
        predictive, reader = fitted(shift=shift)
        weights.append(read(predictive, reader, query).novelty)
    assert (weights[0] < weights[1]).all() and (weights[1] < weights[2]).all()


def test_a_state_predicts_the_same():
    predictive, reader = fitted()
    again = Novelty()
    again.load_state(predictive.state())
    chunk = read(predictive, reader, unit(6, 12, seed=5))
    assert torch.equal(again.novelty(chunk), chunk.novelty)
    assert torch.equal(again.predict(chunk).probs, predictive.predict(chunk).probs)
    with pytest.raises(CheckpointError, match="novelty"):
        again.load_state({"learnt": 1.0})


@pytest.mark.parametrize("count", [1, 5, 20])
def test_shots_alone_are_enough(count):
    predictive, reader = Novelty(), Reader(adapted())
    predictive.fit(reader, labelled(SHOTS[:count], LABELS[:count]), None)
    assert predictive.learnt == 1 and predictive.doubt == pytest.approx(0.05)
    found = predictive.predict(read(predictive, reader, unit(6, 12, seed=5)))
    assert torch.allclose(found.probs.sum(1), torch.ones(6, dtype=torch.float64))


def test_a_model_without_zero_shot_is_refused():
    with pytest.raises(ConfigError, match="zero-shot"):
        Novelty().fit(Reader(torch.nn.Linear(12, 5)), labelled(SHOTS, LABELS), None)


@pytest.mark.parametrize("words", [{"shift": 1.0}, {"shift": -0.1}, {"failure": 0.0}, {"separation": 0.0}])
def test_settings_out_of_range_are_refused(words):
    with pytest.raises(ValueError, match=next(iter(words))):
        Novelty(**words)
