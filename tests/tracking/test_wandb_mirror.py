"""The W&B mirror: a real offline run, and every fault that must not cost a run."""

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipkal.tracking import Mirror, wandb_session
from clipkal.tracking import mirror as mirror_module

RUN = {"dataset": "digits", "backbone": "mini", "method": "kalman", "shots": 16, "seed": 0}
ID = "0123456789abcdef"


@dataclass
class Settings:
    mode: str = "offline"
    backend: str = "wandb"
    job_type: str | None = None
    notes: str | None = None
    project: str = "clipkal"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    timeout: float = 5.0


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no server and no mode from whoever runs the tests; and no prompt may ever be answered."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for input"))


class FakeRun:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.calls: list[tuple[str, Any]] = []
        self.summary = SimpleNamespace(update=lambda values: self.calls.append(("summary", values)))
        self.url = "https://server/run"

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, kwargs or args[0]))

    def of(self, name: str) -> list[Any]:
        return [value for kind, value in self.calls if kind == name]


class FakeWandb(SimpleNamespace):
    """As much of the wandb module as a mirror touches."""

    def __init__(self) -> None:
        super().__init__(runs=[], torn_down=0, sdk=SimpleNamespace(wandb_run=SimpleNamespace()))
        settings = SimpleNamespace(base_url="http://127.0.0.1:9", api_key=None)
        self.setup = lambda _=None: SimpleNamespace(settings=settings)
        self.Settings = lambda **values: values
        self.Table = lambda columns, data: ("table", columns, data)
        self.Image = lambda path: ("image", path)

    def init(self, **arguments: Any) -> FakeRun:
        self.runs.append(FakeRun(**arguments))
        return self.runs[-1]

    def teardown(self) -> None:
        self.torn_down += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def mirror(tmp_path: Path, **settings: Any) -> Mirror:
    return Mirror(Settings(**settings), ID, tmp_path, run=RUN, config={"seed": 0})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# -- what is sent --------------------------------------------------------------------------------------------


def test_a_run_is_filed_so_that_seeds_fold(tmp_path: Path, fake: FakeWandb) -> None:
    with mirror(tmp_path, tags=["mine", "digits"]) as m:
        assert m.mode == "offline"
    (run,) = fake.runs
    sent = run.arguments
    assert sent["id"] == ID and sent["resume"] == "allow" and sent["job_type"] == "train"
    assert sent["group"] == "digits-mini-kalman-16shot" and sent["name"] == "digits-mini-kalman-16shot-seed0"
    assert sent["tags"] == ["digits", "mini", "kalman", "16shot", "seed0", "mine"]
    assert sent["config"] == {"seed": 0} and sent["dir"] == str(tmp_path) and sent["project"] == "clipkal"
    assert sent["settings"]["console"] == "off" and sent["settings"]["reinit"] == "create_new"
    long = RUN | {"backbone": "b" * 300}
    with Mirror(Settings(tags=["", "t" * 99]), ID, tmp_path, run=long):
        sent = fake.runs.pop().arguments
    assert len(sent["group"]) == len(sent["name"]) == 128 and sent["name"].endswith("16shot-seed0")
    assert max(map(len, sent["tags"])) == 64 and "" not in sent["tags"]
    with mirror(tmp_path, group="sweep"):
        assert fake.runs[1].arguments["group"] == "sweep"
    chosen = Settings(job_type="mine", notes="why", entity="team")
    for settings, kind in ((chosen, "mine"), (Settings(), "evaluate")):
        with Mirror(settings, ID, tmp_path, job_type="evaluate"):
            sent = fake.runs.pop().arguments
        assert (sent["job_type"], sent["notes"], sent["entity"]) == (kind, settings.notes, settings.entity)


def test_records_arrive_in_order_and_the_run_is_finished(tmp_path: Path, fake: FakeWandb) -> None:
    with mirror(tmp_path) as m:
        values = {"train/loss": 0.0}
        for step in range(50):
            values["train/loss"] = step / 2
            m.log(values, step=step)
        m.summary({"id": {"plugin": {"accuracy": 0.5}}, "seconds": 1})
        m.table("sets", ["set", "nll"], [("id", 0.1)])
        m.image(tmp_path / "reliability.png")
    (run,) = fake.runs
    logged = run.of("log")
    assert logged[:50] == [{"train/loss": step / 2, "step": step} for step in range(50)]
    assert run.of("summary") == [{"id/plugin/accuracy": 0.5, "seconds": 1}]
    assert logged[50:] == [
        {"sets": ("table", ["set", "nll"], [["id", 0.1]])},
        {"figures/reliability": ("image", str(tmp_path / "reliability.png"))},
    ]
    assert run.calls[-1] == ("finish", {"exit_code": 0})
    assert {"step_metric": "epoch", "summary": "none"} in run.of("define_metric")


