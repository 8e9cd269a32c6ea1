"""`clipkal --help` says what every group, option and key is, from where it is made, and nothing is left without a word."""

import subprocess
import sys
from dataclasses import fields
from typing import Annotated, Literal

import pytest
from pydantic import Field

from clipkal import cli
from clipkal.config import register, schema
from clipkal.config.arguments import GROUPS
from clipkal.config.explain import known_keys
from clipkal.config.help import COMMON, about, groups, keys, overview
from clipkal.config.meaning import described, meaning_of, summary_of
from clipkal.config.options import OPTIONS
from clipkal.errors import ConfigError
from clipkal.settings import Count, Fraction, Positive, check


@pytest.fixture(autouse=True)
def _registered():
    register()


def test_the_overview_names_every_group_and_the_common_keys():
    text = overview()
    assert {name for name, *_ in groups()} == {*GROUPS, "experiment"}
    assert all(f"\n  {name}={option}" in text for name, option, _ in groups() if option)
    assert all(f"\n  {key}" in text for key in COMMON)
    assert "[none | fewshot | full]" in text


def test_every_setting_has_a_meaning():
    assert {key.name for key in keys() if not key.meaning} == set()
    assert {key.name for key in keys()} <= set(known_keys())
    assert len({key.name for key in keys()}) > 100


def test_no_setting_of_an_option_is_left_out():
    shown = {(key.option, key.name.rpartition(".")[2]) for key in keys()}
    for one in OPTIONS.values():
        plain = {f.name for f in fields(one.kind) if f.type is not schema.PartConfig} - {"name", "_target_"}
        assert {(f"{one.group}={one.name}", name) for name in plain} <= shown


def test_defaults_are_those_of_a_run():
    """What the help says is what Hydra composes, file by file."""
    from clipkal.config import compose

    cfg = compose(["method=ring"])
    own = [key for key in keys() if key.option == "optimizer=ring"]
    assert own
    assert {key.name: key.default for key in own} == {
        key.name: cfg.optimizer[key.name.rpartition(".")[2]] for key in own
    }


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer", ["kalman (default)", "  sophia  ", "optimizer.prior = crossval", "crossval | evidence | ratio"]),
        ("fewshot", ["fewshot.shots = 16", "images a class"]),
        ("fewshot.protocol", ["fewshot.protocol = coop", "coop | cliplora", "whose draw"]),
        ("optimizer.epochs", ["optimizer.epochs = 50", "with kfac, reng, ring", "optimizer.epochs = 1"]),
        ("optimizer=adamw", ["clipkal.optim.AdamW", "optimizer.betas = [0.9,0.999]", "running squared gradient"]),
        ("optimizer.rho_as", ['"relative" to the first batch']),
        ("adapter=lora", ["adapter.rank = 4", "r ≥ 1"]),
        ("method=adamw", ["first-order baseline", "override /optimizer: adamw"]),
        ("dataset", ["  domainnet  ", "dataset.ood = null"]),
        ("+experiment", ["  coop  ", "smoke"]),
        ("experiment=pacs", ["PACS", "Needs:", "dataset.id_domain: art_painting,cartoon,photo,sketch"]),
        ("optimizer/covariance", ["lowrank"]),
        ("optimizer.covariance=lowrank", ["optimizer.covariance.rank = 32"]),
    ],
)  # fmt: skip
def test_a_word_is_explained(word, said):
    text = about(word)
    assert [one for one in said if one not in text] == []


@pytest.mark.parametrize(
    ("word", "near"),
    [("opimizer", "'optimizer'"), ("fewshot.shot", "'fewshot.shots'"), ("method=adam", "'method=adamw'"), ("xyzzyq", "--help")],
)  # fmt: skip
def test_an_unknown_word_is_answered_with_the_nearest(word, near):
    with pytest.raises(ConfigError, match="there is nothing called") as caught:
        about(word)
    assert near in str(caught.value)


def test_options_of_your_own_folder_are_explained(tmp_path, monkeypatch, capsys):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text(
        "# Pictures of mine.\nname: mine\nsource: folder\n", encoding="utf-8"
    )
    monkeypatch.setattr(sys, "argv", ["clipkal", "--config-dir", str(tmp_path), "--help", "dataset=mine"])
    cli.main()
    assert "Pictures of mine." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "said", "good", "bad"),
    [
        (Count, "a whole number from 1", 1, 0),
        (Fraction, "a number from 0 below 1", 0.0, 1.0),
        (Positive | Literal["auto"], "a number above 0 | auto", "auto", "auro"),
        (Literal["a", "b"], "a | b", "b", "c"),
        (list[Positive], "a list, each a number above 0", [1.0], [0.0]),
        (bool | None, "true or false | null", None, "yes"),
        (Annotated[int, Field(ge=2, le=5)], "a whole number from 2 to 5", 5, 6),
        (Annotated[str, Field(pattern="x", description="a word with x")], "a word with x", "x", "y"),
    ],
)
def test_a_type_is_described_as_it_is_checked(kind, said, good, bad):
    assert described(kind) == said
    check("key", good, kind)
    with pytest.raises(ValueError, match="key"):
        check("key", bad, kind)


def test_meanings_come_from_the_schema_first_then_from_the_docstring():
    ring = OPTIONS["optimizer_ring"].kind
    assert meaning_of(ring, "batch_size") == "images a step"
    assert meaning_of(ring, "rho") == ""
    assert meaning_of(ring, "rho", "clipkal.optim.RING") == "ρ ≥ 0."
    assert meaning_of(ring, "momentum", "clipkal.optim.RING").startswith("m in")
    assert summary_of("clipkal.optim.RING") == "Natural gradient damped by the squared gradient norm."


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--help", "optimizer", "seed"]])
def test_help_needs_no_torch(words):
    code = "import sys; sys.modules['torch'] = None; from clipkal import cli; cli.main()"
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "optimizer" in ran.stdout


def test_who_stops_reading_sees_no_traceback():
    line = f"{sys.executable} -m clipkal --help optimizer dataset tracking fewshot | head -1"
    ran = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("optimizer: how it learns\n", "")
