"""The benchmark that chose two defaults: it measures what it says, on few-shot validation images and shots alone."""

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from benchmarks.defaults import BETAS, CENTRES, KALMAN, WIDTHS, forgetting, hyper_priors, measured
from benchmarks.study_cell import configuration, task_of
from benchmarks.study_plan import Data
from clipkal.methods import build_adapter
from clipkal.optim import Kalman

DIGITS = Data("digits", ("dataset=digits",))


def test_the_nll_is_that_of_the_validation_images():
    found = measured(hyper_priors, [DIGITS], [1], [4])
    assert len(found) == len(CENTRES) * len(WIDTHS)
    cfg, task = configuration(DIGITS, KALMAN, 1, 4), task_of(DIGITS, 1, 4)
    adapter = build_adapter(cfg, task.text_features, task.logit_scale)
    Kalman(adapter, max_direct=4096).step(task.shots.inputs, task.shots.labels)
    with torch.no_grad():
        expected = F.cross_entropy(adapter(task.val.inputs), task.val.labels)
    default = found[(found.prior_logit_sd == 8) & (found.prior_spread == 2)].nll.item()
    assert default == pytest.approx(float(expected), abs=1e-4)


def test_every_shot_is_scored_before_it_is_taken_in():
    task = task_of(DIGITS, 2, 4)
    fresh = lambda: build_adapter(configuration(DIGITS, KALMAN, 2, 4), task.text_features, task.logit_scale)
    found = pd.DataFrame(forgetting(task, fresh))
    assert list(found.beta) == list(BETAS)
    with torch.no_grad():
        zero_shot = float(F.cross_entropy(fresh()(task.shots.inputs), task.shots.labels))
    assert (found.nll < zero_shot).all()