def test_an_exception_is_passed_on_and_ends_the_run_with_1(tmp_path: Path, fake: FakeWandb) -> None:
    with pytest.raises(ZeroDivisionError), mirror(tmp_path) as m:
        m.log({"a": 1}, step=0)
        raise ZeroDivisionError
    assert fake.runs[0].calls[-1] == ("finish", {"exit_code": 1})
    assert fake.runs[0].of("log")


def test_disabled_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with mirror(tmp_path, mode="disabled") as m:
        m.log({"a": 1}, step=0)
        m.table("t", ["a"], [[1]])
        m.summary({})
    assert m.mode == "disabled" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "asked, environment, mode",
    [
        ("online", "offline", "offline"),
        ("offline", "disabled", "disabled"),
        ("offline", "online", "offline"),
        ("online", "dryrun", "offline"),
        ("offline", "nonsense", "offline"),
        ("online", None, "online"),
    ],
)
def test_the_environment_can_only_make_it_quieter(
    monkeypatch: pytest.MonkeyPatch, asked: str, environment: str | None, mode: str
) -> None:
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert wandb_session.wanted_mode(asked) == mode


# -- faults --------------------------------------------------------------------------------------------------


def test_wandb_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with mirror(tmp_path) as m:
        m.log({"a": 1}, step=0)
    assert m.mode == "disabled"
    (line,) = warnings(caplog)
    assert "could not start" in line and "\n" not in line


