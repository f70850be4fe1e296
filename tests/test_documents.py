"""What the documents say is run, resolved or looked up here, so that no claim outlives the code."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from psalm.cli import APPLICATION as PSALM
from region_training.command_line import resolve_settings
from region_training.config_tree import flatten, plain_tree
from region_training.documents import code_blocks, code_words, section, table_rows
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
    for number, snippet in enumerate(code_blocks(path.read_text(encoding="utf-8"), "python"))
]


def test_there_are_snippets():
    assert len(code_blocks(README.read_text(encoding="utf-8"), "python")) == 3
    assert len(code_blocks(APP_README.read_text(encoding="utf-8"), "python")) == 2
    assert len(code_blocks(PSALM_README.read_text(encoding="utf-8"), "python")) == 2
    assert len(code_blocks(SPRC_README.read_text(encoding="utf-8"), "python")) == 2


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
    ("application", "text"),
    [(app, text) for app, path in READMES for text in code_blocks(path.read_text(encoding="utf-8"), "yaml")],
)
def test_configurations_of_the_readme_resolve(application, text, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text(text)
    resolve_settings(application, "train", ["--config", str(config)])


def command_lines(path: Path, command: str) -> list[list[str]]:
    lines = "\n".join(code_blocks(path.read_text(encoding="utf-8"), "bash")).replace("\\\n", " ").splitlines()
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
    (APPLICATION, table_rows(section(GUIDES, "## Flags"))),
    (SPRC, table_rows(section(GUIDES, "### Flags of `sprc train`"))),
    (PSALM, table_rows(section(GUIDES, "### Flags of `psalm train`"))),
]
REFUSED = "refused: "


@pytest.mark.parametrize(("application", "rows"), FLAG_TABLES)
def test_the_flags_table_is_the_applications(application, rows):
    sets = {code_words(flag)[0]: code_words(target)[0] if code_words(target) else None for flag, target, _ in rows}
    assert sets == dict(application.legacy_flags)


@pytest.mark.parametrize(
    ("application", "flag", "target", "example"),
    [
        pytest.param(app, *row, id=f"{app.name} {code_words(row[0])[0]}")
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
        for words in ([], shlex.split(code_words(example)[0]))
    )
    assert code_words(example)[0].replace("-", "_").startswith(code_words(flag)[0].replace("-", "_"))
    changed = [key for key in {*base, *given} if base.get(key) != given.get(key)]
    if target.startswith("no effect"):
        assert changed == []
    else:
        key, _, fixed = code_words(target)[0].partition("=")
        assert changed
        assert not fixed or given[key] == fixed
        assert all(name == key or name.startswith(f"{key}.") for name in changed), changed


@pytest.mark.parametrize(
    ("application", "words", "reason"),
    [
        pytest.param(
            app, [*shlex.split(code_words(flag)[0]), "x"], example.removeprefix(REFUSED), id=code_words(flag)[0]
        )
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
    items = [row[0] for row in table_rows(section(GUIDES, heading))]
    assert items == [f"{guide}{number}" for number in range(1, {"A": 16, "B": 15}[guide])]


def test_every_item_of_the_region_loss_guide_has_a_row():
    rows = table_rows(section(GUIDES, "## Guide 3: the RoI region loss in SPRC"))
    assert [item for row in rows for item in row[0].split(", ")] == [f"S{number}" for number in range(1, 18)]


def test_every_item_of_the_deformable_projector_guide_has_a_row():
    rows = table_rows(section(GUIDES, "## Guide 4: the deformable projector in PSALM"))
    assert [row[0] for row in rows] == [f"D{number}" for number in range(1, 19)]


def test_names_of_code_in_the_guides_table_exist():
    text = GUIDES.read_text(encoding="utf-8")
    bricks = "region_core|region_heads|deformable_projector|roi_region_loss|video_autoregressive"
    packages = f"{bricks}|spatialrgpt|psalm|sprc|lmms"
    found = re.findall(rf"`((?:{packages})\.\w+)", text)
    assert len(found) >= 8
    for module, _, name in (dotted.partition(".") for dotted in found):
        assert name in dir(importlib.import_module(module)), f"{module}.{name}"


# Messages and counts -------------------------------------------------------------------------------------------------


def test_messages_of_the_troubleshooting_page_are_in_the_code():
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("*/*/src/**/*.py")]
    headings = re.findall(r"^## (.*`.*)$", TROUBLE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) >= 10
    for heading in headings:
        for message in code_words(heading):
            for piece in filter(None, (part.strip() for part in message.split("…"))):
                assert any(piece in source for source in sources), piece


def test_the_lines_that_the_command_line_costs():
    text = (ROOT / "docs" / "decisions" / "0002-command-line.md").read_text(encoding="utf-8")
    stated, names = re.search(r"About ([\d,]+) lines in five modules \(([^)]*)\)", text).groups()
    folder = ROOT / "packages" / "region-training" / "src" / "region_training"
    lines = sum(len((folder / f"{name}.py").read_text().splitlines()) for name in code_words(names))
    assert abs(lines / int(stated.replace(",", "")) - 1) < 0.15, lines


@pytest.mark.parametrize("package", PUBLIC_NAMES)
def test_names_of_the_design_are_public(package):
    module = importlib.import_module(package)
    for name in PUBLIC_NAMES[package]:
        assert name in dir(module)
        assert getattr(module, name).__name__ == name
