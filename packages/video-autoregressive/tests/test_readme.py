import ast
import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest
from video_autoregressive.config import AutoregressiveConfig, VideoTokenConfig
from video_autoregressive.token_layout import VideoTokenLayout

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def rows_behind(heading: str) -> list[list[str]]:
    """Cells of the first table behind a heading, without its head."""
    table = re.search(r"(?:^\|.*\n)+", TEXT.partition(heading)[2], re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.group(0).splitlines()[2:]]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_there_are_five_snippets():
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_snippets_of_the_readme_run(snippet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "snippet.py"
    path.write_text(snippet)
    runpy.run_path(str(path))


def test_the_table_of_tokens_is_counted():
    rows = rows_behind("## Frames as tokens")
    assert len(rows) == 6
    for settings, *counts in rows:
        call = ast.parse(f"f({codes(settings)[0]})", mode="eval").body
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        layout = VideoTokenLayout(VideoTokenConfig(**given))
        assert [f"{layout.num_tokens(frames, (27, 27)):,}" for frames in (32, 64)] == counts


def test_the_table_of_settings_states_every_key_with_its_default():
    stated: dict[str, str] = {}
    for keys, defaults, _ in rows_behind("## Settings of the module"):
        stated |= dict(zip(codes(keys), codes(defaults), strict=True))
    assert stated == {entry.name: repr(entry.default) for entry in fields(AutoregressiveConfig)}
