import json
import re

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from region_training.records import parse_records, read_records, require, resolve_under


def test_arrays_and_lines_read_alike(tmp_path):
    records = [{"id": 1, "text": "ä[{"}, {"id": 2, "box": [0.5, 1, -2e-3], "none": None}]
    array, lines, pretty = tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "c.json"
    array.write_text(json.dumps(records), encoding="utf-8")
    lines.write_text("".join(json.dumps(record) + "\n" for record in records) + "\n  \n", encoding="utf-8")
    pretty.write_text("\ufeff \n" + json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_records(array) == read_records(lines) == read_records(pretty) == records


@pytest.mark.parametrize("text", ["", "\n \n", "[]", " [ ] \n"])
def test_files_without_records_are_empty(text):
    assert parse_records(text, "x") == []


def test_line_separators_inside_texts_do_not_end_a_line():
    assert parse_records('{"a": "x\u2028y"}\n{"a": "\u0085"}\r\n', "x") == [{"a": "x\u2028y"}, {"a": "\u0085"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": NaN}]', "x record 1: got NaN, expected a finite number"),
        ('{"a": 1}\n{"a": Infinity}', "x line 2: got Infinity"),
        ('{"a": -Infinity}', "x line 1: got -Infinity"),
        ('[{"a": 1e999}]', "x record 0: got 1e999, which no float holds"),
        ('[{"a": {"b": 1, "b": 2}}]', "x record 0: the key 'b' stands twice"),
        ('[{"a": 1}, 3]', "x record 1: got int 3, expected an object"),
        ("\n[1]\n[2]", "x record 0: got int 1, expected an object"),
        ('{"a": 1}\n"text"', "x line 2: got str 'text', expected an object"),
        ('[{"a": 1} {"a": 2}]', "x record 0: after it got '{\"a\": 2}]', expected ',' or ']'"),
        ('[{"a": 1},]', "x record 1: Expecting value at column 11"),
        ('[{"a": 1}', "x record 0: after it got '', expected ',' or ']'"),
        ('[{"a": 1}] tail', "x: after the array got 'tail', expected the end of the file"),
        ('[\n{"a": 1},\n{"a": }\n]', "x record 1: Expecting value at line 3 column 7"),
        ('{"a": 1}\n{"a" 1}', "x line 2: Expecting ':' delimiter at column 6"),
        ('{"a": 1} {"a": 2}', "x line 1: Extra data at column 10"),
        (f'[{{"a": {"9" * 5000}}}]', "x record 0: Exceeds the limit"),
        (f'[{{"a": {"[" * 100_000}', "x record 0: nested too deeply"),
        (f'{{"a": {"[" * 100_000}', "x line 1: nested too deeply"),
    ],
)
def test_what_is_no_strict_json_is_an_error_with_its_place(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_records(text, "x")
    assert len(str(caught.value)) < 300


def test_a_file_that_is_no_text_names_itself(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.json: not UTF-8 text"):
        read_records(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        read_records(tmp_path / "absent.json")


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.text('[]{}",: 1aNe\n\\u', max_size=60))
def test_any_text_gives_objects_or_a_value_error(text):
    message = "x"
    records = []
    try:
        records = parse_records(text, "x")
    except ValueError as error:
        message = str(error)
    assert message.startswith("x")
    assert all(isinstance(record, dict) for record in records)


def test_required_fields_have_their_type():
    record = {"id": 3, "x": 2, "flag": True, "name": "a", "boxes": [], "none": None}
    assert require(record, "id", int, "r") == 3
    assert require(record, "boxes", list, "r") == []
    assert require(record, "flag", bool, "r") is True
    value = require(record, "x", float, "r")
    assert (value, type(value)) == (2.0, float)


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        ("image", str, "a.json record 7: 'image' is missing, expected str; it has id, flag, none"),
        ("id", str, "a.json record 7: 'id' is 3 (int), expected str"),
        ("flag", int, "a.json record 7: 'flag' is True (bool), expected int"),
        ("flag", float, "a.json record 7: 'flag' is True (bool), expected float"),
        ("none", list, "a.json record 7: 'none' is None (NoneType), expected list"),
    ],
)
def test_a_field_that_is_missing_or_of_another_type_is_named(key, kind, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        require({"id": 3, "flag": True, "none": None}, key, kind, "a.json record 7")


def test_paths_stay_under_the_root(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "a.png").write_bytes(b"")
    root = tmp_path / "data"
    expected = (root / "images" / "a.png").resolve()
    assert resolve_under(root, "images/a.png", "r") == expected
    assert resolve_under(root, "images/../images/a.png", "r") == expected
    assert resolve_under(root, "not yet there.png", "r") == root.resolve() / "not yet there.png"
    assert resolve_under(root, "a..b/..c.png", "r").name == "..c.png"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret", "leads out of"),
        ("images/../../secret", "leads out of"),
        ("out/secret", "leads out of"),
        ("link", "leads out of"),
        ("/etc/passwd", "absolute path"),
        ("C:\\Windows\\a", "absolute path"),
        ("\\\\host\\share\\a", "absolute path"),
        ("http://host/a.png", "got the URL"),
        ("https://169.254.169.254/latest", "got the URL"),
        ("file:///etc/passwd", "got the URL"),
        ("file:secret", "got the URL"),
        ("data:image/png;base64,AAAA", "got the URL"),
        ("s3://bucket/a", "got the URL"),
        ("", "expected the name of a file"),
        ("a\0b", "expected the name of a file"),
    ],
)
def test_paths_that_leave_the_root_are_refused(tmp_path, path, message):
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret").write_text("canary")
    (root / "out").symlink_to(tmp_path)
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=message) as caught:
        resolve_under(root, path, "train.json record 7")
    assert str(caught.value).startswith("train.json record 7: ")
