"""Small tables that print alike in the terminal, in Markdown and in the report; scores with the baselines beside them.

A score says nothing alone, so `score_table` takes the baselines (majority, text-only, ...) and adds what the model
gains over the best of them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

Cell = str | int | float | None
FILE_WIDTH = 200
"""Characters in a line where no terminal sets a limit; rich takes 80 there and cuts columns."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        title: A heading; may be empty.
        columns: Their names.
        rows: One cell per column; None is shown as a dash.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        """Check the shape.

        Raises:
            ValueError: A row has more or fewer cells than there are columns.
        """
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {index} has {len(row)} cells, expected {len(self.columns)}: {self.columns}")

    def texts(self) -> list[list[str]]:
        """The cells as they are shown."""
        return [[format_cell(cell) for cell in row] for row in self.rows]

    def numeric_columns(self) -> list[bool]:
        """Which columns hold no text, and are set to the right."""
        return [
            bool(self.rows) and not any(isinstance(row[column], str) for row in self.rows)
            for column in range(len(self.columns))
        ]

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown, without the title."""
        rules = ["---:" if numeric else "---" for numeric in self.numeric_columns()]
        lines = [self.columns, rules, *self.texts()]
        return "".join(f"| {' | '.join(_markdown_cell(cell) for cell in line)} |\n" for line in lines)

    def show(self) -> None:
        """Print the table on standard output."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=FILE_WIDTH)
        console.print(self.to_rich())

    def to_rich(self) -> RichTable:
        """The table for rich's console."""
        table = RichTable(title=escape(self.title) or None, title_justify="left")
        for name, numeric in zip(self.columns, self.numeric_columns(), strict=True):
            table.add_column(escape(name), justify="right" if numeric else "left")
        for row in self.texts():
            table.add_row(*(escape(cell) for cell in row))
        return table


def score_table(
    scores: Mapping[str, float],
    *,
    baselines: Mapping[str, Mapping[str, float]],
    title: str = "scores",
    lower_is_better: Collection[str] = (),
) -> Table:
    """Scores with the baselines beside them.

    Args:
        scores: The model's, by metric.
        baselines: Name of the baseline -> its scores; metrics it does not have show a dash.
        title: The table's heading.
        lower_is_better: Metrics where less is better, such as errors.

    Returns:
        Columns: metric (with an arrow to the better side), model, each baseline, gain. The gain is the distance to the
        best baseline, positive where the model is better.
    """
    rows: list[tuple[Cell, ...]] = []
    for metric, score in scores.items():
        beside = [values.get(metric) for values in baselines.values()]
        known = [value for value in beside if value is not None]
        less = metric in lower_is_better
        gain: Cell = None
        if known:
            gain = min(known) - score if less else score - max(known)
        rows.append((f"{metric} {'↓' if less else '↑'}", score, *beside, gain))
    return Table(title, ("metric", "model", *baselines, "gain over best baseline"), tuple(rows))


def format_cell(cell: Cell) -> str:
    """One cell: numbers with four significant digits, None as a dash."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
