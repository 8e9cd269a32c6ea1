"""The settings of a class as its source says them."""

import inspect
import subprocess
import sys
import textwrap

import pytest

from clipkal import optim
from clipkal.config.signatures import settings_of
from clipkal.errors import ConfigError
from clipkal.settings import Positive


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's own package: settings of several kinds, arguments that are none, a base class, a re-export."""
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from mine.parts import Steep as Renamed\nraise RuntimeError('imported')\n"
    )
    (package / "parts.py").write_text(
        textwrap.dedent(
            """
            from somewhere import Model, cross_entropy

            class Base:
                def __init__(self, model: Model, lr: Positive = 0.1, keep: bool = True, loss: Loss = cross_entropy): ...

            class Steep(Base):
                def __init__(
                    self, model, *, lr: Positive = 1.0, word: Literal["a", "b"] | None = None, group: Group = None, **rest
                ): ...

            class Plain(Base): ...
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def as_dict(target):
    return {one.name: one.default for one in settings_of(target)}


def test_settings_are_read_without_importing_anything(module):
    assert as_dict("mine.parts.Base") == {"lr": 0.1, "keep": True}
    assert as_dict("mine.Renamed") == {"keep": True, "lr": 1.0, "word": None}
    assert as_dict("mine.parts.Plain") == {"lr": 0.1, "keep": True}
    assert settings_of("mine.parts.Base")[0].kind == Positive
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    "target", ["mine.Nothing", "nowhere.Thing", "Thing", "mine.parts.lr", "clipkal.optim.", "..x"]
)
def test_a_name_that_is_not_there_is_one_line(module, target):
    with pytest.raises(ConfigError, match="no such class or function"):
        settings_of(target)


def test_what_is_read_is_what_python_sees():
    for name in ("KFAC", "RING", "RENG"):
        read = as_dict(f"clipkal.optim.{name}")
        seen = inspect.signature(getattr(optim, name)).parameters
        assert {key: seen[key].default for key in read if key in seen} == {
            k: v for k, v in read.items() if k in seen
        }
        assert "lr" in read and "group" not in read and "model" not in read


def test_reading_imports_no_torch():
    code = (
        "import sys; from clipkal.config.signatures import settings_of; "
        "settings_of('clipkal.optim.KFAC'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
