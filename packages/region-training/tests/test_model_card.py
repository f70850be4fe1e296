import pytest
import yaml
from region_training.model_card import ModelCard, write_model_card
from region_training.tables import score_table


def test_the_card_has_front_matter_results_and_the_way_to_load_it(tmp_path):
    card = ModelCard(
        title="Toy: regions",
        summary="It answers.",
        load="from transformers import AutoModel\nmodel = AutoModel.from_pretrained('.')",
        data="Drawn scenes.",
        scores=score_table({"accuracy": 0.9}, baselines={"majority": {"accuracy": 0.5}}),
        config={"training": {"seed": 3}, "note": "```\nfence"},
        command="toy train",
        limitations="Not for driving.",
        tags=("regions", "a: b"),
        base_models=("org/base",),
    )
    text = write_model_card(tmp_path, card).read_text(encoding="utf-8")
    assert (tmp_path / "README.md").is_file()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["regions", "a: b"],
        "base_model": ["org/base"],
    }
    assert body.startswith("\n# Toy: regions\n\nIt answers.\n")
    assert "````python\nfrom transformers import AutoModel\nmodel" in body
    assert "| accuracy ↑ | 0.9 | 0.5 | 0.4 |" in body
    assert "````bash\ntoy train\n````" in body
    assert yaml.safe_load(body.split("````yaml\n")[1].split("````")[0]) == card.config
    assert "## Limitations\n\nNot for driving.\n" in body


def test_what_is_not_given_is_left_out(tmp_path):
    card = ModelCard(title="t", summary="s", load="x = 1", data="d")
    text = write_model_card(tmp_path, card).read_text(encoding="utf-8")
    assert text == (
        "---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n\n# t\n\ns\n\n## How to load it\n\n"
        "```python\nx = 1\n```\n\n## Data\n\nd\n"
    )


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(ValueError, match="expected the folder of an exported model"):
        write_model_card(tmp_path / "no", ModelCard(title="t", summary="s", load="", data=""))
