"""From settings to a split's data set: which format, how images become square, which boxes, which cached tokens."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sprc.cirr import CIRRDataset
from sprc.config import DataSettings
from sprc.configuration import SPRCConfig
from sprc.data import TripletDataset
from sprc.fashioniq import FashionIQDataset
from sprc.model import SPRCModel
from sprc.oacirr import OACIRRDataset
from sprc.regions import BoxOptions
from sprc.token_cache import CacheKey, TokenCache, build_token_cache
from sprc.transforms import ImageTransform, build_transform


def open_dataset(
    settings: DataSettings,
    config: SPRCConfig,
    split: str,
    *,
    training: bool = False,
    with_regions: bool = True,
    seed: int = 0,
) -> TripletDataset:
    """Open a split.

    Args:
        settings: Where it is, and in which format.
        config: The model's configuration: size of the input, grid of its patches, pairing of regions.
        split: Name of the split.
        training: Captions are drawn, and only images that triplets name need to be there.
        with_regions: Read boxes, if there is a file of them.
        seed: Of the draws.
    """
    transform = transform_of(settings, config)
    options = BoxOptions(
        grid=(config.grid.height, config.grid.width),
        box_format=settings.box_format,
        loss=config.region,
        min_coverage=settings.min_coverage if training else 0.0,
    )
    box_file = settings.box_file.replace("{split}", split) if with_regions and settings.box_file else None
    open_split: Callable[..., TripletDataset] = CIRRDataset
    if settings.dataset == "FashionIQ":
        open_split = partial(FashionIQDataset, gallery=settings.gallery)
    elif settings.dataset == "OACIRR":
        open_split = partial(OACIRRDataset, with_regions=with_regions)
    return open_split(
        settings.root,
        split,
        transform=transform,
        box_file=box_file,
        box_options=options,
        training=training,
        seed=seed,
    )


def transform_of(settings: DataSettings, config: SPRCConfig) -> ImageTransform:
    """The transform from an image file to the model's input."""
    return build_transform(settings.transform, config.image_size)


def use_cached_tokens(
    dataset: TripletDataset, folder: Path, model: SPRCModel, *, batch_size: int, build: bool, show: bool = True
) -> None:
    """Let a data set read the frozen tower's tokens from a cache of its split.

    Args:
        dataset: The data set; from here on tokens take the place of its images.
        folder: Holds one cache per split.
        model: The model whose tower the tokens come from; only its tower is used.
        batch_size: Images per batch of a build.
        build: Make the cache where it is not there yet; one process of a run does.
        show: Show a progress bar.

    Raises:
        ValueError: The cache was made with another tower or another transform.
    """
    key = CacheKey.of(model.vision_tower, dataset.transform.key)
    place = folder / dataset.split.name
    if build:
        dataset.tokens = build_token_cache(
            place,
            needed_images(dataset),
            dataset.read_input,
            lambda images: model.image_tokens(images.to(model.device)).cpu(),
            key,
            batch_size=batch_size,
            show_progress=show,
        )
    else:
        dataset.tokens = TokenCache(place, key)


def needed_images(dataset: TripletDataset) -> list[str]:
    """Images that training or evaluation reads: those of the triplets, and the gallery where it is searched."""
    split = dataset.split
    named = [name for triplet in split.triplets for name in (triplet.reference, triplet.target) if name is not None]
    return list(dict.fromkeys(named if dataset.training else [*split.gallery, *named]))
