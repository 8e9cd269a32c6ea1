"""The command line before Hydra sees it: our own flags, and a clear line for an argument that Hydra cannot read."""

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from clipkal import __version__
from clipkal.config.explain import NEW_SHIFT, nearest
from clipkal.config.old_words import renamed
from clipkal.errors import ConfigError

VERBOSE = (
    "hydra.verbose=clipkal"  # the logger `clipkal` at its debug level, in the workers of a sweep as well
)
GROUPS = ("adapter", "backbone", "dataset", "method", "optimizer", "predictive", "tracking")
OPEN = ("hydra", "dataset.columns.", "dataset.splits.", "dataset.shifts.")  # what may be taken out with ~
ALREADY = ("hydra.mode=MULTIRUN", "+experiment=")
"""How settings that ask for several runs begin: an experiment says itself whether it is a sweep."""


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: settings last, and each of them readable.

    `--version` prints clipkal's version and raises SystemExit; `--verbose` becomes a setting. Raises ConfigError for
    an unknown flag, and for a setting that Hydra's grammar cannot read, with what to type instead.
    """
    parser = _Parser(parents=[get_args_parser()], add_help=False, conflict_handler="resolve")
    parser.add_argument("--version", action="version", version=f"clipkal {__version__}")
    parser.add_argument("--verbose", action="store_true")
    found = parser.parse_intermixed_args(list(arguments))
    settings, flags, place = list(found.overrides), [], 0
    for word in arguments:
        if place < len(settings) and word == settings[place]:
            place += 1
        elif word not in ("--verbose", "--"):
            flags.append(word)
    commands = {"--run": found.run, "--multirun": found.multirun, "--cfg": found.cfg, "--info": found.info}
    if len(both := [name for name, given in commands.items() if given]) > 1:
        raise ConfigError(f"{' and '.join(both)} exclude each other; type one of them")
    if found.resolve and not (found.cfg or found.help):
        raise ConfigError("--resolve belongs to --cfg job; type both")
    many = found.multirun or any(word.startswith(ALREADY) for word in settings)
    for word in settings:
        _check(word, many)
    settings = [renamed(word) for word in settings]
    return [*flags, *(_left_to_jobs(settings) if many else settings), *([VERBOSE] if found.verbose else [])]


def asked_for_help(arguments: Sequence[str]) -> list[str] | None:
    """The words behind --help, none for all there is; None where help is not asked for."""
    found, _ = get_args_parser().parse_known_args(list(arguments))
    return [renamed(word) for word in found.overrides] if found.help else None


def settings_shown(arguments: Sequence[str]) -> list[str]:
    """The settings of a configuration that is to be shown, --cfg job, where an experiment is one of them."""
    found, _ = get_args_parser().parse_known_args(list(arguments))
    asked = found.cfg == "job" and any(word.startswith("+experiment=") for word in found.overrides)
    return list(found.overrides) if asked else []


def folder_of(arguments: Sequence[str]) -> str | None:
    """The user's own folder of configuration groups, --config-dir."""
    found, _ = get_args_parser().parse_known_args(list(arguments))
    return found.config_dir


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag = message.removeprefix("unrecognized arguments: ").split()[0]
        if not message.startswith("unrecognized") or not flag.startswith("-"):
            raise ConfigError(f"{message}; clipkal --help shows what there is")
        near = nearest(flag, [one for one in self._option_string_actions if one.startswith("--")])
        hint = f": did you mean {near}?" if near else "; clipkal --help shows what there is"
        raise ConfigError(f"unknown flag {flag}{hint}")


def _check(word: str, many: bool) -> None:
    key, equals, value = word.partition("=")
    name = key.lstrip("+~")
    if not name or not (equals or word.startswith("~")):
        raise ConfigError(
            f"{word!r} is no setting: type key=value, such as seed=2, or group=option, such as dataset=digits"
        )
    if word.startswith("~") and not name.startswith(OPEN):
        raise ConfigError(f"{word}: a run needs this setting; leave the argument out to keep its default")
    if name.startswith("hydra.sweeper.params."):
        typed = f"{name.removeprefix('hydra.sweeper.params.')}={value}"
        raise ConfigError(
            f"{key}: what a sweep varies is typed as it is, with -m: clipkal -m {shlex.quote(typed)}"
        )
    if word.startswith("+") and name.startswith("dataset.shifts."):
        raise ConfigError(f"{key}: {NEW_SHIFT}")
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        raise ConfigError(f"{key}: Hydra cannot read {value!r} as it stands; {_quoted(key, value)}") from None
    if name in GROUPS and isinstance(override.value(), bool | int | float | dict):
        raise ConfigError(f"{word}: {name} takes the name of a file in conf/{name}/")
    if override.is_choice_sweep() and (twice := _twice(list(override.sweep_string_iterator()))):
        raise ConfigError(f"{word}: {twice} stands there twice; each value is one run")
    if override.is_sweep_override() and not many:
        one = "" if "(" in value else f"; to mean one value with a comma, {_quoted(key, value)}"
        raise ConfigError(f"{word} asks for several runs: add -m, as in clipkal -m {shlex.quote(word)}{one}")


def _left_to_jobs(settings: list[str]) -> list[str]:
    """Settings of options that are swept, such as `optimizer.epochs=2` beside `method=adamw,kfac`, as sweeps of one value.

    Hydra composes them with each job then, and not with the default option as well, which may not have them.
    """
    found = {word: OverridesParser.create().parse_override(word) for word in settings}
    swept = {one.key_or_group for one in found.values() if one.is_choice_sweep()}
    groups = swept.intersection(GROUPS) | (
        {"adapter", "optimizer", "predictive"} if "method" in swept else set()
    )
    left = []
    for word, one in found.items():
        key, _, value = word.partition("=")
        of_option = key.partition(".")[0] in groups and "." in key
        left.append(f"{key}=choice({value})" if of_option and value and not one.is_sweep_override() else word)
    return left


def _twice(values: list[str]) -> str | None:
    return next((one for one in values if values.count(one) > 1), None)


def _quoted(key: str, value: str) -> str:
    """What to type for a value that is to be taken as it is: quoted for Hydra, and that again for the shell."""
    mark = '"' if "'" in value and '"' not in value else "'"
    inner = re.sub(r"(\\*)$", r"\1\1", re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", value.replace("${", r"\${")))
    setting = f"{key}={mark}{inner}{mark}"
    return "type " + '"' + re.sub(r'(["$`\\])', r"\\\1", setting) + '"'
