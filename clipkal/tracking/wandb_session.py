"""Opens a W&B run: quick, silent, never asking for a key, offline where online is impossible."""

import logging
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

MODES = ("disabled", "offline", "online")  # from quiet to loud
FINISH_FACTOR = 4.0  # an upload at the end may take this many timeouts
LONGEST_NAME, LONGEST_TAG = 128, 64  # W&B refuses a run with longer ones


class TrackingSettings(Protocol):
    """The keys of conf/tracking/ that are read here."""

    mode: str
    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    timeout: float


@dataclass
class RunIdentity:
    """What a W&B run is filed under."""

    run_id: str
    directory: Path
    run: Mapping[str, Any] = field(default_factory=dict)  # dataset, backbone, method, shots, seed
    config: Mapping[str, Any] = field(default_factory=dict)  # the resolved configuration

    @property
    def name(self) -> str:
        """`<dataset>-<backbone>-<method>-<shots>shot-seed<seed>`."""
        return "-".join(part for part in (self.group, self._seed) if part) or self.run_id

    @property
    def group(self) -> str:
        """The same without the seed, so that seeds fold into one line."""
        words = [str(self.run[key]) for key in ("dataset", "backbone", "method") if key in self.run]
        return "-".join([*words, *([self._shots] if self._shots else [])])

    @property
    def tags(self) -> list[str]:
        """Dataset, backbone, method, `16shot`, `seed1`."""
        words = [str(self.run[key]) for key in ("dataset", "backbone", "method") if key in self.run]
        return [*words, *(word for word in (self._shots, self._seed) if word)]

    @property
    def _shots(self) -> str:
        return f"{self.run['shots']}shot" if "shots" in self.run else ""

    @property
    def _seed(self) -> str:
        return f"seed{self.run['seed']}" if "seed" in self.run else ""


def wanted_mode(mode: str) -> str:
    """The configured mode, or the one in $WANDB_MODE where that is quieter."""
    asked = {"dryrun": "offline", "run": "online"}.get(
        os.environ.get("WANDB_MODE", ""), os.environ.get("WANDB_MODE")
    )
    return min(mode, asked, key=MODES.index) if asked in MODES else mode


def open_run(cfg: TrackingSettings, mode: str, identity: RunIdentity) -> tuple[Any, str, str]:
    """An open W&B run, the mode it is in, and why that is not the wanted one ("" if it is).

    Raises whatever W&B raises when not even an offline run can be opened.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else W&B calls home at exit, even offline
    _writable_homes(identity.directory)
    import wandb

    reason = ""
    if mode == "online":
        reason = _obstacle(wandb, cfg.timeout)
        if not reason:
            try:
                return _init(wandb, cfg, "online", identity), "online", ""
            except Exception as error:
                reason = f"W&B could not be reached ({brief(error)})"
                wandb.teardown()  # its service would refuse to open the same run once more
    return _init(wandb, cfg, "offline", identity), "offline", reason


def _writable_homes(directory: Path) -> None:
    """Where the home folder cannot take W&B's logs and staged files, the run directory does."""
    for variable, usual in (
        ("WANDB_CACHE_DIR", "~/.cache/wandb"),
        ("WANDB_DATA_DIR", "~/.local/share/wandb"),
    ):
        if not _writable(os.environ.get(variable) or usual):
            os.environ[variable] = str((directory / "wandb" / "home").absolute())


def _writable(folder: str) -> bool:
    if folder.startswith("~") and not os.environ.get("HOME" if os.name != "nt" else "USERPROFILE"):
        return False
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return False
    return os.access(path, os.W_OK)


def _obstacle(wandb: Any, timeout: float) -> str:
    """What stands in the way of an online run, found out without a prompt and without W&B's long retries."""
    settings = wandb.setup(wandb.Settings(mode="online", silent=True)).settings
    server = str(settings.base_url)
    if not (getattr(settings, "api_key", None) or logged_in(server)):
        return "no W&B login found (log in once with: wandb login)"
    try:
        urllib.request.urlopen(server, timeout=timeout).close()
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        return f"{server} does not answer ({brief(error)})"
    return ""


def logged_in(server: str) -> bool:
    """Whether a key for the server is at hand where W&B would look, without asking anybody."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(server).hostname or ""
    return any(_has_login(path, host) for path in _netrc_files())


def _netrc_files() -> list[Path]:
    if os.environ.get("NETRC"):
        return [Path(os.environ["NETRC"]).expanduser()]
    return [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]


def _has_login(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False


def _init(wandb: Any, cfg: TrackingSettings, mode: str, identity: RunIdentity) -> Any:
    wandb.setup(wandb.Settings(mode=mode, silent=True))
    with _without_launch(wandb):
        run = wandb.init(
            mode=mode,
            project=cfg.project,
            entity=cfg.entity,
            group=(cfg.group or identity.group)[:LONGEST_NAME] or None,
            name=identity.name[-LONGEST_NAME:],
            job_type="train",
            tags=list(dict.fromkeys(tag[:LONGEST_TAG] for tag in [*identity.tags, *cfg.tags] if tag)),
            config=dict(identity.config),
            id=identity.run_id,
            resume="allow",
            dir=str(identity.directory),
            settings=wandb.Settings(**_settings(wandb, cfg.timeout)),
        )
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


def _settings(wandb: Any, timeout: float) -> dict[str, Any]:
    """Nothing on the terminal, nothing measured meanwhile; names that this version lacks are left out."""
    wanted = {
        "silent": True,
        "quiet": True,
        "console": "off",
        "disable_git": True,  # the commit is in results.json
        "disable_code": True,
        "save_code": False,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "reinit": "create_new",  # the next job of a sweep never continues this run
        "init_timeout": timeout,
        "login_timeout": 1.0,
        "finish_timeout": FINISH_FACTOR * timeout,
        "finish_timeout_raises": True,
    }
    known = getattr(wandb.Settings, "model_fields", wanted)
    return {name: value for name, value in wanted.items() if name in known}


@contextmanager
def _without_launch(wandb: Any) -> Iterator[None]:
    """Opens without W&B Launch, whose import costs a second of CPU for job inputs that clipkal never has."""
    kind = getattr(wandb, "Run", None) or getattr(wandb.sdk.wandb_run, "Run", None)
    name = "_detect_and_apply_job_inputs"
    original = getattr(kind, name, None)
    if original is None:
        yield
        return
    setattr(kind, name, lambda self: None)
    try:
        yield
    finally:
        setattr(kind, name, original)


def brief(error: BaseException) -> str:
    """An error as a part of one line."""
    text = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}…"
