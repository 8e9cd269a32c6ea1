"""Downloads, only where the user asked for them: whole and checked, or one line that says what to do by hand."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from clipkal import files
from clipkal.errors import DataError


def file_name(url: str) -> str:
    """What a downloaded file is called: the end of its address."""
    return Path(urlsplit(url).path).name


def fetch(folder: Path, urls: Mapping[str, str]) -> None:
    """Downloads each address to `folder` and checks its sha256; a file appears there only when it is whole.

    Raises:
        DataError: an address cannot be reached, or gives something else than expected.
    """
    from torch.hub import download_url_to_file

    for url, expected in urls.items():
        target = folder / file_name(url)
        with files.atomic_path(target) as temporary:
            try:
                download_url_to_file(url, str(temporary), progress=sys.stderr.isatty())
            except (OSError, HTTPException, ValueError) as error:  # no network, a full disk, no address
                raise by_hand(folder, url, error) from error
            if (found := files.sha256(temporary)) != expected:
                raise DataError(
                    f"{target}: {url} gives a file with sha256 {found}, not {expected}; it was not kept"
                )


def by_hand(folder: Path, url: str, error: Exception) -> DataError:
    """The error for a download that failed."""
    return DataError(
        f"{folder}: cannot download {url} ({error}); fetch it on another machine and put it there"
    )
