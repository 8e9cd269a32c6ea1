"""Every configuration composes, and every misspelling is met with the nearest right word."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clipkal.adapters import LinearAdapter
from clipkal.config import check, compose, conf_dir, explain
from clipkal.config.explain import known_keys, nearest
from clipkal.methods import make_build
from clipkal.optim import KalmanCLIP, LoKO, OnlineKalman, RKalman

GROUPS = {
    group.name: sorted(p.stem for p in group.glob("*.yaml"))
    for group in Path(conf_dir()).iterdir()
    if group.is_dir() and group.name != "experiment"  # tests/test_experiments.py
}
FORMS = ("folder", "table", "archive", "features")
REQUIRED = {"open_clip": ["backbone.model=RN50"]} | {form: ["dataset.path=/here"] for form in FORMS}
COMPLETE = {
    ("adapter", "none"): ["method=zeroshot"],
    ("adapter", "lora"): ["method=adamw"],
    ("optimizer", "none"): ["method=zeroshot"],
    ("predictive", "tempered"): ["method=zeroshot"],
}
CASES = [(group, name) for group, names in GROUPS.items() for name in names]


@pytest.mark.parametrize(("group", "name"), CASES, ids=lambda v: str(v))
def test_every_option_of_every_group_composes_without_a_missing_value(group, name):
    plain = ["predictive=plugin"] if group == "optimizer" else []  # not every optimiser has a posterior
    cfg = compose([*COMPLETE.get((group, name), []), f"{group}={name}", *REQUIRED.get(name, []), *plain])
    check(cfg)
    OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize(
    "path", sorted(Path(conf_dir()).rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_config_file_says_what_it_is_for(path):
    comments = [line for line in path.read_text(encoding="utf-8").splitlines()[:2] if line.startswith("# ")]
    assert any(not line.startswith("# @package") for line in comments), f"{path} has no comment at its top"


def test_a_preset_chooses_three_groups_that_can_still_be_overridden():
    assert (compose(["method=adamw"]).adapter.name, compose(["method=adamw"]).optimizer.name) == (
        "linear",
        "adamw",
    )
    mixed = compose(["method=adamw", "optimizer=sgd"])
    assert (mixed.method, mixed.optimizer.name) == ("adamw", "sgd")


def test_seed_zero_is_a_seed():
    assert compose(["seed=0"]).seed == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("fewshot.shot=4", "did you mean 'fewshot.shots'?"),
        ("optimizer.priors=1", "did you mean 'optimizer.prior'?"),
        ("datset=digits", "did you mean 'dataset'?"),
        ("dataset=digit", "did you mean 'digits'?"),
        ("method=kalmann", "did you mean 'kalman'?"),
        ("seed=abc", "could not be converted to Integer"),
    ],
)
def test_a_misspelling_is_answered_with_the_nearest_right_word(override, said):
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        compose([override])
    line = explain(f"{caught.value}\n{caught.value.__cause__ or ''}")
    assert said in line
    assert "\n" not in line


def test_known_keys_hold_nested_and_optimiser_keys():
    assert {"fewshot.shots", "optimizer.lr_grid", "optimizer.prior", "dataset.ood"} <= set(known_keys())


def test_nothing_near_gives_no_suggestion():
    assert nearest("qqqqqqqq", ["seed", "dataset"]) is None


def test_the_command_prints_one_line_and_exits_with_2():
    ran = subprocess.run([sys.executable, "-m", "clipkal", "fewshot.shot=1"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.strip() == "clipkal: unknown setting 'fewshot.shot': did you mean 'fewshot.shots'?"


@pytest.mark.parametrize(
    ("method", "preset"),
    [("kalman_online", OnlineKalman), ("rkalman", RKalman), ("kalman_clip", KalmanCLIP), ("loko", LoKO)],
)
def test_the_words_of_a_method_make_the_filter_that_python_calls_by_its_name(
    method: str, preset: type
) -> None:
    """What the command line makes is what Python makes with no argument, part by part."""
    adapters = [LinearAdapter(torch.eye(3), 10.0) for _ in range(2)]
    composed = make_build(compose([f"method={method}", "adapter=linear"]))(adapters[0], None)
    named = preset(adapters[1])
    apart = ["model", "plain_model", "vector", "route", "batches", "_zero_grad_profile_name"]
    apart += [] if named.rho else ["rho_scale"]
    state = [{k: described(v) for k, v in vars(f).items() if k not in apart} for f in (composed, named)]
    assert type(composed) is preset
    assert state[0] == state[1]


def described(part: object) -> object:
    """A part of a filter by its type and settings."""
    plain = (int, float, str, bool, tuple, dict, list, type(None))
    if isinstance(part, plain):
        return part if not isinstance(part, dict | list) else str(part)
    return type(part).__name__, {k: described(v) for k, v in vars(part).items()}
