"""What the documents say of this application is run, resolved or looked up here, so that no claim outlives the code."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lmms import guide_config
from lmms.building import parts_of
from lmms.cli import APPLICATION
from lmms.evaluate import BLIND, MODEL, OTHERS, SHUFFLED
from lmms.manifest import ManifestEntry
from lmms.records import parse_record
from region_training.command_line import resolve_settings
from region_training.config_tree import flatten, plain_tree
from region_training.documents import code_blocks, code_words, section, table_rows
from region_training.presets import preset_names
from region_training.settings import ConfigError
from video_autoregressive.testing import write_clip

ROOT = Path(__file__).parents[3]
README, GUIDES, FORMATS = (
    ROOT / name for name in ("apps/lmms/README.md", "docs/from-the-guides.md", "docs/data-formats.md")
)
GUIDE = "## Guide 5: video and the reconstruction loss in lmms"
KEYS = "### Keys of the guide's YAML"
FLAGS = "### Flags of `lmms train`"


TEXT = README.read_text(encoding="utf-8")


# The page of the application -----------------------------------------------------------------------------------------


def test_the_page_begins_with_the_one_command():
    assert code_blocks(TEXT, "bash")[0] == "uv run lmms train\n"


@pytest.mark.parametrize("text", code_blocks(TEXT, "yaml"))
def test_configurations_resolve(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    resolve_settings(APPLICATION, "train", ["--config", str(tmp_path / "mine.yaml")])


def command_lines() -> list[list[str]]:
    lines = "\n".join(code_blocks(TEXT, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("lmms") + 1 :] for line in words if "lmms" in line]


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_commands_parse(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(code_blocks(TEXT, "yaml")[0])
    (tmp_path / "guide.yaml").write_text("- {type: trainer, config: {num_train_epochs: 2}}")
    verb, *rest = words
    if verb in APPLICATION.verbs:
        resolve_settings(APPLICATION, verb, rest)
    else:
        assert verb in ("show-config", "env")


def test_every_verb_is_shown():
    assert {words[0] for words in command_lines()} >= set(APPLICATION.verbs)


def test_the_presets_table_lists_every_preset():
    listed = [code_words(row[0])[0] for row in table_rows(section(README, "## Presets"))]
    assert sorted(listed) == preset_names(APPLICATION.presets_package)


def test_the_parts_are_the_models(toy):
    sentence = TEXT.partition("The parts of the model are")[2].partition(";")[0]
    assert code_words(sentence) == list(parts_of(toy.config()))


def test_who_answers_is_explained():
    (table,) = [text for text in TEXT.split("\n\n") if text.startswith("| row of the table |")]
    assert [code_words(row[0])[0] for row in table_rows(f"{table}\n")] == [MODEL, SHUFFLED, OTHERS, BLIND]


def test_the_records_of_the_page_are_read():
    for text in code_blocks(TEXT, "json"):
        for record in json.loads(text):
            assert parse_record(record, "example").videos == ("clips/000017.mp4",)


SNIPPETS = code_blocks(TEXT, "python")


def test_there_are_three_snippets():
    assert len(SNIPPETS) == 3


@pytest.fixture
def reader(toy, tmp_path: Path) -> Path:
    """Where a reader stands who has trained the small world: a run with a model, and a clip."""
    folder = tmp_path / "runs" / "lmms-tiny" / "model"
    toy.model().save_pretrained(folder)
    toy.processor.save_pretrained(folder)
    clip = tmp_path / "data" / "lmms-tiny" / "videos" / "val" / "000000.mp4"
    clip.parent.mkdir(parents=True)
    write_clip(clip, 12)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet, reader):
    (reader / "snippet.py").write_text(snippet)
    # A fresh process, as a reader has it: nothing is imported or registered yet.
    done = subprocess.run(
        [sys.executable, "snippet.py"], cwd=reader, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


# The page of the guides ----------------------------------------------------------------------------------------------


def test_every_item_of_the_guide_has_a_row():
    items = [row[0] for row in table_rows(section(GUIDES, GUIDE))]
    assert items == [f"V{number}" for number in range(1, len(items) + 1)]
    assert len(items) == 24


def test_names_of_code_in_the_guides_section_exist():
    found = re.findall(r"`((?:lmms|video_autoregressive)\.\w+)", section(GUIDES, GUIDE))
    assert len(found) >= 6
    for module, _, name in (dotted.partition(".") for dotted in found):
        assert name in dir(importlib.import_module(module)), f"{module}.{name}"


def test_tests_that_the_traps_name_exist():
    named = [code_words(row[-1])[0] for row in table_rows(section(GUIDES, GUIDE), 1) if code_words(row[-1])]
    assert len(named) >= 20
    for name in named:
        assert list(ROOT.glob(f"*/*/tests/{name}.py")), name


def test_the_keys_table_is_the_translations():
    stated: dict[str, str | None] = {}
    for key, target in table_rows(section(GUIDES, KEYS)):
        stated |= {name: code_words(target)[0] if code_words(target) else None for name in code_words(key)}
    known: dict[str, str | None] = dict(guide_config.TRAINING_KEYS)
    for prefix, table in (
        ("model_config", guide_config.MODEL_KEYS),
        ("dataset_config", guide_config.DATA_KEYS),
        ("dataset_config.processor_config", guide_config.PROCESSOR_KEYS),
        ("dataset_config.processor_config.extra_kwargs", guide_config.EXTRA_KEYS),
    ):
        known |= {f"{prefix}.{name}": target for name, target in table.items()}
    assert stated == known


@pytest.mark.parametrize(
    ("example", "target"), [pytest.param(*row[1:], id=row[0]) for row in table_rows(section(GUIDES, KEYS), 1)]
)
def test_keys_that_are_read_in_another_way(example, target, tmp_path):
    path = tmp_path / "guide.yaml"
    path.write_text("[{type: trainer, config: {" + code_words(example)[0] + "}}]")
    if target.startswith("refused"):
        with pytest.raises(ConfigError):
            resolve_settings(APPLICATION, "train", ["--config", str(path)])
        return
    settings = flatten(plain_tree(resolve_settings(APPLICATION, "train", ["--config", str(path)])))
    for stated in code_words(target):
        key, colon, value = stated.partition(": ")
        assert not colon or str(settings[key]) == value


def test_the_flags_table_is_the_applications():
    table = table_rows(section(GUIDES, FLAGS))
    sets = {code_words(flag)[0]: code_words(target)[0] if code_words(target) else None for flag, target, _ in table}
    assert sets == dict(APPLICATION.legacy_flags)


@pytest.mark.parametrize(
    ("flag", "target", "example"), [pytest.param(*row, id=row[0]) for row in table_rows(section(GUIDES, FLAGS))]
)
def test_examples_of_the_flags_table_set_what_it_says(flag, target, example, tmp_path):
    defaults = tmp_path / "defaults.yaml"
    defaults.write_text("")
    base, given = (
        flatten(plain_tree(resolve_settings(APPLICATION, "train", ["--config", str(defaults), *words])))
        for words in ([], shlex.split(code_words(example)[0]))
    )
    assert code_words(example)[0].replace("-", "_").startswith(code_words(flag)[0].replace("-", "_"))
    changed = [key for key in {*base, *given} if base.get(key) != given.get(key)]
    if target.startswith("no effect"):
        assert changed == []
    else:
        key = code_words(target)[0]
        assert changed
        assert all(name == key or name.startswith(f"{key}.") for name in changed), changed


# The page of the formats ---------------------------------------------------------------------------------------------


def test_records_of_the_formats_page_are_read():
    records = [parse_record(json.loads(text), "example") for text in code_blocks(section(FORMATS, "## Video"), "json")]
    assert [(record.videos, record.images) for record in records] == [
        (("clips/000017.mp4",), ()),
        (("clips/000017.mp4",), ("pictures/ball.png",)),
    ]
    assert records[0].kind == "direction"


def test_lines_of_the_manifest_are_read():
    (text,) = code_blocks(section(FORMATS, "### The manifest"), "text")
    good, bad = (ManifestEntry.from_row(json.loads(line), "example") for line in text.splitlines())
    assert good.info is not None
    assert good.info.num_frames == 240
    assert bad.error is not None
