"""What `docs/architecture.md` promises: imports go one way, and the page names what there is."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clipkal"
LAYERS = (
    {"config", "errors", "files", "settings"},
    {"metrics"},
    {"backbones", "data"},
    {"adapters", "optim"},
    {"tracking", "uncertainty"},
    {"evaluation", "scoring", "training"},
    {"commandline"},
    {"inventory", "methods", "pretraining", "recording", "report"},
    {"inference"},
    {"__main__", "app", "cli", "pretrain"},
)
"""Folders and modules of clipkal from the lowest up; each may import those below, and those of its own layer."""
ALONE = {"optim": {"settings"}, "metrics": set(), "data": {"config", "errors", "files"}, "settings": set()}
"""What these import of clipkal, beside themselves."""


def modules() -> dict[str, Path]:
    """Every module of clipkal by its dotted name, a package by the name of its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """The modules of clipkal that a module imports, and whether it does so at once (not inside a function)."""

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{path}: imports are absolute"
                wanted = [f"{child.module}.{alias.name}" for alias in child.names]
                names = [one if one in known else str(child.module) for one in wanted]
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, at_once and not inside)
                continue
            yield from ((one, at_once) for one in names if one.partition(".")[0] == "clipkal")

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


KNOWN = modules()
IMPORTS = {name: list(imports(name, path, KNOWN)) for name, path in KNOWN.items()}


def part(module: str) -> str:
    """The folder or top-level module that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def test_every_part_has_a_layer():
    listed = [name for layer in LAYERS for name in layer]
    assert len(listed) == len(set(listed))
    assert set(listed) == {part(name) for name in KNOWN} - {""}


@pytest.mark.parametrize("name", [name for name in KNOWN if part(name)])
def test_imports_go_down(name):
    heights = {one: height for height, layer in enumerate(LAYERS) for one in layer}
    allowed = {one for one in heights if heights[one] <= heights[part(name)]}
    allowed = ALONE.get(part(name), allowed) | {part(name), ""}  # "": the version in clipkal/__init__.py
    wrong = sorted({found for found, _ in IMPORTS[name] if part(found) not in allowed})
    assert not wrong, f"{name} imports {wrong}"


@pytest.mark.parametrize("whole", ["modules", "folders"])
def test_no_imports_go_round_in_a_circle(whole):
    label = (lambda module: module) if whole == "modules" else part
    graph: dict[str, set[str]] = {}
    for name, found in IMPORTS.items():
        for one, at_once in found:
            # A package gathers what is in it
            above = one.startswith(f"{name}.") or name.startswith(f"{one}.")
            if (at_once or whole == "folders") and label(one) != label(name) and not above:
                graph.setdefault(label(name), set()).add(label(one))
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as circle:
        pytest.fail(" imports ".join(reversed(circle.args[1])))


def test_the_page_names_what_there_is_and_nothing_else():
    """Folders and files of clipkal stand in backticks, from the top of the repository: `clipkal/optim/base.py`."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(clipkal/[\w/]*(?:/|\.py))`", page))
    folders = [path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    wanted = {f"{path.relative_to(ROOT).as_posix()}/" for path in folders}
    wanted |= {f"clipkal/{path.name}" for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert not (wanted - named), "docs/architecture.md does not name these"
    unknown = sorted(path for path in named if not (ROOT / path).exists())
    assert not unknown, "docs/architecture.md names what does not exist"
