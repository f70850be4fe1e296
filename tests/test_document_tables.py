"""The tables of the documents are looked up in the code, and their examples are read: files, formats, parts, scores."""

import json
import re
from pathlib import Path

import pytest
from psalm.cli import APPLICATION as PSALM
from region_training.command_line import resolve_settings
from region_training.config_tree import flatten, plain_tree
from region_training.documents import code_blocks, code_words, section, table_rows
from region_training.presets import preset_names
from region_training.run_folder import HARMLESS_KEYS
from spatialrgpt.cli import APPLICATION
from sprc.cli import APPLICATION as SPRC

ROOT = Path(__file__).parents[1]
README, APP_README, PSALM_README, SPRC_README = (
    ROOT / name for name in ("README.md", "apps/spatialrgpt/README.md", "apps/psalm/README.md", "apps/sprc/README.md")
)
READMES = [(APPLICATION, APP_README), (PSALM, PSALM_README), (SPRC, SPRC_README)]
FORMATS = ROOT / "docs" / "data-formats.md"


@pytest.mark.parametrize(("application", "readme"), READMES)
def test_the_presets_table_lists_every_preset(application, readme):
    listed = [code_words(row[0])[0] for row in table_rows(section(readme, "## Presets"))]
    assert sorted(listed) == preset_names(application.presets_package)


def test_the_switches_table_states_the_defaults(tmp_path):
    config = tmp_path / "defaults.yaml"
    config.write_text("")
    defaults = flatten(plain_tree(resolve_settings(APPLICATION, "train", ["--config", str(config)])))
    tiny = flatten(plain_tree(resolve_settings(APPLICATION, "train", [])))
    words = {"on": True, "off": False}
    for setting, default, _ in table_rows(section(APP_README, "## Switches")):
        stated, _, exception = default.partition(" (`tiny`: ")
        assert defaults[code_words(setting)[0]] == words.get(stated, stated if stated in words else _number(stated))
        if exception:
            assert tiny[code_words(setting)[0]] == words[exception.rstrip(")")]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def test_the_parts_are_the_models():
    from spatialrgpt.building import PARTS

    text = APP_README.read_text(encoding="utf-8").partition("The model has six parts:")[2].partition(". ")[0]
    assert code_words(text) == list(PARTS)


@pytest.mark.slow
def test_the_parts_table_of_psalm_is_the_models():
    import torch
    from psalm.building import PARTS, parts_of
    from psalm.configuration import SWIN_COMMON, SWIN_SIZES, PSALMConfig
    from psalm.model import PSALMModel
    from transformers import PhiConfig

    # The defaults of Phi are the sizes of Phi-1.5.
    swin = {**SWIN_COMMON, **SWIN_SIZES["base"]}
    config = PSALMConfig(
        swin_config=swin, language_config=PhiConfig(), region_geometry=True, region_levels=True, mask_places=True
    )
    with torch.device("meta"):
        model = PSALMModel(config)
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        (part,) = [part for part, prefixes in parts_of(config).items() if name.startswith(prefixes)]
        sizes[part] += parameter.numel()
    rows = table_rows(section(PSALM_README, "## Parts of the model"))
    assert {code_words(part)[0]: int(number.replace(",", "")) for part, _, number in rows} == sizes


def test_the_modes_table_of_psalm_is_the_scores():
    from psalm.scoring import MAIN_MEASURE

    rows = table_rows(section(PSALM_README, "## Modes and scores"))
    assert {code_words(mode)[0]: measure for mode, _, measure, _ in rows} == MAIN_MEASURE


# Formats -------------------------------------------------------------------------------------------------------------


def test_regions_of_the_formats_page_are_read():
    from region_core import parse_region, region_to_mask

    examples = [json.loads(block) for block in code_blocks(FORMATS.read_text(encoding="utf-8"), "json")]
    (regions,) = (example for example in examples if isinstance(example, list))
    for region in regions:
        height, width = region["rle"]["size"] if "rle" in region else (1080, 1920)
        assert region_to_mask(parse_region(region, where="example"), height=height, width=width).any()


