"""`psalm check-data`: read data sets from end to end before a training run does, and say what is in them."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from region_training.tables import Table
from rich.console import Console
from rich.progress import track

from psalm.data import SceneSource, SegmentationDataset, open_dataset
from psalm.samples import SegmentationSample
from psalm.verbs import CheckDataSettings

MAX_SHOWN = 20
COLUMNS = ("data", "records", "targets", "regions", "no target", "bad", "dropped")


@dataclass
class _Found:
    """What a source holds."""

    targets: int = 0
    regions: int = 0
    without_targets: int = 0
    bad: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, sample: SegmentationSample) -> None:
        self.targets += len(sample.masks)
        self.regions += 0 if sample.prompts is None else len(sample.prompts)
        self.without_targets += not len(sample.masks)
        self.dropped.update(dict(sample.dropped))


def check_data(settings: CheckDataSettings) -> int:
    """Decode every record the way training does: images, masks, prompts, at the model's input size.

    Only augmentation is off: what it crops away is no finding.

    Returns:
        Exit code: 0 when everything can be read, 1 when something can't.

    Raises:
        ValueError: A file itself is faulty, or there is nothing to read; the message names file, record and key.
        OSError: A file cannot be read.
    """
    dataset = open_dataset(replace(settings.data, augment=False), settings.split, training=True)
    found, faults = _read_all(dataset, settings.split)
    console = Console()
    rows = tuple(_row(source, own) for source, own in zip(dataset.sources, found, strict=True))
    Table(settings.split, COLUMNS, rows).show()
    for fault in faults[:MAX_SHOWN]:
        console.print(f"bad: {fault['reason']}", markup=False, style="red")
    if len(faults) > MAX_SHOWN:
        console.print(f"... and {len(faults) - MAX_SHOWN} more", style="red")
    if settings.report is not None:
        Path(settings.report).write_text("".join(json.dumps(fault) + "\n" for fault in faults))
    return 1 if faults else 0


def _read_all(dataset: SegmentationDataset, split: str) -> tuple[list[_Found], list[dict[str, str]]]:
    """What each source holds, and the records that cannot be read."""
    found = {id(source): _Found() for source in dataset.sources}
    faults: list[dict[str, str]] = []
    for index in track(range(len(dataset)), description=f"reading {split}"):
        source = dataset.source_of(index)
        own = found[id(source)]
        try:
            own.add(dataset[index])
        except (ValueError, OSError) as error:
            own.bad += 1
            faults.append(
                {"mode": source.mode, "source": source.name, "record": dataset.where(index), "reason": str(error)}
            )
    return list(found.values()), faults


def _row(source: SceneSource, found: _Found) -> tuple[str | int, ...]:
    dropped = ", ".join(f"{reason}: {count}" for reason, count in sorted(found.dropped.items())) or "none"
    return (
        source.mode if source.mode == source.name else f"{source.mode}/{source.name}",
        len(source),
        found.targets,
        found.regions,
        found.without_targets,
        found.bad,
        dropped,
    )
