"""The experiments that clipkal ships: each composes for all it sweeps over, says what it is, and runs in its smoke form."""

import sys
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from clipkal import cli
from clipkal.config import check, compose, conf_dir, register
from clipkal.config.help import experiment_text

FOLDER = Path(conf_dir(), "experiment")
ALL = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "smoke")


def swept(*names: str) -> dict[str, list[str]]:
    """What the experiment sweeps over, read as Hydra's sweeper reads it."""
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = hydra_compose("config", [f"+experiment=[{','.join(names)}]"], return_hydra_config=True)
    assert cfg.hydra.mode == RunMode.MULTIRUN
    words = [f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()]
    read = OverridesParser.create().parse_overrides(words)
    return {
        one.get_key_element(): list(one.sweep_string_iterator())
        if one.is_sweep_override()
        else [one.get_value_element_as_str()]
        for one in read
    }


def job(name: str, chosen: dict[str, str]):
    cfg = compose([f"+experiment={name}", *(f"{key}={value}" for key, value in chosen.items())])
    check(cfg)
    return cfg


@pytest.mark.parametrize("name", ALL)
def test_an_experiment_composes_at_both_ends_of_what_it_sweeps_over(name):
    params = swept(name)
    assert {"method", "fewshot.shots", "seed"} <= params.keys()
    for key, values in params.items():
        known = {path.stem for path in Path(conf_dir(), key).glob("*.yaml")}
        assert not known or set(values) <= known
    for end in (0, -1):
        chosen = {key: values[end] for key, values in params.items()}
        cfg = job(name, chosen)
        assert cfg.method == chosen["method"]
        assert str(cfg.fewshot.shots) == chosen["fewshot.shots"]
        if domain := chosen.get("dataset.id_domain"):
            assert cfg.dataset.id_domain == domain.replace("\\", "")
        assert cfg.output_dir == f"outputs/{name}"


@pytest.mark.parametrize("method", sorted({*swept("compare")["method"], *swept("uncertainty")["method"]}))
def test_every_method_of_the_large_experiments_composes(method):
    job("uncertainty" if method in ("laplace", "ensemble") else "compare", {"method": method})


@pytest.mark.parametrize("name", ALL)
def test_the_smoke_form_needs_no_data_and_keeps_the_methods(name):
    params, full = swept(name, "smoke"), swept(name)
    assert params["method"] == full["method"]
    assert (params["fewshot.shots"], params["seed"]) == (["1"], ["1"])
    cfg = job(f"[{name},smoke]", {key: values[-1] for key, values in params.items()})
    assert (cfg.dataset.source, cfg.backbone.name, cfg.tracking.mode) == ("rendered", "mini", "disabled")
    assert list(cfg.dataset.ood) == ["sketch"]


def test_every_method_of_the_grng_and_loko_papers_makes_as_many_passes():
    for name, epochs in (("grng", 20), ("loko_online", 1)):
        params = swept(name)
        for method in params["method"]:
            chosen = {key: values[0] for key, values in params.items()} | {"method": method}
            cfg = job(name, chosen)
            assert (cfg.optimizer.epochs, cfg.adapter.name) == (
                epochs,
                "lora" if name == "loko_online" else "linear",
            )
            assert cfg.validate_every == (
                0.05 if name == "loko_online" else 1.0
            )  # its curve is within its one pass


@pytest.mark.parametrize(("method", "predictive"), [("laplace", "sampled"), ("zeroshot", "tempered")])
def test_the_other_commands_of_uncertainty_compose(method, predictive):
    job("uncertainty", {"method": method, "predictive": predictive})


@pytest.mark.parametrize("name", ALL)
def test_an_experiment_says_what_it_needs_how_to_run_it_and_what_it_sweeps(name):
    text = experiment_text([f"+experiment={name}", "seed=7"])
    assert f"clipkal +experiment={name}" in text
    assert f'"+experiment=[{name},smoke]"' in text
    assert f"clipkal-report outputs/{name}" in text
    assert "# Needs:" in text
    assert "# Budget:" in text
    assert "# one run for each of: method=" in text
    assert "seed=7" in text
    assert all(line.startswith("#") for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["+experiment=[pacs,smoke]", "method=zeroshot,kalman_online"], 2),
        (["+experiment=[grng,smoke]", "method=ring,rkalman", "optimizer.epochs=1"], 2),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_a_smoke_form_runs_from_end_to_end_and_leaves_what_the_report_reads(
    words, runs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clipkal", *words, "data.progress=false"])
    cli.main()
    name = words[0].partition("[")[2].partition(",")[0]
    found = sorted(tmp_path.glob(f"outputs/smoke/{name}/**/results.json"))
    assert len(found) == runs


def test_showing_the_configuration_of_an_experiment_explains_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clipkal", "+experiment=grng", "--cfg", "job"])
    cli.main()
    shown = capsys.readouterr().out
    assert shown.startswith("# The optimisers of the GRNG paper side by side")
    assert "\n# every run: optimizer.epochs=20\n" in shown
    assert "\n# 84 runs in all; below stands" in shown
    assert OmegaConf.create(shown).output_dir == "outputs/grng"
