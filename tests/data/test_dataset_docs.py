"""The page on datasets names what there is."""

from dataclasses import fields
from pathlib import Path

import pytest

from clipkal.config import conf_dir
from clipkal.config.schema import ShiftConfig
from clipkal.data.spec import SOURCES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"


@pytest.fixture(scope="module")
def page():
    if not PAGE.is_file():
        pytest.skip("docs/datasets.md is not beside the tests")
    return PAGE.read_text(encoding="utf-8")


def test_every_dataset_source_and_key_of_a_shift_is_on_the_page(page):
    names = {path.stem for path in (Path(conf_dir()) / "dataset").glob("*.yaml")}
    wanted = names | (set(SOURCES) - {"coop"}) | {field.name for field in fields(ShiftConfig)}
    assert sorted(name for name in wanted if f"`{name}`" not in page) == ["imagenet_shifts"]
    assert "dataset=imagenet_shifts" in page
