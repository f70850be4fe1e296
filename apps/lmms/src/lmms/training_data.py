"""What a training reads of a data set: its settings say what happens to bad records, and whether samples share rows."""

import logging
from pathlib import Path

from region_training.bad_records import BadRecordPolicy
from region_training.safe_dataset import SafeDataset

from lmms.data import VideoDataset
from lmms.packing import PackedDataset, plan_packs

logger = logging.getLogger(__name__)


def training_samples(dataset: VideoDataset, *, counted_in: Path, seed: int) -> SafeDataset | PackedDataset:
    """The samples of a data set, by its own settings.

    Args:
        dataset: The records.
        counted_in: The run's file of bad records.
        seed: Of the run; which records share a row follows from it.

    Raises:
        ValueError: The model's family cannot be packed.
    """
    data = dataset.settings
    policy = BadRecordPolicy(data.on_error, data.max_bad_fraction)
    safe = SafeDataset(dataset, policy, counted_in=counted_in, name_of=dataset.where)
    if not data.packing:
        return safe
    if not dataset.family.supports_packing:
        raise ValueError(f"data.packing: {dataset.family.model_type} has positions that packed rows cannot restart")
    plan = plan_packs(dataset, max_length=data.max_length, seed=seed)
    logger.info("packing: %d records in %d rows of up to %d tokens", len(dataset), len(plan), data.max_length)
    return PackedDataset(safe, plan, max_length=data.max_length)