@pytest.mark.parametrize("error", [RuntimeError("broken\npipe"), OSError(28, "No space left"), SystemExit(1)])
def test_init_fails(
    tmp_path: Path, fake: FakeWandb, caplog: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr(fake, "init", init)
    with mirror(tmp_path) as m:
        m.log({"a": 1}, step=0)
    assert m.mode == "disabled"
    (line,) = warnings(caplog)
    assert "W&B could not start" in line and "\n" not in line


def test_init_hangs(tmp_path: Path, fake: FakeWandb, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    late = FakeRun()

    def init(**_: Any) -> FakeRun:
        release.wait(20)
        return late

    monkeypatch.setattr(fake, "init", init)
    monkeypatch.setattr(mirror_module, "GRACE", 0.1)
    started = time.monotonic()
    with mirror(tmp_path, timeout=0.1) as m:
        assert m.mode == "disabled"
        m.log({"a": 1}, step=0)
    assert time.monotonic() - started < 5
    release.set()
    m._thread.join(5)
    assert m.mode == "disabled" and not late.of("log")
    (line,) = warnings(caplog)
    assert "did not start in time" in line and fake.torn_down == 1


def test_every_record_fails_with_one_warning(tmp_path: Path, fake: FakeWandb, caplog: Any) -> None:
    with mirror(tmp_path) as m:
        run = fake.runs[0]

        def refuse(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        run.log = run.log_artifact = run.finish = run.summary.update = refuse
        m.log({"a": 1}, step=0)
        m.log({"a": 1}, step=1)
        m.summary({"a": 1})
        m.artifact("model", [tmp_path / "missing"])
    (line,) = warnings(caplog)
    assert "No space left on device" in line and "the run goes on" in line


def test_finish_hangs(tmp_path: Path, fake: FakeWandb, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(mirror_module, "GRACE", 0.1)
    started = time.monotonic()
    with mirror(tmp_path, timeout=0.05) as m:
        fake.runs[0].finish = lambda **_: release.wait(20)
    assert time.monotonic() - started < 5
    release.set()
    (line,) = warnings(caplog)
    assert "did not finish in time" in line and "wandb sync" in line and m.mode == "disabled"


def test_a_log_that_hangs_neither_blocks_nor_fills_memory(
    tmp_path: Path, fake: FakeWandb, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(mirror_module, "GRACE", 0.1)
    monkeypatch.setattr(mirror_module, "MOST_WAITING", 100)
    with mirror(tmp_path, timeout=0.05) as m:
        fake.runs[0].log = lambda *_: release.wait(20)
        for step in range(1000):
            m.log({"a": 1}, step=step)
        assert m._jobs.qsize() <= 101
    release.set()
    (line,) = warnings(caplog)
    assert "does not answer" in line


def test_online_without_a_login_goes_offline_and_says_how(
    tmp_path: Path, fake: FakeWandb, caplog: Any
) -> None:
    with mirror(tmp_path, mode="online") as m:
        assert m.mode == "offline" and m.url is None
    assert [run.arguments["mode"] for run in fake.runs] == ["offline"]
    (line,) = warnings(caplog)
    assert "wandb login" in line and f"wandb sync {tmp_path / 'wandb'}/offline-run-*" in line


def test_online_without_a_server_goes_offline(
    tmp_path: Path, fake: FakeWandb, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    with mirror(tmp_path, mode="online") as m:
        assert m.mode == "offline"
    (line,) = warnings(caplog)
    assert "http://127.0.0.1:9 does not answer" in line and "k" * 40 not in line


def test_online_refused_goes_offline(
    tmp_path: Path, fake: FakeWandb, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**arguments: Any) -> FakeRun:
        if arguments["mode"] == "online":
            raise RuntimeError("returned error 401")
        return FakeRun(**arguments)

    monkeypatch.setattr(wandb_session, "_obstacle", lambda *_: "")
    monkeypatch.setattr(fake, "init", init)
    with mirror(tmp_path, mode="online") as m:
        assert m.mode == "offline"
    (line,) = warnings(caplog)
    assert "returned error 401" in line and "going on offline" in line and fake.torn_down == 1


def test_online_works(tmp_path: Path, fake: FakeWandb, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_session, "_obstacle", lambda *_: "")
    with mirror(tmp_path, mode="online") as m:
        assert (m.mode, m.url) == ("online", "https://server/run")
    assert not warnings(caplog)


def test_unknown_mode_is_one_warning(tmp_path: Path, caplog: Any) -> None:
    with mirror(tmp_path, mode="on") as m:
        m.log({"a": 1}, step=0)
    (line,) = warnings(caplog)
    assert "tracking.mode=on" in line and "offline" in line


def test_login_is_found_where_wandb_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wandb_session.logged_in("https://api.server")
    (tmp_path / "netrc").write_text("machine api.server\n  login user\n  password " + "k" * 40 + "\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_session.logged_in("https://api.server")
    assert not wandb_session.logged_in("https://other.server")
    (tmp_path / "netrc").write_text("broken broken")
    assert not wandb_session.logged_in("https://api.server")
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_session.logged_in("https://other.server")


@pytest.mark.parametrize("home", ["file/below", None])
def test_without_a_home_wandb_lives_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeWandb, home: str | None
) -> None:
    (tmp_path / "file").write_text("")
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / home) if home and "WANDB" not in name else "")
    with mirror(tmp_path):
        assert (
            os.environ["WANDB_CACHE_DIR"] == os.environ["WANDB_DATA_DIR"] == str(tmp_path / "wandb" / "home")
        )


# -- the real thing ------------------------------------------------------------------------------------------


def written(record: Path, last: bytes) -> bytes:
    """W&B's own process closes its file some milliseconds after a run has finished."""
    for _ in range(100):
        if last in (data := record.read_bytes()):
            return data
        time.sleep(0.1)
    return record.read_bytes()


def test_two_real_offline_runs_in_one_process(
    tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Jobs of one sweep: each has its own files and its own numbers, nothing is printed, nobody is called."""
    from PIL import Image

    monkeypatch.setenv("WANDB_API_KEY", "")
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        (folder / "results.json").write_text("{}")
        Image.new("RGB", (4, 4)).save(folder / "figure.png")
        with Mirror(Settings(), f"id{seed}", folder, run=RUN | {"seed": seed}, config={"s": seed}) as m:
            assert m.mode == "offline"
            for step in range(20):
                m.log({f"train/loss-of-{seed}": step}, step=step)
            m.table("sets", ["set", "nll"], [["id", 0.1]])
            m.image(folder / "figure.png")
            m.artifact("model", [folder / "results.json"])
            m.summary({f"id/final-of-{seed}": 0.5})
    assert not warnings(caplog)
    assert capfd.readouterr() == ("", "")
    for seed in (0, 1):
        (record,) = (tmp_path / f"seed{seed}").glob(f"wandb/offline-run-*/run-id{seed}.wandb")
        data = written(record, f"id/final-of-{seed}".encode())
        for text in (f"train/loss-of-{seed}", f"seed{seed}", "results.json"):
            assert text.encode() in data
        assert f"of-{1 - seed}".encode() not in data
        assert list(record.parent.rglob("*.table.json")) and list(record.parent.rglob("figure*.png"))


def test_real_wandb_with_a_failing_init(tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(**_: Any) -> None:
        raise wandb.errors.CommError("no service")

    monkeypatch.setattr(wandb, "init", init)
    with mirror(tmp_path) as m:
        m.log({"a": 1}, step=0)
    (line,) = warnings(caplog)
    assert "no service" in line and m.mode == "disabled"


def test_real_settings_know_every_name() -> None:
    """A name that W&B drops would be left out silently: this says so when the pinned version changes."""
    import wandb

    assert wandb_session._settings(wandb, 5.0) == wandb_session._settings(SimpleNamespace(Settings=None), 5.0)
