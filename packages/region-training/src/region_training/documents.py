"""What a Markdown document claims, in pieces, for tests that hold it to the code."""

import re
from pathlib import Path


def section(path: Path, heading: str) -> str:
    """The text behind a heading, up to the next one of its rank.

    Raises:
        ValueError: The document has no such heading.
    """
    before, found, behind = path.read_text(encoding="utf-8").partition(f"{heading}\n")
    if not found or (before and not before.endswith("\n")):
        raise ValueError(f"{path}: no heading {heading!r}")
    rank = heading.partition(" ")[0]
    return re.split(rf"^{rank} ", behind, maxsplit=1, flags=re.MULTILINE)[0]


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def code_words(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


def table_rows(text: str, number: int = 0) -> list[list[str]]:
    """Cells of one of a text's tables, without its head.

    Args:
        text: A document or a section of it.
        number: Which of its tables, from 0.

    Raises:
        ValueError: There is no such table.
    """
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    if number >= len(tables):
        raise ValueError(f"got {len(tables)} tables, expected one of number {number}")
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in tables[number].splitlines()[2:]]
