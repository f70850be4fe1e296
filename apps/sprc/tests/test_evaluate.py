"""Held-out recalls against a slow plain search, ranks that share the work, and `sprc evaluate`."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from region_training.ranks import Ranks
from region_training.run_folder import RunFolder
from sprc.cli import main
from sprc.encoding import compose_queries, encode_gallery
from sprc.evaluate import CHANCE, MODEL, SHUFFLED, Evaluation, RetrievedRecord, evaluate, others
from sprc.index import GalleryIndex

EPSILON = 1e-5
"""Scores closer than this may change places between two ways to compute them."""


class PlainRanks:
    """The lowest and the highest rank that a query's target may have, by a loop over images and their vectors."""

    def __init__(self, world, dataset):
        names, triplets = dataset.split.gallery, dataset.split.triplets
        features = encode_gallery(world.model, names, dataset.read_input, batch_size=8).double().numpy()
        self.features = dict(zip(names, features, strict=True))
        captions = [dataset.evaluation_caption(triplet) for triplet in triplets]
        references = [triplet.reference for triplet in triplets]
        queries = compose_queries(
            world.model, world.tokenizer, references, {"model": captions}, dataset.read_input, batch_size=8
        )
        self.queries = queries["model"].double().numpy()

    def window(self, row, target, images):
        score = {
            name: max(float(np.dot(self.queries[row], vector)) for vector in self.features[name]) for name in images
        }
        rivals = [score[name] - score[target] for name in images if name != target]
        return 1 + sum(rival > EPSILON for rival in rivals), 1 + sum(rival >= -EPSILON for rival in rivals)


def _check_ranks(ranks, windows):
    for rank, (lowest, highest) in zip(ranks, windows, strict=True):
        assert lowest <= rank <= highest
    # Otherwise the comparison above would say little.
    assert sum(lowest == highest for lowest, highest in windows) >= 0.8 * len(windows)


def _recall(ranks, k):
    return 100 * sum(rank <= k for rank in ranks) / len(ranks)


@pytest.fixture(scope="module")
def cirr_evaluation(cirr):
    return evaluate(cirr.model, cirr.tokenizer, cirr.open(), cirr.settings.evaluation)


def test_cirr_is_as_a_plain_search(cirr, cirr_evaluation):
    dataset = cirr.open()
    plain, triplets, records = PlainRanks(cirr, dataset), dataset.split.triplets, cirr_evaluation.records
    assert [record.pair_id for record in records] == [triplet.pair_id for triplet in triplets]
    whole, subsets = [], []
    for row, triplet in enumerate(triplets):
        gallery = [name for name in dataset.split.gallery if name != triplet.reference]
        members = [name for name in triplet.members if name != triplet.reference]
        assert len(members) == 5
        whole.append(plain.window(row, triplet.target, gallery))
        subsets.append(plain.window(row, triplet.target, members))
    ranks, subset_ranks = [record.rank for record in records], [record.subset_rank for record in records]
    _check_ranks(ranks, whole)
    _check_ranks(subset_ranks, subsets)
    wanted = {f"R@{k}": _recall(ranks, k) for k in (1, 5, 10, 50)}
    wanted |= {f"Rsub@{k}": _recall(subset_ranks, k) for k in (1, 2, 3)}
    wanted["Avg"] = (wanted["R@5"] + wanted["Rsub@1"]) / 2
    assert cirr_evaluation.scores[MODEL] == pytest.approx(wanted)
    assert cirr_evaluation.headline == pytest.approx(wanted["Avg"])


