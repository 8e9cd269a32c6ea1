"""`evaluate` on a linear model with a known Gaussian posterior: label spaces, seeds, tables, files."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from torch import Tensor, nn

from clipkal.errors import ConfigError
from clipkal.evaluation import Evaluation, detection_table, evaluate, fit_temperatures
from clipkal.files import write_json
from clipkal.metrics import auroc, classification_metrics, fpr95
from clipkal.optim import Posterior
from clipkal.recording.predictions import rows, table
from clipkal.uncertainty import Plugin, Predictive, Probit, Reader, Sampled, plugin, reader

D, C, SD = 8, 5, 0.7


@dataclass
class Features:
    ids: list[str]
    labels: Tensor
    inputs: Tensor


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(3 * torch.randn(C, D, generator=torch.Generator().manual_seed(0)))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T


class GaussianPosterior(Posterior):
    """W ~ N(weight, SD² I): parameters come from the generator, so every batch sees the same draws."""

    def __init__(self, model: Linear) -> None:
        self.model, self.calls = model, 0

    def logit_samples(self, inputs: Tensor, n: int, generator: torch.Generator) -> Tensor:
        self.calls += 1
        weights = self.model.weight + SD * torch.randn(n, C, D, generator=generator)
        return torch.einsum("bd,ncd->nbc", inputs, weights)

    def logit_covariance(self, inputs: Tensor) -> Tensor:
        return SD**2 * inputs.square().sum(1)[:, None, None] * torch.eye(C)


class NeedsZeroshot(Predictive):
    needs = ("zeroshot",)

    def predict(self, chunk):
        return plugin(chunk.zeroshot)


def features(name: str, n: int, seed: int, noise: float = 0.0, classes: int = C) -> Features:
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=1)
    clean = Linear()(x)[:, :classes].detach()
    labels = (clean + noise * torch.randn(clean.shape, generator=generator)).argmax(1)
    return Features([f"{name}/{i}.jpg" for i in range(n)], labels, x)


@pytest.fixture
def model() -> Linear:
    return Linear()


@pytest.fixture
def sets() -> dict[str, tuple[str, Features]]:
    return {
        "test": ("id", features("test", 90, 1, 1.0)),
        "sketch": ("ood", features("sketch", 70, 2, 3.0)),
        "some": ("ood", features("some", 50, 3, 1.0, classes=3)),
    }


def run(model: Linear, sets: dict, **options) -> Evaluation:
    predictives = {"plugin": Plugin(), "sampled": Sampled(options.pop("samples", 40)), "probit": Probit()}
    reading = {"seed": 7} | {key: options.pop(key) for key in ("seed", "batch_size") if key in options}
    return evaluate(
        Reader(model, GaussianPosterior(model), **reading), sets, **{"predictives": predictives} | options
    )


def test_plugin_metrics_are_those_of_the_softmax(model: Linear, sets: dict) -> None:
    result = evaluate(Reader(model), sets)
    assert [set(s.metrics) for s in result.sets.values()] == [{"plugin"}] * 3
    data = sets["test"][1]
    expected = classification_metrics(model(data.inputs).double().softmax(1), data.labels)
    for name, value in expected.items():
        assert result.sets["test"].metrics["plugin"][name] == pytest.approx(value), name
    assert set(result.detection) == {"sketch", "some"}
    assert set(result.detection["some"]) == {"msp", "entropy", "energy"}


def test_an_ood_set_is_scored_over_its_own_classes_and_detected_over_all(model: Linear, sets: dict) -> None:
    result = run(model, sets)
    some, data = result.sets["some"], sets["some"][1]
    assert some.classes == [0, 1, 2] and result.sets["test"].classes == list(range(C))
    logits = model(data.inputs).double()
    np.testing.assert_allclose(some.predictions["plugin"].probs, logits[:, :3].softmax(1).detach())
    assert all(metrics["classes"] == 3 for metrics in some.metrics.values())
    full = logits.softmax(1).detach()
    torch.testing.assert_close(some.scores["plugin"]["msp"], 1 - full.amax(1))
    assert some.predictions["sampled"].probs.shape == (50, 3)
    sampled_full = result.sets["some"].scores["sampled"]["entropy"]
    assert (sampled_full >= some.predictions["sampled"].entropy - 1).all()
    reference = 1 - model(sets["test"][1].inputs).double().softmax(1).amax(1)
    entry = result.detection["some"]["plugin_msp"]
    assert entry["auroc"] == pytest.approx(auroc(reference, 1 - full.amax(1)))
    assert entry["fpr95"] == pytest.approx(fpr95(reference, 1 - full.amax(1)))
    assert (entry["n_id"], entry["n_ood"], entry["predictive"]) == (90, 50, "plugin")


def test_a_given_label_space_takes_the_place_of_the_classes_that_occur(model: Linear, sets: dict) -> None:
    spaces = {"some": [0, 1, 2, 4], "sketch": list(range(C))}
    result = run(model, sets, spaces=spaces)
    logits = model(sets["some"][1].inputs).double().detach()
    wanted = logits[:, [0, 1, 2, 4]].softmax(1)
    torch.testing.assert_close(result.sets["some"].predictions["plugin"].probs, wanted)
    content = result.to_dict()["sets"]
    assert {name: (one["label_space"], one["label_rule"]) for name, one in content.items()} == {
        "test": ([0, 1, 2, 3, 4], "all"),
        "sketch": ([0, 1, 2, 3, 4], "all"),
        "some": ([0, 1, 2, 4], "occurring"),
    }
    every = run(model, sets, spaces={"some": range(C)}).sets["some"]
    torch.testing.assert_close(every.predictions["plugin"].probs, logits.softmax(1))
    assert every.rule == "all" and run(model, sets).sets["some"].rule == "occurring"
    with pytest.raises(ValueError, match="label space of 'some'"):
        run(model, sets, spaces={"some": [0, 1]})


def test_a_transfer_set_is_scored_over_all_its_classes_and_not_detected(model: Linear, sets: dict) -> None:
    result = run(model, {**sets, "some": ("transfer", sets["some"][1])})
    assert result.sets["some"].classes == list(range(C))
    assert set(result.detection) == {"sketch"}
    alone = run(model, {"some": ("transfer", sets["some"][1])})
    assert alone.detection == {}
    assert alone.sets["some"].metrics["plugin"] == result.sets["some"].metrics["plugin"]


def test_labels_of_a_gappy_label_space(model: Linear) -> None:
    data = features("gap", 60, 4)
    data.labels = torch.where(data.labels < 2, 1, 4)
    one = evaluate(Reader(model), {"test": ("id", features("t", 5, 0)), "gap": ("ood", data)}).sets["gap"]
    assert one.classes == [1, 4]
    picked = torch.tensor([1, 4])[model(data.inputs)[:, [1, 4]].argmax(1)]
    assert one.metrics["plugin"]["accuracy"] == pytest.approx((picked == data.labels).double().mean().item())
    assert set(rows("gap", one, "plugin")["predicted"].to_pylist()) <= {1, 4}


def test_sampled_and_probit_agree_with_many_draws(model: Linear, sets: dict) -> None:
    result = run(model, sets, samples=2000)
    one = result.sets["test"]
    sampled, probit = one.predictions["sampled"], one.predictions["probit"]
    assert (sampled.probs - probit.probs).abs().mean() < 0.01
    assert one.metrics["sampled"]["epistemic"] > 0 and one.metrics["plugin"]["epistemic"] == 0


@pytest.mark.parametrize("batch_size", [1, 13, 1000])
def test_chunking_changes_nothing(model: Linear, sets: dict, batch_size: int) -> None:
    first, second = run(model, sets), run(model, sets, batch_size=batch_size)
    for name, one in first.sets.items():
        for key, prediction in one.predictions.items():
            other = second.sets[name].predictions[key]
            torch.testing.assert_close(other.probs, prediction.probs, rtol=0, atol=1e-5)  # float32 model


def test_memory_budget_only_changes_the_number_of_calls(model: Linear, sets: dict, monkeypatch) -> None:
    posterior = GaussianPosterior(model)
    drawn = {"sampled": Sampled(40)}
    first = evaluate(Reader(model, posterior), sets, drawn)
    assert posterior.calls == 3 * 3  # three blocks of at most 16 draws, three sets
    monkeypatch.setattr(reader, "MEMORY_BUDGET", 32 * 16 * C * 20)
    second = evaluate(Reader(model, posterior), sets, drawn)
    assert posterior.calls > 20
    a, b = (e.sets["sketch"].predictions["sampled"].probs for e in (first, second))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_seeds(model: Linear, sets: dict) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    results = [run(model, sets, seed=s).sets["test"].predictions["sampled"].probs for s in (0, 0, 1)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's random numbers are touched


def test_temperature_adds_scaled_predictives(model: Linear, sets: dict) -> None:
    result = run(model, sets, temperature={"plugin": 2.0, "probit": 1.0})
    one = result.sets["test"]
    assert set(one.metrics) == {"plugin", "sampled", "probit", "plugin_scaled", "probit_scaled"}
    expected = (model(sets["test"][1].inputs).double() / 2).softmax(1)
    torch.testing.assert_close(one.predictions["plugin_scaled"].probs, expected.detach())
    torch.testing.assert_close(one.predictions["probit_scaled"].probs, one.predictions["probit"].probs)
    assert one.metrics["plugin_scaled"]["temperature"] == 2
    assert "temperature" not in one.metrics["plugin"]
    every = run(model, sets, temperature=3.0)
    assert every.settings["temperatures"] == {"plugin": 3, "sampled": 3, "probit": 3}


def test_fitted_temperatures_lower_the_validation_nll(model: Linear) -> None:
    val = features("val", 300, 9, 2.0)
    names = {"plugin": Plugin(), "sampled": Sampled(30), "probit": Probit()}
    temperatures = fit_temperatures(Reader(model, GaussianPosterior(model), batch_size=77), val, names)
    assert set(temperatures) == set(names)
    metrics = run(model, {"val": ("id", val)}, samples=30, temperature=temperatures).sets["val"].metrics
    for name in names:
        assert metrics[f"{name}_scaled"]["nll"] <= metrics[name]["nll"] + 1e-3, name


def test_results_are_json_and_rows_survive_parquet(model: Linear, sets: dict, tmp_path) -> None:
    result = run(model, sets, temperature=2.0)
    write_json(tmp_path / "results.json", result.to_dict())
    back = json.loads((tmp_path / "results.json").read_text())
    assert back["sets"]["sketch"]["role"] == "ood"
    assert back["sets"]["some"]["label_space"] == [0, 1, 2]
    assert set(back["sets"]["test"]["predictive"]) == {
        p + s for p in ("plugin", "sampled", "probit") for s in ("", "_scaled")
    }
    assert len(back["sets"]["test"]["predictive"]["plugin"]["reliability"]) == 15
    assert back["evaluation"] == {
        "samples": 40,
        "seed": 7,
        "bins": 15,
        "temperatures": dict.fromkeys(("plugin", "sampled", "probit"), 2.0),
        "intervals": {"method": "bootstrap", "resamples": 1000, "level": 0.95},
    }
    parquet.write_table(table(result), tmp_path / "predictions.parquet")
    frame = pd.read_parquet(tmp_path / "predictions.parquet")
    assert len(frame) == 6 * (90 + 70 + 50)
    assert list(frame.columns) == [
        *("set", "role", "id", "label", "predictive", "predicted", "confidence", "probs"),
        *("entropy", "aleatoric", "epistemic", "novelty", "energy"),
    ]
    row = frame[(frame.set == "test") & (frame.predictive == "sampled")].iloc[4]
    np.testing.assert_allclose(row.probs, result.sets["test"].predictions["sampled"].probs[4], atol=1e-6)
    assert row.id == "test/4.jpg" and row.predicted == np.argmax(row.probs)
    assert row.entropy == pytest.approx(row.aleatoric + row.epistemic)
    chosen = frame[(frame.set == "some") & (frame.predictive == "plugin")]
    assert (chosen.predicted == chosen.label).mean() == result.sets["some"].metrics["plugin"]["accuracy"]
    assert "probs" not in table(result, probabilities=False).column_names
    pd.testing.assert_frame_equal(table(result).to_pandas(), frame)


def test_detection_table_prefers_the_bayesian_predictive(model: Linear, sets: dict) -> None:
    result = run(model, sets)
    entry = result.detection["sketch"]
    assert set(entry) == {"msp", "entropy", "mutual_information", "plugin_msp", "plugin_entropy", "energy"}
    assert set(entry["msp"]) == {"auroc", "aupr", "fpr95", "predictive", "n_id", "n_ood"}
    assert entry["msp"]["predictive"] == "sampled" and entry["plugin_msp"]["predictive"] == "plugin"
    assert detection_table({"some": result.sets["some"]}) == {}
    assert detection_table({"test": result.sets["test"]}) == {}


def test_training_mode_and_gradients_are_left_alone(model: Linear, sets: dict) -> None:
    model.train()
    result = run(model, sets)
    assert model.training and model.weight.grad is None
    assert not result.sets["test"].predictions["plugin"].probs.requires_grad


def test_overconfident_model_keeps_a_finite_nll(sets: dict) -> None:
    model = Linear()
    model.weight.data *= 1e4
    metrics = evaluate(Reader(model), sets).sets["sketch"].metrics["plugin"]
    assert 100 < metrics["nll"] < math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictives": {"mine_scaled": Plugin()}}, "_scaled marks those"),
        ({"predictives": {}}, "at least one predictive"),
        ({"predictives": {"shared": NeedsZeroshot()}}, "Linear is no adapter"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": math.nan}, "temperature must be positive"),
    ],
)
def test_bad_options_are_one_clear_line(model: Linear, sets: dict, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(model, sets, **options)


def test_bad_sets_and_posteriors(model: Linear, sets: dict) -> None:
    class Only(Posterior):
        def logit_samples(self, inputs, n, generator):
            return torch.full((n, len(inputs), C), math.nan)

    with pytest.raises(ConfigError, match="Only gives no logit covariance, which this predictive needs"):
        evaluate(Reader(model, Only()), sets, {"probit": Probit()})
    with pytest.raises(ConfigError, match="need a posterior, and there is none"):
        evaluate(Reader(model), sets, {"probit": Probit()})
    with pytest.raises(FloatingPointError, match="'test'"):
        evaluate(Reader(model, Only()), sets, {"sampled": Sampled()})
    with pytest.raises(ConfigError, match="role"):
        evaluate(Reader(model), {"x": ("val", sets["test"][1])})
    with pytest.raises(ConfigError, match="role"):
        evaluate(Reader(model), {})
    empty = Features([], torch.zeros(0, dtype=torch.long), torch.zeros(0, D))
    with pytest.raises(ValueError, match="'none' is empty"):
        evaluate(Reader(model), {"test": sets["test"], "none": ("ood", empty)})
    unknown = Features(["a"], torch.tensor([C]), torch.ones(1, D))
    with pytest.raises(ValueError, match="label outside"):
        evaluate(Reader(model), {"test": ("id", unknown)})
    broken = features("broken", 4, 0)
    broken.inputs[2, 0] = math.inf
    with pytest.raises(FloatingPointError, match="'broken'"):
        evaluate(Reader(model), {"test": sets["test"], "broken": ("ood", broken)})
