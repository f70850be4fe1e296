"""The model card: README.md beside exported weights, with the front matter that the Hugging Face Hub reads."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import yaml

from region_training.run_folder import write_atomically
from region_training.tables import Table


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a reader of the weights should know.

    Attributes:
        title: The model's name.
        summary: What it is and does, in a few sentences.
        load: Python code that loads and uses it.
        data: What it was trained and evaluated on.
        scores: Results with baselines beside them, e.g. of `score_table`.
        config: The resolved configuration, as nested dicts.
        command: The command that trained it.
        limitations: What it is not for.
        license: The weights' licence, by the Hub's short name.
        tags: The Hub's tags.
        base_models: Names of the models it was made from.
        datasets: Names of the Hub's datasets it was trained on.
        pipeline_tag: The Hub's task name; None leaves it out.
    """

    title: str
    summary: str
    load: str
    data: str
    scores: Table | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    limitations: str = ""
    license: str = "apache-2.0"
    tags: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    pipeline_tag: str | None = None


def write_model_card(folder: Path, card: ModelCard) -> Path:
    """Write README.md into the folder of an exported model.

    Args:
        folder: The folder that `save_pretrained` wrote.
        card: The card.

    Returns:
        The file.
    """
    if not folder.is_dir():
        raise ValueError(f"got {str(folder)!r}, expected the folder of an exported model")
    front_matter: dict[str, object] = {
        "library_name": "transformers",
        "license": card.license,
        "pipeline_tag": card.pipeline_tag,
        "tags": list(card.tags),
        "base_model": list(card.base_models),
        "datasets": list(card.datasets),
    }
    config = yaml.safe_dump(dict(card.config), sort_keys=False, allow_unicode=True) if card.config else ""
    # Markdown, not HTML: the Hub cleans what it renders.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("region_training"),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("model_card.md.j2").render(
        front_matter=yaml.safe_dump({key: value for key, value in front_matter.items() if value}, sort_keys=False),
        card=card,
        scores="" if card.scores is None else card.scores.to_markdown(),
        config=config,
        fence=_fence(config, card.load, card.command),
    )
    path = folder / "README.md"
    write_atomically(path, text)
    return path


def _fence(*texts: str) -> str:
    """A code fence longer than any run of backticks in the texts."""
    longest = max((len(run) for text in texts for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
