"""Options that name a class: their settings are the class's own, and only what belongs in its place is ever made."""

import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from clipkal.adapters import LinearAdapter
from clipkal.adapters.lora import LoRASettings
from clipkal.config import check, compose, conf_dir
from clipkal.config.options import find_options, make
from clipkal.config.signatures import settings_of
from clipkal.errors import ConfigError
from clipkal.methods import build_adapter, make_build, make_plan
from clipkal.optim import FirstOrder
from clipkal.optim.kalman.parts import PARTS

OPTIONS = {f"{one.group}/{one.name}": one for one in find_options(Path(conf_dir()))}
COMPOSED = ["optimizer=kalman_filter"]
HOSTILE = [
    (
        ["optimizer._target_=os.system"],
        r"optimizer\._target_=os.system: only what is in clipkal, torch.optim",
    ),
    (["optimizer._target_=clipkal.cli.main"], "that is no clipkal.optim.base.BatchOptimizer"),
    (["optimizer._target_=clipkal.adapters.LinearAdapter"], "that is no clipkal.optim.base.BatchOptimizer"),
    (["optimizer._target_=torch.optim.lr_scheduler.StepLR"], "that is no"),
    (["optimizer._target_=clipkal.optim.LoKO.step"], "there is no such class or function"),
    (["optimizer._target_=clipkalx.Evil"], "only what is in"),
    (["adapter._target_=subprocess.run"], "only what is in"),
    (["predictive._target_=os.system"], "only what is in"),
    (
        ["predictive._target_=clipkal.uncertainty.Reader"],
        "that is no clipkal.uncertainty.predictive.Predictive",
    ),
    (["adapter._target_=clipkal.optim.AdamW"], "that is no clipkal.adapters.base.Adapter"),
    (
        [*COMPOSED, "optimizer.covariance._target_=os.system"],
        r"optimizer\.covariance\._target_=os.system: only",
    ),
    ([*COMPOSED, "optimizer.gate._target_=clipkal.optim.LoKO"], r"that is no clipkal.*\.Gate"),
    (["plugins=[os]", "optimizer._target_=os.system"], "there is no such class or function"),
    (["+optimizer.beta._target_=os.system"], "optimizer=kalman has no setting 'beta'"),
    (["++optimizer.ratio={_target_:os.system}"], "."),
    (["++optimizer.prior={_target_:os.system}"], "."),
    (["++optimizer._args_=[ls]"], "unknown setting 'optimizer._args_'"),
    (["++adapter._partial_=true"], "has no setting '_partial_'"),
]


@pytest.mark.parametrize(("overrides", "said"), HOSTILE, ids=lambda v: v if isinstance(v, str) else v[-1])
def test_nothing_is_called_that_does_not_belong_there(overrides, said, monkeypatch):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("called"))
    with pytest.raises(Exception, match=said) as caught:
        cfg = compose(overrides)
        check(cfg)
    assert type(caught.value).__module__.partition(".")[0] in ("clipkal", "hydra", "omegaconf")


def test_a_part_that_does_not_belong_is_not_made_without_the_check_either(monkeypatch):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("called"))
    nested = {"_target_": "clipkal.optim.KalmanFilter", "prior": {"_target_": "os.system", "command": "ls"}}
    for node in ({"_target_": "os.system", "command": "ls"}, nested):
        with pytest.raises(ConfigError, match=r"os\.system"):
            make(OmegaConf.create(node), "optimizer")


@pytest.mark.parametrize("one", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_defaults_are_those_of_the_class(one):
    from hydra.utils import get_object

    (target,) = (
        field.default for field in one.kind.__dataclass_fields__.values() if field.name == "_target_"
    )
    seen = inspect.signature(get_object(target)).parameters
    for setting in settings_of(target):
        default = seen[setting.name].default if setting.name in seen else setting.default
        assert setting.default == (list(default) if isinstance(default, tuple) else default)


def test_lora_has_one_set_of_defaults():
    settings, own = (
        vars(LoRASettings()),
        {one.name: one.default for one in settings_of("clipkal.adapters.lora.build_lora")},
    )
    assert {**settings, "targets": list(settings["targets"])} == own


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (kind, word)
        for kind, words in PARTS.items()
        for word in words
        if f"optimizer/{kind}/{word}" in OPTIONS
    ],
)
def test_a_part_is_the_same_on_the_command_line_and_in_python(kind, word):
    cfg = compose([*COMPOSED, f"optimizer/{kind}={word}"])
    check(cfg)
    made, named = make(cfg.optimizer[kind], f"optimizer.{kind}")(), PARTS[kind][word]()
    assert type(made) is type(named)
    assert vars(made) == vars(named)


