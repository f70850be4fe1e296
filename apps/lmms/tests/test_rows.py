"""Files of rows: every form gives the same rows, and what is wrong with a file is said with its place."""

import copy
import json

import pyarrow as pa
import pytest
from lmms.rows import Rows, find_files, read_rows
from pyarrow import parquet
from region_training.settings import ConfigError

ROWS = [
    {"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Grüezi ✓"}]},
    {"conversations": [{"from": "human", "value": "<video>\nWhat?"}], "video": "x.mp4", "kind": "order"},
    {"id": 7, "conversations": [{"from": "human", "value": "<image>?"}], "image": ["a.png"]},
]


def as_list(rows: Rows) -> list[dict[str, object]]:
    return [dict(rows[index]) for index in range(len(rows))]


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        columns = dict.fromkeys(key for row in rows for key in row)
        parquet.write_table(pa.Table.from_pylist([columns | row for row in rows]), path)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet"])
def test_every_form_of_a_file_gives_the_same_rows(tmp_path, name):
    rows = [row | {"id": str(row["id"])} if "id" in row else row for row in ROWS]  # a column has one type
    write(tmp_path / name, rows)
    assert as_list(read_rows(tmp_path, [name])) == rows


def test_rows_of_several_files_know_where_they_stand(tmp_path):
    write(tmp_path / "one.json", ROWS)
    write(tmp_path / "two.jsonl", ROWS[:1])
    rows = read_rows(tmp_path, ["one.json", "two.jsonl"])
    assert len(rows) == 4
    assert [rows.where(index) for index in range(4)] == [
        "one.json record 0 (id 'a')",
        "one.json record 1 (id None)",
        "one.json record 2 (id 7)",
        "two.jsonl record 0 (id 'a')",
    ]


def test_patterns_are_sorted_and_files_keep_their_order(tmp_path):
    for name in ("part-2.json", "part-1.json", "first.json"):
        write(tmp_path / name, ROWS[:1])
    found = find_files(tmp_path, ["first.json", "part-*.json"])
    assert [path.name for path in found] == ["first.json", "part-1.json", "part-2.json"]


def test_all_missing_files_are_named_at_once(tmp_path):
    write(tmp_path / "there.json", ROWS)
    with pytest.raises(ConfigError, match=r"'gone\.json', 'part-\*\.parquet'"):
        read_rows(tmp_path, ["there.json", "gone.json", "part-*.parquet"])


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"rows\.csv.*\.json, \.jsonl or \.parquet"):
        read_rows(tmp_path, ["rows.csv"])


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("rows.json", '[{"id": 1}, {"id": }]', r"rows\.json record 1"),
        ("rows.jsonl", '{"id": 1}\nnonsense\n', r"rows\.jsonl line 2"),
        ("rows.parquet", "no parquet", r"rows\.parquet: not a parquet file"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(tmp_path, name, content, place):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=place):
        read_rows(tmp_path, [name])


def test_what_a_record_is_not_made_of_is_not_kept(tmp_path):
    table = pa.Table.from_pylist([ROWS[0] | {"picture_bytes": b"\x00\xff", "score": 0.5}])
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert as_list(read_rows(tmp_path, ["rows.parquet"])) == [ROWS[0]]


def test_a_value_that_is_no_text_or_number_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"here record 1: .*bytes"):
        Rows([("here", ROWS[0]), ("here", {"id": b"raw"})])


def test_rows_travel_to_loading_processes_and_have_a_fingerprint():
    rows = Rows([("here", row) for row in ROWS])
    again = copy.deepcopy(rows)  # as pickling does, which loading processes use
    assert as_list(again) == ROWS
    assert again.fingerprint == rows.fingerprint
    assert Rows([("here", row) for row in reversed(ROWS)]).fingerprint != rows.fingerprint
    assert len(Rows([])) == 0
