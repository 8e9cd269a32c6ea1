"""The settings of a class, read from the source of its constructor without importing it.

A mistake on the command line is to be answered at once, and the classes live in modules that take seconds to import.
So the constructor's arguments, their types and their defaults are read from the syntax tree: what the class says is
what the configuration offers, and there is one set of defaults.
"""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from clipkal import settings
from clipkal.errors import ConfigError

NAMES = {name: value for name, value in vars(settings).items() if not name.startswith("_")} | {
    "float": float, "int": int, "bool": bool, "str": str, "list": list, "None": None, "Any": Any,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """An argument that a configuration may set: its name, its type and its default."""

    name: str
    kind: Any
    default: Any


@cache
def settings_of(target: str) -> tuple[Setting, ...]:
    """The settings of a class or function by its dotted name, such as "clipkal.optim.LoKO".

    A setting is an argument whose default is a plain value (a number, a word, None, or a list of them) and whose type
    `clipkal.settings` can check. Others, such as the model, are given by the program. Where a constructor hands
    **keywords on to its base class, the base's settings are settings too.

    Raises:
        ConfigError: there is no such class or function.
    """
    module, _, name = target.rpartition(".")
    found = _definition(module, name) if module else None
    if found is None:
        raise ConfigError(f"_target_={target}: there is no such class or function")
    return tuple(_settings(*found).values())


def _settings(module: str, node: ast.ClassDef | ast.FunctionDef) -> dict[str, Setting]:
    function = node if isinstance(node, ast.FunctionDef) else _constructor(node)
    inherited: dict[str, Setting] = {}
    if isinstance(node, ast.ClassDef) and (function is None or function.args.kwarg):
        for base in reversed(node.bases):
            if isinstance(base, ast.Name) and (found := _definition(module, base.id)):
                inherited |= _settings(*found)
    own = {one.name: one for one in _arguments(function)} if function else {}
    return {name: one for name, one in inherited.items() if name not in own} | own


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)


def _arguments(function: ast.FunctionDef) -> Iterator[Setting]:
    arguments = function.args
    defaulted = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    pairs = [
        *zip(defaulted, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        if default is None or argument.annotation is None:
            continue
        try:
            kind = eval(
                compile(ast.Expression(argument.annotation), function.name, "eval"),
                {"__builtins__": {}},
                NAMES,
            )
            value = ast.literal_eval(default)
        except (NameError, TypeError, ValueError):
            continue  # a type or a default of the program's own
        if settings.is_plain(kind):
            yield Setting(argument.arg, kind, value)


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """Where a name of a module is defined, through the imports that bring it there."""
    for node in _tree(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name)
    return None


@cache
def _tree(module: str) -> list[ast.stmt]:
    path = _source(module)
    return ast.parse(path.read_text(encoding="utf-8")).body if path else []


def _source(module: str) -> Path | None:
    """The file of a module; only the name of its top package is looked up, nothing is imported."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None
