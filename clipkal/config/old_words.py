"""Words that this release calls otherwise, and still takes with a line that says the new one."""

import logging
import re

log = logging.getLogger("clipkal")

OPTIONS = {
    "method": {"kalman_diagonal": "kalman_online"},
    "optimizer": {"function_space": "kalman"},
}
KEYS = {
    "optimizer.temperature": "optimizer.posterior_temperature",
    "predictive.temperature": "predictive.temperature_scaling",
}
"""Settings with another name now: these are refused, with the new one."""


def renamed(setting: str) -> str:
    """A setting of the command line with the options' new words; a warning names each."""
    key, equals, value = setting.partition("=")
    for old, new in OPTIONS.get(key, {}).items():
        value, count = re.subn(rf"(?<!\w){old}(?!\w)", new, value)
        if count:
            log.warning(
                "%s=%s is called %s=%s now; the old word goes with the next release", key, old, key, new
            )
    return key + equals + value
