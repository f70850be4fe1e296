"""`spatialrgpt check-data`: read a split from end to end before a training run does, and say what is in it."""

import json
from collections import Counter
from pathlib import Path

from region_heads.routing import explain_route
from region_heads.tasks import UNKNOWN_TASK, TaskType
from region_training.tables import Table
from rich.console import Console
from rich.progress import track

from spatialrgpt.building import build_config
from spatialrgpt.config import ModelSettings
from spatialrgpt.data import RegionDataset, read_texts
from spatialrgpt.processing import SpatialRGPTProcessor
from spatialrgpt.tokenizer import train_tokenizer
from spatialrgpt.verbs import CheckDataSettings

MAX_SHOWN = 20


def check_data(settings: CheckDataSettings) -> int:
    """Decode every record with its images, depth maps and masks.

    Returns:
        Exit code: 0 when all records can be read, 1 when some can't.
    """
    root = Path(settings.root)
    texts = read_texts(root / f"{settings.split}.json")
    tokenizer = train_tokenizer(texts, ModelSettings().vocabulary_size)
    processor = SpatialRGPTProcessor.for_model(build_config(ModelSettings(), tokenizer), tokenizer)
    dataset = RegionDataset(root, settings.split, processor, max_length=10**9)
    tasks: Counter[str] = Counter()
    routes: Counter[str] = Counter()
    regions: Counter[int] = Counter()
    with_depth = 0
    faults: list[dict[str, object]] = []
    for index in track(range(len(dataset)), description=f"reading {settings.split}"):
        try:
            sample = dataset[index]
        except (ValueError, OSError) as error:
            faults.append({"index": index, "id": dataset.records[index].get("id"), "reason": str(error)})
            continue
        tasks["unknown" if sample.task_type == UNKNOWN_TASK else TaskType(sample.task_type).label] += 1
        question, category = dataset.question(index), dataset.category(index)
        routes[explain_route(question, num_regions=len(sample.region_masks), category=category).source] += 1
        regions[len(sample.region_masks)] += 1
        with_depth += bool(len(sample.depths))
    console = Console()
    _summary(len(dataset), len(faults), with_depth, tasks, routes, regions).show()
    for fault in faults[:MAX_SHOWN]:
        console.print(f"bad: {fault['reason']}", markup=False, style="red")
    if len(faults) > MAX_SHOWN:
        console.print(f"... and {len(faults) - MAX_SHOWN} more", style="red")
    if settings.report is not None:
        Path(settings.report).write_text("".join(json.dumps(fault) + "\n" for fault in faults))
    return 1 if faults else 0


def _summary(
    num_records: int,
    num_faults: int,
    with_depth: int,
    tasks: Counter[str],
    routes: Counter[str],
    regions: Counter[int],
) -> Table:
    rows: list[tuple[str, str]] = [
        ("records", str(num_records)),
        ("bad records", str(num_faults)),
        ("with depth", str(with_depth)),
        ("tasks", _listed(tasks)),
        ("routed by", _listed(routes)),
        ("regions per record", _listed(dict(sorted(regions.items())))),
    ]
    return Table("data", ("what", "found"), tuple(rows))


def _listed(counts: dict) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
