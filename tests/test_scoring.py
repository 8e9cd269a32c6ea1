"""What is stored of a set's predictions: errors that are told, intervals, conformal sets; and old results are read."""

import json
import math
from pathlib import Path

import pytest
import torch

from clipkal.evaluation import evaluate
from clipkal.files import write_json
from clipkal.metrics import auroc, outcomes
from clipkal.recording.run_figures import risk_coverage_figure, run_figures, uncertainty_figure
from clipkal.report.reliability import reliability_figure, together, wilson
from clipkal.report.results import RUN_KEYS, read_results
from clipkal.scoring import metrics_of, told_errors
from clipkal.uncertainty import Plugin, Reader, plugin


class Set:
    def __init__(self, n: int, seed: int, signal: float = 2.0, classes: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, classes, (n,), generator=generator)
        self.inputs = torch.randn(n, classes, generator=generator)
        self.inputs[torch.arange(n), self.labels] += signal
        self.ids = [str(i) for i in range(n)]


@pytest.fixture(scope="module")
def evaluation():
    sets = {"test": ("id", Set(300, 0)), "far": ("ood", Set(200, 1, 0.5)), "near": ("ood", Set(150, 2, 1.5))}
    return evaluate(
        Reader(lambda x: 1.5 * x), sets, {"plugin": Plugin()}, validation=Set(60, 3), temperature=2.0
    )


def test_errors_are_told_by_every_score(evaluation) -> None:
    one = evaluation.sets["test"]
    metrics, prediction = one.metrics["plugin"], one.predictions["plugin"]
    right = prediction.predicted == one.labels
    assert set(metrics["errors"]) == {"msp", "entropy", "energy"}
    expected = auroc(prediction.entropy[right], prediction.entropy[~right])
    assert metrics["errors"]["entropy"]["auroc"] == pytest.approx(expected) and expected > 0.7
    assert told_errors(torch.ones(3, dtype=torch.bool), {"msp": torch.rand(3)}) is None
    assert told_errors(torch.zeros(3, dtype=torch.bool), {"msp": torch.rand(3)}) is None


def test_intervals_hold_the_metric_and_what_they_rest_on_is_stored(evaluation) -> None:
    for one in evaluation.sets.values():
        for metrics in one.metrics.values():
            for name in ("accuracy", "nll"):
                low, high = metrics["intervals"][name]
                assert low < metrics[name] < high
            assert (metrics["bins"], metrics["n"], metrics["classes"]) == (15, len(one.labels), 4)
    assert evaluation.settings["intervals"] == {"method": "bootstrap", "resamples": 1000, "level": 0.95}


def test_sets_of_the_reported_predictive_are_judged_over_all_classes_everywhere(evaluation) -> None:
    content = json.loads(json.dumps(evaluation.to_dict()))["sets"]
    for name in ("test", "far", "near"):
        conformal = content[name]["conformal"]
        assert (conformal["predictive"], conformal["calibration"], conformal["n"]) == (
            "plugin",
            "validation",
            60,
        )
        assert set(conformal["lac"]) == {"coverage", "size", "empty", "full", "mondrian"}
    assert (
        content["test"]["conformal"]["lac"]["coverage"]
        > 0.85
        > content["far"]["conformal"]["lac"]["coverage"]
    )


def test_a_set_with_an_infinite_nll_and_no_errors_is_stored() -> None:
    prediction = plugin(torch.tensor([[0.0, -2000.0], [1.0, 0.0]]))
    found = metrics_of({"plugin": prediction}, torch.tensor([0, 0]), {})["plugin"]
    assert found["errors"] is None and found["accuracy"] == 1 and found["mce"] < 0.5
    without = metrics_of({"plugin": prediction.without_logs()}, torch.tensor([1, 0]), {})["plugin"]
    assert without["nll"] == math.inf and without["intervals"]["nll"] == [None, None]


def test_sets_together_are_the_set_of_all_their_images() -> None:
    one, other = Set(90, 4), Set(40, 5, 0.3)
    labels = torch.cat([one.labels, other.labels])
    every = plugin(torch.cat([one.inputs, other.inputs]))
    parts = [metrics_of({"p": plugin(s.inputs)}, s.labels, {})["p"] for s in (one, other)]
    whole, found = metrics_of({"p": every}, labels, {})["p"], together(parts)
    assert found["ece"] == pytest.approx(whole["ece"]) and found["n"] == 130
    assert found["accuracy"] == pytest.approx(outcomes(every.probs, labels).correct.double().mean().item())
    for mine, theirs in zip(found["reliability"], whole["reliability"], strict=True):
        assert mine == pytest.approx({key: theirs[key] for key in mine})


def test_wilson_interval_lies_in_0_1_and_is_normal_for_many_images() -> None:
    assert wilson(0, 1)[0] == pytest.approx(0) and wilson(1, 3)[1] == pytest.approx(1)
    low, high = wilson(0.3, 100_000)
    assert (low, high) == pytest.approx((0.3 - 1.96 * 0.00145, 0.3 + 1.96 * 0.00145), abs=1e-5)


def test_figures_of_a_run(evaluation, tmp_path: Path) -> None:
    for name, draw in run_figures().items():
        draw(evaluation).savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    labels = [
        text.get_text() for axes in risk_coverage_figure(evaluation).axes for text in axes.get_legend().texts
    ]
    aurc = evaluation.sets["far"].metrics["plugin"]["aurc"]
    assert f"far, AURC {aurc:.3f}" in labels and "best order" in labels
    (panel,) = uncertainty_figure(evaluation).axes  # of the scores with a panel a plug-in has the entropy
    assert panel.get_xlabel() == "entropy (nats)" and "OOD" in panel.get_title("left")
    alone = evaluate(Reader(lambda x: x), {"new": ("transfer", Set(50, 6))}, {"plugin": Plugin()})
    assert uncertainty_figure(alone) is None
    risk_coverage_figure(alone), reliability_figure(alone)


def test_results_of_before_are_read_and_drawn(evaluation, tmp_path: Path) -> None:
    content = json.loads(json.dumps(evaluation.to_dict()))
    new = {
        "intervals",
        "errors",
        "coverage",
        "accuracy_at_coverage",
        "macro_f1",
        "mce",
        "classwise_ece",
        "e_aurc",
    }
    for one in content["sets"].values():
        del one["conformal"]
        for metrics in one["predictive"].values():
            for name in [key for key in metrics if key in new or key.startswith("brier_")]:
                del metrics[name]
    for scores in content["detection"].values():
        del scores["energy"]
        for entry in scores.values():
            del entry["aupr"]
    run = dict.fromkeys(RUN_KEYS, "word")
    for name, part in (("old", content), ("new", evaluation.to_dict())):
        write_json(tmp_path / name / "results.json", {"schema_version": 1, "run_id": "x", "run": run, **part})
        (tmp_path / name / "finished.json").write_text("{}")
        read = read_results(tmp_path / name)
        assert len(reliability_figure(read).axes) == 2 * 4  # test, both OOD sets together, and each of them