def test_every_argument_of_a_part_is_reached():
    settings = [
        "optimizer/covariance=lowrank",
        "optimizer.covariance.rank=8",
        "optimizer.observation.merge=0.1",
    ]
    settings += ["optimizer/gate=imq", "optimizer.gate.quantile=0.9"]
    cfg = compose([*COMPOSED, *settings])
    check(cfg)
    made = make_build(cfg)(LinearAdapter(torch.eye(3), 10.0), None)
    assert (made.covariance.rank, made.observation.merge, made.weigher.gate.quantile) == (8, 0.1, 0.9)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's own module with an optimiser and an adapter, and the folder with their options."""
    (tmp_path / "my_house.py").write_text(
        textwrap.dedent(
            """
            import torch
            from clipkal.adapters import LinearAdapter
            from clipkal.optim.base import BatchOptimizer, StepInfo
            from clipkal.settings import Positive, checked

            class Nothing(BatchOptimizer):
                @checked
                def __init__(self, model, strength: Positive = 2.0):
                    super().__init__(model)
                    self.strength = strength

                def step(self, inputs, targets):
                    return StepInfo(loss=0.0)

            def twice(text_features, logit_scale, factor: Positive = 2.0) -> LinearAdapter:
                return LinearAdapter(text_features, factor * logit_scale)
            """
        )
    )
    for group, option, target, more in (
        ("optimizer", "nothing", "my_house.Nothing", "epochs: 3"),
        ("optimizer", "nadam", "torch.optim.NAdam", "weight_decay: 0.1"),
        ("adapter", "twice", "my_house.twice", ""),
    ):
        (tmp_path / "conf" / group).mkdir(parents=True, exist_ok=True)
        text = f"# Mine.\ndefaults: [schema/{option}@_here_, _self_]\n_target_: {target}\n{more}\n"
        (tmp_path / "conf" / group / f"{option}.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "conf"


def test_an_optimiser_and_an_adapter_of_your_own_are_a_class_and_a_file(mine):
    words = ["plugins=[my_house]", "predictive=plugin", "optimizer=nothing", "adapter=twice"]
    cfg = compose([*words, "optimizer.strength=5", "adapter.factor=3"], mine)
    check(cfg)
    assert (make_plan(cfg, False).epochs, make_plan(cfg, False).batch_size) == (3, 32)
    adapter = build_adapter(cfg, torch.eye(3), 10.0)
    assert adapter.log_scale.exp() == pytest.approx(30.0)
    assert make_build(cfg)(adapter, None).strength == 5
    with pytest.raises(ConfigError, match=r"type plugins=\[my_house\] for a module of your own"):
        check(compose(words[1:], mine))
    with pytest.raises(ConfigError, match=r"optimizer\.strength should be greater than 0, not -1"):
        check(compose([*words, "optimizer.strength=-1"], mine))


def test_any_optimiser_of_torch_is_a_file(mine):
    cfg = compose(["optimizer=nadam", "predictive=plugin", "optimizer.momentum_decay=0.1"], mine)
    check(cfg)
    adapter = LinearAdapter(torch.eye(3), 10.0)
    made = make_build(cfg)(adapter, 0.3)
    assert isinstance(made, FirstOrder)
    (group,) = made.param_groups
    assert (group["lr"], group["momentum_decay"], group["weight_decay"]) == (0.3, 0.1, 0.1)
    assert made.step(torch.eye(3), torch.arange(3)).loss > 0
    assert make_plan(cfg, True).rates == (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def test_a_class_that_is_not_there_is_one_line_with_its_file(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "lost.yaml").write_text("# Lost.\n_target_: my_house.Lost\n")
    with pytest.raises(ConfigError, match=r"lost\.yaml.*my_house\.Lost: there is no such class"):
        compose([], tmp_path)


def test_the_allow_list_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; from clipkal.config import check, compose; import pytest\n"
        "with pytest.raises(Exception, match='os.system'): check(compose(['optimizer._target_=os.system']))\n"
        "check(compose(['optimizer=kalman_filter']))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
