"""What is typed wrong is refused with one line that says what to type, before anything slow is imported."""

import random
import subprocess
import sys
from dataclasses import fields
from typing import get_args

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from clipkal import __version__, cli
from clipkal.config import check, schema
from clipkal.config.arguments import _quoted, prepared
from clipkal.data.protocol import PROTOCOLS
from clipkal.data.spec import SOURCES, SPACES
from clipkal.data.task import SHORT_CLASS, SUBSETS, VALIDATIONS
from clipkal.errors import ConfigError
from clipkal.tracking.wandb_session import MODES

BAD_VALUES = [
    ("seed=-1", "seed should be greater than or equal to 0, not -1"),
    ("seed=18446744073709551616", "less than or equal to 18446744073709551615"),
    ("seed=nan", "could not be converted to Integer"),
    ("threads=0", "from 1 to 1024"),
    ("threads=100000", "from 1 to 1024"),
    ("data.workers=-1", "from 0 to 1024"),
    ("data.on_bad_image=ignore", "'error' or 'skip'"),
    ("dataset.val_fraction=1", "less than 1"),
    ("dataset.test_fraction=nan", "less than 1"),
    ("backbone.batch_size=0", "greater than or equal to 1"),
    ("backbone.precision=fp8", "'fp32', 'bf16' or 'fp16'"),
    ("backbone.image_std=[1,1,0]", "a list of 3 numbers greater than 0"),
    ("backbone.weights_sha256=abc", "64 hexadecimal digits"),
    ("fewshot.shots=0", "from 1 on or 'all' (for no training choose method=zeroshot)"),
    ("fewshot.shots=-3", "from 1 on or 'all'"),
    ("fewshot.shots=2.5", "from 1 on or 'all'"),
    ("fewshot.shots=true", "from 1 on or 'all'"),
    ("fewshot.validation=sometimes", "'none', 'fewshot' or 'full'"),
    ("fewshot.protocol=clip", "'coop' or 'cliplora'"),
    ("fewshot.short_class=drop", "'error' or 'keep'"),
    ("fewshot.subset=old", "'all', 'base' or 'new'"),
    ("device=gpu", "cuda:1"),
    ("checkpoint_every=nan", "a finite number"),
    ("predictive.samples=0", "greater than or equal to 1"),
    ("predictive.name=my-own", "a word of letters, digits and _"),
    ("tracking.mode=bla", "'offline', 'online' or 'disabled'"),
    ("tracking.timeout=0", "greater than 0"),
    ("optimizer.prior=1e30", "a number from 1e-30 to 1e12 or 'crossval', 'evidence' or 'ratio'"),
    ("optimizer.prior=nan", "a number from 1e-30 to 1e12 or 'crossval'"),
    ("optimizer.prior=-1", "a number from 1e-30 to 1e12 or 'crossval'"),
    ("optimizer.posterior_temperature=-1", "greater than or equal to 0 or 'unit'"),
    ("method=kalman_online optimizer.prior=evidence", "or 'ratio'"),
    ("method=kalman_online optimizer.epochs=0", "zero-shot"),
    ("method=kalman_online optimizer.fading=0", "greater than 0"),
    ("method=kalman_online optimizer.block=0", "greater than or equal to 1 or 'auto'"),
    ("method=adamw optimizer.epochs=0", "zero-shot"),
    ("method=adamw optimizer.batch_size=0", "greater than or equal to 1"),
    ("method=adamw optimizer.lr=fast", "a valid number or 'auto'"),
    ("method=adamw optimizer.lr=nan", "a finite number"),
    ("method=adamw optimizer.lr=-0.1", "greater than 0"),
    ("method=adamw optimizer.lr_grid=[]", "one or more"),
    ("method=adamw optimizer.lr_grid=[0.1,inf]", "one or more numbers above 0"),
    ("method=adamw optimizer.keep=first", "'best' or 'last'"),
    ("method=kfac optimizer.ema=1", "less than 1"),
    ("method=loko adapter.rank=0", "greater than or equal to 1"),
    ("method=loko adapter.blocks=first:0", "first:2"),
    ("method=loko adapter.targets=[x]", "'q', 'k', 'v'"),
]
CONTRADICTIONS = [
    ("method=adamw adapter=none", "nothing would be learnt under the method's name"),
    ("method=zeroshot adapter=linear", "nothing would be learnt"),
    ("method=zeroshot predictive=sampled", "predictive=sampled needs a posterior"),
    ("adapter=lora", "is optimizer=kalman_online, and optimizer=kalman_filter to compose one"),
    ("predictive.name=my_scaled", "_scaled marks those at a fitted temperature"),
    ("predictive._target_=", "predictive=novelty names no class"),
    ("method=adamw predictive=laplace_bridge", "predictive=laplace_bridge needs a posterior"),
    ("method=adamw predictive=probit", "predictive=probit needs a posterior, which optimizer=adamw has not"),
    ("dataset=folder", "dataset=folder needs a place: type dataset.path=/your/images"),
]
UNKNOWN = [
    ("+foo=bar", "unknown setting 'foo'"),
    ("+fewshot.shotz=3", "did you mean 'fewshot.shots'?"),
    ("++fewshot.shotz=3", "did you mean 'fewshot.shots'?"),
    ("hydra.foo=1", "unknown setting 'hydra.foo'; clipkal --cfg hydra shows those of Hydra"),
    ("hydra.sweeper.params.seed=1,2", "is typed as it is, with -m: clipkal -m seed=1,2"),
    ("shots=4", "did you mean 'fewshot.shots'?"),
    ("sead=4", "did you mean 'seed'?"),
    ("fewshot=4", "fewshot is a group of settings; clipkal --help fewshot lists them"),
    ("method.lr=4", "method.lr=4: method has no settings of its own"),
    ("dataset=", "unknown dataset ''; dataset can be: archive"),
    ("predictive.name=plugin", "to choose it type predictive=plugin"),
    ("dataset.name=digits", "would only label the results of dataset=rendered"),
    ("+experiment=cop", "unknown experiment 'cop': did you mean 'coop'?"),
    ("+experiment=[coop,smok]", "unknown experiment 'smok': did you mean 'smoke'?"),
    ("experiment=coop", "type +experiment=NAME"),
    ("+dataset.shifts.far.path=x", "dataset.ood=[name:/its/path]"),
    ("dataset.columns.path=x", "type +dataset.columns.path=…"),
    ("~seed", "a run needs this setting"),
    ("~optimizer.prior", "a run needs this setting"),
    (
        "optimizer.lr=0.1",
        "optimizer=kalman has no setting 'lr'; it has prior, posterior_temperature, solver",
    ),
    ("+optimizer.lr=0.1", "optimizer=kalman has no setting 'lr'; it has prior"),
    ("method=zeroshot optimizer.lr=0.1", "optimizer=none has no setting 'lr'; it has none at all"),
    ("method=adamw optimizer.lrr=1", "did you mean 'optimizer.lr'?"),
    ("method=adamw optimizer.momentum=0.5", "optimizer=adamw has no setting 'momentum'; it has epochs"),
    ("optimizer.temperature=1", "it is called optimizer.posterior_temperature now"),
    ("predictive.temperature=false", "it is called predictive.temperature_scaling now"),
    ("optimizer/covariance=dense", "chosen as optimizer=kalman_filter optimizer/covariance=lowrank"),
    (
        "optimizer=kalman_online optimizer.noise=residual",
        "chosen as optimizer=kalman_filter optimizer/covariance",
    ),
    (
        "optimizer=kalman_filter optimizer.gate=imq",
        "chosen as optimizer=kalman_filter optimizer/covariance=lowrank",
    ),
    ("optimizer=kalman_filter optimizer.noise.beta=0.3", "optimizer.noise=none has no setting 'beta'"),
    (
        "optimizer=kalman_filter optimizer.covariance.rnak=1",
        "optimizer.covariance=diagonal has no setting 'rnak'",
    ),
    (
        "optimizer=kalman_filter optimizer/covariance=lowrank optimizer.covariance.rnak=1",
        "did you mean 'optimizer.covariance.rank'?",
    ),
    ("optimizer=kalman_filter optimizer/gate=soft", "optimizer/gate can be: imq, mahalanobis_hard"),
    ("method=kalmann", "did you mean 'kalman'?"),
    ("method=3", "takes the name of a file in conf/method/"),
    ("datset=digits", "did you mean 'dataset'?"),
    (
        "hydra/launcher=joblibb",
        "did you mean 'joblib'?; hydra/launcher can be: basic, joblib, ray, slurm, submitit",
    ),
    (
        "hydra.launcher.n_jobs=4",
        "choose the one that has, as in hydra/launcher=joblib hydra.launcher.n_jobs=4",
    ),
    ("hydra.sweeper.n_trials=4", "as in hydra/sweeper=tune hydra.sweeper.n_trials=20"),
    ("hydra/sweeper=ax", "pip install hydra-ax-sweeper"),
]
FORMS = [
    ("seed=1,2", "asks for several runs: add -m, as in clipkal -m seed=1,2"),
    ("foo", "'foo' is no setting: type key=value"),
    ("=3", "is no setting"),
    ("--multirn", "unknown flag --multirn: did you mean --multirun?"),
    ("--resolve", "--resolve belongs to --cfg job"),
    ("-m --cfg job", "--multirun and --cfg exclude each other"),
    (
        "fewshot.shot_list=outputs/digits/2shot-seed1,optimizer.lr=0.1/shots.json",
        "type \"fewshot.shot_list='outputs/digits/2shot-seed1,optimizer.lr=0.1/shots.json'\"",
    ),
    (
        "dataset.path=a(b)",
        "dataset.path: Hydra cannot read 'a(b)' as it stands; type \"dataset.path='a(b)'\"",
    ),
    ("dataset.path=it's", 'type "dataset.path=\\"it\'s\\""'),
]


