"""The loop: what is kept, what is reported, and a killed run that ends where an uninterrupted one does."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from clipkal.adapters import LinearAdapter
from clipkal.data import FeatureSet
from clipkal.optim import FirstOrder, OnlineKalman
from clipkal.training import Plan, train, validation_nll


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def task():
    text = unit(4, 8, seed=1)

    def draw(count, seed, name):
        labels = torch.arange(count) % 4
        features = F.normalize(text.roll(1, 0)[labels] + 0.5 * unit(count, 8, seed=seed), dim=-1)
        return FeatureSet(name, [f"{name}/{i}" for i in range(count)], labels, features)

    return SimpleNamespace(shots=draw(20, 2, "shots"), val=draw(12, 3, "val"), text=text)


def adapter_of(task):
    return LinearAdapter(task.text, 10.0)


def adamw(adapter, rate):
    return FirstOrder(adapter, torch.optim.AdamW([adapter.weight], lr=rate))


PLAN = Plan(rates=(1e-3, 1e-2, 1e-1), epochs=6, batch_size=8, schedule="cosine", keep="best", seed=3)


def test_the_kept_weights_are_those_with_the_lowest_validation_nll(task):
    adapter = adapter_of(task)
    done = train(adapter, adamw, task, PLAN)
    assert validation_nll(adapter, task.val) == pytest.approx(done.kept.val_nll)
    assert done.kept.val_nll == min(values["val_nll"] for trial in done.trials for values in trial.curve)
    assert done.kept.val_nll < validation_nll(adapter_of(task), task.val)
    assert [trial.rate for trial in done.trials] == list(PLAN.rates)


def test_zero_shot_is_kept_when_every_step_makes_validation_worse(task):
    wrong = SimpleNamespace(
        shots=task.shots, val=FeatureSet("val", task.val.ids, task.val.labels, task.text[task.val.labels])
    )
    adapter = adapter_of(task)
    done = train(adapter, adamw, wrong, Plan(rates=(0.1,), epochs=2, batch_size=8, keep="best"))
    assert done.kept.epoch == 0
    assert adapter.weight.abs().max() == 0


def test_the_last_epoch_is_kept_without_validation_images(task):
    blind = SimpleNamespace(shots=task.shots, val=None)
    done = train(adapter_of(task), adamw, blind, Plan(rates=(0.01,), epochs=3, batch_size=8))
    assert (done.kept.epoch, done.kept.val_nll) == (3, None)


def test_a_diverging_rate_loses_and_is_recorded(task):
    class Exploding(FirstOrder):
        def step(self, inputs, targets):
            raise FloatingPointError("not finite")

    build = lambda adapter, rate: (Exploding if rate > 1 else FirstOrder)(
        adapter, torch.optim.SGD([adapter.weight], lr=rate)
    )
    done = train(adapter_of(task), build, task, Plan(rates=(100.0, 0.1), epochs=2, batch_size=8, keep="best"))
    assert done.kept.rate == 0.1
    assert math.isinf(done.trials[0].curve[-1]["train_loss"])
    with pytest.raises(FloatingPointError):
        train(adapter_of(task), build, task, Plan(rates=(100.0,), epochs=2, batch_size=8))


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own(task):
    seen = []

    class Recording(FirstOrder):
        def step(self, inputs, targets):
            seen.append(inputs.clone())
            return super().step(inputs, targets)

    build = lambda adapter, rate: Recording(adapter, torch.optim.SGD([adapter.weight], lr=rate))
    train(adapter_of(task), build, task, Plan(rates=(0.1,), epochs=2, batch_size=8, seed=0))
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    key = lambda rows: sorted(map(tuple, rows.tolist()))
    assert key(first) == key(second) == key(task.shots.inputs)
    assert not torch.equal(first, second)


class Stop(Exception):
    pass


class StopAt:
    """Keeps the state of one step as a checkpoint would, and ends the run there."""

    def __init__(self, step=None, state=None):
        self.step, self.state, self.count = step, state, 0

    def restore(self):
        return self.state

    def after_step(self, state):
        self.count += 1
        if self.count == self.step:
            self.state = torch.load(_saved(state()), weights_only=True)
            raise Stop


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("step", [1, 3, 7, 18, 19, 30, 54])
def test_a_run_stopped_at_any_step_and_resumed_gives_the_same_numbers(task, step):
    whole = adapter_of(task)
    expected = train(whole, adamw, task, PLAN)
    saver = StopAt(step)
    with pytest.raises(Stop):
        train(adapter_of(task), adamw, task, PLAN, saver)
    resumed = adapter_of(task)
    done = train(resumed, adamw, task, PLAN, StopAt(state=saver.state))
    assert torch.equal(resumed.weight, whole.weight)
    assert [vars(t) for t in done.trials] == [vars(t) for t in expected.trials]


def test_reports_come_for_every_epoch_of_every_trial(task):
    heard = []
    train(
        adapter_of(task), adamw, task, PLAN, report=lambda trial, epoch, values: heard.append((trial, epoch))
    )
    assert heard == [(trial, epoch) for trial in range(3) for epoch in range(7)]


def test_whoever_watches_hears_of_every_step(task):
    heard, values = [], []
    train(
        *(adapter_of(task), lambda adapter, _: OnlineKalman(adapter), task, Plan(epochs=2, batch_size=9)),
        report=lambda trial, epoch, said: values.append(said),
        watch=lambda progress, info: heard.append((progress, info)),
    )
    count, steps = len(task.shots.labels), len(heard)
    assert [one.step for one, _ in heard] == list(range(1, steps + 1)) and heard[0][0].steps == steps
    assert [one.images for one, _ in heard] == torch.tensor([one.batch for one, _ in heard]).cumsum(
        0
    ).tolist()
    assert heard[-1][0].epoch == 2 and heard[-1][0].images == 2 * count
    last = heard[-1][1].metrics["mahalanobis"]
    assert values[-1]["posterior/mahalanobis"] == last and "posterior/trace" in values[-1]
    assert not any(name.startswith("posterior/") for name in values[0])  # of epoch 0


def test_a_filter_reports_the_log_evidence_of_every_epoch(task):
    said = []

    def filtered(adapter, _):
        optimizer = OnlineKalman(adapter)
        step = optimizer.step
        optimizer.step = lambda x, y: said.append(step(x, y)) or said[-1]
        return optimizer

    done = train(adapter_of(task), filtered, task, Plan(epochs=2, batch_size=8))
    for epoch, values in enumerate(done.kept.curve[1:]):
        steps = said[3 * epoch : 3 * epoch + 3]
        assert values["log_evidence"] == pytest.approx(sum(info.log_evidence for info in steps) / 20)
        loss = sum(info.loss * count for info, count in zip(steps, (8, 8, 4), strict=True)) / 20
        assert values["train_loss"] == pytest.approx(loss)
