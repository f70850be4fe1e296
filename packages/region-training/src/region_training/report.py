"""The report of a run: one HTML file with its numbers, curves and pictures inside, readable without a network.

Everything that comes from data or configuration is escaped; the page's own content policy forbids scripts and any
address but the pictures inside it.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import yaml
from matplotlib.figure import Figure

from region_training.config_tree import flatten
from region_training.curves import learning_rate_curves, loss_curves, time_and_memory_curves
from region_training.environment import describe_environment
from region_training.records import read_records
from region_training.run_folder import RunFolder, write_atomically
from region_training.tables import Cell, Table

_PICTURE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        title: Its heading.
        text: Plain text; empty lines divide paragraphs.
        table: A table below the text.
        figures: Caption -> matplotlib figure.
        images: Caption -> PNG or JPEG file.
        code: Text that keeps its spaces, such as a configuration.
        collapsed: Whether it opens on a click.
    """

    title: str
    text: str = ""
    table: Table | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)
    code: str = ""
    collapsed: bool = False


def write_report(run: RunFolder, sections: Sequence[Section] = ()) -> Path:
    """Write `report.html` of a run, from what lies in its folder and the application's own sections.

    Args:
        run: The run.
        sections: The application's, shown between the summary and the curves. Pictures in `samples/` that none of
            them shows follow in a section of their own.

    Returns:
        The file.

    Raises:
        ValueError: A picture is neither PNG nor JPEG, or a file of the run is damaged.
    """
    shown = {path.resolve() for section in sections for path in section.images.values()}
    samples = {path.stem: path for path in run.samples() if path.resolve() not in shown}
    everything = [
        _summary(run),
        *sections,
        *([Section("Samples", images=samples)] if samples else []),
        *_standard_sections(run),
    ]
    # Autoescape by hand: jinja2's own choice by suffix would not know ".j2".
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("region_training"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        title=run.path.resolve().name, sections=[_rendered(section) for section in everything]
    )
    write_atomically(run.report_path, page)
    return run.report_path


def _summary(run: RunFolder) -> Section:
    metrics = run.read_metrics()
    steps = [line["step"] for line in metrics if "step" in line]
    state = "Finished" if run.is_finished else "Not finished"
    text = f"{state}; {steps[-1]} steps logged." if steps else f"{state}; no step logged."
    return Section("Summary", text)


def _standard_sections(run: RunFolder) -> list[Section]:
    metrics = run.read_metrics()
    curves = {
        "Losses": (
            "Every term has its own scale, before its weight. Thin lines are the logged values, thick ones the mean "
            "of as many past values as the heading says.",
            loss_curves(metrics),
        ),
        "Learning rates": ("", learning_rate_curves(metrics)),
        "Time and memory": ("", time_and_memory_curves(metrics)),
    }
    sections = [
        Section(title, text, figures={title: figure}) for title, (text, figure) in curves.items() if figure is not None
    ]
    parts = run.path / "parts.json"
    if parts.is_file():
        text = "What is trained and how fast. A learning rate of 0 is a frozen part."
        sections.append(Section("Parts of the model", text, _records_table(read_records(parts))))
    if run.bad_records_path.is_file():
        bad = {line["index"]: line for line in read_records(run.bad_records_path)}
        text = f"{len(bad)} records could not be read; a neighbour stood in for each."
        sections.append(Section("Bad records", text, _records_table(list(bad.values())[:100]), collapsed=True))
    rows = tuple((name, _cell(value)) for name, value in flatten(run.read_results()).items())
    if rows:
        sections.append(Section("All results", table=Table("", ("result", "value"), rows), collapsed=True))
    config = yaml.safe_dump(run.read_config(), sort_keys=False, allow_unicode=True)
    sections.append(Section("Configuration", code=config, collapsed=True))
    environment = run.read_environment()
    if environment:
        sections.append(Section("Environment", code=describe_environment(environment), collapsed=True))
    return sections


def _records_table(records: Sequence[Mapping[str, object]]) -> Table:
    columns = tuple(dict.fromkeys(key for record in records for key in record))
    rows = tuple(tuple(_cell(record.get(column)) for column in columns) for record in records)
    return Table("", tuple(column.replace("_", " ") for column in columns), rows)


def _cell(value: object) -> Cell:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def _rendered(section: Section) -> dict[str, object]:
    """What the template needs, with every picture as a data address."""
    pictures = [(caption, _data_address(_png(figure), caption)) for caption, figure in section.figures.items()]
    pictures += [(caption, _data_address(path.read_bytes(), str(path))) for caption, path in section.images.items()]
    return {
        "title": section.title,
        "paragraphs": [" ".join(part.split()) for part in section.text.split("\n\n") if part.strip()],
        "table": section.table,
        "columns": [] if section.table is None else section.table.numeric_columns(),
        "pictures": pictures,
        "code": section.code,
        "collapsed": section.collapsed,
    }


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _data_address(content: bytes, where: str) -> str:
    for start, kind in _PICTURE_TYPES.items():
        if content.startswith(start):
            return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    raise ValueError(f"picture {where!r} starts with {content[:8]!r}, expected a PNG or JPEG file")
