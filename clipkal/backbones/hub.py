"""Downloads that fail at once, with one clear line, where there is no network.

huggingface_hub retries each file for half a minute. So before it is asked, one short connection tells whether
the hub answers; if not, it is put offline for the duration of the call, and finds what its cache holds or
says so immediately.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from clipkal.backbones.release import CONFIG_FILE, read_config
from clipkal.backbones.weights import one_line
from clipkal.errors import BackboneError

TIMEOUT = 3.0  # seconds to wait for the hub, or for the proxy before it


def answers(url: str, timeout: float = TIMEOUT) -> bool:
    """Whether the host of `url`, or the proxy for it, opens a connection within `timeout` seconds."""
    target = urlsplit(getproxies().get(urlsplit(url).scheme) or url)
    port = target.port or (443 if target.scheme == "https" else 80)
    opened = threading.Event()

    def probe() -> None:
        try:
            socket.create_connection((target.hostname or "", port), timeout).close()
            opened.set()
        except OSError:
            pass

    # A thread, because a name look-up cannot be interrupted, only left behind.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(timeout)
    return opened.is_set()


@contextmanager
def hub() -> Iterator[bool]:
    """Yields whether the hub can be asked; where not, huggingface_hub only uses its cache in the block."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    online = not before and answers(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = not online
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE = before


def download_tag(model: str, tag: str) -> Path:
    """The checkpoint file of a pretrained tag, from the cache or the network.

    Raises:
        BackboneError: it is in no cache and cannot be downloaded.
    """
    import open_clip

    with hub() as online:
        try:
            return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(model, tag)))
        except Exception as error:
            raise BackboneError(_message(f"{model} with pretrained={tag}", online, error)) from error


def download_repository(repository: str) -> tuple[dict[str, Any], Path]:
    """The open_clip config and the checkpoint file of a hub repository "org/name", cached or downloaded.

    Raises:
        BackboneError: they are in no cache and cannot be downloaded.
    """
    from open_clip.pretrained import download_pretrained_from_hf

    with hub() as online:
        try:
            config = download_pretrained_from_hf(repository, filename=CONFIG_FILE)
            checkpoint = download_pretrained_from_hf(repository)
        except Exception as error:
            raise BackboneError(_message(f"hf-hub:{repository}", online, error)) from error
    return read_config(Path(config)), Path(checkpoint)


def _message(what: str, online: bool, error: Exception) -> str:
    if online:
        return f"cannot download {what}: {one_line(error)}"
    return (
        f"cannot download {what}: it is not in the local cache and the hub cannot be reached (no network, or "
        "HF_HUB_OFFLINE is set); run once on a connected machine and copy its Hugging Face cache (HF_HOME) "
        "here, or give a file: backbone.pretrained=/path/to/weights.safetensors"
    )
