"""Figures are drawn from what the rows say, with one look per method; pixels are looked at by people."""

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from synthetic_runs import evaluation, write_run

from clipkal.report.aggregate import ID, MEAN_OOD, aggregate
from clipkal.report.bars import calibration_bars
from clipkal.report.collect import collect
from clipkal.report.draw import draw
from clipkal.report.figures import over_shots
from clipkal.report.metric import METRICS
from clipkal.report.page import picture
from clipkal.report.reliability import reliability_figure
from clipkal.report.scatter import id_against_ood
from clipkal.report.style import PALETTE, paler, styles


def pixels(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture(figure).png)).convert("RGB"))


@pytest.fixture(scope="module")
def digits(outputs: Path):
    return aggregate(collect([outputs / "digits"]).runs)


def test_curves_over_shots_show_the_means(digits) -> None:
    figure = over_shots(digits, METRICS[:1])
    left, right = figure.axes
    for axes, name in ((left, ID), (right, MEAN_OOD)):
        lines = {line.get_label(): line for line in axes.lines}
        assert {"adamw", "kalman", "zeroshot"} <= set(lines)
        rows = [row for row in digits if row.label == "kalman" and row.reported]
        expected = [100 * row.values[name, "accuracy"].mean for row in rows]
        np.testing.assert_allclose(lines["kalman"].get_ydata(), expected)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "16"]
    assert pixels(figure).std() > 5


def test_other_figures_render(digits) -> None:
    for figure in (id_against_ood(digits), calibration_bars(digits)):
        image = pixels(figure)
        assert image.shape[0] > 300 and image.std() > 5
    names = [tick.get_text() for tick in calibration_bars(digits).axes[0].get_yticklabels()]
    assert names == ["adamw", "adamw · plugin_scaled", "kalman", "kalman · plugin", "zeroshot"]


def test_one_run_without_ood_and_an_infinite_nll_still_draw(tmp_path: Path) -> None:
    write_run(tmp_path, n=20, sets=("test",))
    rows = aggregate(collect([tmp_path]).runs)
    rows[0].values[ID, "nll"] = type(rows[0].values[ID, "nll"])(float("inf"), None, (float("inf"),))
    for captions in draw(rows, collect([tmp_path]).runs).values():
        assert set(captions) == {
            "Accuracy against shots",
            "NLL and ECE against shots",
            "Calibration",
            "Reliability, one seed",
        }
        assert all(pixels(figure).std() > 2 for figure in captions.values())


@pytest.mark.parametrize(
    ("sets", "panels"),
    [(("test",), 1), (("test", "sketch"), 2), (("test", "sketch", "photo"), 4), (("test", *"abcdefgh"), 8)],
)
def test_reliability_figure_has_few_panels_with_counts_below(sets: tuple[str, ...], panels: int) -> None:
    """The ID set, several OOD sets together, and single ones: of nine sets the two best calibrated are left out."""
    result = evaluation("kalman", n=40, sets=sets)
    figure = reliability_figure(result)
    diagrams, counts = figure.axes[::2], figure.axes[1::2]
    assert len(diagrams) == len(counts) == panels
    bins = result.sets["test"].metrics["sampled"]["reliability"]
    dots = diagrams[0].collections[-1].get_offsets()
    assert len(dots) == sum(b["n"] > 0 for b in bins)
    heights = [bar.get_height() for bar in counts[0].patches]
    assert heights == pytest.approx([b["n"] / 40 for b in bins])
    ece = result.sets["test"].metrics["sampled"]["ece"]
    assert diagrams[0].texts[0].get_text().startswith(f"ECE {100 * ece:.1f} %")
    titles = [axes.get_title("left") for axes in diagrams]
    if len(sets) > 2:
        assert titles[1] == f"{len(sets) - 1} OOD sets together"
    if panels == 8:
        eces = {name: result.sets[name].metrics["sampled"]["ece"] for name in sets[1:]}
        assert set(titles[2:]) == set(sorted(eces, key=eces.get)[2:])
        assert "2 sets with a lower ECE are left out" in figure.get_suptitle()
    assert len(reliability_figure(result.to_dict()).axes) == len(figure.axes)


def test_styles_are_stable_and_distinct() -> None:
    some = styles(["kalman", "adamw", "mine"])
    more = styles(["kalman", "adamw", "mine", "sgd", "zeroshot"], untrained=["zeroshot"])
    assert some["kalman"] == more["kalman"] and some["adamw"] == more["adamw"]
    many = styles([f"method{i}" for i in range(24)] + ["kalman"])
    assert len({(s.color, s.marker, s.line) for s in many.values()}) == 25
    assert len({to_rgb(color) for color in PALETTE}) == 8
    assert paler("#000000", 0.5) == "#808080" and paler("#123456", 0) == "#123456"


def test_no_pyplot_state(digits) -> None:
    import sys

    over_shots(digits, METRICS[:1])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
