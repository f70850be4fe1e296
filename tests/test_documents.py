"""What the documents say is run, resolved or looked up here, so that no claim outlives the code."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from psalm.cli import APPLICATION as PSALM
from region_training.command_line import resolve_settings
from region_training.config_tree import flatten, plain_tree
from region_training.presets import preset_names
from region_training.run_folder import HARMLESS_KEYS
from spatialrgpt.cli import APPLICATION
from sprc.cli import APPLICATION as SPRC

ROOT = Path(__file__).parents[1]
README, APP_README, PSALM_README, SPRC_README = (
    ROOT / name for name in ("README.md", "apps/spatialrgpt/README.md", "apps/psalm/README.md", "apps/sprc/README.md")
)
READMES = [(APPLICATION, APP_README), (PSALM, PSALM_README), (SPRC, SPRC_README)]
GUIDES, FORMATS, TROUBLE = (
    ROOT / "docs" / name for name in ("from-the-guides.md", "data-formats.md", "troubleshooting.md")
)
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "packages/*/*.md", "apps/*/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
PUBLIC_NAMES = {
    "deformable_projector": (
        *("multi_scale_deformable_attention", "MultiScaleDeformableCrossAttentionAlignment", "SwinConvProjector"),
        *("DeformableProjector", "adapt_projector_weights"),
    ),
    "region_core": (
        *("RegionFeatureExtractor", "build_region_enhancer", "split_enhanced_features", "FeatureRefinement"),
        *("mask_pool", "splice", "LossTerms", "all_gather_with_grad", "load_weights"),
    ),
    "region_heads": (
        *("TaskType", "route_question", "DistanceHead", "LeftRightHead", "MultipleChoiceHead", "CountingHead"),
        "RegionHeads",
    ),
    "roi_region_loss": ("extract_region_features", "compute_region_loss", "RegionContrastiveLoss"),
    "video_autoregressive": (
        *("MultiScaleVideoFrameLoader", "FrameLevelMaskGenerator", "FrameLayout", "VideoTokenLayout"),
        *("AutoregressiveReconstructionModule", "create_autoregressive_reconstruction_module"),
    ),
    "lmms": ("AutoregressiveTrainer", "VideoLMM", "VideoDataset", "VideoCollator", "load_model"),
}


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def table_rows(path: Path, heading: str) -> list[list[str]]:
    """Cells of the first table behind a heading, without its head."""
    section = path.read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None, f"{path.name}: no table behind {heading!r}"
    lines = table.group(0).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# Links ---------------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_names_a_machine(document):
    assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home|mnt)/", document.read_text(encoding="utf-8"))


# The two commands ----------------------------------------------------------------------------------------------------


def test_the_readme_opens_with_the_two_commands():
    first = re.search(r"```\w*\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert first.splitlines() == ["pip install uv && uv run spatialrgpt train", "uv run nox"]


def test_continuous_integration_runs_the_readmes_test_command():
    assert re.search(r"^(?:exec )?uv run nox$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


# Snippets ------------------------------------------------------------------------------------------------------------

SNIPPETS = [
    pytest.param(snippet, id=f"{path.parent.name}-{number}")
    for path in (README, APP_README, PSALM_README, SPRC_README)
    for number, snippet in enumerate(blocks(path, "python"))
]


def test_there_are_snippets():
    assert len(blocks(README, "python")) == 3
    assert len(blocks(APP_README, "python")) == 2
    assert len(blocks(PSALM_README, "python")) == 2
    assert len(blocks(SPRC_README, "python")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet, request, tmp_path):
    runs = {"spatialrgpt-tiny": "trained", "psalm-tiny": "psalm_trained", "sprc-tiny": "sprc_trained"}
    (tmp_path / "runs").mkdir()
    for name, fixture in runs.items():
        if f"runs/{name}" in snippet:
            (tmp_path / "runs" / name).symlink_to(request.getfixturevalue(fixture))
    (tmp_path / "snippet.py").write_text(snippet)
    # A fresh process, as a reader has it: nothing is imported or registered yet.
    done = subprocess.run(
        [sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("application", "text"), [(app, text) for app, path in READMES for text in blocks(path, "yaml")]
)
def test_configurations_of_the_readme_resolve(application, text, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text(text)
    resolve_settings(application, "train", ["--config", str(config)])


def command_lines(path: Path, command: str) -> list[list[str]]:
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index(command) + 1 :] for line in words if command in line]


@pytest.mark.parametrize(
    ("application", "words"),
    [
        pytest.param(app, words, id=f"{app.name} {' '.join(words)}")
        for app, path in READMES
        for words in command_lines(path, app.name)
    ],
)
def test_commands_of_the_readme_parse(application, words):
    verb, *rest = words
    if verb in application.verbs:
        resolve_settings(application, verb, rest)
    else:
        assert verb in ("show-config", "env")


# Tables --------------------------------------------------------------------------------------------------------------

FLAG_TABLES = [
    (APPLICATION, table_rows(GUIDES, "## Flags")),
    (SPRC, table_rows(GUIDES, "### Flags of `sprc train`")),
    (PSALM, table_rows(GUIDES, "### Flags of `psalm train`")),
]
REFUSED = "refused: "


@pytest.mark.parametrize(("application", "rows"), FLAG_TABLES)
def test_the_flags_table_is_the_applications(application, rows):
    sets = {codes(flag)[0]: codes(target)[0] if codes(target) else None for flag, target, _ in rows}
    assert sets == dict(application.legacy_flags)


@pytest.mark.parametrize(
    ("application", "flag", "target", "example"),
    [
        pytest.param(app, *row, id=f"{app.name} {codes(row[0])[0]}")
        for app, rows in FLAG_TABLES
        for row in rows
        if not row[2].startswith(REFUSED)
    ],
)
def test_examples_of_the_flags_table_set_what_it_says(application, flag, target, example, tmp_path):
    defaults = tmp_path / "defaults.yaml"
    # The region loss of sprc is refused without boxes.
    defaults.write_text("data: {box_file: boxes.json}" if application is SPRC else "")
    base, given = (
        flatten(plain_tree(resolve_settings(application, "train", ["--config", str(defaults), *words])))
        for words in ([], shlex.split(codes(example)[0]))
    )
    assert codes(example)[0].replace("-", "_").startswith(codes(flag)[0].replace("-", "_"))
    changed = [key for key in {*base, *given} if base.get(key) != given.get(key)]
    if target.startswith("no effect"):
        assert changed == []
    else:
        key, _, fixed = codes(target)[0].partition("=")
        assert changed
        assert not fixed or given[key] == fixed
        assert all(name == key or name.startswith(f"{key}.") for name in changed), changed


@pytest.mark.parametrize(
    ("application", "words", "reason"),
    [
        pytest.param(app, [*shlex.split(codes(flag)[0]), "x"], example.removeprefix(REFUSED), id=codes(flag)[0])
        for app, rows in FLAG_TABLES
        for flag, _, example in rows
        if example.startswith(REFUSED)
    ],
)
def test_refused_flags_of_the_flags_table_say_why(application, words, reason):
    with pytest.raises(ValueError, match=reason):
        resolve_settings(application, "train", words)


@pytest.mark.parametrize("guide", ["A", "B"])
def test_every_item_of_a_guide_has_a_row(guide):
    heading = {"A": "## Guide 1: the region enhancer", "B": "## Guide 2: region heads with dynamic routing"}[guide]
    items = [row[0] for row in table_rows(GUIDES, heading)]
    assert items == [f"{guide}{number}" for number in range(1, {"A": 16, "B": 15}[guide])]


def test_every_item_of_the_region_loss_guide_has_a_row():
    rows = table_rows(GUIDES, "## Guide 3: the RoI region loss in SPRC")
    assert [item for row in rows for item in row[0].split(", ")] == [f"S{number}" for number in range(1, 18)]


def test_every_item_of_the_deformable_projector_guide_has_a_row():
    rows = table_rows(GUIDES, "## Guide 4: the deformable projector in PSALM")
    assert [row[0] for row in rows] == [f"D{number}" for number in range(1, 19)]


def test_names_of_code_in_the_guides_table_exist():
    text = GUIDES.read_text(encoding="utf-8")
    bricks = "region_core|region_heads|deformable_projector|roi_region_loss|video_autoregressive"
    packages = f"{bricks}|spatialrgpt|psalm|sprc|lmms"
    found = re.findall(rf"`((?:{packages})\.\w+)", text)
    assert len(found) >= 8
    for module, _, name in (dotted.partition(".") for dotted in found):
        assert name in dir(importlib.import_module(module)), f"{module}.{name}"


@pytest.mark.parametrize(("application", "readme"), READMES)
def test_the_presets_table_lists_every_preset(application, readme):
    listed = [codes(row[0])[0] for row in table_rows(readme, "## Presets")]
    assert sorted(listed) == preset_names(application.presets_package)


def test_the_switches_table_states_the_defaults(tmp_path):
    config = tmp_path / "defaults.yaml"
    config.write_text("")
    defaults = flatten(plain_tree(resolve_settings(APPLICATION, "train", ["--config", str(config)])))
    tiny = flatten(plain_tree(resolve_settings(APPLICATION, "train", [])))
    words = {"on": True, "off": False}
    for setting, default, _ in table_rows(APP_README, "## Switches"):
        stated, _, exception = default.partition(" (`tiny`: ")
        assert defaults[codes(setting)[0]] == words.get(stated, stated if stated in words else _number(stated))
        if exception:
            assert tiny[codes(setting)[0]] == words[exception.rstrip(")")]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def test_the_parts_are_the_models():
    from spatialrgpt.building import PARTS

    section = APP_README.read_text(encoding="utf-8").partition("The model has six parts:")[2].partition(". ")[0]
    assert codes(section) == list(PARTS)


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
    rows = table_rows(PSALM_README, "## Parts of the model")
    assert {codes(part)[0]: int(number.replace(",", "")) for part, _, number in rows} == sizes


def test_the_modes_table_of_psalm_is_the_scores():
    from psalm.scoring import MAIN_MEASURE

    rows = table_rows(PSALM_README, "## Modes and scores")
    assert {codes(mode)[0]: measure for mode, _, measure, _ in rows} == MAIN_MEASURE


# Formats -------------------------------------------------------------------------------------------------------------


def test_regions_of_the_formats_page_are_read():
    from region_core import parse_region, region_to_mask

    examples = [json.loads(block) for block in blocks(FORMATS, "json")]
    (regions,) = (example for example in examples if isinstance(example, list))
    for region in regions:
        height, width = region["rle"]["size"] if "rle" in region else (1080, 1920)
        assert region_to_mask(parse_region(region, where="example"), height=height, width=width).any()


def test_answers_of_the_formats_page_are_read():
    from region_heads import parse_label, parse_task

    rows = table_rows(FORMATS, "### Answers")
    assert len(rows) == 4
    for task, _, examples in rows:
        values = {parse_label(parse_task(task), json.loads(value), 3).value for value in codes(examples)}
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
        (example,) = [block for block in blocks(FORMATS, "json") if f'"{key}"' in block]
        (tmp_path / "list.json").write_text(f"[{example}]")
        source = reader(tmp_path / "list.json")
        assert len(source) == {"instruction": 2}.get(key, 1)
        scene = source.load(0)
        assert len(scene.masks) == {"image1_info": 2}.get(key, 1)
        assert scene.prompts is None or scene.prompts.any()
        assert not scene.dropped


def test_own_segmentation_records_of_the_formats_page_are_read(tmp_path):
    from psalm import OwnFile, OwnSource

    (lines,) = blocks(FORMATS, "jsonl")
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

    section = FORMATS.read_text(encoding="utf-8").partition("### predictions/")[2].partition("Keys of a line:")[2]
    names = {entry.name for record in (EvaluatedRecord, FoundMask) for entry in fields(record)}
    assert names <= set(codes(section))


def test_loss_terms_of_psalm_are_listed():
    from psalm.criterion import CONDITION_LOSSES, LOSS_DICE, LOSS_MASK

    section = FORMATS.read_text(encoding="utf-8").partition("The terms of `psalm` are")[2].partition("each")[0]
    assert set(codes(section)) == {LOSS_MASK, LOSS_DICE, *CONDITION_LOSSES.values()}


def test_keys_that_a_run_may_change_are_listed():
    sentence = FORMATS.read_text(encoding="utf-8").partition("only\n")[2].partition(" may change")[0]
    assert {f"training.{name.removeprefix('training.')}" for name in codes(sentence)} == HARMLESS_KEYS


def test_loss_terms_are_listed():
    from region_heads.losses import TASK_TERMS

    listed = codes(FORMATS.read_text(encoding="utf-8").partition("`loss/TERM` (")[2].partition(")")[0])
    assert set(listed) == {"lm", *(name for names in TASK_TERMS.values() for name in names)}


@pytest.mark.slow
def test_the_run_folder_is_as_described(trained):
    documented = {name for row in table_rows(FORMATS, "## The run folder") for name in codes(row[0])}
    documented = {name.rstrip("/").partition("/")[0] for name in documented}
    present = {re.sub(r"^checkpoint-\d+$", "checkpoint-N", path.name) for path in trained.iterdir()}
    assert present <= documented
    assert documented - present <= {"bad_records.jsonl", "evaluations"}
    shown = {line.split()[0] for line in blocks(README, "text")[0].splitlines()}
    assert {re.sub(r"-\d+$", "-N", name.rstrip("/").partition("/")[0]) for name in shown} <= documented


@pytest.mark.slow
def test_the_run_folder_of_psalm_is_as_described(psalm_trained):
    tables = ("## The run folder", "### predictions/")
    documented = {name for heading in tables for row in table_rows(FORMATS, heading) for name in codes(row[0])}
    top = {name.rstrip("/").partition("/")[0] for name in documented}
    present = {re.sub(r"^checkpoint-\d+$", "checkpoint-N", path.name) for path in psalm_trained.iterdir()}
    assert present <= top
    assert top - present <= {"bad_records.jsonl", "answers.jsonl", "evaluations"}
    own = {name for name in documented if name.startswith("predictions/") and "*" not in name}
    assert {f"predictions/{path.name}" for path in (psalm_trained / "predictions").glob("*.json*")} == own


@pytest.mark.slow
def test_the_run_folder_of_lmms_is_as_described(lmms_trained):
    tables = ("## The run folder", "### Files of `lmms`")
    documented = {name for heading in tables for row in table_rows(FORMATS, heading) for name in codes(row[0])}
    top = {name.rstrip("/").partition("/")[0] for name in documented}
    present = {re.sub(r"^checkpoint-\d+$", "checkpoint-N", path.name) for path in lmms_trained.iterdir()}
    assert present <= top
    assert top - present <= {"bad_records.jsonl", "evaluations", "process.json"}
    section = FORMATS.read_text(encoding="utf-8").partition("### Files of `lmms`")[2]
    listed = codes(section.partition("Keys of a line of its `answers.jsonl`:")[2])
    assert set(json.loads((lmms_trained / "answers.jsonl").read_text().splitlines()[0])) == set(listed[:6])


@pytest.mark.slow
def test_the_lines_of_a_run_of_lmms_are_as_described(lmms_trained):
    text = FORMATS.read_text(encoding="utf-8").partition("### metrics.jsonl")[2].partition("### answers")[0]
    known = {*codes(text), *(f"loss/{name}" for name in codes(text))}
    for line in (lmms_trained / "metrics.jsonl").read_text().splitlines():
        own = {key for key in json.loads(line) if not key.startswith(("lr/", "eval/"))}
        assert own <= known


@pytest.mark.slow
def test_the_lines_of_a_run_are_as_described(trained):
    listed = {name for row in table_rows(FORMATS, "### answers.jsonl") for name in codes(row[0])}
    assert set(json.loads((trained / "answers.jsonl").read_text().splitlines()[0])) == listed
    text = FORMATS.read_text(encoding="utf-8").partition("### metrics.jsonl")[2].partition("### answers")[0]
    known = set(codes(text))
    for line in (trained / "metrics.jsonl").read_text().splitlines():
        for key in json.loads(line):
            family, slash, name = key.partition("/")
            assert key in known or (slash and (family in ("lr", "eval") or (family == "loss" and name in known))), key


# Messages and counts -------------------------------------------------------------------------------------------------


def test_messages_of_the_troubleshooting_page_are_in_the_code():
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("*/*/src/**/*.py")]
    headings = re.findall(r"^## (.*`.*)$", TROUBLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) >= 10
    for heading in headings:
        for message in codes(heading):
            for piece in filter(None, (part.strip() for part in message.split("…"))):
                assert any(piece in source for source in sources), piece


def test_the_lines_that_the_command_line_costs():
    text = (ROOT / "docs" / "decisions" / "0002-command-line.md").read_text(encoding="utf-8")
    stated, names = re.search(r"About ([\d,]+) lines in five modules \(([^)]*)\)", text).groups()
    folder = ROOT / "packages" / "region-training" / "src" / "region_training"
    lines = sum(len((folder / f"{name}.py").read_text().splitlines()) for name in codes(names))
    assert abs(lines / int(stated.replace(",", "")) - 1) < 0.15, lines


@pytest.mark.parametrize("package", PUBLIC_NAMES)
def test_names_of_the_design_are_public(package):
    module = importlib.import_module(package)
    for name in PUBLIC_NAMES[package]:
        assert name in dir(module)
        assert getattr(module, name).__name__ == name
