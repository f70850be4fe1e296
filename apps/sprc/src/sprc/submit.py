"""`sprc submit RUN`: the two files of CIRR's test server, checked as the server checks them."""

from dataclasses import replace
from pathlib import Path

from region_training.run_folder import RunFolder
from region_training.settings import ConfigError
from rich.console import Console

from sprc.config import Settings
from sprc.encoding import compose_queries, encode_gallery
from sprc.index import GalleryIndex
from sprc.loading import load_model
from sprc.opening import open_dataset
from sprc.submission import write_cirr_submission
from sprc.verbs import SubmitSettings


def submit(settings: SubmitSettings) -> None:
    """Rank the gallery of a split without targets and write the files to upload.

    Raises:
        ConfigError: The run's data set is not CIRR, which alone has such a server.
    """
    trained = RunFolder.open(settings.run).load_settings(Settings)
    if trained.data.dataset != "CIRR":
        raise ConfigError(f"the run was trained on {trained.data.dataset}; the test server takes CIRR alone")
    model, tokenizer = load_model(settings.run, settings.device)
    data = replace(trained.data, root=settings.root or trained.data.root)
    dataset = open_dataset(data, model.config, settings.split, with_regions=False)
    split = dataset.split
    queries = compose_queries(
        model,
        tokenizer,
        [triplet.reference for triplet in split.triplets],
        {"model": [dataset.evaluation_caption(triplet) for triplet in split.triplets]},
        dataset.read_input,
        batch_size=settings.batch_size,
    )["model"]
    features = encode_gallery(model, split.gallery, dataset.read_input, batch_size=settings.batch_size)
    index = GalleryIndex(split.gallery, features).to(model.device)
    files = write_cirr_submission(Path(settings.output), index, queries, split.triplets)
    Console().print(f"recall: {files.recall}\nsubset: {files.subset}", markup=False, soft_wrap=True)
