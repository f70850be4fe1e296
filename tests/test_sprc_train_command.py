"""`sprc train` as a user runs it: everything in the run folder, both layouts, cached tokens, the best model."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

RETRIEVAL = ("loss/itc", "loss/rtc", "loss/align")
PARTS = ("vision_tower", "ln_vision", "qformer", "prompts", "projections", "region_branch")
WHO = {"model", "text only", "image only", "captions of others", "chance"}


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _training(run):
    return [line for line in _lines(run) if "loss/total" in line]


def _losses(run):
    return [{key: value for key, value in line.items() if key.startswith("loss/")} for line in _training(run)]


def _scores(run):
    return json.loads((run / "results.json").read_text())["scores"]


def test_the_run_folder_holds_everything(sprc_trained):
    assert {path.name for path in sprc_trained.iterdir()} >= {
        *("config.yaml", "environment.json", "metrics.jsonl", "parts.json", "results.json", "retrieved.jsonl"),
        *("retrieved.html", "report.html", "model", "processor", "checkpoint-2", "checkpoint-4"),
    }
    assert {path.name for path in (sprc_trained / "model").iterdir()} >= {
        *("config.json", "model.safetensors", "tokenizer.json", "README.md"),
    }
    assert not (sprc_trained / "bad_records.jsonl").exists()
    assert not (sprc_trained / "best").exists()
    assert not (sprc_trained / ".staging").exists()
    # A default that no file names is written as well.
    assert yaml.safe_load((sprc_trained / "config.yaml").read_text())["model"]["loss_region"] == 0.5


def test_every_loss_is_logged_and_the_region_loss_from_its_epoch_on(sprc_trained):
    lines = _training(sprc_trained)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line.keys() >= {*RETRIEVAL, "grad_norm", "lr/qformer", "time/step_s"}
        assert line["skipped_steps"] == 0
        has_regions = line["step"] > 2
        assert ("loss/region" in line) == has_regions
        total = line["loss/itc"] + 0.4 * (line["loss/rtc"] + line["loss/align"])
        total += 0.5 * line["loss/region"] if has_regions else 0.0
        assert line["loss/total"] == pytest.approx(total, rel=1e-5)
    assert lines[2]["loss/region"] > 0.1
    assert lines[2]["loss/region_pairs"] > 1
    reasons = ("no_partner", "not_visible", "too_small", "over_cap")
    assert lines[2].keys() >= {f"loss/region_dropped_{reason}" for reason in reasons}
    assert [line["step"] for line in _lines(sprc_trained) if "eval/Avg" in line] == [4]


def test_every_part_but_the_tower_is_trained(sprc_trained):
    parts = {part["name"]: part for part in json.loads((sprc_trained / "parts.json").read_text())}
    assert tuple(parts) == PARTS
    assert {name for name, part in parts.items() if not part["trainable"]} == {"vision_tower"}
    assert all(part["num_parameters"] > 0 for part in parts.values())


def test_results_stand_beside_half_queries_and_chance(sprc_trained):
    scores = _scores(sprc_trained)
    assert set(scores) == WHO
    for values in scores.values():
        assert values.keys() >= {"R@1", "R@5", "Rsub@1", "Avg"}
        assert all(0 <= value <= 100 for value in values.values())
    assert scores["chance"]["Rsub@1"] == pytest.approx(20.0)
    found = [json.loads(line) for line in (sprc_trained / "retrieved.jsonl").read_text().splitlines()]
    assert len(found) == 18
    assert all(len(record["found"]) == 3 and len(record["subset"]) == 5 for record in found)


@pytest.mark.parametrize("name", ["report.html", "retrieved.html"])
def test_the_pages_need_no_network(sprc_trained, name):
    page = (sprc_trained / name).read_text()
    # Names of XML namespaces are no addresses that a browser opens.
    links = set(re.findall(r"https?://[^\"'\s<)]+", page))
    assert not [link for link in links if not link.startswith("http://www.w3.org/")], links
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:|#)", page)
    assert all(who in page for who in WHO)


def test_the_model_opens_and_its_tower_is_frozen(sprc_trained):
    from sprc.loading import load_model

    model, tokenizer = load_model(sprc_trained, "cpu")
    text = tokenizer(["make it red"], padding="max_length", max_length=16, return_tensors="pt")
    tokens = model.image_tokens(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    query = model.compose(tokens, text["input_ids"], text["attention_mask"])
    torch.testing.assert_close(query.norm(dim=-1), torch.ones(1))
    assert not any(parameter.requires_grad for parameter in model.vision_tower.parameters())


def test_the_same_command_again_says_that_the_run_is_finished(sprc_trained, sprc_small, sprc_commands, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in sprc_trained.rglob("*") if path.is_file()}
    changed = sprc_small.train(sprc_trained, "--training.learning_rate", "0.5")
    (code, output), (refused, why) = sprc_commands([sprc_small.train(sprc_trained), changed], tmp_path)
    assert code == 0
    assert "is finished" in output
    assert refused == 1
    assert "training.learning_rate: 0.001 -> 0.5" in why
    assert "Traceback" not in why
    assert {path: path.stat().st_mtime_ns for path in sprc_trained.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def cached(sprc_small, sprc_commands, tmp_path_factory):
    """A run that reads the tower's tokens from a cache, evaluates twice and keeps the best model."""
    folder = tmp_path_factory.mktemp("sprc-cached")
    words = sprc_small.train(
        folder / "run",
        *("--data.token_cache", str(folder / "tokens"), "--save-best", "true", "--training.evaluate_every", "2"),
    )
    ((code, output),) = sprc_commands([words], folder / "ranks")
    assert code == 0, output
    return folder


