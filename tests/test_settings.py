"""The types of arguments as the one place that says which values a setting may have."""

import math
from typing import Any, Literal

import pytest

from clipkal.settings import Count, Fraction, NonNegative, Positive, Share, Steps, checked


@checked
def configure(
    model: Any = None,
    lr: Positive = 1.0,
    noise: NonNegative = 0.0,
    ema: Fraction = 0.9,
    fading: Share = 1.0,
    epochs: Count = 1,
    warmup: Steps = 0,
    prior: Positive | Literal["ratio", "evidence"] = "ratio",
    clip: Positive | None = None,
    keep: bool = True,
    **rest: Any,
) -> None: ...


@pytest.mark.parametrize(
    "good",
    [
        {"lr": 1},
        {"noise": 0},
        {"fading": 1},
        {"prior": 2.5},
        {"prior": "evidence"},
        {"clip": None},
        {"clip": 0.1},
        {"model": -1},
        {"other": -1},
    ],
)
def test_values_that_fit_pass(good):
    configure(**good)


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ({"lr": 0}, "lr should be greater than 0, not 0"),
        ({"lr": math.nan}, "lr should be a finite number, not nan"),
        ({"lr": "0.1"}, "lr should be a valid number, not '0.1'"),
        ({"noise": -1e-9}, "noise should be greater than or equal to 0, not -1e-09"),
        ({"ema": 1.0}, "ema should be less than 1, not 1.0"),
        ({"fading": 1.5}, "fading should be less than or equal to 1, not 1.5"),
        ({"epochs": 0}, "epochs should be greater than or equal to 1, not 0"),
        ({"epochs": 1.5}, "epochs should be a valid integer, not 1.5"),
        ({"epochs": True}, "epochs should be a valid integer, not True"),
        ({"warmup": -1}, "warmup should be greater than or equal to 0, not -1"),
        ({"prior": "ratios"}, "prior should be a valid number or 'ratio' or 'evidence', not 'ratios'"),
        ({"prior": -1.0}, "prior should be greater than 0 or 'ratio' or 'evidence', not -1.0"),
        ({"clip": math.inf}, "clip should be a finite number, not inf"),
        ({"keep": 1}, "keep should be a valid boolean, not 1"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(bad, line):
    with pytest.raises(ValueError) as error:
        configure(**bad)
    assert str(error.value) == line
