"""`clipkal --help` and `clipkal --help WORD`: what there is to type, and what it means.

Every line comes from where the thing is made: groups from conf/config.yaml, options from the comments of their files, keys
from the schema and the docstrings (meaning.py).
"""

import math
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from clipkal.config import schema
from clipkal.config.compose import conf_dir
from clipkal.config.explain import known_keys, nearest
from clipkal.config.meaning import described, meaning_of, summary_of
from clipkal.config.options import OPTIONS
from clipkal.errors import ConfigError

HEAD = """\
clipkal: few-shot fine-tuning of CLIP with Kalman filters, and honest uncertainty about it.

  clipkal                                            one run on the embedded images
  clipkal dataset=digits method=adamw seed=2         pick options (group=option) and set keys (key=value)
  clipkal -m method=adamw,kalman fewshot.shots=1,4   several runs, one for each combination
  clipkal "+experiment=[coop,smoke]"                 a ready-made comparison, here in its small form
  clipkal dataset=digits --cfg job                   show the configuration without running it
  clipkal-report outputs                             tables and figures over many runs
"""
FOOT = """\
Say what a word means:
  clipkal --help optimizer           a group, its options and its keys
  clipkal --help method=adamw        an option
  clipkal --help fewshot.shots       a key

Flags: -m several runs · --cfg job shows the configuration · --config-dir DIR adds options of your own · --verbose · --version ·
  --hydra-help shows those of Hydra.
A finished run is skipped, an interrupted one goes on. CLIPKAL_DEBUG=1 shows tracebacks."""
COMMON = (
    "fewshot.shots", "fewshot.validation", "fewshot.subset", "seed", "device", "output_dir", "data.root", "dataset.path",
    "dataset.ood", "dataset.id_domain", "optimizer.lr", "optimizer.epochs", "optimizer.batch_size", "optimizer.prior",
    "predictive.shift", "predictive.samples", "tracking.project", "figures", "keep",
)  # fmt: skip
EXPERIMENT = ("experiment", "", "a ready-made comparison: type +experiment=NAME")
"""The group that no run has at its start: name, option, meaning."""

_DEFAULT = re.compile(r"^  - (\w+): (\w+) +# (.*?) *(?:\(conf/\w+/\))?$", re.M)


@dataclass(frozen=True)
class Key:
    """A setting: its dotted name, its option (None: of every run), type, default and meaning."""

    name: str
    option: str | None
    kind: Any
    default: Any
    meaning: str

    def lines(self) -> list[str]:
        """The key with its default, what it may be, and what it means."""
        return [
            f"{self.name} = {_shown(self.default)}",
            *_wrapped(described(self.kind), 6),
            *_wrapped(self.meaning, 6),
        ]


def overview() -> str:
    """All groups and the commonest keys."""
    lines = [HEAD, "Groups, and what a run has where nothing is said:"]
    for name, option, said in groups():
        lines += _row(f"{name}={option}" if option else f"+{name}=…", said)
    lines += ["", "The commonest keys:"]
    for name in COMMON:
        found = [key for key in keys() if key.name == name]
        defaults = {_shown(key.default) for key in found}
        said = f"{found[0].meaning} [{re.sub(r' [(].*[)]', '', described(found[0].kind))}]"
        lines += _row(f"{name}={defaults.pop()}" if len(defaults) == 1 else name, said)
    return "\n".join([*lines, "", FOOT])