@pytest.fixture
def said(monkeypatch, capsys):
    """Arguments -> the line that `clipkal` prints on them, without running anything."""

    def ask(line):
        monkeypatch.setattr(sys, "argv", ["clipkal", *line.split()])
        monkeypatch.setattr(cli, "run", check)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        return capsys.readouterr().err.strip()

    return ask


@pytest.mark.parametrize(
    ("line", "expected"), BAD_VALUES + CONTRADICTIONS + UNKNOWN + FORMS, ids=lambda v: v.replace(" ", "_")
)
def test_what_cannot_be_is_one_line_that_says_what_can(said, line, expected):
    answer = said(line)
    assert expected in answer
    assert answer.startswith("clipkal: ")
    assert "\n" not in answer


def test_bad_input_is_refused_before_torch_is_imported():
    lines = [line.split() for line, _ in [*BAD_VALUES[:2], *CONTRADICTIONS[:2], *UNKNOWN[:2], *FORMS[:2]]]
    code = (
        "import sys; sys.modules['torch'] = None; from clipkal import cli\n"
        f"for line in {lines!r}:\n"
        "    sys.argv = ['clipkal', *line]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert end.code == 2\n"
        "    else: raise AssertionError(line)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stderr.strip().splitlines()) == len(lines)


def test_what_is_quoted_as_told_means_itself():
    stream = random.Random(0)
    values = ["".join(stream.choices("ab =[](){}'\"\\$`#,:é/.", k=stream.randint(1, 8))) for _ in range(300)]
    script = "\n".join(f"printf '%s\\0' {_quoted('key', value).removeprefix('type ')}" for value in values)
    typed = subprocess.run(["sh"], input=script, capture_output=True, text=True).stdout.split("\0")[:-1]
    read = [str(OverridesParser.create().parse_override(word).value()) for word in typed]
    assert [OmegaConf.create({"key": value}).key for value in read] == values


def test_settings_may_stand_on_both_sides_of_a_flag():
    assert prepared(["seed=1", "-m", "method=adamw,sgd"]) == ["-m", "seed=1", "method=adamw,sgd"]
    assert prepared(["a=1", "--config-dir", "mine", "b=2"]) == ["--config-dir", "mine", "a=1", "b=2"]


def test_settings_of_swept_options_are_composed_with_each_job():
    """Hydra would hold optimizer.epochs to the default optimiser, which has no epochs."""
    words = [
        "-m",
        "method=adamw,sgd",
        "optimizer.epochs=2",
        "seed=1,2",
        "fewshot.shots=4",
        "optimizer.lr=0.1,0.2",
    ]
    left = ["optimizer.epochs=choice(2)", "seed=1,2", "fewshot.shots=4", "optimizer.lr=0.1,0.2"]
    assert prepared(words) == [*words[:2], *left]
    assert prepared(["-m", "method=adamw", *words[2:]]) == ["-m", "method=adamw", *words[2:]]
    betas = "optimizer.betas=[0.9, 0.99]"
    assert prepared(["-m", "optimizer=adamw,reng", betas])[-1] == "optimizer.betas=choice([0.9, 0.99])"


def test_verbose_is_the_debug_level_of_our_own_logger():
    assert prepared(["--verbose", "seed=2"]) == ["seed=2", "hydra.verbose=clipkal"]


def test_version_is_ours(capsys):
    with pytest.raises(SystemExit) as ended:
        prepared(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"clipkal {__version__}"


WORDS = [
    (schema.DatasetConfig, "source", SOURCES),
    (schema.ShiftConfig, "classes", SPACES),
    (schema.FewshotConfig, "validation", VALIDATIONS),
    (schema.FewshotConfig, "protocol", PROTOCOLS),
    (schema.FewshotConfig, "short_class", SHORT_CLASS),
    (schema.FewshotConfig, "subset", SUBSETS),
    (schema.TrackingConfig, "mode", MODES),
]


@pytest.mark.parametrize(("kind", "key", "known"), WORDS, ids=lambda v: v if isinstance(v, str) else "")
def test_the_words_of_a_setting_are_those_of_the_library(kind, key, known):
    (hint,) = [one.type for one in fields(kind) if one.name == key]
    assert set(get_args(hint)) == set(known)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("method=kalman_diagonal", "method=kalman_online"),
        ("method=adamw,kalman_diagonal", "method=adamw,kalman_online"),
        ("optimizer=function_space", "optimizer=kalman"),
    ],
)
def test_an_old_word_is_taken_with_a_line_that_says_the_new_one(old, new, caplog):
    assert prepared(["-m", old]) == ["-m", new]
    assert "now; the old word goes with the next release" in caplog.text
    assert prepared(["-m", new]) == ["-m", new]
    assert len(caplog.records) == 1


