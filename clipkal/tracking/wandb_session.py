"""Opens a W&B run: quick, silent, never asking for a key, offline where online is impossible."""

import logging
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipkal.tracking.tracker import RunIdentity, TrackingSettings
from clipkal.tracking.wandb_offline import record_id

log = logging.getLogger(__name__)

MODES = ("disabled", "offline", "online")  # from quiet to loud
FINISH_FACTOR = 4.0  # an upload at the end may take this many timeouts
LONGEST_NAME, LONGEST_TAG = 128, 64  # W&B refuses a run with longer ones


def wanted_mode(mode: str) -> str:
    """The configured mode, or the one in $WANDB_MODE where that is quieter."""
    asked = {"dryrun": "offline", "run": "online"}.get(
        os.environ.get("WANDB_MODE", ""), os.environ.get("WANDB_MODE")
    )
    return min(mode, asked, key=MODES.index) if asked in MODES else mode


def open_run(
    cfg: TrackingSettings, mode: str, identity: RunIdentity, earlier: Sequence[Path] = ()
) -> tuple[Any, str, str]:
    """An open W&B run, the mode it is in, and why that is not the wanted one ("" if it is).

    earlier: W&B's records of the same run.

    Raises whatever W&B raises when not even an offline run can be opened.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else W&B calls home at exit, even offline
    _homes(identity.directory)
    import wandb

    reason = ""
    if mode == "online":
        reason = _obstacle(wandb, cfg.timeout)
        if not reason:
            try:
                return _init(wandb, cfg, "online", identity, earlier), "online", ""
            except Exception as error:
                reason = f"W&B could not be reached ({brief(error)})"
                wandb.teardown()  # its service would refuse to open the same run once more
    return _init(wandb, cfg, "offline", identity, earlier), "offline", reason


def _homes(directory: Path) -> None:
    """Files that W&B stages for artifacts lie with the run, and so does its cache where the home folder cannot take it.

    W&B's own place for them is below the home folder, where those of an offline run stay for good, and where they would
    not be deleted or copied together with the run that needs them.
    """
    here = str((directory / "wandb" / "home").absolute())
    if os.environ.get("WANDB_DATA_DIR") in (None, "", *_homes_given):
        os.environ["WANDB_DATA_DIR"] = here
    for variable, usual in (("WANDB_CACHE_DIR", "~/.cache/wandb"), ("WANDB_DATA_DIR", here)):
        if not _writable(os.environ.get(variable) or usual):
            os.environ[variable] = here
    _homes_given.add(here)


_homes_given: set[str] = set()
"""What `_homes` has chosen for the runs of this process, as opposed to what the user has set."""


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
    server, known = server_and_login(wandb)
    if not known:
        return "no W&B login found (log in once with: wandb login)"
    try:
        urllib.request.urlopen(server, timeout=timeout).close()
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError) as error:
        return f"{server} does not answer ({brief(error)})"
    return ""


def server_and_login(wandb: Any) -> tuple[str, bool]:
    """The server that W&B would talk to, and whether a key for it is at hand."""
    settings = wandb.setup(wandb.Settings(mode="online", silent=True)).settings
    server = str(settings.base_url)
    return server, bool(getattr(settings, "api_key", None)) or logged_in(server)


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


def _init(
    wandb: Any, cfg: TrackingSettings, mode: str, identity: RunIdentity, earlier: Sequence[Path]
) -> Any:
    wandb.setup(wandb.Settings(mode=mode, silent=True))
    with _without_launch(wandb):
        return wandb.init(
            mode=mode,
            **_filing(cfg, record_id(identity.run_id, mode, earlier)),
            group=(cfg.group or identity.group)[:LONGEST_NAME] or None,
            name=identity.name[-LONGEST_NAME:],
            job_type=cfg.job_type or identity.job_type,
            tags=list(dict.fromkeys(tag[:LONGEST_TAG] for tag in [*identity.tags, *cfg.tags] if tag)),
            notes=cfg.notes,
            config=dict(identity.config),
            dir=str(identity.directory),
            settings=wandb.Settings(**_settings(wandb, cfg.timeout)),
        )


def in_sweep() -> bool:
    """Whether a W&B agent started this process: then W&B has already named the run, its project and its entity."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def _filing(cfg: TrackingSettings, run_id: str) -> dict[str, Any]:
    if in_sweep():
        return {}
    return {"project": cfg.project, "entity": cfg.entity, "id": run_id, "resume": "allow"}


def _settings(wandb: Any, timeout: float) -> dict[str, Any]:
    """Nothing on the terminal, nothing measured meanwhile; names that this version lacks are left out."""
    wanted = {
        "silent": True,
        "quiet": True,
        "console": "off",
        "disable_git": True,  # the commit is in results.json and in the configuration
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


def teardown() -> None:
    """Ends W&B's service, so that the next run of this process gets a new one; in silence, whatever happens."""
    try:
        import wandb

        wandb.teardown()
    except BaseException as error:
        log.debug("W&B teardown: %s", error)


def brief(error: BaseException) -> str:
    """An error as a part of one line."""
    text = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}…"