def about(word: str, folders: Sequence[Path] = ()) -> str:
    """What a group, a group=option or a dotted key means.

    Args:
        folders: more places of options than conf/, such as that of --config-dir.

    Raises:
        ConfigError: there is nothing of that name; the line names what is nearest.
    """
    places = [Path(conf_dir()), *folders]
    name, _, option = word.lstrip("+~").partition("=")
    group = next((one for one in (name, name.replace(".", "/")) if _options(one, places)), None)
    if group and option and option in (files := _options(group, places)):
        return "\n".join(_option_page(group, files[option]))
    if group and not option:
        return "\n".join(_group_page(group, places))
    dotted = name.replace("/", ".")
    exact = [key for key in keys() if key.name == dotted and not group]
    if found := exact or [key for key in keys() if key.name.startswith(f"{dotted}.") and not group]:
        return "\n\n".join(_key_lines(found))
    names = list(_options(group, places)) if group else [*known_keys(), *(one for one, *_ in groups())]
    close = nearest(option if group else dotted, names)
    hint = (
        f": did you mean '{f'{group}={close}' if group else close}'?"
        if close
        else "; clipkal --help shows what there is"
    )
    raise ConfigError(f"there is nothing called '{word}'{hint}")


def groups() -> list[tuple[str, str, str]]:
    """(name, option of a run where nothing is said, meaning) of every group."""
    found = _DEFAULT.findall(Path(conf_dir(), "config.yaml").read_text(encoding="utf-8"))
    return [*found, EXPERIMENT]


def keys() -> Iterator[Key]:
    """Every setting, those of every run before those of single options."""
    yield from _keys_of(schema.Config, "", None)
    for option in sorted(OPTIONS.values(), key=lambda one: one.group != "optimizer"):
        yield from _keys_of(
            option.kind, f"{option.group.replace('/', '.')}.", f"{option.group}={option.name}"
        )


def _keys_of(kind: type, prefix: str, option: str | None) -> Iterator[Key]:
    target = getattr(kind, "_target_", "") or None
    given = _values(option) if option else {}
    hidden = ("_target_", "name") if issubclass(kind, schema.PartConfig) else ()
    for one in fields(kind):
        if is_dataclass(one.type):
            yield from () if option else _keys_of(one.type, f"{prefix}{one.name}.", None)  # type: ignore[arg-type]
        elif one.name not in hidden:
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            said = meaning_of(kind, one.name, target)
            yield Key(prefix + one.name, option, one.type, given.get(one.name, default), said)


@cache
def _values(option: str) -> dict[str, Any]:
    """What the file of an option sets, where it is one of conf/."""
    group, _, name = option.partition("=")
    path = Path(conf_dir(), group, f"{name}.yaml")
    return OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}  # type: ignore[return-value]


def _options(group: str, places: Iterable[Path]) -> dict[str, Path]:
    """The files of a group by the name of the option."""
    return (
        {path.stem: path for place in places for path in sorted(place.glob(f"{group}/*.yaml"))}
        if group
        else {}
    )


def _group_page(group: str, places: Sequence[Path]) -> Iterator[str]:
    default = next((one for one in groups() if one[0] == group), ("", "", ""))
    yield f"{group}: {default[2]}" if default[2] else f"{group}: chosen as {group}=…"
    yield ""
    for name, path in _options(group, places).items():
        yield from _row(f"{name}{' (default)' * (name == default[1])}", _first_sentence(path))
    own = [key for key in keys() if key.option is None and key.name.startswith(f"{group}.")]
    if default[1] and f"{group}={default[1]}" in {key.option for key in keys()}:
        own += [key for key in keys() if key.option == f"{group}={default[1]}"]
        yield from ("", f"Keys with {group}={default[1]} (other options: clipkal --help {group}=NAME):")
    elif own:
        yield from ("", "Keys:")
    for block in _key_lines(own):
        yield from ("", block)


def _option_page(group: str, path: Path) -> Iterator[str]:
    option = f"{group}={path.stem}"
    yield option if group != EXPERIMENT[0] else f"+{option}"
    yield from _wrapped(_comment(path), 2)
    own = [key for key in keys() if key.option == option]
    target = _values(option).get("_target_") if own else None
    if target:
        yield from ("", f"  {target}", *_wrapped(summary_of(target), 2))
    for block in _key_lines(own):
        yield from ("", block)
    if not own:
        text = path.read_text(encoding="utf-8").splitlines()
        yield from ("", *(f"  {line}" for line in text if line and not line.startswith("#")))


