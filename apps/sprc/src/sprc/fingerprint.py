"""What tells one data set's triplets from another's."""

import hashlib

from sprc.data import TripletDataset


def fingerprint(dataset: TripletDataset) -> str:
    """Tells these triplets from others: their names, captions, regions and order."""
    digest = hashlib.sha256()
    for triplet in dataset.split.triplets:
        digest.update(repr((triplet.pair_id, triplet.reference, triplet.target, triplet.captions)).encode())
        if dataset.regions is not None:
            pairs = dataset.regions.original(triplet)
            digest.update(repr((pairs.reference.tolist(), pairs.target.tolist(), pairs.weights.tolist())).encode())
    return digest.hexdigest()
