"""Figures and tables from the other files of a run: predictions, learning curves, the record of the training."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import write_run

from clipkal.report.aggregate import Row, aggregate
from clipkal.report.collect import Collection, collect
from clipkal.report.command import main
from clipkal.report.draw import draw
from clipkal.report.passes import learning_curves, learning_figures
from clipkal.report.risk import COVERAGE, risk_curves, risk_figure
from clipkal.report.scatter import cost_against_quality, id_against_ood
from clipkal.report.table import HEAD, cost
from clipkal.report.values import COST, ID, MEAN_OOD
from clipkal.tracking.metrics_file import MetricsFile

OVER_IMAGES, OVER_SECONDS = "Learning curves over images seen", "Learning curves over seconds"
NEW = {"Risk against coverage", OVER_IMAGES, "Cost beside quality"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for method in ("zeroshot", "adamw", "kalman"):
        for seed in (1, 2):
            write_run(root, method=method, seed=seed, n=200, whole=True)
    return root


def read(root: Path) -> tuple[list[Row], Collection]:
    found = collect([root])
    return aggregate(found.runs), found


def test_risk_at_full_coverage_is_the_error_and_its_mean_the_aurc(whole: Path) -> None:
    rows, found = read(whole)
    row = next(row for row in rows if row.label == "kalman" and row.reported)
    curves = [
        risk_curves(run.path / "predictions.parquet", "sampled")
        for run in found.runs
        if run.run["method"] == "kalman"
    ]
    for name in (ID, MEAN_OOD):
        risk = np.mean([one[name] for one in curves], axis=0)
        assert risk[-1] == pytest.approx(1 - row.values[name, "accuracy"].mean)
        assert np.trapezoid(risk, COVERAGE) == pytest.approx(row.values[name, "aurc"].mean, abs=0.01)
    problems: list[str] = []
    figure = risk_figure(rows, found.runs, problems.append)
    assert not problems and figure is not None
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert set(lines) == {"adamw", "kalman", "zeroshot"}
    np.testing.assert_allclose(
        lines["kalman"].get_ydata(), 100 * np.mean([one[ID] for one in curves], axis=0)
    )


def test_learning_curves_are_of_the_kept_trial_and_count_images(whole: Path) -> None:
    rows, found = read(whole)
    run = next(run for run in found.runs if run.run["method"] == "adamw")
    curves = learning_curves(run.path / "metrics.csv", 1, 24)
    points = run.training["trials"][1]["curve"]
    assert curves["val_nll"] == {24 * p["epoch"]: p["val_nll"] for p in points}
    assert list(curves["train_loss"]) == [24.0 * epoch for epoch in range(1, 9)]
    figures = learning_figures(rows, found.runs, print)
    assert set(figures) == {OVER_IMAGES}  # these runs have not counted their seconds
    figure = figures[OVER_IMAGES]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "NLL on validation images (nats)",
        "Training loss (nats)",
    ]
    kept = [line for line in figure.axes[0].lines if line.get_marker() == "s" and len(line.get_xdata())]
    assert [line.get_xdata()[line.get_markevery()[0]] for line in kept] == [24 * run.training["epoch"]] * 2


def test_parts_of_a_pass_and_seconds_have_their_places_in_the_learning_curves(tmp_path: Path) -> None:
    path = write_run(tmp_path, method="kalman", n=20, whole=True)
    (path / "metrics.csv").unlink()
    log, accuracy = MetricsFile(path / "metrics.csv"), {0: 0.5, 0.25: 0.6, 1 / 3: 0.7, 1: 0.8}
    for epoch, value in accuracy.items():
        named = {"val_accuracy": value, "seconds": 2 * epoch}
        log.append([(epoch, "trial0", "digits", name, one) for name, one in named.items()])
    log.close()
    rows, found = read(tmp_path)
    figures = learning_figures(rows, found.runs, print)
    for caption, x in ((OVER_IMAGES, [0, 6, 8, 24]), (OVER_SECONDS, [0, 0.5, 2 / 3, 2])):
        (axes,) = figures[caption].axes
        assert axes.get_title(loc="left") == "Accuracy on validation images (%)"
        assert list(axes.lines[0].get_xdata()) == pytest.approx(x)
        assert list(axes.lines[0].get_ydata()) == pytest.approx([50, 60, 70, 80])
        assert axes.lines[1].get_markevery() == [3]  # the kept pass


def test_cost_beside_quality(whole: Path) -> None:
    rows, _ = read(whole)
    table = cost(rows)
    wanted = [
        *("Training (s)", "Peak memory (MiB)", "Passes over the shots", "Learning rates tried"),
        "Trained parameters",
    ]
    assert table is not None and table.header == [
        *HEAD,
        *wanted,
        "Acc. % ID",
        "Acc. % OOD",
        "NLL ID",
        "NLL OOD",
    ]
    cells = {line[0]: line[len(HEAD) : len(HEAD) + 5] for line in table.cells}
    assert cells == {
        "adamw": ["0.80 ± 0.00", "900", "16", "2", "384"],
        "kalman": ["0.10 ± 0.00", "900", "1", "1", "384"],
        "zeroshot": ["0.00 ± 0.00", "–", "–", "–", "–"],
    }
    assert all(column >= len(HEAD) + 5 for _, column in table.best)
    row = next(row for row in rows if row.label == "adamw")
    assert row.values[COST, "passes"].mean == 16
    figure = cost_against_quality(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Accuracy (%), in distribution",
        "NLL (nats), in distribution",
    ]


def test_the_scatter_names_its_lines(whole: Path) -> None:
    rows, _ = read(whole)
    zero = next(row for row in rows if row.label == "zeroshot")
    lost = 100 * (zero.values[ID, "accuracy"].mean - zero.values[MEAN_OOD, "accuracy"].mean)
    labels = [line.get_label() for line in id_against_ood(rows).axes[0].lines]
    assert f"{lost:.1f} points lost, as zero-shot" in labels


def test_all_are_drawn_where_there_is_what_they_need(whole: Path, outputs: Path) -> None:
    (captions,) = draw(*(part for part in (read(whole)[0], read(whole)[1].runs))).values()
    assert set(captions) >= NEW
    rows, found = read(outputs / "digits")
    assert not NEW & set(draw(rows, found.runs)["digits · mini"])


HEADER = b"step,split,dataset,metric,value\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("predictions.parquet", b"PAR1 and no more"),
        ("predictions.parquet", b""),
        ("metrics.csv", b"step,split\n1,trial0\n"),
        ("metrics.csv", HEADER + b"x,trial0,d,val_nll,0.5\n"),
        ("metrics.csv", HEADER + b"\xff\xfe"),
    ],
)
def test_a_damaged_file_is_named_and_its_run_left_out_of_the_figure(
    tmp_path: Path, name: str, content: bytes
) -> None:
    for seed in (1, 2):
        path = write_run(tmp_path, n=20, seed=seed, whole=True)
    (path / name).write_bytes(content)
    rows, found = read(tmp_path)
    problems: list[str] = []
    make = risk_figure if name.startswith("predictions") else learning_figures
    assert make(rows, found.runs, problems.append)
    (line,) = problems
    assert (
        line.startswith(f"{path}/{name} cannot be read (") and "left out of the" in line and "\n" not in line
    )
    (tmp_path / path.relative_to(tmp_path).parent / "4shot-seed1" / name).write_bytes(content)
    assert not make(rows, found.runs, problems.append) and len(problems) == 3


def test_the_command_says_what_it_left_out_of_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path, n=20, sets=("test",), whole=True)
    (path / "predictions.parquet").write_bytes(b"")
    main([str(tmp_path), "--out", str(tmp_path / "report")])
    captured = capsys.readouterr()
    assert captured.err.startswith(f"clipkal-report: left out: {path}/predictions.parquet cannot be read")
    assert captured.err.count("\n") == 1 and "1 run\n" in captured.out


def test_a_training_record_of_another_shape_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, whole=True)
    path = write_run(tmp_path, n=20, seed=2, whole=True) / "results.json"
    content = json.loads(path.read_text())
    for broken in (
        {"training": {"trials": 3}},
        {"training": {"trials": [{"curve": 1}]}},
        {"environment": [1]},
    ):
        path.write_text(json.dumps(content | broken))
        (line,) = collect([tmp_path]).damaged
        assert "seed2/results.json" in line
