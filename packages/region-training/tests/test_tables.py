import io

import pytest
from region_training.tables import Table, format_cell, score_table
from rich.console import Console


def shown(table):
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(table.to_rich())
    return buffer.getvalue()


def test_scores_stand_beside_their_baselines():
    table = score_table(
        {"accuracy": 0.75, "error_m": 0.5, "recall": 0.2},
        baselines={"majority": {"accuracy": 0.5, "error_m": 2.0}, "text only": {"accuracy": 0.8, "error_m": 1.25}},
        lower_is_better={"error_m"},
    )
    assert table.columns == ("metric", "model", "majority", "text only", "gain over best baseline")
    accuracy, error, recall = table.rows
    assert accuracy[:4] == ("accuracy ↑", 0.75, 0.5, 0.8)
    assert accuracy[4] == pytest.approx(-0.05)
    assert error[:4] == ("error_m ↓", 0.5, 2.0, 1.25)
    assert error[4] == pytest.approx(0.75)
    assert recall == ("recall ↑", 0.2, None, None, None)


def test_markdown_and_terminal_show_the_same_cells():
    table = Table("Parts [1]", ("name", "size", "share"), (("a|b\n[red]", 1234567, 0.123456), ("c", None, 2.0)))
    assert table.to_markdown() == (
        "| name | size | share |\n| --- | ---: | ---: |\n| a\\|b [red] | 1,234,567 | 0.1235 |\n| c | - | 2 |\n"
    )
    text = shown(table)
    assert all(word in text for word in ("Parts [1]", "[red]", "1,234,567", "0.1235"))


def test_a_wide_table_is_whole_where_no_terminal_limits_it(capsys):
    names = tuple(f"a column with a long name {number}" for number in range(5))
    Table("", names, (names,)).show()
    shown_lines = capsys.readouterr().out.splitlines()
    assert all(name in line for line in (shown_lines[1], shown_lines[3]) for name in names)


def test_cells():
    assert [format_cell(cell) for cell in (None, True, 12, 1e-7, "x", float("nan"))] == [
        *("-", "yes", "12", "1e-07", "x", "nan")
    ]


def test_rows_have_one_cell_per_column():
    with pytest.raises(ValueError, match=r"row 1 has 1 cells, expected 2"):
        Table("", ("a", "b"), ((1, 2), (3,)))
    assert Table("", ("a",), ()).to_markdown() == "| a |\n| --- |\n"
