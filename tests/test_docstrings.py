"""Every public name of the package says what it is; a method may leave that to the one it overrides."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest

import clipkal

MODULES = [
    one.name for one in pkgutil.walk_packages(clipkal.__path__, "clipkal.") if "__main__" not in one.name
]


def public(name: str) -> Iterator[tuple[str, object]]:
    """The classes, functions and methods that a module defines, by name."""
    module = importlib.import_module(name)
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield key, value
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if not method.startswith("_") and isinstance(
                    function, property | classmethod | staticmethod | type(public)
                ):
                    yield f"{key}.{method}", getattr(value, method)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings(name: str) -> None:
    assert inspect.getdoc(importlib.import_module(name))
    lacking = [key for key, value in public(name) if not inspect.getdoc(value)]
    assert not lacking, f"{name} does not say what these are: {lacking}"