def test_answers_of_the_formats_page_are_read():
    from region_heads import parse_label, parse_task

    rows = table_rows(section(FORMATS, "### Answers"))
    assert len(rows) == 4
    for task, _, examples in rows:
        values = {parse_label(parse_task(task), json.loads(value), 3).value for value in code_words(examples)}
        assert values


def save_picture(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (640, 480)).save(path)


def test_segmentation_records_of_the_formats_page_are_read(tmp_path):
    from psalm import CrossImageSource, InteractiveSource, ReferringSource

    readers = {
        "instruction": lambda file: ReferringSource(file, tmp_path, name="refcoco", ref_mode="per_sentence"),
        "point_visual_prompt_mask": lambda file: InteractiveSource(file, tmp_path, types=("point", "box")),
        "first_frame_image": lambda file: CrossImageSource(file, tmp_path, types=("point",)),
        "image1_info": lambda file: CrossImageSource(file, tmp_path, types=("point",)),
    }
    for name in ("COCO_train2014_000000000042.jpg", "000000000042.jpg", "clip/00000.jpg", "clip/00010.jpg"):
        save_picture(tmp_path / name)
    save_picture(tmp_path / "a.jpg")
    save_picture(tmp_path / "b.jpg")
    for key, reader in readers.items():
        (example,) = [
            block for block in code_blocks(FORMATS.read_text(encoding="utf-8"), "json") if f'"{key}"' in block
        ]
        (tmp_path / "list.json").write_text(f"[{example}]")
        source = reader(tmp_path / "list.json")
        assert len(source) == {"instruction": 2}.get(key, 1)
        scene = source.load(0)
        assert len(scene.masks) == {"image1_info": 2}.get(key, 1)
        assert scene.prompts is None or scene.prompts.any()
        assert not scene.dropped


def test_own_segmentation_records_of_the_formats_page_are_read(tmp_path):
    from psalm import OwnFile, OwnSource

    (lines,) = code_blocks(FORMATS.read_text(encoding="utf-8"), "jsonl")
    (tmp_path / "own.jsonl").write_text(lines)
    save_picture(tmp_path / "a.jpg")
    save_picture(tmp_path / "b.jpg")
    own = OwnFile(tmp_path / "own.jsonl", tmp_path)
    found = {mode: OwnSource(own, mode).load(0) for mode in own.modes()}
    assert {mode: len(scene.masks) for mode, scene in found.items()} == {
        **{"panoptic": 2, "semantic": 2, "instance": 1},
        **{"referring": 1, "region": 1, "cross_image": 1},
    }


def test_keys_of_a_prediction_are_listed():
    from dataclasses import fields

    from psalm.records import EvaluatedRecord, FoundMask

    text = FORMATS.read_text(encoding="utf-8").partition("### predictions/")[2].partition("Keys of a line:")[2]
    names = {entry.name for record in (EvaluatedRecord, FoundMask) for entry in fields(record)}
    assert names <= set(code_words(text))


def test_loss_terms_of_psalm_are_listed():
    from psalm.criterion import CONDITION_LOSSES, LOSS_DICE, LOSS_MASK

    text = FORMATS.read_text(encoding="utf-8").partition("The terms of `psalm` are")[2].partition("each")[0]
    assert set(code_words(text)) == {LOSS_MASK, LOSS_DICE, *CONDITION_LOSSES.values()}


def test_keys_that_a_run_may_change_are_listed():
    sentence = FORMATS.read_text(encoding="utf-8").partition("only\n")[2].partition(" may change")[0]
    assert {f"training.{name.removeprefix('training.')}" for name in code_words(sentence)} == HARMLESS_KEYS


