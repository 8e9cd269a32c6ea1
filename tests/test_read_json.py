"""JSON that people bring: what is wrong with it is one line that names the file and the place."""

import os

import pytest

from clipkal import files
from clipkal.errors import DataError


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("letter", [b"\\u00e9", b"\xc3\xa9"])
def test_plain_json_is_read_with_or_without_a_byte_order_mark(tmp_path, mark, letter):
    (tmp_path / "a.json").write_bytes(mark + b'{"a": [1, 2.5, null, true, "' + letter + b'"]}')
    assert files.read_json(tmp_path / "a.json", "list", "") == {"a": [1, 2.5, None, True, "é"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value, line 1 column 1"),
        (b'{"a": 1,\n b}', "line 2 column 2"),
        (b"\xff\xfe{\x00}\x00", "byte 0 is not UTF-8; save it as UTF-8"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' appears twice"),
        (b'[1, "a\\u0000"]', r"\[1\]: text with a NUL"),
        (b'{"a": {"b": ["\\ud800"]}}', r"a\.b\[0\]: text with a NUL or half a surrogate pair"),
        (b'{"a": {"\\udfff": 1}}', "a: a key: text with"),
        (b"[NaN]", "NaN is no finite number"),
        (b"[-Infinity]", "-Infinity is no finite number"),
        (b"[1e999]", "1e999 is no finite number"),
        (b"[" + b"9" * 5000 + b"]", "99999999999999999999… is no sensible number"),
        (b"[" * 30 + b"]" * 30, "nested more than 20 levels deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 20 levels deep"),
        (b'{"a":' * 100_000, "nested more than 20 levels deep"),
        (None, "no such file"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, content, said):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^[^\n]*a\.json: no list can be read there \(.*{said}[^\n]*$"):
        files.read_json(path, "list", "check it")


def test_folders_pipes_and_paths_beyond_the_limits_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, said in [
        ("", "it is no file"),
        ("pipe", "it is no file"),
        ("x" * 300, "name too long"),
        ("a\0b", ""),
    ]:
        with pytest.raises(DataError, match=f"no list can be read there .*(?i:{said})"):
            files.read_json(tmp_path / path, "list", "check it")
