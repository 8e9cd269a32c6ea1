"""What a class is, read from its source without importing it: the settings of its constructor, its bases.

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
    "float": float, "int": int, "bool": bool, "str": str, "list": list, "None": None,
}  # fmt: skip

Node = ast.ClassDef | ast.FunctionDef


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
    found: dict[str, Setting] = {}
    for module, function in _functions(target):
        for one in _settings(module, function):
            found.setdefault(one.name, one)
    return tuple(found.values())


@cache
def arguments_of(target: str) -> frozenset[str]:
    """The names of all arguments that a class or function takes."""
    every = [function.args for _, function in _functions(target)]
    return frozenset(one.arg for a in every for one in (*a.posonlyargs, *a.args, *a.kwonlyargs)) - {"self"}


@cache
def is_a(target: str, bases: tuple[str, ...]) -> bool:
    """Whether a class descends from one of these, named where they are defined, or a function says it returns one."""
    return any(f"{module}.{node.name}" in bases for module, node in _family(*_defined(target)))


@cache
def has_method(target: str, name: str) -> bool:
    """Whether a class, or one of its bases, defines this method."""
    defined = (one for _, node in _family(*_defined(target)) for one in getattr(node, "body", ()))
    return any(isinstance(one, ast.FunctionDef) and one.name == name for one in defined)


@cache
def constant_of(target: str, name: str) -> Any:
    """A plain value that a class, or the first of its bases that has it, assigns to this name in its body; None without."""
    for _, node in _family(*_defined(target)):
        for one in getattr(node, "body", ()):
            targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]
            if any(isinstance(given, ast.Name) and given.id == name for given in targets) and one.value:
                return ast.literal_eval(one.value)
    return None


@cache
def docstrings_of(target: str) -> tuple[tuple[str, str], ...]:
    """(module, docstring) of a class and its constructor, then of all it descends from; or of a function."""
    found = []
    for module, node in _family(*_defined(target)):
        own = getattr(node, "body", ()) if isinstance(node, ast.ClassDef) else ()
        constructors = [f for f in own if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        found += [(module, ast.get_docstring(one) or "") for one in (node, *constructors)]
    return tuple(found)


@cache
def target_of(module: str, name: str) -> str | None:
    """The dotted name of the class or function that a module calls `name`; None where it knows none."""
    found = _definition(module, name)
    return f"{found[0]}.{found[1].name}" if found is not None and isinstance(found[1], Node) else None


def _defined(target: str) -> tuple[str, Node]:
    module, _, name = target.rpartition(".")
    found = _definition(module, name) if module else None
    if found is None or not isinstance(found[1], Node):
        raise ConfigError(f"_target_={target}: there is no such class or function")
    return found[0], found[1]


def _family(module: str, node: Node) -> Iterator[tuple[str, Node]]:
    """A class and all it descends from, in the order of its bases; of a function, what it returns."""
    yield module, node
    bases = node.bases if isinstance(node, ast.ClassDef) else [node.returns] if node.returns else []
    for base in bases:
        name = ast.unparse(base).strip("'\"")
        within, _, last = name.rpartition(".")
        found = _definition(within or module, last)
        if found is not None and isinstance(found[1], Node):
            yield from _family(found[0], found[1])


def _functions(target: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The function, or the constructors that a call of the class reaches through their **keywords."""
    module, node = _defined(target)
    if isinstance(node, ast.FunctionDef):
        yield module, node
        return
    for within, one in _family(module, node):
        own = getattr(one, "body", ())
        constructors = [f for f in own if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        yield from ((within, function) for function in constructors)
        if constructors and not constructors[0].args.kwarg:
            return


def _settings(module: str, function: ast.FunctionDef) -> Iterator[Setting]:
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
            kind = _evaluated(module, argument.annotation)
            value = ast.literal_eval(default)
        except (NameError, TypeError, ValueError):
            continue  # a type or a default of the program's own
        if settings.is_plain(kind):
            yield Setting(argument.arg, kind, list(value) if isinstance(value, tuple) else value)


def _evaluated(module: str, expression: ast.expr) -> Any:
    """What a type says, its names looked up in `clipkal.settings` or where the module has them from."""
    code = compile(ast.Expression(expression), module, "eval")
    return eval(code, {"__builtins__": {}}, _Names(module))


class _Names(dict[str, Any]):
    """The names of a module's types: those of `clipkal.settings`, and aliases that it or another module assigns."""

    def __init__(self, module: str):
        super().__init__(NAMES)
        self.module = module

    def __missing__(self, name: str) -> Any:
        found = _definition(self.module, name)
        if found is None or isinstance(found[1], Node):
            raise KeyError(name)
        return _evaluated(found[0], found[1].value)


def _definition(module: str, name: str) -> tuple[str, Node | ast.Assign] | None:
    """Where a name of a module is defined, through the imports that bring it there."""
    for node in _tree(module):
        if isinstance(node, Node) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == [name]:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(_imported(module, node), alias.name)
    return None


def _imported(module: str, node: ast.ImportFrom) -> str:
    """The module that an import names, a relative one from where it stands."""
    if not node.level:
        return node.module or ""
    path = _source(module)
    up = node.level - (path is not None and path.name == "__init__.py")
    return ".".join(
        [*module.split(".")[: len(module.split(".")) - up], *([node.module] if node.module else [])]
    )


@cache
def _tree(module: str) -> list[ast.stmt]:
    path = _source(module)
    return ast.parse(path.read_text(encoding="utf-8")).body if path else []


def _source(module: str) -> Path | None:
    """The file of a module; only the name of its top package is looked up, nothing is imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except ValueError:  # a module that was made here, such as __main__
        return None
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder).joinpath(*rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None
