"""`sprc cache RUN FOLDER`: keep the frozen tower's tokens of a split's images."""

from pathlib import Path

from region_training.run_folder import RunFolder
from rich.console import Console

from sprc.config import Settings
from sprc.loading import load_model
from sprc.opening import open_dataset, use_cached_tokens
from sprc.verbs import CacheSettings


def cache(settings: CacheSettings) -> None:
    """Encode the images of a split with the tower of a run; `data.token_cache` then names the folder."""
    trained = RunFolder.open(settings.run).load_settings(Settings)
    model, _ = load_model(settings.run, settings.device)
    training = settings.split == trained.data.train_split
    dataset = open_dataset(trained.data, model.config, settings.split, training=training, with_regions=False)
    use_cached_tokens(dataset, Path(settings.folder), model, batch_size=settings.batch_size)
    Console().print(f"tokens of {len(dataset.tokens or {})} images: {settings.folder}", markup=False, soft_wrap=True)
