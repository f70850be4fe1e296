"""Pieces of a Markdown document."""

import pytest
from region_training.documents import code_blocks, code_words, section, table_rows

TEXT = """# Title

| a | b |
|---|---|
| `x` | 1 |

## One

### Below

```python
print(1)
```

| c |
|---|
| `y`, `z` |

## Two

last
"""


def test_sections_tables_and_code_are_found(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(TEXT)
    one = section(path, "## One")
    assert "last" not in one
    assert code_blocks(one, "python") == ["print(1)\n"]
    assert code_blocks(one, "yaml") == []
    assert table_rows(one) == [["`y`, `z`"]]
    assert code_words(table_rows(one)[0][0]) == ["y", "z"]
    assert table_rows(TEXT, 1) == table_rows(section(path, "### Below"))
    assert section(path, "## Two").strip() == "last"


def test_what_is_not_there_is_an_error(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(TEXT)
    with pytest.raises(ValueError, match="no heading '# One'"):
        section(path, "# One")
    with pytest.raises(ValueError, match="got 2 tables, expected one of number 2"):
        table_rows(TEXT, 2)
