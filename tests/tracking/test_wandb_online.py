"""W&B online against a server on this machine that fails in every way: the run goes on, whole, with one warning."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tracking.wandb_server import KEY, Server, serving

from clipkal.app import run
from clipkal.config import compose
from clipkal.tracking import Mirror, mirror, wandb_session
from clipkal.tracking.tracker import Lines

ROWS = 30
ONLINE = [
    "tracking=online",
    "dataset=digits",
    "dataset.ood=[inverted]",
    "fewshot.shots=2",
    "predictive.samples=8",
]
ONLINE += ["data.progress=false", "method=kalman_online", "tracking.media=false", "tracking.timeout=4"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A key, no patience, and a W&B service of the test's own."""
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for module in (mirror, wandb_session):
        monkeypatch.setattr(module, "FINISH_FACTOR", 1.0)
    monkeypatch.setattr(mirror, "GRACE", 2.0)
    wandb_session.teardown()
    yield
    wandb_session.teardown()
    os.environ.pop("WANDB_DATA_DIR", None)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [
        r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name[:7] == "clipkal"
    ]


def mirrored(folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """What a run does to a mirror; the calls themselves never wait."""
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    folder.mkdir(exist_ok=True)
    (folder / "shots.json").write_text("{}")
    settings = compose(ONLINE).tracking
    with Mirror(settings, "abc", folder, run={"dataset": "d", "seed": 1}, config={"a": {"b": 1}}) as m:
        started = time.monotonic()
        for step in range(ROWS):
            m.log({"train/loss": step / 2}, epoch=step, images_seen=10 * step, step=step)
        m.table("tables/sets", ["set", "nll"], [["id", 0.5]])
        m.lines("charts/reliability", Lines("t", "x", "y", {"id": ([0.0, 1.0], [0.1, 0.9])}))
        m.artifact("shots", [folder / "shots.json", folder / "absent"])
        m.summary({"id/accuracy": 0.5})
        assert time.monotonic() - started < 1
    return m


def test_everything_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    with serving() as server:
        m = mirrored(tmp_path, server, monkeypatch)
    assert (m.mode, told()) == ("online", []) and m.url and m.url.endswith("/me/clipkal/runs/abc")
    curve = [row for row in server.history("abc") if "train/loss" in row]
    wanted = [{"train/loss": s / 2, "epoch": s, "images_seen": 10 * s, "step": s} for s in range(ROWS)]
    assert curve == wanted
    assert server.summaries["abc"]["id/accuracy"] == 0.5 and "train/loss" not in server.summaries["abc"]
    filed = server.runs["abc"]
    assert filed["project"] == "clipkal" and filed["jobType"] == "train" and filed["groupName"] == "d"
    assert json.loads(filed["config"])["a"]["value"] == {"b": 1}
    assert {one["artifactTypeName"] for one in server.artifacts} == {"run_table", "shots"}


def only(
    path_end: str, status: float, after: int = 0, until: int = 10**9
) -> Callable[[int, str], float | None]:
    return lambda number, path: status if path.endswith(path_end) and after < number <= until else None


@pytest.mark.parametrize("status", [429, 503])
def test_a_short_fault_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any, status: int
) -> None:
    seen: list[int] = []

    def once(number: int, path: str) -> float | None:
        refused = path.endswith("file_stream") and not seen
        seen.extend([number] * refused)
        return status if refused else None

    monkeypatch.setattr(wandb_session, "FINISH_FACTOR", 10.0)
    monkeypatch.setattr(mirror, "FINISH_FACTOR", 10.0)
    with serving(once) as server:
        m = mirrored(tmp_path, server, monkeypatch)
    assert seen and (m.mode, told()) == ("online", [])
    assert len([row for row in server.history("abc") if "train/loss" in row]) == ROWS


@pytest.mark.parametrize(
    "fault, mode, words",
    [
        pytest.param(only("file_stream", 500), "online", "did not finish", id="500s"),
        pytest.param(only("file_stream", 429), "online", "did not finish", id="429s", marks=pytest.mark.slow),
        pytest.param(only("", 60, after=2), "online", "W&B", id="silence", marks=pytest.mark.slow),
        pytest.param(only("", 0, after=2), "online", "W&B", id="cut"),
        pytest.param(only("", 401), "offline", "going on offline", id="wrong key"),
        pytest.param(only("", 60), "offline", "going on offline", id="silence from the start"),
    ],
)
def test_a_long_fault_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any, fault: Any, mode: str, words: str
) -> None:
    with serving(fault) as server:
        started = time.monotonic()
        m = mirrored(tmp_path, server, monkeypatch)
        assert time.monotonic() - started < 60
    (line,) = told()
    assert words in line and "wandb sync" in line and "\n" not in line and KEY not in line
    assert m.mode in ({"offline"} if "going on offline" in line else {mode, "disabled"})
    records = list((tmp_path / "wandb").glob("*run-*-abc/*.wandb"))
    there = lambda: any(b"train/loss" in path.read_bytes() for path in records)  # what to send later
    while not there() and time.monotonic() - started < 90:  # W&B's own process may still write it
        time.sleep(0.2)
    assert there()


def test_a_server_that_dies_costs_a_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    with serving(only("", 0, after=3)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        run(compose([*ONLINE, f"output_dir={tmp_path / 'out'}"]))
    assert len(told()) == 1
    (finished,) = (tmp_path / "out").rglob("finished.json")
    files = json.loads(finished.read_text())["files"]
    assert {"results.json", "metrics.csv", "predictions.parquet", "adapter.safetensors"} <= files.keys()


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_the_printed_line_sends_what_was_not_sent(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    """Typed: W&B's own command sends a run that was offline, or whose server took nothing."""
    with serving(only("file_stream", 500)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with Mirror(
            compose([*ONLINE, f"tracking={mode}"]).tracking, "abc", tmp_path, run={"dataset": "d"}
        ) as m:
            for step in range(ROWS):
                m.log({"train/loss": step / 2}, epoch=step, step=step)
            m.summary({"id/accuracy": 0.5})
    assert m.mode == mode and all(m.later in line for line in told()) and not server.history("abc")
    wandb_session.teardown()
    with serving() as server:
        env = os.environ | {"WANDB_BASE_URL": server.url}
        env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            m.later, shell=True, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
    assert done.returncode == 0, done.stderr
    assert [row["train/loss"] for row in server.history("abc")] == [step / 2 for step in range(ROWS)]
    assert server.summaries["abc"]["id/accuracy"] == 0.5