def test_cached_tokens_train_as_images_do(sprc_trained, cached):
    assert {path.name for path in (cached / "tokens").iterdir()} == {"train", "val"}
    live, from_cache = _losses(sprc_trained), _losses(cached / "run")
    assert len(live) == len(from_cache) == 4
    for line, other in zip(live, from_cache, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            # Not to the bit: the cache keeps 16 of 32 bits, a rounding of 1/2048 of each token.
            assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_a_run_in_bf16_knows_its_own_cache_afterwards(cached, sprc_small, sprc_commands, tmp_path):
    """The engine casts the tower; a key from before would refuse `cache` and the next run."""
    tokens = str(tmp_path / "tokens")
    quick = ("--training.precision", "bf16", "--training.max_steps", "1", "--data.token_cache", tokens)
    words = [sprc_small.train(tmp_path / name, *quick) for name in ("first", "second")]
    keep = ["cache", str(tmp_path / "first"), tokens, "--split", "val", "--device", "cpu"]
    for code, output in sprc_commands([words[0], keep, words[1]], tmp_path / "ranks"):
        assert code == 0, output
    header = json.loads((tmp_path / "tokens" / "val" / "cache.json").read_text())
    in_fp32 = json.loads((cached / "tokens" / "val" / "cache.json").read_text())
    assert header["key"]["weights"] != in_fp32["key"]["weights"]


def test_save_best_keeps_the_best_evaluation(cached):
    from sprc.model import SPRCModel

    run = cached / "run"
    evaluated = {line["step"]: line["eval/Avg"] for line in _lines(run) if "eval/Avg" in line}
    assert list(evaluated) == [2, 4]
    best = json.loads((run / "best" / "best.json").read_text())
    assert best["score"] == pytest.approx(max(evaluated.values()))
    assert evaluated[best["step"]] == pytest.approx(best["score"])
    SPRCModel.from_pretrained(run / "best")
    mine, last = (load_file(run / name / "model.safetensors") for name in ("best", "model"))
    assert mine.keys() == last.keys()
    same = all(torch.equal(value, last[name]) for name, value in mine.items())
    assert same == (best["step"] == 4)


def test_fashioniq_trains_in_its_own_layout(sprc_small, sprc_commands, tmp_path):
    root = tmp_path / "fashioniq"
    world = ("make-data", str(root), "--dataset", "FashionIQ", "--world.image_size", "48", "--world.edits", "2")
    words = sprc_small.train(
        tmp_path / "run",
        *("--data.root", str(root), "--data.dataset", "FashionIQ"),
        *("--data.box_file", str(root / "boxes" / "pairs.{split}.json")),
        *("--training.max_steps", "2", "--model.region_loss.start_epoch", "0"),
    )
    made, (code, output) = sprc_commands(
        [[*world, "--world.train_scenes", "9", "--world.eval_scenes", "9"], words], tmp_path / "ranks"
    )
    assert made[0] == 0, made[1]
    assert code == 0, output
    for line in _training(tmp_path / "run"):
        assert line.keys() >= {*RETRIEVAL, "loss/region"}
    scores = _scores(tmp_path / "run")
    assert set(scores) == WHO
    assert scores["model"].keys() >= {"R@10", "R@50", "Avg", *(f"{name} R@10" for name in ("dress", "shirt", "toptee"))}
    assert len((tmp_path / "run" / "retrieved.jsonl").read_text().splitlines()) == 18
    assert (tmp_path / "run" / "report.html").is_file()
