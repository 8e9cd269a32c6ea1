"""`clipkal-dashboard`: a saved view of the project's runs on W&B, and the report of `clipkal-report` beside them."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipkal import __version__, files
from clipkal.errors import ClipkalError, ConfigError
from clipkal.tracking.mirror import Mirror
from clipkal.tracking.wandb_session import brief, server_and_login

HELP = """Makes a saved view of a project on Weights & Biases: headline figures by method, learning curves over images
seen, the posterior, calibration, tables and figures. Typed again, it makes another view; no run is changed."""
EXAMPLES = """examples:
  wandb login                                                # once
  clipkal -m method=adamw,kalman seed=1,2,3 tracking=online
  clipkal-dashboard --entity my-team
  clipkal-dashboard --entity my-team --report outputs/report # and sends what clipkal-report wrote"""

SUMMARY = {
    "Accuracy": ("id/accuracy", "ood/mean_accuracy"),
    "Negative log-likelihood": ("id/nll", "ood/mean_nll"),
    "Calibration error (ECE)": ("cal/id/ece", "cal/ood_mean_ece"),
    "Seconds of training": ("train/seconds",),
}
"""Bars of the first section, a bar a method: the mean over its runs."""
CURVES = {
    "Learning": {
        "val/nll": "validation NLL",
        "val/accuracy": "validation accuracy",
        "train/loss": "training loss",
        "train/batch_loss": "loss before each step",
    },
    "Posterior": {
        "posterior/log_evidence": "log evidence an image",
        "posterior/mahalanobis": "squared innovation per degree of freedom",
        "posterior/gate_fired": "share of images that the gate refused",
        "posterior/noise": "noise level",
        "posterior/trace": "trace of P",
        "posterior/effective_parameters": "effective parameters",
    },
}
"""Curves over images seen, averaged over the runs of a method."""
CHARTS = ("charts/reliability", "charts/risk_coverage")
TABLES = ("tables/sets", "tables/classes", "tables/images")
FIGURES = ["figures/reliability", "figures/risk_coverage"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; exits with 2 after one line on bad input."""
    parser = argparse.ArgumentParser(
        prog="clipkal-dashboard",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipkal {__version__}")
    parser.add_argument("--entity", required=True, help="the team or account on W&B")
    parser.add_argument(
        "--project", default="clipkal", help="as tracking.project of the runs (default: clipkal)"
    )
    parser.add_argument("--name", default="clipkal", help="what the view is called")
    parser.add_argument("--report", type=Path, metavar="DIR", help="send this report too, as an artifact")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="clipkal-dashboard: %(message)s")
    try:
        if options.report:
            send_report(options.report, options.entity, options.project)
        print(save_view(options.entity, options.project, options.name))
    except ClipkalError as error:
        print(f"clipkal-dashboard: {error}", file=sys.stderr)
        sys.exit(2)


def save_view(entity: str, project: str, name: str) -> str:
    """Saves the view and returns its address.

    Raises ConfigError where the extra or a login is missing, or where W&B refuses.
    """
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("needs the package wandb-workspaces: pip install 'clipkal[dashboard]'")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    server, known = server_and_login(wandb)
    if not known:
        raise ConfigError(f"no W&B login for {server} found (log in once with: wandb login)")
    try:
        return str(view(entity, project, name).save().url)
    except Exception as error:
        raise ConfigError(f"W&B did not take the view of {entity}/{project} ({brief(error)})") from error


def view(entity: str, project: str, name: str) -> Any:
    """The view as an object of wandb-workspaces, not saved yet."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    bars = [
        panels.BarPlot(title=title, metrics=[panels.SummaryMetric(m) for m in metrics], **_by_method(panels))
        for title, metrics in SUMMARY.items()
    ]
    x, y = panels.SummaryMetric("id/accuracy"), panels.SummaryMetric("ood/mean_accuracy")
    sections: dict[str, list[Any]] = {
        "Headline": [*bars, panels.ScatterPlot(title="OOD against ID accuracy", x=x, y=y)]
    }
    for section, curves in CURVES.items():
        sections[section] = [
            panels.LinePlot(title=title, x="images_seen", y=[metric], **_by_method(panels))
            for metric, title in curves.items()
        ]
    regex = "^trials/.*/val_nll$"
    sections["Learning"].append(panels.LinePlot(title="Learning rates tried", x="epoch", metric_regex=regex))
    fields = {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}
    charts = [
        panels.CustomChart(
            query={"summaryTable": {"tableKey": f"{chart}_table"}},
            chart_name="wandb/lineseries/v0",
            chart_fields=fields,
        )
        for chart in CHARTS
    ]
    sections["Calibration"] = [*charts, panels.MediaBrowser(title="Figures", media_keys=FIGURES)]
    sections["Tables"] = [panels.WeavePanelSummaryTable(table_name=table) for table in TABLES]
    made = [workspaces.Section(name=title, panels=inside, is_open=True) for title, inside in sections.items()]
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=made)


def _by_method(panels: Any) -> dict[str, Any]:
    return {"groupby": panels.Config("method"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}


@dataclass
class _Online:
    """Settings of the run that carries a report."""

    entity: str | None
    project: str
    mode: str = "online"
    backend: str = "wandb"
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=lambda: ["report"])
    notes: str | None = None
    timeout: float = 30.0


def send_report(folder: Path, entity: str | None, project: str) -> None:
    """Sends every file of a report as one artifact, in a W&B run of the type report, which lies in the folder.

    Raises ConfigError where nothing is there.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "wandb" not in path.parts]
    if not paths:
        raise ConfigError(f"{folder} holds no report; write one with: clipkal-report outputs --out {folder}")
    run_id = files.digest("report", *(files.sha256(path) for path in paths))[:16]
    with Mirror(_Online(entity, project), run_id, folder, job_type="report") as mirror:
        mirror.artifact("report", paths)
        for path in paths:
            if path.suffix == ".png":
                mirror.image(path)


if __name__ == "__main__":
    main()
