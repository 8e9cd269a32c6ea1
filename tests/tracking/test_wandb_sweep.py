"""A W&B sweep: the YAML of the documentation, run by W&B's own agent code."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tracking.wandb_record import read

PAGE = Path(__file__).parents[2] / "docs" / "tracking.md"
QUICK = {"predictive.samples": 4, "optimizer.epochs": 1, "data.progress": "false", "tracking": "offline"}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path) -> Iterator[None]:
    """The agent changes the environment of its own process; here it is put back."""
    before = dict(os.environ)
    os.environ.pop("WANDB_MODE", None)
    os.environ |= {
        "WANDB_SWEEP_ID": "s1",
        "WANDB_DIR": str(tmp_path),
        "WANDB_API_KEY": "",
        "OMP_NUM_THREADS": "1",
    }
    os.environ |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(sys.path),
    }
    yield
    os.environ.clear()
    os.environ.update(before)


def agent_runs(program: str, command: list[str], run_id: str, values: dict[str, Any]) -> int:
    """One run as the agent starts it; its exit code."""
    from wandb.wandb_agent import Agent

    agent = Agent(api=None, queue=None)
    agent._sweep_command = command
    agent._command_run(
        {"run_id": run_id, "program": program, "args": {k: {"value": v} for k, v in values.items()}}
    )
    return int(agent._run_processes[run_id].wait())


def test_the_agent_drives_the_command(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(program.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    sweep = yaml.safe_load(text)
    values = {name: one["value"] for name, one in sweep["parameters"].items() if "value" in one}
    assert set(sweep["parameters"]) - set(values) == {"optimizer.lr"} and sweep["metric"]["name"] == "val/nll"
    values |= {"optimizer.lr": 0.01, "output_dir": str(tmp_path / "out"), "dataset.ood": "[inverted]"} | QUICK
    assert agent_runs(sweep["program"], sweep["command"], "first", values) == 0
    (finished,) = (tmp_path / "out").rglob("finished.json")
    (record,) = map(read, finished.parent.glob("wandb/offline-run-*"))
    nll = json.loads(finished.read_text())["summary"]["val_nll"]
    assert record.run.run_id == "first" and record.run.sweep_id == "s1" and record.summary["val/nll"] == nll
    assert record.config["optimizer"]["lr"] == 0.01

    (program,) = re.findall(r"`program: (\S+)`", PAGE.read_text(encoding="utf-8"))
    (other,) = re.findall(r"`command: (\[.*interpreter.*\])`", PAGE.read_text(encoding="utf-8"))
    assert (
        agent_runs(program, json.loads(other), "again", values) == 0
    )  # it has run: the agent is told all the same
    again = [read(path) for path in finished.parent.glob("wandb/offline-run-*-again")]
    assert [one.summary["val/nll"] for one in again] == [nll]
