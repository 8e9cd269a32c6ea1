"""The baseline: how it is named, what is compared with it, and what the tables and files say of it."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import write_run

from clipkal.errors import DataError
from clipkal.report.against import Baseline, against, baseline_of, comparisons
from clipkal.report.aggregate import Row, aggregate
from clipkal.report.averages import over_datasets
from clipkal.report.collect import collect
from clipkal.report.command import main
from clipkal.report.latex import escaped, latex
from clipkal.report.section import sections
from clipkal.report.table import HEAD
from clipkal.report.tidy import paired_csv, seeds_csv
from clipkal.report.values import ID, MEAN_OOD

KEYS = ["dataset", "label", "predictive", "shots", "set", "metric"]


@pytest.fixture(scope="module")
def rows(outputs: Path) -> list[Row]:
    found = aggregate(collect([outputs]).runs)
    return [*over_datasets(found), *found]


@pytest.fixture(scope="module")
def digits(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.dataset == "digits"]


def test_a_baseline_is_a_method_or_a_row_and_a_predictive(rows: list[Row], tmp_path: Path) -> None:
    assert baseline_of(rows, None) == Baseline("adamw")
    assert baseline_of([row for row in rows if row.method != "adamw"], None) == Baseline("zeroshot")
    assert baseline_of([row for row in rows if row.method == "kalman"], None) is None
    assert str(baseline_of(rows, "adamw:plugin_scaled")) == "adamw:plugin_scaled"
    for adapter in ("linear", "lora"):
        write_run(tmp_path, n=20, adapter=adapter, folder=f"4shot-seed1,adapter={adapter}")
    two = aggregate(collect([tmp_path]).runs)
    assert baseline_of(two, "kalman (adapter=lora)") == Baseline("kalman (adapter=lora)")
    with pytest.raises(
        DataError, match=r"--baseline kalman: there are 2 rows of kalman; name one of: kalman \("
    ):
        baseline_of(two, "kalman")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("sgd", "there are no runs of it; name one of: adamw, kalman, zeroshot"),
        ("adamw:sampled", "adamw has no such predictive; it has plugin, plugin_scaled"),
    ],
)
def test_an_unknown_baseline_is_one_line_and_exit_2(
    outputs: Path, tmp_path: Path, asked: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(outputs), "--out", str(tmp_path), "--baseline", asked, "--no-figures"])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.count("\n") == 1 and words in captured.err
    assert not list(tmp_path.iterdir())


def test_the_table_has_the_reported_rows_without_the_baseline(digits: list[Row]) -> None:
    base = Baseline("adamw")
    table = against(digits, comparisons(digits, base), base)
    assert [cells[:4] for cells in table.cells] == [
        [label, predictive, shots, "3"]
        for shots in ("1", "16")
        for label, predictive in (("kalman", "sampled"), ("zeroshot", "plugin"))
    ]
    row, other = (
        next(r for r in digits if (r.label, r.shots) == (label, "16")) for label in ("zeroshot", "adamw")
    )
    key = (ID, "accuracy")
    mean = 100 * (row.values[key].mean - other.values[key].mean)
    cell = table.cells[-1][len(HEAD)]
    assert cell.startswith(f"{mean:+.1f}".replace("-", "−")) and cell.endswith("(0–0–3)")
    assert (3, len(HEAD)) in table.worse and (3, len(HEAD)) not in table.best


def test_a_temperature_scaled_baseline_is_compared_with_its_own_plain_row_too(digits: list[Row]) -> None:
    base = Baseline("adamw", "plugin_scaled")
    table = against(digits, comparisons(digits, base), base)
    assert {(cells[0], cells[1]) for cells in table.cells} == {
        ("adamw", "plugin"),
        ("kalman", "sampled"),
        ("zeroshot", "plugin"),
    }


def test_a_baseline_that_learns_nothing_is_there_at_any_number_of_shots(tmp_path: Path) -> None:
    write_run(tmp_path, method="zeroshot", shots=1, seed=1, n=20)
    for seed in (1, 2):
        write_run(tmp_path, shots=16, seed=seed, n=20)
    found = aggregate(collect([tmp_path]).runs)
    made = comparisons(found, Baseline("zeroshot"))
    assert {(one.row.shots, one.base.shots) for one in made} == {("16", "1")}
    assert all(one.found.pairs == 2 for one in made if (one.name, one.metric.key) == (ID, "nll"))


def test_csv_files_have_every_seed_and_every_difference(rows: list[Row], digits: list[Row]) -> None:
    seeds = pd.read_csv(io.StringIO(seeds_csv(digits)))
    row = next(row for row in digits if row.label == "kalman" and row.reported and row.shots == "16")
    some = seeds[(seeds.label == "kalman") & seeds.reported & (seeds.shots == 16)]
    some = some[(some.set == MEAN_OOD) & (some.metric == "nll")].sort_values("seed")
    assert list(some.seed) == [1, 2, 3]
    np.testing.assert_allclose(some.value, row.values[MEAN_OOD, "nll"].values)
    paired = pd.read_csv(io.StringIO(paired_csv(comparisons(digits, Baseline("adamw")))))
    assert not paired.duplicated(KEYS).any() and set(paired.baseline) == {"adamw:plugin"}
    wide = seeds[seeds.reported].pivot_table("value", ["set", "metric", "shots", "seed"], "label")
    for _, line in paired[(paired.label == "kalman") & paired.reported].iterrows():
        pair = wide.loc[line.set, line.metric, line.shots]
        assert line.difference == pytest.approx((pair.kalman - pair.adamw).mean(), abs=1e-12)
        assert line.wins + line.ties + line.losses == line.pairs == 3 and line.p_holm >= line.p_wilcoxon


def test_latex_says_what_the_tables_say(rows: list[Row]) -> None:
    base = baseline_of(rows, None)
    parts = sections(rows, (), base, [])
    text = latex(parts)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(parts)
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == len(parts)
    first = parts[0].overview
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(first.cells) and all(
        line.count(" & ") == len(first.header) - 1 for line in lines
    )
    assert body.count(r"\midrule") == len(first.breaks)
    bold = [line.count(r"\textbf") for line in lines]
    assert bold == [sum((r, c) in first.best for c in range(len(first.header))) for r in range(len(lines))]
    assert r"plugin\_scaled" in body and r"$\pm$" in body
    assert escaped(r"a_b%c&d#e$f{g}~^\x") == (
        r"a\_b\%c\&d\#e\$f\{g\}\textasciitilde{}\textasciicircum{}\textbackslash{}x"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(rows: list[Row], tmp_path: Path) -> None:
    base = baseline_of(rows, None)
    parts = sections(rows, (), base, [one for family in _families(rows) for one in comparisons(family, base)])
    parts[0].title = r"a_b%c&d#e$f{g}~^\x"
    page = (
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
        + latex(parts)
        + r"\end{document}"
    )
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def _families(rows: list[Row]) -> list[list[Row]]:
    from clipkal.report.table import families

    return list(families(rows).values())


def test_a_family_without_the_baseline_has_no_differences(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, dataset="a", method="adamw")
    write_run(tmp_path, n=20, dataset="a")
    write_run(tmp_path, n=20, dataset="b")
    rows = aggregate(collect([tmp_path]).runs)
    made = [one for family in _families(rows) for one in comparisons(family, Baseline("adamw"))]
    first, second = sections(rows, (), Baseline("adamw"), made)
    assert first.against is not None and second.against is None


def test_new_keys_appear_and_old_runs_lack_them(tmp_path: Path) -> None:
    for seed in (1, 2):
        path = write_run(tmp_path, n=20, seed=seed, predictive="novelty") / "results.json"
        content = json.loads(path.read_text())
        for one in content["sets"].values():
            one["predictive"]["novelty"] = one["predictive"].pop("sampled") | {
                "macro_f1": 0.5, "novel_thing": 0.25, "rule": "text", "flag": True, "coverage": [0.1, 0.2],
                "intervals": {"accuracy": [0.4, 0.6]}, "errors": {"msp": {"auroc": 0.7, "aupr": 0.3}},
            }  # fmt: skip
            one["conformal"] = {"predictive": "novelty", "alpha": 0.1, "n": 9, "aps": {"coverage": 0.9}}
        new = {"auroc": 0.75, "aupr": 0.5, "fpr95": 0.2, "n_id": 20}
        content["detection"]["photo"] = {
            "novelty": new | {"predictive": "novelty"},
            "nearest_shot": new | {"predictive": "features"},
        }
        path.write_text(json.dumps(content))
    write_run(tmp_path, n=20, method="adamw")
    rows = aggregate(collect([tmp_path]).runs)
    new = next(row for row in rows if row.predictive == "novelty")
    assert new.reported and not any(row.reported for row in rows if row.method == "kalman" and row is not new)
    values = {key[1]: value.mean for key, value in new.values.items() if key[0] in (ID, "photo")}
    wanted = {"macro_f1": 0.5, "novel_thing": 0.25, "conformal.aps.coverage": 0.9, "auroc_novelty": 0.75}
    wanted |= {"aupr_novelty": 0.5, "intervals.accuracy.low": 0.4, "intervals.accuracy.high": 0.6}
    wanted |= {"errors.msp.auroc": 0.7, "errors.msp.aupr": 0.3, "auroc_nearest_shot": 0.75}
    assert {key: values.get(key) for key in wanted} == wanted
    assert not {"rule", "flag", "n_id", "conformal.alpha", "conformal.n", "coverage.low"} & set(values)
    titles = [table.title for table in sections(rows)[0].others]
    assert titles[:2] == ["Brier score", "ECE with equal-mass bins (%)"] and "Macro-F1 (%)" in titles
    assert {"novel thing", "conformal: aps: coverage", "AUROC of telling errors (%), score 1 − max p"} <= set(
        titles
    )
    assert {"Detection AUROC (%), score novelty", "Detection AUROC (%), score nearest shot"} <= set(titles)
    assert not any("intervals" in title or "aupr" in title.lower() for title in titles)