def test_fashioniq_is_as_a_plain_search_in_each_category(world_of):
    world = world_of("FashionIQ")
    dataset = world.open()
    # More than the gallery of a category has.
    evaluation = evaluate(world.model, world.tokenizer, dataset, replace(world.settings.evaluation, top_k=20))
    plain, by_category = PlainRanks(world, dataset), {}
    for row, (triplet, record) in enumerate(zip(dataset.split.triplets, evaluation.records, strict=True)):
        gallery = dataset.split.category_galleries[triplet.category]
        # The candidate is kept.
        assert triplet.reference in gallery
        assert set(record.found) == set(gallery)
        assert record.pair_id == triplet.pair_id
        by_category.setdefault(triplet.category, []).append((record.rank, plain.window(row, triplet.target, gallery)))
    assert set(by_category) == {"dress", "shirt", "toptee"}
    _check_ranks(*zip(*(pair for pairs in by_category.values() for pair in pairs), strict=True))
    for k in (10, 50):
        recalls = {category: _recall([rank for rank, _ in own], k) for category, own in by_category.items()}
        for category, recall in recalls.items():
            assert evaluation.scores[MODEL][f"{category} R@{k}"] == pytest.approx(recall)
        assert evaluation.scores[MODEL][f"R@{k}"] == pytest.approx(np.mean(list(recalls.values())))
    assert "candidate kept" in evaluation.protocol
    assert {record.subset for record in evaluation.records} == {()}


def test_what_was_found_is_in_order_and_agrees_with_the_rank(cirr, cirr_evaluation):
    for triplet, record in zip(cirr.open().split.triplets, cirr_evaluation.records, strict=True):
        assert len(record.found) == cirr.settings.evaluation.top_k == 3
        assert list(record.similarities) == sorted(record.similarities, reverse=True)
        assert triplet.reference not in (*record.found, *record.subset)
        assert (triplet.target in record.found) == (record.rank <= 3)
        if record.rank <= 3:
            assert record.found[record.rank - 1] == triplet.target
        assert sorted(record.subset) == sorted(set(triplet.members) - {triplet.reference})
        assert record.subset[record.subset_rank - 1] == triplet.target


def test_the_baselines_stand_beside_the_model(cirr, cirr_evaluation):
    who = [MODEL, SHUFFLED, "text only", "image only", CHANCE]
    assert sorted(cirr_evaluation.scores) == sorted(who)
    table = cirr_evaluation.table()
    assert table.columns == ("measure", *cirr_evaluation.scores)
    assert [row[0] for row in table.rows] == list(cirr_evaluation.scores[MODEL])
    assert "48 held-out queries" in table.title
    # 59 images without the reference, and five members.
    assert cirr_evaluation.scores[CHANCE]["R@5"] == pytest.approx(500 / 59)
    assert cirr_evaluation.scores[CHANCE]["Rsub@1"] == 20.0


def test_without_ablations_the_model_and_chance_are_left(cirr, cirr_evaluation):
    settings = replace(cirr.settings.evaluation, ablations=False, batch_size=48)
    alone = evaluate(cirr.model, cirr.tokenizer, cirr.open(), settings)
    assert set(alone.scores) == {MODEL, CHANCE}
    assert alone.scores[MODEL] == pytest.approx(cirr_evaluation.scores[MODEL], abs=5)


@pytest.mark.parametrize("count", [2, 3, 7, 48])
def test_every_query_gets_the_caption_of_another(count):
    captions = [f"caption {row}" for row in range(count)]
    shuffled = others(captions)
    assert sorted(shuffled) == sorted(captions)
    assert all(mine != other for mine, other in zip(captions, shuffled, strict=True))
    assert others(captions) == shuffled


def test_a_single_query_has_no_other():
    assert others(["alone"]) == ["alone"]


def test_the_headline_is_the_average_or_the_mean_of_all():
    assert Evaluation({MODEL: {"R@1": 10.0, "Avg": 40.0}}, "", []).headline == 40.0
    assert Evaluation({MODEL: {"R@1": 10.0, "R@5": 20.0}}, "", []).headline == 15.0


def test_two_ranks_find_what_one_finds(cirr, cirr_evaluation):
    """Each rank encodes its share; what is ranked is everything."""
    seen = []

    class TwoRanks(Ranks):
        def __init__(self, rank):  # without a process group
            self.rank, self.world_size, self.turn = rank, 2, 0

        def gather(self, own):
            # The first pass only keeps every share; the second one joins them.
            key = (self.turn, self.rank)
            self.turn += 1
            shares.setdefault(key, own)
            other = shares.get((key[0], 1 - self.rank), own)
            return [own, other] if self.rank == 0 else [other, own]

    shares = {}
    for rank in (0, 1, 0):
        seen.append(evaluate(cirr.model, cirr.tokenizer, cirr.open(), cirr.settings.evaluation, ranks=TwoRanks(rank)))
    for evaluation in seen[1:]:
        for mine, whole in zip(evaluation.records, cirr_evaluation.records, strict=True):
            assert mine.similarities == pytest.approx(whole.similarities, abs=EPSILON)


