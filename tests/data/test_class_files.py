"""Class names and class maps: in place or in a file, and every way in which they may not be that."""

import pytest

from clipkal.data.class_files import class_map, class_names
from clipkal.errors import DataError


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("n.txt", "\ufeffn001 crow\r\n\r\nn002  mute swan \r\n", {"n001": "crow", "n002": "mute swan"}),
        ("n.json", '\ufeff{"n001": "crow", "n002": 2}', {"n001": "crow", "n002": "2"}),
        ("n.json", '["crow", 7]', ["crow", "7"]),
    ],
)
def test_names_are_read_from_text_and_json_with_or_without_a_byte_order_mark(tmp_path, file, content, names):
    (tmp_path / file).write_text(content, encoding="utf-8", newline="")
    assert class_names(file, tmp_path) == names


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("n.txt", "crow\nduck\n", "line 1: the class 'crow' has no name; expected lines of a class, a space"),
        ("n.txt", "a crow\nb duck\na swan", "line 3: the class 'a' appears twice"),
        ("n.txt", "a crow\0", "it holds NUL bytes"),
        ("n.txt", "", "holds no class names"),
        ("n.json", "{}", "holds no class names"),
        ("n.json", "null", "holds no class names"),
        ("n.json", '"n.txt"', "holds no class names"),
        ("n.json", '{"a": null}', "'a' must be given one name as text, not None; put such words in quotes"),
        ("n.json", '["crow", ["duck"]]', r"'number 1' must be given one name as text, not \['duck'\]"),
        ("n.json", '["crow", " "]', "'number 1' must be given one name as text, not ' '"),
        ("n.json", '{"a": "crow", "a": "duck"}', "the key 'a' appears twice"),
    ],
)
def test_files_that_hold_no_names_are_refused(tmp_path, file, content, said):
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"^[^\n]*{file}: .*{said}"):
        class_names(file, tmp_path)


def test_words_that_yaml_takes_for_something_else_are_refused(tmp_path):
    with pytest.raises(
        DataError, match="'number 0' must be given one name as text, not True; put such words in quotes"
    ):
        class_names([True, "no"], tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", '{"a": null}', '{"a": true}', '{"a": {"b": "c"}}', "{"]
)
def test_files_that_hold_no_class_map_are_refused(tmp_path, content):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(DataError, match=r"map\.json: "):
        class_map("dataset.shifts.far.class_map", "map.json", tmp_path)