def test_loss_terms_are_listed():
    from region_heads.losses import TASK_TERMS

    listed = code_words(FORMATS.read_text(encoding="utf-8").partition("`loss/TERM` (")[2].partition(")")[0])
    assert set(listed) == {"lm", *(name for names in TASK_TERMS.values() for name in names)}


@pytest.mark.slow
def test_the_run_folder_is_as_described(trained):
    documented = {name for row in table_rows(section(FORMATS, "## The run folder")) for name in code_words(row[0])}
    documented = {name.rstrip("/").partition("/")[0] for name in documented}
    present = {re.sub(r"^checkpoint-\d+$", "checkpoint-N", path.name) for path in trained.iterdir()}
    assert present <= documented
    assert documented - present <= {"bad_records.jsonl", "evaluations"}
    shown = {line.split()[0] for line in code_blocks(README.read_text(encoding="utf-8"), "text")[0].splitlines()}
    assert {re.sub(r"-\d+$", "-N", name.rstrip("/").partition("/")[0]) for name in shown} <= documented


@pytest.mark.slow
def test_the_run_folder_of_psalm_is_as_described(psalm_trained):
    tables = ("## The run folder", "### predictions/")
    documented = {
        name for heading in tables for row in table_rows(section(FORMATS, heading)) for name in code_words(row[0])
    }
    top = {name.rstrip("/").partition("/")[0] for name in documented}
    present = {re.sub(r"^checkpoint-\d+$", "checkpoint-N", path.name) for path in psalm_trained.iterdir()}
    assert present <= top
    assert top - present <= {"bad_records.jsonl", "answers.jsonl", "evaluations"}
    own = {name for name in documented if name.startswith("predictions/") and "*" not in name}
    assert {f"predictions/{path.name}" for path in (psalm_trained / "predictions").glob("*.json*")} == own


@pytest.mark.slow
def test_the_run_folder_of_lmms_is_as_described(lmms_trained):
    tables = ("## The run folder", "### Files of `lmms`")
    documented = {
        name for heading in tables for row in table_rows(section(FORMATS, heading)) for name in code_words(row[0])
    }
    top = {name.rstrip("/").partition("/")[0] for name in documented}
    present = {re.sub(r"^checkpoint-\d+$", "checkpoint-N", path.name) for path in lmms_trained.iterdir()}
    assert present <= top
    assert top - present <= {"bad_records.jsonl", "evaluations", "process.json"}
    text = FORMATS.read_text(encoding="utf-8").partition("### Files of `lmms`")[2]
    listed = code_words(text.partition("Keys of a line of its `answers.jsonl`:")[2])
    assert set(json.loads((lmms_trained / "answers.jsonl").read_text().splitlines()[0])) == set(listed[:6])


@pytest.mark.slow
def test_the_lines_of_a_run_of_lmms_are_as_described(lmms_trained):
    text = FORMATS.read_text(encoding="utf-8").partition("### metrics.jsonl")[2].partition("### answers")[0]
    known = {*code_words(text), *(f"loss/{name}" for name in code_words(text))}
    for line in (lmms_trained / "metrics.jsonl").read_text().splitlines():
        own = {key for key in json.loads(line) if not key.startswith(("lr/", "eval/"))}
        assert own <= known


@pytest.mark.slow
def test_the_lines_of_a_run_are_as_described(trained):
    listed = {name for row in table_rows(section(FORMATS, "### answers.jsonl")) for name in code_words(row[0])}
    assert set(json.loads((trained / "answers.jsonl").read_text().splitlines()[0])) == listed
    text = FORMATS.read_text(encoding="utf-8").partition("### metrics.jsonl")[2].partition("### answers")[0]
    known = set(code_words(text))
    for line in (trained / "metrics.jsonl").read_text().splitlines():
        for key in json.loads(line):
            family, slash, name = key.partition("/")
            assert key in known or (slash and (family in ("lr", "eval") or (family == "loss" and name in known))), key
