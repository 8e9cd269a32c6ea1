"""The site of the documents: its menu has every page once, and it builds without a warning or another host."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*?\bsrc=[\"']?(?:https?:)?//|<link[^>]*?\bhref=[\"']?(?:https?:)?//"
)


def entries(menu):
    """The pages that a part of the menu names, from top to bottom."""
    if isinstance(menu, str):
        return [menu]
    return [page for part in (menu.values() if isinstance(menu, dict) else menu) for page in entries(part)]


def test_the_menu_has_every_page_once_and_no_other():
    menu = entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    docs = ROOT / "docs"
    assert sorted(menu) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_a_list_in_a_list_is_indented_as_the_site_needs_it(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    assert not re.findall(r"^ {1,3}(?:[*-]|\d+\.) .*", text, flags=re.M), "four spaces, or it is shown flat"


def test_a_line_that_loads_from_elsewhere_is_seen():
    assert LOADED.search('<link rel="stylesheet" href="https://fonts.example/css">')
    assert LOADED.search("<script async src=//cdn.example/x.js>")
    assert not LOADED.search('<a href="https://arxiv.org/abs/1706.04599"><img src="images/demo.png"></a>')


@pytest.mark.skipif(not find_spec("mkdocstrings"), reason="the site needs pip install 'clipkal[docs]'")
def test_it_builds_with_every_link_right_and_loads_nothing_from_another_host(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env = os.environ | nowhere | {"no_proxy": "", "NO_PROXY": ""}  # whatever asks for the network gets none
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    pages = {
        str(page.relative_to(tmp_path)): page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")
    }
    assert not [name for name, text in pages.items() if LOADED.search(text)]
    for name, found in {"optim": "KalmanFilter", "uncertainty": "Novelty", "metrics": "ece"}.items():
        assert f'id="clipkal.{name}.{found}"' in pages[f"api/{name}.html"]
