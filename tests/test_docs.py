"""The documents point at what is there: links, and on each method's page the files, functions and number of files."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
METHODS = [page for page in PAGES if page.stem not in ("README", "provenance")]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = re.compile(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file(document):
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        assert ":" in target or (document.parent / target).exists(), target


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_every_function_that_a_page_names_is_in_the_file_it_names(page):
    text = page.read_text(encoding="utf-8")
    found = [(file, name) for file, names in NAMES.findall(text) for name in re.findall(r"`([^`]+)`", names)]
    assert found, "a page says where its equations stand in the code"
    for file, name in found:
        assert any(name in defined(path) for path in places(file, text)), f"{file}: {name}"


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_a_step_reads_at_most_seven_files(page):
    text = page.read_text(encoding="utf-8")
    section = text.partition("## Files to read")[2].partition("\n\n")[2].split(". ")[0]
    files = re.findall(r"`([\w/]+\.py)`", section)
    assert 0 < len(files) <= 7
    assert all(places(file, text) for file in files), files


def places(file, text):
    """Where a file may lie, as a page calls it: below clipkal, clipkal/optim, or a folder that the page names."""
    folders = {"clipkal", "clipkal/optim", *re.findall(r"clipkal/[\w/]*\w", text)}
    return [path for folder in sorted(folders) if (path := ROOT / folder / file).is_file()]


@cache
def defined(path):
    """The functions, classes and methods of a module, methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {
                f"{node.name}.{inner.name}" for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef)
            }
    return names
