"""The loop: what is kept, what is reported, and a killed run that ends where an uninterrupted one does."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from clipkal.adapters import LinearAdapter
from clipkal.data import FeatureSet
from clipkal.optim import Ensemble, FirstOrder, OnlineKalman
from clipkal.training import Plan, train, validation_scores


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


def validation_nll(adapter, val, draw=0):
    return validation_scores(adapter, val, draw)["val_nll"]


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


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, validate_every=0.1)], ids=["passes", "parts"])
@pytest.mark.parametrize("step", [1, 3, 7, 18, 19, 30, 54])
def test_a_run_stopped_at_any_step_and_resumed_gives_the_same_numbers(task, step, plan):
    whole = adapter_of(task)
    expected = train(whole, adamw, task, plan)
    saver = StopAt(step)
    with pytest.raises(Stop):
        train(adapter_of(task), adamw, task, plan, saver)
    resumed = adapter_of(task)
    done = train(resumed, adamw, task, plan, StopAt(state=saver.state))
    assert torch.equal(resumed.weight, whole.weight)
    assert [vars(t) for t in done.trials] == [vars(t) for t in expected.trials]


def test_looks_within_a_pass_are_of_the_parameters_then_and_of_the_images_so_far(task):
    """Against a loop by hand over the batches that the filter was given: 20 images, one a step, a look at every fourth."""
    given, heard = [], []

    def recording(adapter, _):
        optimizer = OnlineKalman(adapter)
        step = optimizer.step
        optimizer.step = lambda x, y: given.append((x, y)) or step(x, y)
        return optimizer

    report = lambda trial, epoch, values: heard.append((epoch, values))
    train(adapter_of(task), recording, task, Plan(batch_size=1, validate_every=0.2), report=report)
    adapter, loss = adapter_of(task), 0.0
    by_hand = OnlineKalman(adapter)
    wanted = [(0, validation_scores(adapter, task.val))]
    for seen, (x, y) in enumerate(given, start=1):
        loss += by_hand.step(x, y).loss
        if seen % 4 == 0:
            wanted.append((seen / 20, validation_scores(adapter, task.val) | {"train_loss": loss / seen}))
    assert [epoch for epoch, _ in heard] == [epoch for epoch, _ in wanted] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    for (_, values), (_, expected) in zip(heard, wanted, strict=True):
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    right = adapter(task.val.inputs).argmax(1) == task.val.labels
    assert heard[-1][1]["val_accuracy"] == pytest.approx(float(right.double().mean()))


@pytest.mark.parametrize("every", [1e-9, 0.1, 0.3, 0.5])
def test_looks_within_a_pass_change_nothing_that_is_kept(task, every):
    plain, looked_at = adapter_of(task), adapter_of(task)
    expected = train(plain, adamw, task, PLAN)
    done = train(looked_at, adamw, task, replace(PLAN, validate_every=every))
    assert torch.equal(plain.weight, looked_at.weight)
    assert (done.kept.rate, done.kept.epoch) == (expected.kept.rate, expected.kept.epoch)
    for one, other in zip(done.trials, expected.trials, strict=True):
        assert [point for point in one.curve if point["epoch"].is_integer()] == other.curve
        assert len(one.curve) > len(other.curve)
        epochs = [point["epoch"] for point in one.curve]
        assert epochs == sorted(set(epochs)) and len(epochs) <= len(other.curve) + 2 * 6  # of three batches


def test_the_seconds_are_those_of_the_steps_of_a_trial_and_a_resumed_one_goes_on_counting(task, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("clipkal.training.loop.time.perf_counter", lambda: next(clock))  # a step takes 1
    heard, saver = [], StopAt(20)
    report = lambda trial, epoch, values: heard.append((trial, epoch, values["seconds"]))
    with pytest.raises(Stop):
        train(adapter_of(task), adamw, task, PLAN, saver, report)
    train(adapter_of(task), adamw, task, PLAN, StopAt(state=saver.state), report)
    assert heard == [(trial, epoch, 3 * epoch) for trial in range(3) for epoch in range(7)]


def test_members_are_what_other_seeds_would_have_learnt(task):
    """Without a choice by validation images; the first member is the run without an ensemble."""
    heard = []

    class Concluding(FirstOrder):
        def conclude(self, shots, kept):
            heard.append((torch.cat([x for x, _ in shots]), kept))
            return {"members": len(kept)}

    def build(adapter, rate):
        return Concluding(adapter, torch.optim.AdamW([adapter.weight], lr=rate))

    plan = Plan(rates=(0.1,), epochs=3, batch_size=8, seed=3)
    adapter = adapter_of(task)
    done = train(adapter, build, task, replace(plan, members=3))
    ((shots, kept),) = heard
    assert torch.equal(shots, task.shots.inputs) and done.last_step["members"] == 3
    assert torch.equal(kept[0]["weight"], adapter.weight) and len(done.trials) == 3
    for member, seed in enumerate((3, 4, 5)):
        alone = adapter_of(task)
        train(alone, adamw, task, replace(plan, seed=seed))
        assert torch.equal(kept[member]["weight"], alone.weight)


def test_later_members_are_judged_by_a_drawing_of_the_validation_images(task):
    adapter, val = adapter_of(task), task.val
    rows = torch.randint(12, (12,), generator=torch.Generator().manual_seed(2))
    drawn = FeatureSet("val", list("abcdefghijkl"), val.labels[rows], val.inputs[rows])
    assert validation_nll(adapter, val, 2) == pytest.approx(validation_nll(adapter, drawn))
    done = train(adapter, adamw, task, replace(PLAN, members=2))
    first, second = done.trials[:3], done.trials[3:]
    assert [trial.curve for trial in first] == [
        trial.curve for trial in train(adapter_of(task), adamw, task, PLAN).trials
    ]
    assert second[0].curve[0]["val_nll"] == pytest.approx(validation_nll(adapter_of(task), val, 1))
    assert done.kept is min(first, key=lambda trial: trial.val_nll)


@pytest.mark.parametrize("step", [20, 90])
def test_an_ensemble_that_is_stopped_goes_on(task, step):
    plan, build = replace(PLAN, members=2), lambda adapter, rate: Ensemble(adapter, members=2, lr=rate)
    expected, saver = train(adapter_of(task), build, task, plan), StopAt(step)
    with pytest.raises(Stop):
        train(adapter_of(task), build, task, plan, saver)
    done = train(adapter_of(task), build, task, plan, StopAt(state=saver.state))
    inputs = task.val.inputs
    assert torch.equal(done.posterior.logit_samples(inputs, 2), expected.posterior.logit_samples(inputs, 2))


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