def _key_lines(found: Iterable[Key]) -> Iterator[str]:
    """The text of each key; one that several options have alike comes once, with their names."""
    alike: dict[str, list[str]] = {}
    for key in found:
        alike.setdefault("\n".join(key.lines()), []).extend([key.option] if key.option else [])
    for text, options in alike.items():
        names = ", ".join(one.partition("=")[2] for one in options)
        several = len({one for every in alike.values() for one in every}) > 1
        yield text + ("\n" + "\n".join(_wrapped(f"with {names}", 6)) if options and several else "")


def experiment_text(settings: Sequence[str], folders: Sequence[Path] = ()) -> str:
    """What the experiments among the settings are, and what they sweep over, as comments above a configuration; "" without any."""
    overrides = OverridesParser.create().parse_overrides(list(settings))
    chosen = [one.value() for one in overrides if one.key_or_group == EXPERIMENT[0]]
    names = [name for value in chosen for name in (value if isinstance(value, list) else [value])]
    files = _options(EXPERIMENT[0], [Path(conf_dir()), *folders])
    known = [files[str(name)] for name in names if str(name) in files]
    swept: dict[str, Any] = {}
    for path in known:
        swept |= _swept(path)
    typed = dict(word.split("=", 1) for word in settings if "=" in word)
    lines = [line for path in known for line in _comments(path)]
    return "\n".join(
        [*lines, *_sweep_lines({name: str(typed.get(name, value)) for name, value in swept.items()})]
    )


def _sweep_lines(swept: dict[str, str]) -> list[str]:
    """What is common to all runs, what is one run each, and how many there are of these."""
    parser = OverridesParser.create()
    counts = {}
    for name, value in swept.items():
        override = parser.parse_override(f"{name}={value}")
        counts[name] = len(list(override.sweep_string_iterator())) if override.is_discrete_sweep() else 1
    lines = [f"# every run: {name}={value}" for name, value in swept.items() if counts[name] == 1]
    lines += [f"# one run for each of: {name}={value}" for name, value in swept.items() if counts[name] > 1]
    total = f"{math.prod(counts.values()):,} run{'s' * (math.prod(counts.values()) > 1)} in all"
    return [*lines, f"# {total}; below stands what they have beside these settings"] if swept else []


def _swept(path: Path) -> dict[str, Any]:
    """What an experiment and those it builds on give Hydra's sweeper."""
    cfg: Any = OmegaConf.load(path)
    found: dict[str, Any] = {}
    for base in cfg.get("defaults") or ():
        if isinstance(base, str) and path.with_name(f"{base}.yaml").exists():
            found |= _swept(path.with_name(f"{base}.yaml"))
    return found | dict(OmegaConf.select(cfg, "hydra.sweeper.params") or DictConfig({}))


def _comments(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("#") and not line.startswith("# @package")]


def _comment(path: Path) -> str:
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in _comments(path))


def _first_sentence(path: Path) -> str:
    text = " ".join(line for line in _comment(path).splitlines() if not line.startswith("  "))
    return re.split(r"(?<=[a-z0-9)])\. ", text)[0].removesuffix(".")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    if value is MISSING or value == "???":
        return "…"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _width() -> int:
    return min(shutil.get_terminal_size((120, 24)).columns, 120)


def _row(name: str, said: str) -> list[str]:
    """A name and what it is beside it."""
    space = " " * 34
    return textwrap.wrap(said, _width(), initial_indent=f"  {name:<30}  ", subsequent_indent=space) or [
        f"  {name}"
    ]


def _wrapped(text: str, indent: int) -> list[str]:
    """Paragraphs; lines that are indented are kept as they are."""
    space, found = " " * indent, []
    for paragraph in re.split(r"\n(?=  )|(?<=\S)\n(?! )", text):
        kept = paragraph.startswith("  ")
        found += (
            [space + paragraph]
            if kept
            else textwrap.wrap(paragraph, _width(), initial_indent=space, subsequent_indent=space)
        )
    return found