@pytest.fixture
def searched_on(monkeypatch):
    """The devices that galleries are put on."""
    devices, plain = [], GalleryIndex.to

    def to(index, device):
        devices.append(device)
        return plain(index, device)

    monkeypatch.setattr(GalleryIndex, "to", to)
    return devices


def test_every_search_is_on_the_models_device(cirr, tmp_path, searched_on):
    evaluate(cirr.model, cirr.tokenizer, cirr.open(), cirr.settings.evaluation)
    run = cirr.begin_run(tmp_path / "run").path
    image = next((cirr.root / "img_raw/dev").glob("*.png"))
    words = ["--device", "cpu", "--output"]
    assert main(["submit", str(run), *words, str(tmp_path / "files")]) == 0
    asked = [
        "--image",
        str(image),
        "--text",
        "is red",
        "--gallery",
        str(image.parent),
        "--index",
        str(tmp_path / "kept"),
    ]
    for _ in range(2):  # made, then read again
        assert main(["predict", str(run), *words, str(tmp_path / "found.html"), *asked]) == 0
    assert searched_on == [cirr.model.device] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["CIRR", "FashionIQ"])
def test_a_gpu_finds_what_the_cpu_finds(world_of, searched_on, name):
    world = world_of(name)
    settings = world.settings.evaluation
    expected = evaluate(world.model, world.tokenizer, world.open(), settings)
    model = copy.deepcopy(world.model).to("cuda")
    found = evaluate(model, world.tokenizer, world.open(), settings)
    assert [torch.device(device).type for device in searched_on] == ["cpu", "cuda"]
    for mine, other in zip(found.records, expected.records, strict=True):
        assert mine.similarities == pytest.approx(other.similarities, abs=1e-4)
    same = sum(mine.rank == other.rank for mine, other in zip(found.records, expected.records, strict=True))
    assert same >= 0.8 * len(expected.records)


@pytest.fixture
def run(cirr, tmp_path):
    return cirr.begin_run(tmp_path / "run")


def test_the_command_writes_scores_records_sheet_and_report(run, cirr_evaluation, capsys):
    assert main(["evaluate", str(run.path), "--batch_size", "16", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "48 held-out queries" in shown
    assert "text only" in shown
    assert run.read_results()["scores"][MODEL] == pytest.approx(cirr_evaluation.scores[MODEL], abs=5)
    assert len((run.path / "retrieved.jsonl").read_text().splitlines()) == 48
    assert run.report_path.is_file()
    assert "evaluated on `val`" in " ".join((run.model_path / "README.md").read_text().split())
    assert (run.path / "retrieved.html").is_file()


def test_another_split_is_written_beside_the_runs_own(run, capsys):
    assert main(["evaluate", str(run.path), "--split", "train", "--ablations", "false", "--device", "cpu"]) == 0
    assert "24 held-out queries" in capsys.readouterr().out
    assert not run.is_finished
    assert not (run.model_path / "README.md").exists()
    beside = RunFolder.open(run.path / "evaluations" / "train")
    assert set(beside.read_results()["scores"]) == {MODEL, CHANCE}
    first = json.loads((beside.path / "retrieved.jsonl").read_text().splitlines()[0])
    assert set(first) == {field for field in RetrievedRecord.__dataclass_fields__}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no run at 'nowhere'"),
        (["RUN", "--split", "test"], "test.json"),
        (["RUN", "--split", "test1"], "has no target: a test split is scored by its server"),
    ],
)
def test_what_is_not_there_is_one_message(run, capsys, words, message):
    assert main(["evaluate", *(str(run.path) if word == "RUN" else word for word in words), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_run_without_a_model_says_so(run, capsys):
    (run.model_path / "model.safetensors").unlink()
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 1
    assert "is the run finished?" in capsys.readouterr().err
