"""`sprc predict RUN --image ... --text ... --gallery ...`: search a folder of images."""

import hashlib
from pathlib import Path

from region_training.loading import model_folder
from region_training.run_folder import RunFolder
from rich.console import Console

from sprc.config import Settings
from sprc.contact_sheet import RetrievalCase, RetrievedImage, write_contact_sheet
from sprc.encoding import compose_queries, encode_gallery
from sprc.index import GalleryIndex, IndexKey
from sprc.loading import load_model
from sprc.model import SPRCModel
from sprc.opening import transform_of
from sprc.text import clean_caption
from sprc.token_cache import file_stamps, weights_hash
from sprc.transforms import ImageTransform, build_transform
from sprc.verbs import PredictSettings

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def predict(settings: PredictSettings) -> None:
    """Find the images that show the reference with the wanted difference, and write a contact sheet.

    Raises:
        ValueError: The gallery folder holds no image, or an image cannot be read.
    """
    model, tokenizer = load_model(settings.model, settings.device)
    transform = _transform(settings.model, model)
    folder = Path(settings.gallery)
    files = list_images(folder)

    # The query first: a mistake in it is found before a large gallery is read.
    reference = Path(settings.image)
    caption = clean_caption(settings.text)
    query = compose_queries(
        model,
        tokenizer,
        [str(reference)],
        {"model": [caption]},
        lambda name: transform.read(Path(name)).image,
        batch_size=1,
    )["model"]
    index = open_index(settings, model, transform, files)
    # The reference itself is no answer, wherever it lies.
    own = [name for name, file in files.items() if file.resolve() == reference.resolve()]
    found = index.search(query, settings.top_k, exclude=index.position_table([own]))
    results = tuple(
        RetrievedImage(index.names[position], files[index.names[position]], score)
        for position, score in zip(found.positions[0].tolist(), found.scores[0].tolist(), strict=True)
        if position >= 0
    )
    console = Console()
    for place, image in enumerate(results, 1):
        console.print(f"{place:3d}  {image.score:.3f}  {image.path}", markup=False, highlight=False, soft_wrap=True)
    case = RetrievalCase(pair_id=reference.name, reference=reference, caption=settings.text, results=results)
    page = write_contact_sheet(settings.output, [case], title="retrieved images")
    console.print(f"contact sheet: {page}", markup=False, soft_wrap=True)


def list_images(folder: Path) -> dict[str, Path]:
    """The images of a folder and of those below it, by their path in it.

    Raises:
        ValueError: There is none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"--gallery {str(folder)!r}: no image there ({', '.join(SUFFIXES)})")
    return {str(path.relative_to(folder)): path for path in files}


def open_index(
    settings: PredictSettings, model: SPRCModel, transform: ImageTransform, files: dict[str, Path]
) -> GalleryIndex:
    """The gallery's features: kept from an earlier call with the same weights and files, or made now."""
    gallery = f"{Path(settings.gallery).resolve()} {hash_of(repr(file_stamps(files)))}"
    key = IndexKey(weights_hash(model), transform.key, model.config.image_constants, gallery)
    kept = None if settings.index is None else Path(settings.index) / f"{hash_of(repr(key))}.safetensors"
    if kept is not None and kept.is_file():
        return GalleryIndex.load(kept, key=key).to(model.device)
    names = list(files)
    features = encode_gallery(
        model, names, lambda name: transform.read(files[name]).image, batch_size=settings.batch_size
    )
    index = GalleryIndex(names, features, key=key)
    if kept is not None:
        index.save(kept)
    return index.to(model.device)


def hash_of(text: str) -> str:
    """A short name for a long text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _transform(folder: str, model: SPRCModel) -> ImageTransform:
    """The transform that the run was trained with; CLIP4Cir's for a model folder outside of any run."""
    for path in (Path(folder), model_folder(folder).resolve().parent):
        run = RunFolder(path)
        if run.config_path.is_file():
            return transform_of(run.load_settings(Settings).data, model.config)
    return build_transform("targetpad", model.config.image_size)
