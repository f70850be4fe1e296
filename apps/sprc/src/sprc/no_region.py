"""What the region loss adds to retrieval: a run without it, evaluated beside one with it.

Boxes take no part in a search, so one model alone cannot tell. It takes two runs on the same triplets and images, and
one protocol for both.
"""

import logging
from dataclasses import replace

from region_training.config_tree import flatten, plain_tree
from region_training.loading import model_folder
from region_training.run_folder import HARMLESS_KEYS, RunFolder
from region_training.settings import ConfigError

from sprc.config import DataSettings, Device, EvaluationSettings, Settings
from sprc.configuration import SPRCConfig
from sprc.evaluate import MODEL, Evaluation, evaluate
from sprc.fingerprint import fingerprint
from sprc.loading import load_model
from sprc.opening import open_dataset

logger = logging.getLogger(__name__)

NO_REGION = "no region loss"

_DATA_KEYS = ("dataset", "train_split", "transform", "upstream_order")
"""Settings of the data that decide what a model is trained on, beside the folder."""
_OWN_KEYS = HARMLESS_KEYS | {
    *("run_dir", "training.device", "model.use_region_loss", "model.region_mode", "model.region_queries"),
    *("model.loss_region", "data.root", "data.box_file", "data.box_format", "data.min_coverage", "data.token_cache"),
    *("data.eval_split", "data.gallery"),
}
_OWN_SECTIONS = ("model.region_loss.", "evaluation.")
"""What a run without the region loss may set otherwise, and still differ in nothing else."""


def check_no_region_run(folder: str, settings: Settings) -> None:
    """Refuse a run that says nothing of the region loss of another one.

    Settings of its training that differ otherwise are logged: then the two runs differ in more than the region loss.

    Args:
        folder: The run folder without the region loss.
        settings: The settings of the run that is compared with it, as it was trained.

    Raises:
        ConfigError: Either run was trained with the wrong kind of loss, or they were trained on different data.
        ValueError: The run has no model, or its data cannot be read.
    """
    where = f"no_region_run {folder!r}"
    other = RunFolder.open(folder).load_settings(Settings)
    if not settings.model.use_region_loss:
        raise ConfigError(f"{where}: the run beside it has model.use_region_loss off, expected it on: nothing differs")
    if other.model.use_region_loss:
        raise ConfigError(f"{where}: it was trained with the region loss, expected model.use_region_loss off")
    found, wanted = vars(other.data), vars(settings.data)
    differing = [
        f"data.{key} {found[key]!r}, expected {wanted[key]!r}" for key in _DATA_KEYS if found[key] != wanted[key]
    ]
    if not differing and other.data.root != settings.data.root and _triplets(other.data) != _triplets(settings.data):
        differing = [f"other triplets in {other.data.root!r}, expected those of {settings.data.root!r}"]
    if differing:
        raise ConfigError(f"{where}: it was trained on other data: {'; '.join(differing)}")
    model_folder(folder)
    before, now = flatten(plain_tree(other)), flatten(plain_tree(settings))
    beside = [
        f"{key} ({before.get(key)!r} there, {now.get(key)!r} here)"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in _OWN_KEYS and not key.startswith(_OWN_SECTIONS)
    ]
    if beside:
        logger.warning("%s differs in more than the region loss: %s", where, ", ".join(beside))


def beside_no_region_run(
    found: Evaluation, *, data: DataSettings, split: str, options: EvaluationSettings, device: Device
) -> Evaluation:
    """Put the recalls of the run without the region loss beside those of a model that was trained with it.

    Args:
        found: The model's evaluation.
        data: Where the triplets are that the model was evaluated on.
        split: Their split.
        options: How the model was evaluated; `no_region_run` has passed `check_no_region_run`. Where it is None, a
            note says how to get the row.
        device: Where the other model runs.
    """
    if options.no_region_run is None:
        how = (
            f"The row {NO_REGION!r} is missing: train the same run with --model.use_region_loss false in a folder of "
            "its own, OTHER, then call `sprc evaluate RUN --no_region_run OTHER`."
        )
        return replace(found, note=how)
    model, tokenizer = load_model(options.no_region_run, device)
    dataset = open_dataset(data, model.config, split, with_regions=False)
    other = evaluate(model, tokenizer, dataset, replace(options, ablations=False))
    scores = {MODEL: found.scores[MODEL], NO_REGION: other.scores[MODEL]}
    note = f"{NO_REGION}: the model of {options.no_region_run}, by the same protocol."
    return replace(found, scores=scores | found.scores, note=note)


def _triplets(data: DataSettings) -> str:
    # Any size will do: no image is opened.
    return fingerprint(open_dataset(data, SPRCConfig(), data.train_split, training=True, with_regions=False))
