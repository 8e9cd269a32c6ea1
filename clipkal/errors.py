"""Errors that are the user's to mend: each is one clear line that names the file or the key, and what to do about it."""

import re

_ENDLESS = re.compile(r"\S{1000,}")


class ClipkalError(Exception):
    """Base of every error caused by input; the command line prints its one line and exits with 2.

    A word of a thousand characters, such as the name of a set in a damaged table, is shown by its two ends.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_ENDLESS.sub(lambda word: f"{word[0][:100]}…{word[0][-100:]}", str(message)))


class ConfigError(ClipkalError):
    """A setting is unknown, missing or contradicts another."""


class DataError(ClipkalError):
    """A dataset, split, image or feature file is missing, broken or does not fit the task."""


class BackboneError(ClipkalError):
    """A backbone cannot be built or its weights do not fit."""


class CheckpointError(ClipkalError):
    """A checkpoint or saved adapter is missing, damaged or belongs to another run."""
