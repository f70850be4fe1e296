import json
from typing import NamedTuple

import pytest
import torch
from sprc.index import GalleryIndex
from sprc.submission import check_cirr_submission, write_cirr_submission
from torch.nn import functional as F

NAMES = [f"test1-{i}-0-img0" for i in range(60)]


class Query(NamedTuple):
    pair_id: str
    reference: str
    members: tuple[str, ...]
    target: str | None = None


TRIPLETS = [Query(str(100 + i), NAMES[3 * i], tuple(NAMES[3 * i : 3 * i + 6])) for i in range(5)]


@pytest.fixture
def index():
    features = torch.randn(60, 3, 8, generator=torch.Generator().manual_seed(0))
    return GalleryIndex(NAMES, F.normalize(features, dim=-1))


@pytest.fixture
def files(index, tmp_path):
    return write_cirr_submission(tmp_path / "submission", index, queries(), TRIPLETS)


def queries():
    return F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_the_servers_form(index, files):
    scores = torch.einsum("md,nqd->mnq", queries(), index.features).amax(dim=2)
    recall, subset = (json.loads(path.read_text()) for path in files)
    assert (recall["version"], recall["metric"]) == ("rc2", "recall")
    assert (subset["version"], subset["metric"]) == ("rc2", "recall_subset")
    # version and metric beside the pairs: 4,150 keys for CIRR's 4,148.
    assert len(recall) == len(subset) == 7
    for row, triplet in enumerate(TRIPLETS):
        order = [NAMES[i] for i in scores[row].argsort(descending=True).tolist() if NAMES[i] != triplet.reference]
        assert recall[triplet.pair_id] == order[:50]
        assert subset[triplet.pair_id] == [name for name in order if name in triplet.members][:3]


def test_what_cannot_be_written(index, tmp_path):
    with pytest.raises(ValueError, match="got 4 queries for 5 triplets"):
        write_cirr_submission(tmp_path, index, queries()[:4], TRIPLETS)
    small = index.select(NAMES[:50])
    with pytest.raises(ValueError, match="the gallery has 50 images, expected at least 51"):
        write_cirr_submission(tmp_path, small, queries(), TRIPLETS)
    strange = [*TRIPLETS[:4], TRIPLETS[4]._replace(reference="x")]
    with pytest.raises(ValueError, match="triplet '104': the reference 'x' is not among the members"):
        write_cirr_submission(tmp_path, index, queries(), strange)
    few = [*TRIPLETS[:4], TRIPLETS[4]._replace(members=TRIPLETS[4].members[:3])]
    with pytest.raises(ValueError, match="pair '104': got 2 images, expected 3"):
        write_cirr_submission(tmp_path, index, queries(), few)


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("101"), "pair '101' is missing"),
        (lambda content: content.update({"999": []}), "pair '999' is not in the split"),
        (lambda content: content["102"].pop(), "pair '102': got 49 images, expected 50"),
        (lambda content: content["102"].__setitem__(4, content["102"][5]), "stands twice"),
        (lambda content: content["102"].__setitem__(4, NAMES[6]), "the reference 'test1-6-0-img0' is in the list"),
        (lambda content: content["102"].__setitem__(4, "dev-1"), "the image 'dev-1' is not in the split"),
        (lambda content: content.update({"102": "dev"}), "got str, expected a list of image names"),
        (lambda content: content["102"].__setitem__(4, 7), "got list, expected a list of image names"),
        (lambda content: content.update(version="rc1"), "'version' is 'rc1'"),
        (lambda content: content.pop("metric"), "'metric' is None"),
        (lambda content: content.update(x="y" * 5_000_000), "expected less than 5000000"),
    ],
)
def test_what_the_server_would_refuse(files, change, message):
    check_cirr_submission(files.recall, TRIPLETS, gallery=NAMES)
    with pytest.raises(ValueError, match=message):
        check_cirr_submission(changed(files.recall, change), TRIPLETS, gallery=NAMES)


def test_a_subset_holds_members_only(files):
    def stranger(content):
        content["100"][2] = NAMES[59]

    with pytest.raises(ValueError, match="is not in the split or the set"):
        check_cirr_submission(changed(files.subset, stranger), TRIPLETS, gallery=NAMES)


def test_all_problems_are_counted_and_the_first_shown(files):
    def cut(content):
        content.update({triplet.pair_id: [] for triplet in TRIPLETS})
        content.update({f"9{i}": [] for i in range(9)})

    with pytest.raises(ValueError, match="14 problems in 5 pairs") as refused:
        check_cirr_submission(changed(files.recall, cut), TRIPLETS, gallery=NAMES)
    assert str(refused.value).count("\n") == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "got list, expected a dict"), ("{", "not a JSON file"), ('{"a": 1, "a": 2}', "the key 'a' stands twice")],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "recall.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        check_cirr_submission(path, TRIPLETS, gallery=NAMES)
    with pytest.raises(FileNotFoundError):
        check_cirr_submission(tmp_path / "absent.json", TRIPLETS, gallery=NAMES)
