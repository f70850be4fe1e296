"""From settings to a split's data set: which format, how images become square, which boxes, which cached tokens."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from region_training.ranks import Ranks

from sprc.cirr import CIRRDataset, read_cirr
from sprc.config import DataSettings
from sprc.configuration import SPRCConfig
from sprc.data import TripletDataset
from sprc.fashioniq import FashionIQDataset, read_fashioniq
from sprc.model import SPRCModel
from sprc.oacirr import OACIRRDataset, read_oacirr
from sprc.regions import BoxOptions
from sprc.token_build import build_token_cache
from sprc.token_cache import CacheKey
from sprc.transforms import ImageTransform, build_transform
from sprc.triplets import TripletSplit


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
    open_split: Callable[..., TripletDataset] = CIRRDataset
    if settings.dataset == "FashionIQ":
        open_split = partial(FashionIQDataset, gallery=settings.gallery)
    elif settings.dataset == "OACIRR":
        open_split = partial(OACIRRDataset, with_regions=with_regions)
    return open_split(
        settings.root,
        split,
        transform=transform_of(settings, config),
        box_file=box_file_of(settings, split) if with_regions else None,
        box_options=box_options_of(settings, config, training=training),
        training=training,
        seed=seed,
        on_missing=settings.on_missing,
    )


def transform_of(settings: DataSettings, config: SPRCConfig) -> ImageTransform:
    """The transform from an image file to the model's input."""
    return build_transform(settings.transform, config.image_size, upstream_order=settings.upstream_order)


def box_file_of(settings: DataSettings, split: str) -> str | None:
    """The box file of a split, where there is one."""
    return settings.box_file.replace("{split}", split) if settings.box_file else None


def box_options_of(settings: DataSettings, config: SPRCConfig, *, training: bool) -> BoxOptions:
    """How boxes are read, paired and filtered; only what is trained on must be covered by them."""
    return BoxOptions(
        grid=(config.grid.height, config.grid.width),
        box_format=settings.box_format,
        loss=config.region,
        min_coverage=settings.min_coverage if training else 0.0,
    )


def read_split(settings: DataSettings, split: str, transform: ImageTransform) -> TripletSplit:
    """The records of a split; whether its images are there is not asked."""
    if settings.dataset == "CIRR":
        return read_cirr(settings.root, split)
    if settings.dataset == "FashionIQ":
        return read_fashioniq(settings.root, split, gallery=settings.gallery)
    return read_oacirr(settings.root, split, transform)


def use_cached_tokens(
    dataset: TripletDataset,
    folder: Path,
    model: SPRCModel,
    *,
    batch_size: int,
    ranks: Ranks | None = None,
    show: bool = True,
) -> None:
    """Let a data set read the frozen tower's tokens from a cache of its split, which is made where it is not there.

    Args:
        dataset: The data set; from here on tokens take the place of its images.
        folder: Holds one cache per split.
        model: The model whose tower the tokens come from; only its tower is used.
        batch_size: Images per batch of a build.
        ranks: Processes that share a build; each must call this.
        show: Show a progress bar.

    Raises:
        ValueError: The cache was made with another tower or another transform, or of other image files.
    """
    dataset.tokens = build_token_cache(
        folder / dataset.split.name,
        {name: dataset.split.image_path(name) for name in needed_images(dataset)},
        dataset.read_input,
        lambda images: model.image_tokens(images.to(model.device)).cpu(),
        CacheKey.of(model.vision_tower, dataset.transform.key, model.config.tower_constants),
        batch_size=batch_size,
        show_progress=show,
        ranks=ranks,
    )


def needed_images(dataset: TripletDataset) -> list[str]:
    """Images that training or evaluation reads: those of the triplets, and the gallery where it is searched."""
    split = dataset.split
    named = [name for triplet in split.triplets for name in (triplet.reference, triplet.target) if name is not None]
    return list(dict.fromkeys(named if dataset.training else [*split.gallery, *named]))
