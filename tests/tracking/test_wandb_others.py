"""TensorBoard and trackio through the same interface as W&B, read back value by value."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from clipkal.config import compose
from clipkal.errors import ConfigError
from clipkal.tracking import Mirror, tracker
from clipkal.tracking.tracker import Lines, as_markdown

RUN = {"dataset": "digits", "backbone": "mini", "method": "kalman", "shots": 4, "seed": 1}


def mirrored(folder: Path, backend: str) -> Mirror:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(folder / "figure.png")
    settings = compose([f"tracking={backend}"]).tracking
    with Mirror(settings, "abc", folder, run=RUN, config={"a": {"b": 1}}, axis="images_seen") as m:
        m.config({"git": "c0ffee"})
        for step in range(5):
            m.log({"train/loss": step / 2}, epoch=step / 5, images_seen=8 * step, step=step)
        m.table("tables/sets", ["set", "nll"], [["a|b", 0.25]])
        m.table("tables/images", ["image", "id"], [[Image.new("RGB", (4, 4), "blue"), "x"]])
        m.lines("charts/risk", Lines("t", "coverage", "risk", {"id": ([0.5, 1.0], [0.0, 0.125])}))
        m.image(folder / "figure.png")
        m.artifact("shots", [folder / "figure.png"])
        m.summary({"id": {"accuracy": 0.75}, "val/nll": None})
    return m


def warned(caplog: Any) -> list[str]:
    return [
        r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and r.name[:7] == "clipkal"
    ]


def test_tensorboard(tmp_path: Path, caplog: Any, capsys: Any) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra: pip install 'clipkal[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    m = mirrored(tmp_path, "tensorboard")
    assert (
        warned(caplog) == []
        and m.later_line == f"TensorBoard: look with: tensorboard --logdir {tmp_path}/tensorboard"
    )
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(8 * s, s / 2) for s in range(5)]
    assert [(e.step, e.value) for e in events.Scalars("charts/risk/id")] == [(500, 0.0), (1000, 0.125)]
    assert set(events.Tags()["images"]) == {"figures/figure", "tables/images/image"}
    text = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]
    }
    assert (
        "| a¦b | 0.25 |" in text["tables/sets/text_summary"]
        and "| id/accuracy | 0.75 |" in text["summary/text_summary"]
    )
    assert '"b": 1' in text["config/text_summary"] and "c0ffee" in text["about/text_summary"]
    assert capsys.readouterr() == ("", "")


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capfd: Any) -> None:
    monkeypatch.setenv(
        "TRACKIO_DIR", str(tmp_path / "db")
    )  # read when it is imported, which only this test does
    trackio = pytest.importorskip("trackio", reason="needs the extra: pip install 'clipkal[trackio]'")
    m = mirrored(tmp_path / "run", "trackio")
    assert warned(caplog) == [] and m.later_line == "trackio: look with: trackio show --project clipkal"
    logs = trackio.sqlite_storage.SQLiteStorage.get_logs("clipkal", "digits-mini-kalman-4shot-seed1-abc")
    curve = [(row["step"], row["train/loss"], row["images_seen"]) for row in logs if "train/loss" in row]
    assert curve == [(8 * s, s / 2, 8 * s) for s in range(5)]
    found = {key: value for row in logs for key, value in row.items()}
    assert (
        found["summary/id/accuracy"] == 0.75
        and {"tables/sets", "charts/risk", "figures/figure"} <= found.keys()
    )
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("backend", sorted(tracker.EXTRAS))
def test_a_missing_extra_is_said_at_once(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"pip install 'clipkal\[{backend}\]'"):
        mirrored(tmp_path, backend)
    assert not (tmp_path / backend).exists()


def test_tables_as_text() -> None:
    assert (
        as_markdown(["a", "b"], [[1, None], [0.123456, "x"]])
        == "| a | b |\n| --- | --- |\n| 1 |  |\n| 0.1235 | x |"
    )
    assert json.dumps(tracker.flat({"a": {"b": 1}, "c": 2})) == '{"a/b": 1, "c": 2}'