def test_an_experiment_of_your_own_is_taken(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n", encoding="utf-8")
    found = []
    monkeypatch.setattr(sys, "argv", ["clipkal", "--config-dir", str(tmp_path), "+experiment=mine"])
    monkeypatch.setattr(cli, "run", lambda cfg: (check(cfg), found.append(cfg.seed)))
    monkeypatch.chdir(tmp_path)
    cli.main()
    assert found == [7]


def test_new_keys_of_mappings_are_taken(monkeypatch, tmp_path):
    found = []
    words = ["+dataset.columns.path=file", "+dataset.splits.test=query"]
    monkeypatch.setattr(sys, "argv", ["clipkal", *words])
    monkeypatch.setattr(cli, "run", lambda cfg: (check(cfg), found.append(cfg.dataset)))
    monkeypatch.chdir(tmp_path)
    cli.main()
    assert (found[0].columns, found[0].splits) == ({"path": "file"}, {"test": "query"})


def test_a_shift_is_held_against_its_rules_too():
    from clipkal.config import compose

    cfg = compose(["dataset=imagenet_shifts"])
    check(cfg)
    name = next(iter(cfg.dataset.shifts))
    cfg.dataset.shifts[name].border = -1
    with pytest.raises(
        ConfigError, match=rf"dataset\.shifts\.{name}\.border should be greater than or equal to 0, not -1"
    ):
        check(cfg)


def test_a_tilde_without_a_home_is_one_line(monkeypatch):
    from clipkal.config import compose

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    cfg = compose(["dataset=folder", "data.root='~/images'"])
    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    with pytest.raises(
        ConfigError, match="~/images: there is no home directory for ~ here; give the whole path"
    ):
        check(cfg)
