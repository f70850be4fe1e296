"""The two files that CIRR's test server takes, and a check that finds what the server would refuse.

Each file is one JSON dict: `"version"`, `"metric"`, and one key per pair id with a list of image names, the best first.
`recall` lists 50 images of the split, `recall_subset` the best 3 of the other members of the set. The reference is in
neither. The server takes files up to 5 MB.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from region_training.run_folder import write_atomically
from torch import Tensor

from sprc.index import GalleryIndex
from sprc.metrics import RetrievalQuery, check_members

VERSION = "rc2"
LIST_LENGTHS = {"recall": 50, "recall_subset": 3}
MAX_BYTES = 5_000_000
_SHOWN_PROBLEMS = 10


class SubmissionFiles(NamedTuple):
    """The files to upload.

    Attributes:
        recall: For R@k.
        subset: For Rsub@k.
    """

    recall: Path
    subset: Path


def write_cirr_submission(
    folder: Path | str,
    index: GalleryIndex,
    queries: Float[Tensor, "queries dim"],
    triplets: Sequence[RetrievalQuery],
) -> SubmissionFiles:
    """Rank the gallery for every query, write `recall.json` and `recall_subset.json`, and check them.

    Args:
        folder: Where to.
        index: All images of the split.
        queries: What the model composed, in the order of the triplets.
        triplets: All of the split; their targets are not looked at.

    Raises:
        ValueError: The counts differ, an image is unknown, or the gallery or a set is too small for the lists.
    """
    if len(queries) != len(triplets):
        raise ValueError(f"got {len(queries)} queries for {len(triplets)} triplets, expected one each")
    needed = LIST_LENGTHS["recall"] + 1
    if len(index) < needed:
        raise ValueError(
            f"the gallery has {len(index)} images, expected at least {needed}: a list of 50 and a reference"
        )
    for triplet in triplets:
        check_members(triplet)
    references = index.position_table([[triplet.reference] for triplet in triplets])
    members = index.position_table([triplet.members for triplet in triplets])
    best = index.search(queries, LIST_LENGTHS["recall"], exclude=references)
    in_set = index.search(queries, LIST_LENGTHS["recall_subset"], exclude=references, candidates=members)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = SubmissionFiles(folder / "recall.json", folder / "recall_subset.json")
    for path, metric, result in zip(files, LIST_LENGTHS, (best, in_set), strict=True):
        content: dict[str, object] = {"version": VERSION, "metric": metric}
        for triplet, row in zip(triplets, result.positions.tolist(), strict=True):
            content[triplet.pair_id] = [index.names[position] for position in row if position >= 0]
        write_atomically(path, json.dumps(content, separators=(",", ":")))
        check_cirr_submission(path, triplets, gallery=index.names)
    return files


def check_cirr_submission(path: Path | str, triplets: Sequence[RetrievalQuery], *, gallery: Collection[str]) -> None:
    """Check a file as the server would, whoever wrote it.

    Args:
        path: Either of the two files; what it holds decides which.
        triplets: All of the split.
        gallery: The names of all images of the split.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is larger than 5 MB or no JSON dict, its version or metric is unknown, a pair id is
            missing or unknown or stands twice, or a list has the wrong length, an image twice, an image that is not in
            the split (or the set), or the reference. The message lists the first problems.
    """
    path = Path(path)
    size = path.stat().st_size
    if size >= MAX_BYTES:
        raise ValueError(f"{path}: has {size} bytes, expected less than {MAX_BYTES}")
    content = _read(path)
    for key, expected in (("version", (VERSION,)), ("metric", tuple(LIST_LENGTHS))):
        if content.get(key) not in expected:
            raise ValueError(f"{path}: {key!r} is {content.get(key)!r}, expected one of {expected}")
    metric = str(content["metric"])
    images = frozenset(gallery)
    pair_ids = [triplet.pair_id for triplet in triplets]
    unknown = [key for key in content if key not in {"version", "metric", *pair_ids}]
    problems = [f"pair {key!r} is not in the split" for key in unknown]
    for triplet in triplets:
        if triplet.pair_id not in content:
            problems.append(f"pair {triplet.pair_id!r} is missing")
            continue
        allowed = images if metric == "recall" else frozenset(triplet.members)
        problem = _problem_of(content[triplet.pair_id], triplet.reference, allowed, LIST_LENGTHS[metric])
        if problem:
            problems.append(f"pair {triplet.pair_id!r}: {problem}")
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        raise ValueError(f"{path}: {len(problems)} problems in {len(triplets)} pairs, the first are\n{shown}")


def _problem_of(names: object, reference: str, allowed: Collection[str], length: int) -> str:
    """What is wrong with one list; empty where nothing is."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"got {type(names).__name__}, expected a list of image names"
    if len(names) != length:
        return f"got {len(names)} images, expected {length}"
    if len(set(names)) != length:
        return f"the image {next(name for name in names if names.count(name) > 1)!r} stands twice"
    if reference in names:
        return f"the reference {reference!r} is in the list"
    strange = [name for name in names if name not in allowed]
    return f"the image {strange[0]!r} is not in the split or the set" if strange else ""


def _read(path: Path) -> Mapping[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file of a submission ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got {type(content).__name__}, expected a dict")
    return content


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in names if names.count(key) > 1)!r} stands twice")
    return content
