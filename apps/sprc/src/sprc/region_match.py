"""Which region of a reference the model finds again in the target, and where: for the contact sheet."""

import numpy as np
import torch
from jaxtyping import Float

from sprc.contact_sheet import RegionMatch
from sprc.data import TripletDataset
from sprc.model import SPRCModel
from sprc.triplets import Triplet


@torch.no_grad()
def best_region_match(model: SPRCModel, dataset: TripletDataset, triplet: Triplet) -> RegionMatch | None:
    """The pair of regions with the most similar embeddings, among the boxes of a triplet's two images.

    Args:
        model: A model that was trained with the region loss, in evaluation mode.
        dataset: The triplet's data set.
        triplet: A triplet with a target.

    Returns:
        The match; None without boxes, or where none is left in the frame of the model's input.

    Raises:
        ValueError: A box or an image is not as it should be.
        OSError: An image cannot be opened.
    """
    if dataset.regions is None or triplet.target is None:
        return None
    pairs, found = dataset.regions.original(triplet), dataset.regions.read(triplet)
    if not found.kept.any():
        return None
    names = (triplet.reference, triplet.target)
    seen = [dataset.transform.read(dataset.split.image_path(name)).image for name in names]
    images = torch.stack(seen).to(model.device)
    boxes = torch.from_numpy(np.concatenate([found.reference, found.target])).float().to(model.device)
    owner = torch.arange(2, device=model.device).repeat_interleave(len(found.reference))
    of_reference, of_target = model.region_features(images, boxes, owner).chunk(2)
    similarity = of_reference @ of_target.T
    row, column = divmod(int(similarity.argmax()), len(of_target))
    return RegionMatch(
        _box(pairs.reference[found.kept][row]),
        triplet.target,
        _box(pairs.target[found.kept][column]),
        similarity[row, column].item(),
    )


def _box(numbers: Float[np.ndarray, "4"]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = numbers.tolist()
    return x0, y0, x1, y1
