"""The saved view, built by the real wandb-workspaces and taken by a server on this machine."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tracking.wandb_server import KEY, serving

from clipkal.errors import ConfigError
from clipkal.recording import charts
from clipkal.tracking import dashboard, wandb_session


@pytest.fixture(autouse=True)
def login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb_session.teardown()
    yield
    wandb_session.teardown()
    os.environ.pop("WANDB_DATA_DIR", None)


def test_the_view_is_saved_and_shows_what_runs_log(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra: pip install 'clipkal[dashboard]'")
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        dashboard.main(["--entity", "me", "--project", "digits"])
    (saved,) = server.views
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("me", "digits", "clipkal")
    assert saved["type"] == "project-view" and "/me/digits" in capsys.readouterr().out
    spec = json.loads(saved["spec"])
    sections = {one["name"]: one["panels"] for one in spec["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Headline", "Learning", "Posterior", "Calibration", "Tables"]
    lines = [one["config"] for one in sections["Learning"] + sections["Posterior"]]
    assert {one["xAxis"] for one in lines} == {"images_seen", "epoch"}
    assert {one for names in dashboard.SUMMARY.values() for one in names} <= {
        *charts.HEADLINE,
        "train/seconds",
    }
    text = json.dumps(sections)
    assert all(name in text for name in (*dashboard.CHARTS, *dashboard.TABLES, *dashboard.FIGURES))


def test_a_report_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.html").write_text("<p>")
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        dashboard.send_report(tmp_path, "me", "clipkal")
    assert [one["artifactTypeName"] for one in server.artifacts] == ["report"]
    assert [one["jobType"] for one in server.runs.values()] == ["report"]
    with pytest.raises(ConfigError, match="clipkal-report"):
        dashboard.send_report(tmp_path / "nothing", "me", "clipkal")


@pytest.mark.parametrize("what", ["extra", "login", "server"])
def test_what_is_missing_is_one_line(what: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if what == "extra":
        monkeypatch.setattr(dashboard, "find_spec", lambda _: None)
    elif what == "login":
        monkeypatch.delenv("WANDB_API_KEY")
    else:
        pytest.importorskip("wandb_workspaces", reason="needs the extra: pip install 'clipkal[dashboard]'")
        monkeypatch.setattr(dashboard, "view", lambda *_: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(SystemExit) as stop:
        dashboard.main(["--entity", "me"])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    assert {"extra": "clipkal[dashboard]", "login": "wandb login", "server": "no network"}[what] in line
